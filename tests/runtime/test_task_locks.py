"""Locking and unlocking keys: what claims are granted before, while and after; nodes are rows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage import SHAPE, eventually, join, rows, store_at

from jobsync_celery.core.model import Run
from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.errors import StoreError, TooManyPools
from jobsync_celery.runtime.rebalancing import rebalance
from jobsync_celery.runtime.task_locks import MOST_POOLS, LockRequest, TaskLocks
from jobsync_celery.store.outcomes import Busy, Elsewhere, Ending, Granted, Outcome, Unserved, Wanted
from jobsync_celery.store.store import Store

TOKENS = TokenMap(SHAPE.total_tokens, SHAPE.partitions, SHAPE.hash_function)
GPU, CPU = "gpu-1", "cpu-1"


class Cluster:
    """A node of each kind, with all partitions that are theirs by plan."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.locks = TaskLocks(store, SHAPE)
        self.incarnations = {name: join(store, name) for name in (CPU, GPU)}
        self._tasks = 0
        self.settle()

    def settle(self) -> None:
        """Plan, and let every node have what it should."""
        with self.store.database.transaction() as tx:
            rebalance(tx, self.store, TOKENS, "test")
        for name, incarnation in self.incarnations.items():
            with closing(self.store.database.link(name)) as link:
                for _ in range(2):  # hand over, then take
                    share = self.store.partitions.share(link, name, incarnation)
                    with link.transaction() as tx:
                        self.store.partitions.release(tx, share.release, incarnation)
        for name, incarnation in self.incarnations.items():
            with closing(self.store.database.link(name)) as link, link.transaction() as tx:
                numbers = [row.number for row in self.store.partitions.seats(tx)]
                self.store.partitions.take(tx, numbers, name, incarnation)

    def lock(self, *keys: str, patterns: Sequence[str] = ("gpu-%",), expires_in: float | None = None) -> None:
        with self.store.database.transaction() as tx:
            requests = [LockRequest(key, tuple(patterns), None, expires_in) for key in keys]
            self.locks.set(tx, requests, "script")
        self.settle()

    def unlock(self, *keys: str) -> int:
        with self.store.database.transaction() as tx:
            return self.locks.clear(tx, keys)

    def owner(self, partition: int) -> str:
        return str(rows(self.store, "SELECT owner FROM {partition} WHERE partition_id = :n", n=partition)[0][0])

    def claim(self, key: str, partition: int | None = None, home: int | None = None) -> tuple[Outcome, Wanted]:
        """Claim a new run of a key, by the owner of the partition where its message was found."""
        self._tasks += 1
        home = TOKENS.partition_for(key) if home is None else home
        place = home if partition is None else partition
        want = Wanted(Run(f"t{self._tasks}", "o", 0), "proj.task", key, TOKENS.token(key), place, home)
        name = self.owner(place)
        with closing(self.store.database.link(name)) as link:
            committed = self.store.claims.commit(link, name, self.incarnations[name], [], [want])
        return committed.outcomes[want.run], want

    def end(self, want: Wanted, granted: Outcome) -> bool:
        """Record that a run is done; whether somebody waited for that elsewhere."""
        assert isinstance(granted, Granted)
        with closing(self.store.database.link("ends")) as link:
            ending = Ending(want.run, granted.fence, "done", want.partition)
            return self.store.claims.commit(link, "nobody", 0, [ending], []).awaited


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(store_at(database_url))


def key_of(cluster: Cluster, node: str) -> str:
    return next(f"key{n}" for n in range(10**4) if cluster.owner(TOKENS.partition_for(f"key{n}")) == node)


def test_a_locked_key_is_granted_in_its_pool_only_and_an_unlocked_one_at_home_only(cluster: Cluster) -> None:
    key = key_of(cluster, CPU)
    home = TOKENS.partition_for(key)
    cluster.lock(key)
    outcome, _ = cluster.claim(key)
    assert isinstance(outcome, Elsewhere) and outcome.locked and outcome.pool == '["gpu-%"]'
    assert cluster.owner(outcome.partition) == GPU
    granted, want = cluster.claim(key, outcome.partition)
    assert isinstance(granted, Granted)
    cluster.end(want, granted)
    assert cluster.unlock(key) == 1
    assert cluster.claim(key, outcome.partition)[0] == Elsewhere(home, "", home, False)
    assert isinstance(cluster.claim(key)[0], Granted)


