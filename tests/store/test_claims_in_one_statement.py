"""Ends and claims in one statement: the same promises as in a transaction, though there is one snapshot only."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import pytest
from cluster import Cluster, ending, wanted

from jobsync_celery.store.claims import LOST_AT_ONCE
from jobsync_celery.store.database import Database, Timeouts
from jobsync_celery.store.guard import Guard
from jobsync_celery.store.outcomes import Busy, Committed, Ending, Granted, Known, NotOurs, Wanted


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


def commit(
    cluster: Cluster,
    incarnation: int,
    ends: Sequence[Ending] = (),
    wants: Sequence[Wanted] = (),
    session: str = "claimer",
    name: str = "a",
) -> Committed:
    with closing(cluster.link(session)) as link:
        return cluster.store.claims.commit(link, name, incarnation, ends, wants)


def test_a_keys_next_claim_stands_beside_its_predecessors_end(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    first, second = wanted("one"), wanted("two")
    granted = commit(cluster, incarnation, [], [first]).outcomes[first.run]
    both = commit(cluster, incarnation, [ending(first, granted)], [second])
    assert both.recorded == {first.run} and not both.delayed
    next_one = both.outcomes[second.run]
    assert isinstance(granted, Granted) and isinstance(next_one, Granted) and next_one.fence > granted.fence
    assert cluster.states() == {"one": "done", "two": "running"}


def test_a_statement_that_waited_for_an_eviction_grants_nothing(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    with cluster.database.transaction() as tx:
        assert cluster.store.nodes.declare_dead(tx, "a", incarnation, 0)
        late = cluster.meanwhile(lambda: commit(cluster, incarnation, [], [wanted("t")]))
        cluster.await_blocked("claimer")
    assert late.result(10).outcomes == {wanted("t").run: NotOurs()}
    assert cluster.states() == {}


def test_a_statement_that_waited_for_a_release_grants_only_the_rest(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0, 1)
    wants = [wanted("t"), wanted("u", "l", 1)]
    with cluster.database.transaction() as tx:
        assert cluster.store.partitions.release(tx, [0], incarnation) == {0}
        late = cluster.meanwhile(lambda: commit(cluster, incarnation, [], wants))
        cluster.await_blocked("claimer")
    outcomes = late.result(10).outcomes
    assert outcomes[wants[0].run] == NotOurs() and isinstance(outcomes[wants[1].run], Granted)


@pytest.mark.parametrize("rival", ["eviction", "release"])
def test_eviction_and_release_wait_for_a_statement_in_progress(cluster: Cluster, rival: str) -> None:
    incarnation = cluster.join("a", 0)
    former = cluster.join("former", 7)

    def take_away() -> object:
        if rival == "release":
            return cluster.within(lambda tx: cluster.store.partitions.release(tx, [0], incarnation), "rival")
        return cluster.within(lambda tx: cluster.store.nodes.declare_dead(tx, "a", incarnation, None), "rival")

    with cluster.database.transaction() as tx:  # another owner's claim of the key holds the statement up half-way
        cluster.store.claims.claim(tx, "former", former, [wanted("blocker", "k", 7)])
        claiming = cluster.meanwhile(lambda: commit(cluster, incarnation, [], [wanted("t")]))
        cluster.await_blocked("claimer")
        rivalling = cluster.meanwhile(take_away)
        cluster.await_blocked("rival")
    assert rivalling.result(10)
    assert claiming.result(10).outcomes[wanted("t").run] in (Busy("former"), NotOurs())


def test_a_statement_gives_every_request_its_own_outcome(cluster: Cluster) -> None:
    ghost = cluster.join("ghost", 3)
    cluster.claim("ghost", ghost, wanted("orphan", "k-orphan", 3))
    cluster.bury("ghost", ghost)
    cluster.within(cluster.store.partitions.free_orphans)
    a, b = cluster.join("a", 0, 3), cluster.join("b", 1)
    done, lost, later = wanted("done", "k-done"), wanted("lost", "k-lost"), wanted("older", "k-older", retries=1)
    granted = cluster.claim("a", a, done, lost, later, wanted("mine", "k-mine"))
    cluster.end(ending(done, granted[0]), ending(lost, granted[1], "lost"), ending(later, granted[2]))
    cluster.claim("b", b, wanted("busy", "k-busy", 1))
    batch = [
        wanted("new", "k-new"),
        done,
        lost,
        wanted("mine", "k-mine"),
        wanted("orphan", "k-orphan", 3),
        wanted("blocked", "k-busy"),
        wanted("older", "k-older"),
        wanted("foreign", "k-foreign", 1),
    ]
    outcomes = commit(cluster, a, [], batch).outcomes
    named = {want.run.task_id: outcomes[want.run] for want in batch}
    attempts = {name: outcome.attempt for name, outcome in named.items() if isinstance(outcome, Granted)}
    assert attempts == {"new": 1, "lost": 2, "mine": 1, "orphan": 2}
    assert {name: outcome for name, outcome in named.items() if name not in attempts} == {
        "done": Known("done"),
        "blocked": Busy("b"),
        "older": Known("retried"),
        "foreign": NotOurs(),
    }


def test_an_end_under_somebodys_lock_is_delayed_and_one_overtaken_is_neither(cluster: Cluster) -> None:
    a, b = cluster.join("a", 0), cluster.join("b", 1)
    wants = [wanted("locked", "k"), wanted("taken", "l"), wanted("free", "m")]
    ends = [ending(*each) for each in zip(wants, cluster.claim("a", a, *wants), strict=True)]
    cluster.end(Ending(wants[1].run, ends[1].fence, "lost", 0))
    cluster.claim("b", b, wanted("taken", "l", 1))
    with cluster.database.transaction() as tx:
        tx.execute(cluster.database.sql("SELECT FROM {claim} WHERE task_id = 'locked' FOR UPDATE"))
        answer = commit(cluster, a, ends)
    assert answer.recorded == {wants[2].run} and answer.delayed == {wants[0].run}
    assert commit(cluster, a, ends).recorded == {wants[0].run, wants[2].run}


def test_a_late_success_is_recorded_by_an_incarnation_that_is_gone(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    (granted,) = cluster.claim("a", incarnation, wanted("t"))
    cluster.bury("a", incarnation)
    cluster.within(cluster.store.claims.settle)
    assert commit(cluster, 0, [ending(wanted("t"), granted)]).recorded == {wanted("t").run}


def test_a_claim_that_its_user_is_about_to_complete_holds_up_no_other_key(cluster: Cluster) -> None:
    """Its transaction may stay open for long: waiting for it would stop all keys of the partition's new owner."""
    before = cluster.join("before", 0)
    running = wanted("running")
    granted = commit(cluster, before, [], [running], name="before").outcomes[running.run]
    assert isinstance(granted, Granted)
    now = cluster.join("a", 1)
    with cluster.database.transaction("mover") as tx:
        assert cluster.store.partitions.release(tx, [0], before) == {0}
    with cluster.database.transaction("mover") as tx:
        tx.execute(cluster.database.sql("UPDATE {partition} SET target = 'a' WHERE partition_id = 0"))
        assert cluster.store.partitions.take(tx, [0], "a", now) == {0}
    with cluster.database.transaction("user") as tx:
        Guard(cluster.database.tables.claim).complete(tx, running.run, granted.fence)
        waiting, other = wanted("waiting"), wanted("other", "l", 1)
        outcomes = commit(cluster, now, [], [waiting, other]).outcomes
        assert isinstance(outcomes[waiting.run], Busy) and isinstance(outcomes[other.run], Granted)
    assert isinstance(commit(cluster, now, [], [waiting]).outcomes[waiting.run], Granted)


