"""Claims: every outcome, and who waits for whom when eviction or a handover comes in between (S1, S2, S6)."""

from __future__ import annotations

from contextlib import suppress

import pytest
from cluster import Cluster, ending, wanted
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from jobsync_celery.core.model import Run
from jobsync_celery.store.outcomes import Busy, Granted, Known, NotOurs, Outcome

INSERT = (
    "INSERT INTO {claim} (task_id, task_key, token_id, partition_id, node, incarnation)"
    " VALUES (:task_id, 'k', 0, 0, :node, :incarnation)"
)


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


def fence(outcome: Outcome) -> int:
    assert isinstance(outcome, Granted), outcome
    return outcome.fence


# S1: at most one running claim per key


def test_the_database_itself_allows_one_running_claim_of_a_key(cluster: Cluster) -> None:
    def insert(tx: Connection, node: str, incarnation: int) -> None:
        values = {"task_id": node, "node": node, "incarnation": incarnation}
        tx.execute(cluster.database.sql(INSERT), values)

    with cluster.database.transaction() as tx:
        insert(tx, "a", 1)
        second = cluster.meanwhile(lambda: cluster.within(lambda tx: insert(tx, "b", 2), "second"))
        cluster.await_blocked("second")
    error = second.exception(10)
    assert error is not None and isinstance(error.__cause__, IntegrityError)
    cluster.rows("UPDATE {claim} SET state = 'done'")
    cluster.within(lambda tx: insert(tx, "b", 2))
    assert cluster.states() == {"a": "done", "b": "running"}


def test_a_claim_waits_for_an_uncommitted_one_of_its_key_and_is_then_busy(cluster: Cluster) -> None:
    """As after a handover: the former owner's transaction is still open when the next owner claims."""
    a, b = cluster.join("a", 0), cluster.join("b", 1)
    with cluster.database.transaction() as tx:
        assert cluster.store.claims.claim(tx, "a", a, [wanted("one")])
        second = cluster.meanwhile(
            lambda: cluster.within(lambda tx: cluster.store.claims.claim(tx, "b", b, [wanted("two", "k", 1)]), "second")
        )
        cluster.await_blocked("second")
    assert second.result(10) == {wanted("two").run: Busy("a")}


def test_a_claim_that_waited_for_one_that_was_rolled_back_is_granted(cluster: Cluster) -> None:
    a, b = cluster.join("a", 0), cluster.join("b", 1)
    with suppress(KeyError), cluster.database.transaction() as tx:
        cluster.store.claims.claim(tx, "a", a, [wanted("one")])
        second = cluster.meanwhile(
            lambda: cluster.within(lambda tx: cluster.store.claims.claim(tx, "b", b, [wanted("two", "k", 1)]), "second")
        )
        cluster.await_blocked("second")
        raise KeyError
    fence(second.result(10)[wanted("two").run])


# S2: not evicted, and the owner, in that transaction