def test_locking_a_key_moves_no_other(cluster: Cluster) -> None:
    before = rows(cluster.store, "SELECT partition_id, target, owner FROM {partition} WHERE pool = '' ORDER BY 1")
    cluster.lock("key1", "key2")
    assert before == rows(
        cluster.store, "SELECT partition_id, target, owner FROM {partition} WHERE pool = '' ORDER BY 1"
    )
    outcomes = [cluster.claim(f"key{n}")[0] for n in range(3, 40)]
    assert {type(outcome) for outcome in outcomes} == {Granted}


def test_who_ends_a_claim_learns_that_its_key_is_waited_for_elsewhere(cluster: Cluster) -> None:
    key = key_of(cluster, CPU)
    granted, want = cluster.claim(key)
    cluster.lock(key)
    place, _ = cluster.claim(key)
    assert isinstance(place, Elsewhere)
    assert cluster.claim(key, place.partition)[0] == Busy(CPU)
    assert cluster.end(want, granted)
    later, want = cluster.claim(key, place.partition)
    assert isinstance(later, Granted) and isinstance(granted, Granted) and later.fence > granted.fence
    assert not cluster.end(want, later)


def test_a_lock_that_nobody_matches_leaves_its_pool_with_a_caretaker_who_runs_nothing(cluster: Cluster) -> None:
    cluster.lock("key1", patterns=("tpu-%",))
    place, _ = cluster.claim("key1")
    assert isinstance(place, Elsewhere)
    assert cluster.owner(place.partition) in (CPU, GPU)
    assert cluster.claim("key1", place.partition)[0] == Unserved('["tpu-%"]')
    assert isinstance(cluster.claim("other", place.partition)[0], Elsewhere)
    with cluster.store.database.transaction() as tx:
        assert [lock.unserved for lock in cluster.store.locks.list(tx)] == [True]
    cluster.incarnations["tpu-1"] = join(cluster.store, "tpu-1")
    cluster.settle()
    assert cluster.owner(place.partition) == "tpu-1"
    assert isinstance(cluster.claim("key1", place.partition)[0], Granted)


def test_a_caretaker_runs_nothing_while_it_hands_over_to_a_node_that_matches(cluster: Cluster) -> None:
    cluster.lock("key1", patterns=("tpu-%",))
    place, _ = cluster.claim("key1")
    assert isinstance(place, Elsewhere)
    caretaker = cluster.owner(place.partition)
    cluster.incarnations["tpu-1"] = join(cluster.store, "tpu-1")
    with cluster.store.database.transaction() as tx:
        rebalance(tx, cluster.store, TOKENS, "test")
    assert cluster.owner(place.partition) == caretaker
    assert cluster.claim("key1", place.partition)[0] == Unserved('["tpu-%"]')
    with closing(cluster.store.database.link("beat")) as link:
        answer = cluster.store.nodes.renew(link, caretaker, cluster.incarnations[caretaker])
        share = cluster.store.partitions.share(link, caretaker, cluster.incarnations[caretaker])
    assert answer is not None and answer.caretaking == {place.partition}
    assert share.pools[place.partition].caretaker


def test_two_nodes_that_want_the_same_keys_do_not_wait_for_each_other(cluster: Cluster) -> None:
    cluster.lock("other")  # a task with node patterns of its own has keys in the pool, others at home
    [(pool,)] = rows(cluster.store, "SELECT partition_id FROM {partition} WHERE pool <> ''")
    here = {number for number in range(TOKENS.partitions) if cluster.owner(number) == CPU}
    at_home = [str(number) for number in range(5000) if TOKENS.partition_for(str(number)) in here][:300]
    start = threading.Barrier(2)

    def race(node: str, keys: Sequence[str], place: int | None) -> None:
        with closing(cluster.store.database.link(node)) as link:
            for turn in range(5):
                wants = []
                for key in keys:
                    at = TOKENS.partition_for(key) if place is None else place
                    wants.append(Wanted(Run(f"{node}{key}", "o", turn), "t", key, TOKENS.token(key), at, at))
                start.wait(30)
                committed = cluster.store.claims.commit(link, node, cluster.incarnations[node], [], wants)
                ends = [
                    Ending(want.run, outcome.fence, "done", want.partition)
                    for want in wants
                    if isinstance(outcome := committed.outcomes[want.run], Granted)
                ]
                cluster.store.claims.commit(link, node, cluster.incarnations[node], ends, [])

    with ThreadPoolExecutor(2) as threads:
        racing = [threads.submit(race, CPU, at_home, None), threads.submit(race, GPU, at_home[::-1], pool)]
        for each in racing:
            each.result(60)


