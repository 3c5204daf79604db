"""The guard on each kind of connection and at each isolation level (S5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import product
from typing import Any

import psycopg
import pytest
from cluster import Cluster, wanted
from hands import ISOLATIONS, KINDS, Hand, is_serialization_failure
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session

from jobsync_celery.errors import Fenced, StoreError
from jobsync_celery.store.guard import Guard
from jobsync_celery.store.outcomes import Busy, Granted

RUN = wanted("t").run
CHECKS = ("hold", "complete")
EFFECT = "INSERT INTO effect VALUES (1)"

each_kind = pytest.mark.parametrize("kind", KINDS)
each_isolation = pytest.mark.parametrize("isolation", ISOLATIONS)
each_strict_isolation = pytest.mark.parametrize("isolation", ISOLATIONS[1:])
each_check = pytest.mark.parametrize("check", CHECKS)

MakeHand = Callable[..., Hand]


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    cluster = Cluster(database_url)
    cluster.rows("CREATE TABLE effect (n int)")
    return cluster


@pytest.fixture
def guard(cluster: Cluster) -> Guard:
    return Guard(cluster.database.tables.claim, database=cluster.database)


@pytest.fixture
def fence(cluster: Cluster) -> int:
    """Of the running claim of run "t", held by node "a"."""
    (granted,) = cluster.claim("a", cluster.join("a", 0), wanted("t"))
    assert isinstance(granted, Granted)
    return granted.fence


@pytest.fixture
def hand_of(database_url: str) -> Iterator[MakeHand]:
    hands: list[Hand] = []

    def make(kind: str, isolation: str = ISOLATIONS[0], url: str = database_url) -> Hand:
        hands.append(KINDS[kind](url, isolation))
        return hands[-1]

    yield make
    for hand in hands:
        hand.close()


def evict(cluster: Cluster) -> None:
    ((incarnation,),) = cluster.rows("SELECT incarnation FROM {node} WHERE name = 'a' AND state = 'live'")
    assert cluster.bury("a", incarnation)
    cluster.within(cluster.store.partitions.free_orphans)
    cluster.within(cluster.store.claims.settle)


def effects(cluster: Cluster) -> int:
    return int(cluster.rows("SELECT count(*) FROM effect")[0][0])


def run_guarded(hand: Hand, check: Callable[..., None], fence: int, before: Callable[[], object] = bool) -> None:
    """A transaction with an effect, then ``before``, then the guard."""
    with hand.transaction():
        hand.execute(EFFECT)
        before()
        check(hand.handle, RUN, fence)


def usable(hand: Hand) -> bool:
    """Whether the hand's transaction still answers, and so was not aborted."""
    rows: list[tuple[Any]] = hand.execute("SELECT 1")
    return rows == [(1,)]


@each_check
@each_isolation
@each_kind
def test_the_transaction_of_a_held_claim_commits(
    cluster: Cluster, guard: Guard, fence: int, hand_of: MakeHand, kind: str, isolation: str, check: str
) -> None:
    hand = hand_of(kind, isolation)
    with hand.transaction():
        assert hand.execute("SHOW transaction_isolation") == [(isolation.lower(),)]
        getattr(guard, check)(hand.handle, RUN, fence)
        hand.execute(EFFECT)
    assert (effects(cluster), cluster.states()) == (1, {"t": "done" if check == "complete" else "running"})


@each_check
@each_isolation
@each_kind
def test_the_transaction_of_a_lost_claim_rolls_back_also_when_the_loss_came_after_its_snapshot(
    cluster: Cluster, guard: Guard, fence: int, hand_of: MakeHand, kind: str, isolation: str, check: str
) -> None:
    hand = hand_of(kind, isolation)
    with pytest.raises(Fenced, match="task t"):
        run_guarded(hand, getattr(guard, check), fence, before=lambda: evict(cluster))
    assert cluster.states() == {"t": "lost"}
    with pytest.raises(Fenced, match="task t"):
        run_guarded(hand, getattr(guard, check), fence)
    assert (effects(cluster), cluster.states()) == (0, {"t": "lost"})


@each_check
@each_strict_isolation
@each_kind
def test_the_transaction_of_a_claim_that_was_taken_over_after_its_snapshot_rolls_back(
    cluster: Cluster, guard: Guard, fence: int, hand_of: MakeHand, kind: str, isolation: str, check: str
) -> None:
    def take_over() -> None:
        evict(cluster)
        (taken,) = cluster.claim("b", cluster.join("b", 0), wanted("t"))
        assert isinstance(taken, Granted) and taken.fence > fence

    with pytest.raises(Fenced):
        run_guarded(hand_of(kind, isolation), getattr(guard, check), fence, before=take_over)
    assert (effects(cluster), cluster.states()) == (0, {"t": "running"})