MANY_RUNNING = (
    "INSERT INTO {claim} (task_id, task_key, token_id, partition_id, node, incarnation, fence)"
    " SELECT 'many' || n, 'many' || n, 0, 0, 'a', :incarnation, n FROM generate_series(1, :count) AS n"
)


@pytest.mark.parametrize("known", [0, 1, 500])
def test_claims_and_ends_cost_no_more_because_many_others_are_running(
    cluster: Cluster, database_url: str, known: int
) -> None:
    """A plan that was made while the table was known to be small must not look at each running claim for each key."""
    incarnation = cluster.join("a", 0)
    cluster.rows(MANY_RUNNING.replace("'many'", "'known'"), incarnation=incarnation, count=known)
    with closing(cluster.link("analyst")) as link:
        link.statement(cluster.database.sql("ANALYZE {claim}"))
    impatient = Database(database_url, timeouts=Timeouts(statement=1.0))
    with closing(impatient.link("claimer")) as link:
        first = wanted("first", "first")
        granted = cluster.store.claims.commit(link, "a", incarnation, [], [first]).outcomes[first.run]
        assert cluster.store.claims.commit(link, "a", incarnation, [ending(first, granted)], []).recorded
        cluster.rows(MANY_RUNNING, incarnation=incarnation, count=40_000)
        wants = [wanted(f"t{number}", f"k{number}") for number in range(500)]
        outcomes = cluster.store.claims.commit(link, "a", incarnation, [], wants).outcomes
        ends = [ending(want, outcomes[want.run]) for want in wants]
        assert len(cluster.store.claims.commit(link, "a", incarnation, ends, []).recorded) == 500


def test_a_dead_holders_claims_are_marked_lost_in_batches(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    cluster.rows(MANY_RUNNING, incarnation=incarnation, count=2 * LOST_AT_ONCE + 500)
    assert cluster.within(lambda tx: cluster.store.claims.lose(tx, incarnation)) == LOST_AT_ONCE
    assert cluster.bury("a", incarnation)
    assert [cluster.within(cluster.store.claims.settle) for _ in range(3)] == [LOST_AT_ONCE, 500, 0]
    assert set(cluster.states().values()) == {"lost"}