def test_a_key_that_is_ending_elsewhere_is_asked_for_again_soon(cluster: Cluster) -> None:
    """Who ends it has the claim locked, cannot be told that somebody waits, and will not say that it has ended."""
    key = key_of(cluster, CPU)
    assert isinstance(cluster.claim(key)[0], Granted)
    cluster.lock(key)
    place, _ = cluster.claim(key)
    assert isinstance(place, Elsewhere)
    with cluster.store.database.transaction("ends") as ending:
        ending.execute(cluster.store.database.sql("SELECT FROM {claim} FOR NO KEY UPDATE"))
        assert cluster.claim(key, place.partition)[0] == Busy(CPU, told=False)
    assert cluster.claim(key, place.partition)[0] == Busy(CPU)


def test_an_open_transaction_on_locks_holds_up_who_changes_locks_and_nobody_else(cluster: Cluster) -> None:
    cluster.lock("key1", "key2", expires_in=0.001)
    place, _ = cluster.claim("key1")
    assert isinstance(place, Elsewhere)
    blocked = "SELECT FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
    database = cluster.store.database
    with ThreadPoolExecutor(1) as thread:
        with database.transaction("psql") as by_hand:
            by_hand.execute(database.sql("DELETE FROM {lock} WHERE task_id = 'key2'"))
            waits = thread.submit(cluster.lock, "key3", patterns=("cpu-%",))
            eventually(lambda: rows(cluster.store, blocked))
            granted, want = cluster.claim("key1", place.partition)
            assert isinstance(granted, Granted)
            cluster.end(want, granted)
            with database.transaction("leader") as tx:
                assert cluster.locks.expire(tx) == 0
        waits.result(10)
    with database.transaction("leader") as tx:
        assert cluster.locks.expire(tx) == 1


def test_who_deletes_locks_by_hand_waits_for_the_others_before_it_has_locked_a_row(cluster: Cluster) -> None:
    cluster.lock("key1")
    database = cluster.store.database
    blocked = "SELECT FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
    with ThreadPoolExecutor(1) as thread:
        with database.transaction("desk") as tx:
            assert cluster.store.locks.take_turns(tx)
            waits = thread.submit(rows, cluster.store, "DELETE FROM {lock}")
            eventually(lambda: rows(cluster.store, blocked))
            assert cluster.locks.clear(tx, ["key1"]) == 1
        waits.result(10)


def test_a_new_kind_of_lock_leaves_the_partitions_of_a_node_that_may_return_alone(cluster: Cluster) -> None:
    planned = "SELECT partition_id, target FROM {partition} WHERE pool = '' ORDER BY 1"
    rows(cluster.store, "UPDATE {node} SET state = 'dead', awaited_until = now() + '1 min' WHERE name = 'gpu-1'")
    before = rows(cluster.store, planned)
    with cluster.store.database.transaction() as tx:
        cluster.locks.set(tx, [LockRequest("key", ("cpu-%",))], "script")
    assert rows(cluster.store, planned) == before


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE {lock} SET node_patterns = '[\"cpu-%\"]'",
        "UPDATE {lock} SET partition_id = 9999",
        "UPDATE {lock} SET partition_id = 0",
        "UPDATE {lock} SET expires_at = 'infinity'",
        "INSERT INTO {lock} (task_id, node_patterns, partition_id) VALUES ('key2', '[\"gpu-%\"]', 0)",
    ],
)
def test_a_lock_made_by_hand_that_would_lead_nowhere_is_refused(cluster: Cluster, change: str) -> None:
    cluster.lock("key1")
    with pytest.raises(StoreError, match=r"check constraint|partition_id has to follow from node_patterns"):
        rows(cluster.store, change)
    rows(cluster.store, "UPDATE {lock} SET expires_at = clock_timestamp()")
    with cluster.store.database.transaction() as tx:
        assert cluster.locks.expire(tx) == 1


