"""The database notes when a claim is lost, so that an effect committed late can be told from one in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from tests.faults import ledger
from tests.faults.history import Entry, Loss, RunId, entries_of, losses_of
from tests.faults.tables import Tables

RUN = RunId("id0", "o", 0)
CLAIMS = """
CREATE TABLE sync_claim (task_id text, origin text, retries int, fence bigint, state text);
INSERT INTO sync_claim VALUES ('id0', 'o', 0, 0, 'running')
"""


class Claim:
    """A claim that guards nothing."""

    fence = 7

    def guard(self, session: Any) -> None:
        """Let it commit whatever was lost."""

    def complete(self, session: Any) -> None:
        """Let it commit whatever was lost."""


@pytest.fixture
def dsn(database_url: str) -> str:
    return database_url.replace("postgresql+psycopg2", "postgresql")


@pytest.fixture
def tables(dsn: str) -> Iterator[Tables]:
    with closing(Tables(lambda: dsn, "test")) as tables:
        tables.rows(CLAIMS)
        tables.rows(ledger.CREATE)
        tables.rows("UPDATE sync_claim SET fence = 7")
        yield tables


def known(tables: Tables) -> tuple[list[Entry], list[Loss]]:
    return entries_of(tables.rows(ledger.ENTRIES)), losses_of(tables.rows(ledger.LOSSES))


def nothing() -> None:
    """Commit at once."""


@pytest.mark.parametrize("change", ["state = 'lost'", "fence = 8"], ids=["lost", "taken over by the same holder"])
def test_what_was_committed_before_the_loss_is_told_from_what_was_committed_after(
    tables: Tables, dsn: str, change: str
) -> None:
    def lose() -> None:
        tables.rows(f"UPDATE sync_claim SET {change}")

    ledger.enter(dsn, RUN, 0, Claim(), completes=False, dawdle=nothing, before_commit=nothing)
    ledger.enter(dsn, RUN, 0, Claim(), completes=True, dawdle=nothing, before_commit=lose)
    (in_time, late), (loss,) = known(tables)
    assert (in_time[:3], late[:3], loss[:2]) == ((RUN, 7, False), (RUN, 7, True), (RUN, 7))
    assert loss.saw(in_time.xid)
    assert not loss.saw(late.xid)


def test_a_claim_that_ends_well_is_no_loss(tables: Tables) -> None:
    tables.rows("UPDATE sync_claim SET state = 'done'")
    assert known(tables) == ([], [])


def test_an_effect_that_the_claim_forbids_is_not_there(
    tables: Tables, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(self: Claim, session: Any) -> None:
        session.cursor().execute("SELECT no_such_thing")

    monkeypatch.setattr(Claim, "guard", forbid)
    with pytest.raises(psycopg2.Error):
        ledger.enter(dsn, RUN, 0, Claim(), completes=False, dawdle=nothing, before_commit=nothing)
    assert known(tables) == ([], [])