@each_check
@each_strict_isolation
@each_kind
def test_a_claim_for_whose_key_somebody_has_begun_to_wait_is_not_lost_but_its_transaction_is_to_be_tried_again(
    cluster: Cluster, guard: Guard, fence: int, hand_of: MakeHand, kind: str, isolation: str, check: str
) -> None:
    """The waiting one marks the claim, so PostgreSQL refuses a lock to whose snapshot is older."""

    def wait() -> None:
        ((incarnation,),) = cluster.rows("SELECT incarnation FROM {node}")
        (outcome,) = cluster.claim("a", incarnation, wanted("another"))
        assert outcome == Busy("a", told=True)

    hand = hand_of(kind, isolation)
    with pytest.raises(Exception, match="concurrent update") as caught:
        run_guarded(hand, getattr(guard, check), fence, before=wait)
    assert is_serialization_failure(caught.value) and not isinstance(caught.value, Fenced)
    run_guarded(hand, getattr(guard, check), fence)
    assert (effects(cluster), cluster.states()) == (1, {"t": "done" if check == "complete" else "running"})


@each_isolation
@each_kind
def test_a_guarded_claim_is_not_settled_before_the_transaction_ends(
    cluster: Cluster, guard: Guard, fence: int, hand_of: MakeHand, kind: str, isolation: str
) -> None:
    hand = hand_of(kind, isolation)
    with hand.transaction():
        guard.hold(hand.handle, RUN, fence)
        evict(cluster)
        assert cluster.states() == {"t": "running"}
        hand.execute(EFFECT)
    assert effects(cluster) == 1
    assert cluster.within(cluster.store.claims.settle) == 1


@each_kind
def test_a_guard_that_committed_after_the_snapshot_takes_nothing_from_ours(
    cluster: Cluster, guard: Guard, fence: int, hand_of: MakeHand, kind: str
) -> None:
    """Locking is not writing: a body with two transactions at once is not fenced by itself."""
    other = hand_of("psycopg2")
    for isolation in ISOLATIONS[1:]:
        run_guarded(hand_of(kind, isolation), guard.hold, fence, before=lambda: run_guarded(other, guard.hold, fence))
    assert effects(cluster) == 4


@each_check
@each_kind
def test_outside_of_a_transaction_nothing_is_done_and_the_error_says_how_to_open_one(
    cluster: Cluster, guard: Guard, fence: int, hand_of: MakeHand, kind: str, check: str
) -> None:
    hand = hand_of(kind)
    advice = {"Django": "transaction.atomic", "psycopg2": "commit", "psycopg 3": r"connection.transaction\(\)"}
    with hand.autocommit():
        with pytest.raises(StoreError, match=f"no transaction is open.*{advice.get(kind, 'begin')}"):
            getattr(guard, check)(hand.handle, RUN, fence)
        assert usable(hand)
    assert cluster.states() == {"t": "running"}


@each_kind
def test_another_database_is_told_apart_and_its_transaction_is_not_harmed(
    database_url: str, guard: Guard, fence: int, hand_of: MakeHand, kind: str
) -> None:
    elsewhere = str(make_url(database_url).set(database="postgres").render_as_string(False))
    for isolation, check in product(ISOLATIONS, CHECKS):
        hand = hand_of(kind, isolation, elsewhere)
        with hand.transaction():
            with pytest.raises(StoreError, match=r"'postgres' shows no table .*CoordinationConfig"):
                getattr(guard, check)(hand.handle, RUN, fence)
            assert usable(hand)


@each_kind
def test_the_database_of_another_cluster_is_told_apart_and_its_transaction_is_not_harmed(
    cluster: Cluster, guard: Guard, fence: int, hand_of: MakeHand, kind: str
) -> None:
    other = wanted("other").run
    for isolation, check in product(ISOLATIONS, CHECKS):
        hand = hand_of(kind, isolation)
        with hand.transaction():
            with pytest.raises(StoreError, match=r"knows no claim of task other.*another cluster"):
                getattr(guard, check)(hand.handle, other, fence)
            hand.execute(EFFECT)
    assert (effects(cluster), cluster.states()) == (6, {"t": "running"})


