"""The guard: the user's transaction commits only while the claim is still ours, and complete happens once (S5)."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from cluster import Cluster, ending, wanted
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from jobsync_celery.errors import Fenced, StoreError
from jobsync_celery.store.guard import Guard
from jobsync_celery.store.outcomes import Busy, Granted

RUN = wanted("t").run


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


@pytest.fixture
def engine(cluster: Cluster, database_url: str) -> Iterator[Engine]:
    """The user's own, beside the coordination's."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (n int)"))
    yield engine
    engine.dispose()


@pytest.fixture
def guard(cluster: Cluster) -> Guard:
    return Guard(cluster.database.tables.claim)


def claimed(cluster: Cluster) -> tuple[int, int]:
    """A running claim: the incarnation that holds it, and its fence."""
    incarnation = cluster.join("a", 0)
    (granted,) = cluster.claim("a", incarnation, wanted("t"))
    assert isinstance(granted, Granted)
    return incarnation, granted.fence


def effects(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM effect")).scalar_one())


def evict(cluster: Cluster, incarnation: int) -> None:
    def work(tx: Connection) -> None:
        cluster.store.nodes.declare_dead(tx, "a", incarnation, None)
        cluster.store.partitions.free_orphans(tx)
        cluster.store.claims.settle(tx)

    cluster.within(work)


@pytest.mark.parametrize("kind", [Session, Engine.connect])
def test_a_guarded_transaction_commits_while_the_claim_is_ours(
    cluster: Cluster, engine: Engine, guard: Guard, kind: type[Session]
) -> None:
    _, fence = claimed(cluster)
    with kind(engine) as session, session.begin():
        guard.hold(session, RUN, fence)
        session.execute(text("INSERT INTO effect VALUES (1)"))
    assert effects(engine) == 1


def test_a_guarded_transaction_of_an_evicted_node_rolls_back(cluster: Cluster, engine: Engine, guard: Guard) -> None:
    incarnation, fence = claimed(cluster)
    evict(cluster, incarnation)

    def work(session: Session) -> None:
        session.execute(text("INSERT INTO effect VALUES (1)"))
        guard.hold(session, RUN, fence)

    with pytest.raises(Fenced, match="t"), Session(engine) as session, session.begin():
        work(session)
    assert effects(engine) == 0


def test_a_claim_that_a_failover_lost_is_fenced_and_one_of_another_cluster_is_an_error(
    cluster: Cluster, engine: Engine
) -> None:
    _, fence = claimed(cluster)
    guard = Guard(cluster.database.tables.claim, cluster.database.tables.timeline)
    cluster.rows("DELETE FROM {claim}")
    with engine.connect() as connection, connection.begin(), pytest.raises(Fenced, match="failed over"):
        guard.hold(connection, RUN, fence - (1 << 40))  # granted on the timeline before this one
    with engine.connect() as connection, connection.begin(), pytest.raises(StoreError, match="another cluster"):
        guard.hold(connection, RUN, fence)


def test_an_older_fence_is_fenced_after_a_take_over(cluster: Cluster, engine: Engine, guard: Guard) -> None:
    incarnation, fence = claimed(cluster)
    evict(cluster, incarnation)
    (taken,) = cluster.claim("b", cluster.join("b", 0), wanted("t"))
    assert isinstance(taken, Granted)
    with engine.begin() as connection:
        guard.hold(connection, RUN, taken.fence)
    for check in (guard.hold, guard.complete):
        with pytest.raises(Fenced), engine.begin() as connection:
            check(connection, RUN, fence)


def test_a_guarded_claim_is_skipped_by_the_eviction_and_settled_at_the_next_pass(
    cluster: Cluster, engine: Engine, guard: Guard
) -> None:
    incarnation, fence = claimed(cluster)
    b = cluster.join("b", 1)
    with engine.begin() as connection:
        guard.hold(connection, RUN, fence)
        connection.execute(text("INSERT INTO effect VALUES (1)"))
        evict(cluster, incarnation)  # does not wait
        assert cluster.states() == {"t": "running"}
        # Only its own key is delayed.
        busy, granted = cluster.claim("b", b, wanted("u", "k", 1), wanted("v", "l", 1))
        assert busy == Busy("a", told=False) and isinstance(granted, Granted)
    assert effects(engine) == 1
    assert cluster.within(cluster.store.claims.settle) == 1
    assert cluster.states() == {"t": "lost", "v": "running"}
    with pytest.raises(Fenced), engine.begin() as connection:
        guard.hold(connection, RUN, fence)


def test_completing_records_done_with_the_effect_or_not_at_all(cluster: Cluster, engine: Engine, guard: Guard) -> None:
    _, fence = claimed(cluster)
    with engine.connect() as connection:
        guard.complete(connection, RUN, fence)
        connection.execute(text("INSERT INTO effect VALUES (1)"))
        connection.rollback()
    assert (cluster.states(), effects(engine)) == ({"t": "running"}, 0)
    with engine.begin() as connection:
        guard.complete(connection, RUN, fence)
        connection.execute(text("INSERT INTO effect VALUES (1)"))
    assert (cluster.states(), effects(engine)) == ({"t": "done"}, 1)


def test_completing_happens_exactly_once_and_its_end_is_recorded_after_it(
    cluster: Cluster, engine: Engine, guard: Guard
) -> None:
    _, fence = claimed(cluster)
    start, fenced = threading.Barrier(4), []

    def complete() -> None:
        start.wait(10)
        try:
            with engine.begin() as connection:
                guard.complete(connection, RUN, fence)
                connection.execute(text("INSERT INTO effect VALUES (1)"))
        except Fenced as error:
            fenced.append(error)

    for future in [cluster.meanwhile(complete) for _ in range(4)]:
        future.result(10)
    assert (effects(engine), len(fenced)) == (1, 3)
    assert cluster.end(ending(wanted("t"), Granted(fence, 1))) == {RUN}


def test_an_end_waits_for_nobody_who_guards_another_key(cluster: Cluster, engine: Engine, guard: Guard) -> None:
    """A session that a task left open under guard delays only its own key."""
    incarnation, fence = claimed(cluster)
    (other,) = cluster.claim("a", incarnation, wanted("u", "l"))
    with engine.begin() as connection:
        guard.hold(connection, RUN, fence)
        assert cluster.end(ending(wanted("u", "l"), other)) == {wanted("u", "l").run}