def test_a_run_whose_home_is_not_in_the_tables_waits_and_disowns_no_partition(cluster: Cluster) -> None:
    cluster.lock("key1")
    [(pool,)] = rows(cluster.store, "SELECT partition_id FROM {partition} WHERE pool <> ''")
    assert cluster.claim("other", pool, home=9999)[0] == Unserved("")


def test_a_lost_run_that_a_lock_has_moved_is_recorded_where_it_runs(cluster: Cluster) -> None:
    key = key_of(cluster, CPU)
    granted, want = cluster.claim(key)
    assert isinstance(granted, Granted)
    cluster.lock(key)
    place, _ = cluster.claim(key)
    assert isinstance(place, Elsewhere)
    with closing(cluster.store.database.link("ends")) as link:
        cluster.store.claims.commit(link, CPU, 0, [Ending(want.run, granted.fence, "lost", want.partition)], [])
        moved = want._replace(partition=place.partition)
        again = cluster.store.claims.commit(link, GPU, cluster.incarnations[GPU], [], [moved])
    assert isinstance(again.outcomes[want.run], Granted)
    assert rows(cluster.store, "SELECT node, partition_id FROM {claim}") == [(GPU, place.partition)]


def test_no_claim_of_a_key_slips_in_beside_its_locking(cluster: Cluster) -> None:
    """A claim that has begun holds its partition's row, and the lock waits for it."""
    key = key_of(cluster, CPU)
    place = TOKENS.partition_for(key)
    want = Wanted(Run("slow", "o", 0), "proj.task", key, TOKENS.token(key), place, place)
    with cluster.store.database.transaction("claims") as claiming:
        outcomes = cluster.store.claims.claim(claiming, CPU, cluster.incarnations[CPU], [want])
        assert isinstance(outcomes[want.run], Granted)
        with cluster.store.database.transaction("locks") as tx:
            cluster.store.locks.introduce(tx, "script", "celery")
            waits = "SELECT FROM {partition} WHERE partition_id = :n FOR NO KEY UPDATE SKIP LOCKED"
            assert tx.execute(cluster.store.database.sql(waits), {"n": place}).first() is None
    cluster.lock(key)
    assert rows(cluster.store, "SELECT node FROM {claim} WHERE state = 'running'") == [(CPU,)]
    assert isinstance(cluster.claim(key)[0], Elsewhere)


def test_who_unlocks_a_key_holds_also_a_pool_that_was_added_while_it_waited(cluster: Cluster) -> None:
    """Else a claim under way in that pool could be committed when its key has left."""
    database = cluster.store.database
    blocked = "SELECT FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
    free = "SELECT partition_id FROM {partition} WHERE pool <> '' FOR SHARE SKIP LOCKED"
    with ThreadPoolExecutor(1) as thread, database.transaction("unlocks") as unlocking:
        with database.transaction("locks") as locking:
            cluster.locks.set(locking, [LockRequest("key1", ("gpu-%",))], "script")
            cleared = thread.submit(cluster.locks.clear, unlocking, ["key1"])
            eventually(lambda: rows(cluster.store, blocked))
        assert cleared.result(10) == 1
        assert rows(cluster.store, free) == []


def test_locks_expire_by_the_database_s_clock_and_only_those_that_are_due(cluster: Cluster) -> None:
    cluster.lock("soon", expires_in=0.001)
    cluster.lock("later", expires_in=3600.0)
    cluster.lock("never")
    with cluster.store.database.transaction() as tx:
        assert cluster.locks.expire(tx) == 1
        assert {lock.key for lock in cluster.store.locks.list(tx)} == {"later", "never"}