@each_kind
def test_a_snapshot_older_than_the_claim_is_named_as_a_reason(
    cluster: Cluster, guard: Guard, fence: int, hand_of: MakeHand, kind: str
) -> None:
    hand = hand_of(kind, "SERIALIZABLE")
    with hand.transaction():
        assert usable(hand)
        (later,) = cluster.claim("b", cluster.join("b", 1), wanted("u", "l", 1))
        assert isinstance(later, Granted)
        with pytest.raises(StoreError, match="snapshot is older than the claim"):
            guard.hold(hand.handle, wanted("u").run, later.fence)
        assert usable(hand)


@each_check
def test_a_read_only_transaction_is_refused_and_not_harmed(
    guard: Guard, fence: int, hand_of: MakeHand, check: str
) -> None:
    hand = hand_of("psycopg 3")
    with hand.transaction():
        hand.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(StoreError, match=r"read-only.*standby"):
            getattr(guard, check)(hand.handle, RUN, fence)
        assert usable(hand)


@each_check
def test_a_role_that_may_not_lock_claims_is_told_what_to_grant(
    cluster: Cluster, guard: Guard, fence: int, hand_of: MakeHand, check: str
) -> None:
    hand = hand_of("psycopg2")
    with hand.transaction():
        hand.execute("CREATE ROLE visitor")
        hand.execute("GRANT SELECT ON sync_claim TO visitor")
        hand.execute("SET LOCAL ROLE visitor")
        with pytest.raises(StoreError, match=r"GRANT SELECT, UPDATE ON .*sync_claim.* TO visitor"):
            getattr(guard, check)(hand.handle, RUN, fence)
        hand.execute("RESET ROLE")
        hand.execute("GRANT UPDATE ON sync_claim TO visitor")
        hand.execute("SET LOCAL ROLE visitor")
        getattr(guard, check)(hand.handle, RUN, fence)
        hand.execute("RESET ROLE")
        hand.execute("REVOKE ALL ON sync_claim FROM visitor")
        hand.execute("DROP ROLE visitor")


def test_a_serialization_failure_of_another_kind_stays_the_drivers_and_is_worth_a_retry(
    cluster: Cluster, guard: Guard, fence: int, hand_of: MakeHand
) -> None:
    """Write skew between two users: the claim is still ours."""
    first, second = hand_of("psycopg 3", "SERIALIZABLE"), hand_of("psycopg2", "SERIALIZABLE")
    count = "SELECT count(*) FROM effect"

    def skew() -> None:
        first.execute(count)
        with second.transaction():
            second.execute(count)
            second.execute(EFFECT)

    with pytest.raises(psycopg.errors.SerializationFailure):
        run_guarded(first, guard.hold, fence, before=skew)
    run_guarded(first, guard.hold, fence)
    assert effects(cluster) == 2


def test_what_can_guard_nothing_is_refused_with_a_list_of_what_can(guard: Guard, database_url: str) -> None:
    sqlite = create_engine("sqlite://")
    with Session(sqlite) as session, pytest.raises(StoreError, match=r"to sqlite.*claim.fence"):
        guard.hold(session, RUN, 1)
    for wrong in (None, 42, sqlite, database_url):
        with pytest.raises(StoreError, match=r"SQLAlchemy Session or Connection, a Django connection.*psycopg 3"):
            guard.complete(wrong, RUN, 1)


def test_an_async_connection_is_refused_with_the_way_out(guard: Guard) -> None:
    class AsyncSession:
        """As SQLAlchemy's: the same method is a coroutine function."""

        async def commit(self) -> None:
            """Not called."""

    for wrong in (AsyncSession(), psycopg.AsyncConnection.__new__(psycopg.AsyncConnection)):
        with pytest.raises(StoreError, match=r"async.*run_sync\(claim.guard\)"):
            guard.hold(wrong, RUN, 1)


def test_the_table_is_found_by_its_schema_whatever_the_search_path(
    cluster: Cluster, fence: int, hand_of: MakeHand
) -> None:
    hand = hand_of("psycopg 3")
    with closing(cluster.link("observer")) as link:
        link.statement(text("CREATE SCHEMA elsewhere"))
    with hand.transaction():
        hand.execute("SET LOCAL search_path TO elsewhere")
        Guard('"public"."sync_claim"').hold(hand.handle, RUN, fence)
        with pytest.raises(StoreError, match="search path"):
            Guard('"sync_claim"').hold(hand.handle, RUN, fence)