def test_a_claim_that_waited_for_an_eviction_is_not_ours(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    with cluster.database.transaction() as tx:
        assert cluster.store.nodes.declare_dead(tx, "a", incarnation, 0)
        late = cluster.meanwhile(
            lambda: cluster.within(lambda tx: cluster.store.claims.claim(tx, "a", incarnation, [wanted("t")]), "late")
        )
        cluster.await_blocked("late")
    assert late.result(10) == {wanted("t").run: NotOurs()}
    assert cluster.states() == {}


def test_a_claim_that_waited_for_a_release_is_not_ours(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0, 1)
    with cluster.database.transaction() as tx:
        assert cluster.store.partitions.release(tx, [0], incarnation) == {0}
        wants = [wanted("t"), wanted("u", "l", 1)]
        late = cluster.meanwhile(
            lambda: cluster.within(lambda tx: cluster.store.claims.claim(tx, "a", incarnation, wants), "late")
        )
        cluster.await_blocked("late")
    outcomes = late.result(10)
    assert outcomes[wants[0].run] == NotOurs()
    fence(outcomes[wants[1].run])  # the rest of the batch is granted


def test_a_release_waits_for_a_claim_in_progress(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    with cluster.database.transaction() as tx:
        fence(cluster.store.claims.claim(tx, "a", incarnation, [wanted("t")])[wanted("t").run])
        release = cluster.meanwhile(
            lambda: cluster.within(lambda tx: cluster.store.partitions.release(tx, [0], incarnation), "releaser")
        )
        cluster.await_blocked("releaser")
    assert release.result(10) == {0}
    assert cluster.states() == {"t": "running"}  # a handover leaves running claims alone


def test_an_eviction_waits_for_a_claim_in_progress_and_loses_it(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)

    def evict(tx: Connection) -> None:
        assert cluster.store.nodes.declare_dead(tx, "a", incarnation, None)
        assert cluster.store.claims.lose(tx, incarnation) == 1

    with cluster.database.transaction() as tx:
        fence(cluster.store.claims.claim(tx, "a", incarnation, [wanted("t")])[wanted("t").run])
        eviction = cluster.meanwhile(lambda: cluster.within(evict, "evictor"))
        cluster.await_blocked("evictor")
    eviction.result(10)
    assert cluster.states() == {"t": "lost"}


@pytest.mark.parametrize("reason", ["dead", "older incarnation", "another's partition", "free partition", "missing"])
def test_nothing_is_granted_to_whoever_does_not_own_the_partition(cluster: Cluster, reason: str) -> None:
    a, b = cluster.join("a", 0), cluster.join("b", 1)
    want, name, incarnation = wanted("t"), "a", a
    if reason == "dead":
        cluster.bury("a", a)
    elif reason == "older incarnation":
        cluster.bury("a", a)
        cluster.within(cluster.store.partitions.free_orphans)
        cluster.join("a", 0)
    elif reason == "another's partition":
        name, incarnation = "b", b
    elif reason == "free partition":
        want = wanted("t", "k", 5)
    else:
        cluster.rows("DELETE FROM {node} WHERE name = 'a'")
    assert cluster.claim(name, incarnation, want) == [NotOurs()]
    assert cluster.states() == {}


def test_a_draining_node_may_still_claim_what_it_owns(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    cluster.within(lambda tx: cluster.store.nodes.drain(tx, "a", incarnation))
    fence(cluster.claim("a", incarnation, wanted("t"))[0])


# outcomes


def test_a_key_that_runs_is_busy_and_says_where(cluster: Cluster) -> None:
    a, b = cluster.join("a", 0), cluster.join("b", 1)
    cluster.claim("a", a, wanted("one"))
    assert cluster.claim("b", b, wanted("two", "k", 1)) == [Busy("a")]
    assert cluster.claim("a", a, wanted("three")) == [Busy("a")]
    assert cluster.states() == {"one": "running"}


def test_a_run_that_runs_elsewhere_is_busy_and_says_where(cluster: Cluster) -> None:
    a, b = cluster.join("a", 0), cluster.join("b", 1)
    cluster.claim("a", a, wanted("one"))
    assert cluster.claim("b", b, wanted("one", "k", 1)) == [Busy("a")]


@pytest.mark.parametrize("state", ["done", "failed", "retried"])
def test_a_run_that_ended_is_known_for_ever(cluster: Cluster, state: str) -> None:
    incarnation = cluster.join("a", 0)
    want = wanted("t")
    (granted,) = cluster.claim("a", incarnation, want)
    assert cluster.end(ending(want, granted, state)) == {want.run}
    assert cluster.claim("a", incarnation, want) == [Known(state)]
    assert cluster.claim("a", incarnation, want) == [Known(state)]


def test_a_redelivered_older_try_is_known_when_a_later_one_exists(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    first, second = wanted("t"), wanted("t", retries=1)
    (granted,) = cluster.claim("a", incarnation, second)
    assert cluster.claim("a", incarnation, first) == [Known("retried")]  # never claimed, yet superseded
    cluster.end(ending(second, granted))
    assert cluster.claim("a", incarnation, first) == [Known("retried")]
    assert cluster.states() == {"t": "done"}


def test_a_lost_older_try_is_known_when_a_later_one_exists(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    first, second = wanted("t"), wanted("t", retries=1)
    (granted,) = cluster.claim("a", incarnation, first)
    cluster.end(ending(first, granted, "lost"))
    fence(cluster.claim("a", incarnation, second)[0])
    assert isinstance(cluster.claim("a", incarnation, first)[0], Known)


def test_a_retry_of_a_known_try_is_a_run_of_its_own(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    first, second = wanted("t"), wanted("t", retries=1)
    (granted,) = cluster.claim("a", incarnation, first)
    cluster.end(ending(first, granted, "retried"))
    assert fence(cluster.claim("a", incarnation, second)[0]) > fence(granted)


def test_a_new_publish_of_a_known_task_is_a_new_run(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    want, again = wanted("t"), wanted("t", origin="another")
    (granted,) = cluster.claim("a", incarnation, want)
    cluster.end(ending(want, granted))
    assert fence(cluster.claim("a", incarnation, again)[0]) > fence(granted)


def test_a_lost_run_is_taken_over_as_another_attempt(cluster: Cluster) -> None:
    a, b = cluster.join("a", 0), cluster.join("b")
    (granted,) = cluster.claim("a", a, wanted("t"))
    cluster.bury("a", a)
    assert cluster.within(cluster.store.claims.settle) == 1
    cluster.within(cluster.store.partitions.free_orphans)
    cluster.within(lambda tx: cluster.store.partitions.assign(tx, {0: "b"}))
    cluster.within(lambda tx: cluster.store.partitions.take(tx, [0], "b", b))
    (taken,) = cluster.claim("b", b, wanted("t"))
    assert isinstance(taken, Granted) and taken.attempt == 2
    assert taken.fence > fence(granted)
    row = cluster.rows("SELECT node, incarnation, state, attempt, fence, finished_on FROM {claim}")
    assert row == [("b", b, "running", 2, taken.fence, None)]


def test_what_a_dead_incarnation_left_running_is_taken_over_before_anybody_settles_it(cluster: Cluster) -> None:
    a = cluster.join("a", 0, 1)
    cluster.claim("a", a, wanted("same", "k"), wanted("other", "l", 1))
    cluster.bury("a", a)
    cluster.within(cluster.store.partitions.free_orphans)
    b = cluster.join("b", 0, 1)
    same, another = cluster.claim("b", b, wanted("same", "k"), wanted("another", "l", 1))
    assert isinstance(same, Granted) and same.attempt == 2
    assert isinstance(another, Granted) and another.attempt == 1
    assert cluster.states() == {"same": "running", "other": "lost", "another": "running"}


def test_a_lost_run_waits_while_another_run_of_its_key_runs(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    first, second = wanted("one"), wanted("two")
    (granted,) = cluster.claim("a", incarnation, first)
    cluster.end(ending(first, granted, "lost"))
    (running,) = cluster.claim("a", incarnation, second)
    assert cluster.claim("a", incarnation, first) == [Busy("a")]
    cluster.end(ending(second, running))
    assert isinstance(cluster.claim("a", incarnation, first)[0], Granted)


def test_a_claim_whose_commit_answer_was_lost_is_granted_again_to_the_same_incarnation(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    (first,) = cluster.claim("a", incarnation, wanted("t"))
    (again,) = cluster.claim("a", incarnation, wanted("t"))
    assert isinstance(again, Granted) and again.attempt == 1
    assert again.fence > fence(first)
    assert not cluster.end(ending(wanted("t"), first))
    assert cluster.end(ending(wanted("t"), again))


def test_two_runs_of_one_key_in_a_batch_are_granted_once(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    outcomes = cluster.claim("a", incarnation, wanted("one"), wanted("two"))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Busy", "Granted"]


def test_a_batch_gives_every_run_its_own_outcome_and_draws_each_fence_once(cluster: Cluster) -> None:
    ghost = cluster.join("ghost", 3)
    cluster.claim("ghost", ghost, wanted("orphan", "k-orphan", 3))
    cluster.bury("ghost", ghost)
    cluster.within(cluster.store.partitions.free_orphans)
    a, b = cluster.join("a", 0, 3), cluster.join("b", 1)
    done, lost = wanted("done", "k-done"), wanted("lost", "k-lost")
    granted = cluster.claim("a", a, done, lost, wanted("mine", "k-mine"))
    cluster.end(ending(done, granted[0]), ending(lost, granted[1], "lost"))
    cluster.claim("b", b, wanted("busy", "k-busy", 1), wanted("elsewhere", "k-elsewhere", 1))
    batch = [
        wanted("new", "k-new"),
        done,
        lost,
        wanted("mine", "k-mine"),
        wanted("orphan", "k-orphan", 3),
        wanted("blocked", "k-busy"),
        wanted("elsewhere", "k-elsewhere"),
        wanted("foreign", "k-foreign", 1),
        wanted("unowned", "k-unowned", 7),
    ]
    drawn = cluster.rows("SELECT last_value FROM {fence_seq}")[0][0]
    outcomes = dict(zip([want.run.task_id for want in batch], cluster.claim("a", a, *batch), strict=True))
    attempts = {name: outcome.attempt for name, outcome in outcomes.items() if isinstance(outcome, Granted)}
    assert attempts == {"new": 1, "lost": 2, "mine": 1, "orphan": 2}
    assert {name: outcome for name, outcome in outcomes.items() if name not in attempts} == {
        "done": Known("done"),
        "blocked": Busy("b"),
        "elsewhere": Busy("b"),
        "foreign": NotOurs(),
        "unowned": NotOurs(),
    }
    assert cluster.rows("SELECT last_value FROM {fence_seq}")[0][0] == drawn + 4
    assert len({fence(outcomes[name]) for name in attempts}) == 4


def test_an_empty_batch_asks_nothing(cluster: Cluster) -> None:
    assert cluster.claim("a", cluster.join("a", 0)) == []
    assert cluster.within(lambda tx: cluster.store.claims.running(tx, [])) == {}


def test_running_are_only_the_runs_of_nodes_that_are_not_dead_and_it_says_where(cluster: Cluster) -> None:
    a, b = cluster.join("a", 0), cluster.join("b", 1)
    cluster.claim("a", a, wanted("one", "k"))
    cluster.claim("b", b, wanted("two", "l", 1))
    cluster.bury("b", b)
    runs = [Run(name, "o", 0) for name in ("one", "two", "three")]
    assert cluster.within(lambda tx: cluster.store.claims.running(tx, runs)) == {runs[0]: "a"}