def test_who_locks_is_known_and_its_locks_are_cleared_by_its_name(cluster: Cluster) -> None:
    cluster.lock("a", "b")
    with cluster.store.database.transaction() as tx:
        cluster.locks.set(tx, [LockRequest("c", ("%",))], GPU)
        assert cluster.locks.clear_by_creator(tx, "script") == 2
        assert [(lock.key, lock.created_by) for lock in cluster.store.locks.list(tx)] == [("c", GPU)]
        assert cluster.locks.clear_all(tx) == 1
    states = dict(rows(cluster.store, "SELECT name, state FROM {node}"))
    assert states == {CPU: "live", GPU: "live", "script": "admin"}


def test_a_creator_clears_what_it_had_set_before_and_not_what_it_set_again(cluster: Cluster) -> None:
    cluster.lock("a", "b", "c")
    with cluster.store.database.transaction() as tx:
        begun = cluster.store.locks.now(tx)
    cluster.lock("b")
    with cluster.store.database.transaction() as tx:
        cluster.locks.set(tx, [LockRequest("c", ("%",))], GPU)
        assert cluster.locks.clear_by_creator(tx, "script", begun) == 1
        assert {lock.key for lock in cluster.store.locks.list(tx)} == {"b", "c"}


def test_what_an_operator_changes_by_hand_counts_like_everything_else(cluster: Cluster) -> None:
    cluster.lock("key1")
    [(before,)] = rows(cluster.store, "SELECT locks_version FROM {cluster}")
    rows(cluster.store, "DELETE FROM {lock}")
    [(after,)] = rows(cluster.store, "SELECT locks_version FROM {cluster}")
    assert after == before + 1
    assert isinstance(cluster.claim("key1")[0], Granted)


def test_what_leaves_every_key_where_it_is_is_no_change_that_others_have_to_learn_of(cluster: Cluster) -> None:
    cluster.lock("a", "b")
    [(before,)] = rows(cluster.store, "SELECT locks_version FROM {cluster}")
    with cluster.store.database.transaction() as tx:
        cluster.locks.set(tx, [LockRequest("b", ("gpu-%",), "anew")], GPU)
        assert cluster.locks.clear(tx, ["unlocked"]) == cluster.locks.clear_by_creator(tx, "nobody") == 0
        assert cluster.locks.expire(tx) == 0
    assert rows(cluster.store, "SELECT locks_version FROM {cluster}") == [(before,)]
    assert rows(cluster.store, "SELECT created_by, reason FROM {lock} WHERE task_id = 'b'") == [(GPU, "anew")]
    with cluster.store.database.transaction() as tx:
        cluster.locks.set(tx, [LockRequest("b", ("gpu-%",)), LockRequest("c", ("gpu-%",))], GPU)
    assert rows(cluster.store, "SELECT locks_version FROM {cluster}") == [(before + 1,)]


def test_there_are_not_more_pools_than_a_plan_can_look_at(cluster: Cluster) -> None:
    cluster.lock(*(f"key{n}" for n in range(3)), patterns=("shared-%",))
    for n in range(MOST_POOLS - 1):
        cluster.lock("key", patterns=(f"n{n}-%",))
    with pytest.raises(TooManyPools, match=f"already, and may be {MOST_POOLS}"):
        cluster.lock("key", patterns=("one-too-many",))
    cluster.lock("another", patterns=("shared-%",))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["gpu-%", "cpu-%", "%", ""])), max_size=8))
def test_whatever_is_locked_and_unlocked_a_key_is_granted_in_one_place_and_its_fences_grow(
    cluster: Cluster, changes: list[tuple[str, str]]
) -> None:
    fences: dict[str, int] = {}
    for key, pattern in changes:
        cluster.lock(key, patterns=[pattern]) if pattern else cluster.unlock(key)
        [numbers] = [[row[0] for row in rows(cluster.store, "SELECT partition_id FROM {partition} WHERE pool <> ''")]]
        granted = []
        for number in (TOKENS.partition_for(key), *numbers):
            outcome, want = cluster.claim(key, number)
            if isinstance(outcome, Granted):
                granted.append((cluster.owner(number), outcome.fence))
                cluster.end(want, outcome)
        [(node, fence)] = granted
        assert fence > fences.get(key, 0)
        fences[key] = fence
        assert pattern in ("", "%") or node.startswith(pattern[:3])
