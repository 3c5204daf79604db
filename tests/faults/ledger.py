"""The ledger: a table of the harness's own, in which bodies have effects, and what the database notes of lost claims.

When a claim is lost or taken over, a trigger notes which transactions were committed at that moment, while the claim's
row is locked: every effect of that claim has to be among them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, Protocol

import psycopg2

from tests.faults.history import RunId

#: Once the workers have made their tables.
CREATE = """
CREATE TABLE faults_ledger (
    task_id text, origin text, retries int, n int, fence bigint, completes boolean,
    xid xid8 DEFAULT pg_current_xact_id()
);
CREATE TABLE faults_loss (task_id text, origin text, retries int, fence bigint, committed pg_snapshot);
CREATE FUNCTION faults_note_loss() RETURNS trigger LANGUAGE plpgsql VOLATILE AS $$ BEGIN
    INSERT INTO faults_loss VALUES (OLD.task_id, OLD.origin, OLD.retries, OLD.fence, pg_current_snapshot());
    RETURN NULL;
END $$;
CREATE TRIGGER faults_note_loss AFTER UPDATE ON sync_claim FOR EACH ROW
    WHEN (OLD.state = 'running' AND OLD.fence <> 0 AND (NEW.state = 'lost' OR NEW.fence <> OLD.fence))
    EXECUTE FUNCTION faults_note_loss()
"""
ENTRIES = "SELECT task_id, origin, retries, fence, completes, xid::text AS xid FROM faults_ledger"
LOSSES = "SELECT task_id, origin, retries, fence, committed::text AS committed FROM faults_loss"
COMPLETED = "SELECT DISTINCT n FROM faults_ledger WHERE completes"
_ENTER = "INSERT INTO faults_ledger (task_id, origin, retries, n, fence, completes) VALUES (%s, %s, %s, %s, %s, %s)"
#: A claim that a silent transaction holds locked is nobody's for so long: half a lease.
_OPTIONS = {"connect_timeout": 2, "options": "-c idle_in_transaction_session_timeout=1000 -c lock_timeout=1000"}
#: The name that the workers' own sessions have too, for those who end them.
_NAME = "jobsync faults body"


class Fenced(Protocol):
    """What a body's claim does here."""

    fence: int

    def guard(self, session: Any) -> None:
        """Let the transaction commit only while the claim is ours."""

    def complete(self, session: Any) -> None:
        """And end it together with the transaction."""


def enter(
    dsn: str,
    run: RunId,
    n: int,
    claim: Fenced,
    *,
    completes: bool,
    dawdle: Callable[[], None],
    before_commit: Callable[[], None],
) -> None:
    """Commit one row under the claim; raises what the claim or psycopg2 raises, committed or not.

    Arguments:
        dawdle: called where an eviction hurts: between effect and guard, and between guard and commit.
        before_commit: called when all is done but the commit.
    """
    with closing(psycopg2.connect(dsn, application_name=_NAME, **_OPTIONS)) as connection, connection:
        with connection.cursor() as cursor:
            cursor.execute(_ENTER, (*run, n, claim.fence, completes))
        dawdle()
        (claim.complete if completes else claim.guard)(connection)
        dawdle()
        before_commit()
