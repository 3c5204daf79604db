"""A stopped cluster gets another shape: who must be gone for it, and what is right afterwards."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from member_stage import Stage
from stage import SHAPE, Clock, join, rows, store_at, wanted

from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.errors import ClusterMismatch, StillRunning
from jobsync_celery.runtime.lock_desk import LockDesk
from jobsync_celery.runtime.reshape import reshape
from jobsync_celery.runtime.standstill import Standstill
from jobsync_celery.store.outcomes import Granted
from jobsync_celery.store.reshape import Reshaped
from jobsync_celery.store.schema import locked_cluster, stored_cluster
from jobsync_celery.store.store import Store

LEASE = 10.0
SMALLER = replace(SHAPE, total_tokens=320, partitions=8, lock_partitions=3)
LARGER = replace(SHAPE, partitions=320)
KEYS = [f"key{n}" for n in range(20)]


@pytest.fixture
def store(database_url: str) -> Store:
    return store_at(database_url)


class Watch:
    """A standstill on a clock that its own waiting moves."""

    def __init__(self, store: Store) -> None:
        self.clock, self.said = Clock(), list[str]()
        self.on_sleep = lambda: None
        self.standstill = Standstill(store, LEASE, self.said.append, clock=self.clock, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.clock.pass_by(seconds)
        self.on_sleep()


def silence(store: Store, name: str) -> None:
    late = "UPDATE {node} SET last_heartbeat = last_heartbeat - make_interval(secs => :secs) WHERE name = :name"
    rows(store, late, name=name, secs=LEASE + 1)


def beat(store: Store, name: str) -> None:
    rows(store, "UPDATE {node} SET renewals = renewals + 1 WHERE name = :name", name=name)


def reshaped(store: Store, shape: object = SMALLER) -> Reshaped:
    return reshape(store, Watch(store).standstill, shape)  # type: ignore[arg-type]


def claim(store: Store, name: str, incarnation: int, key: str) -> int:
    want = wanted(f"task of {key}", key, SHAPE.tokens.partition_for(key))
    with store.database.transaction() as tx:
        granted = store.claims.claim(tx, name, incarnation, [want])[want.run]
    assert isinstance(granted, Granted)
    return granted.fence


# -- who must be gone --------------------------------------------------------------------------------------------------


def test_where_every_node_has_left_nothing_is_waited_for(store: Store) -> None:
    watch = Watch(store)
    watch.standstill.watch()
    assert watch.said == [] and watch.clock.now == Clock().now


def test_nodes_that_are_live_are_named_and_nothing_is_changed(store: Store) -> None:
    join(store, "one", 0, 1, lease_sec=LEASE)
    join(store, "two", 2, lease_sec=LEASE)
    before = rows(store, "SELECT * FROM {partition} ORDER BY 1")
    with pytest.raises(StillRunning, match=r"2 nodes are live: stop all workers first \(one, two\)"):
        reshaped(store)
    assert rows(store, "SELECT * FROM {partition} ORDER BY 1") == before


def test_the_lease_of_a_node_that_is_silent_is_waited_for_and_the_node_cannot_resume(store: Store) -> None:
    stage = Stage(store)
    stage.tick()
    silence(store, "a")
    watch = Watch(store)
    reshape(store, watch.standstill, SMALLER)
    assert watch.said == ["waiting 10 s for the lease of a"]
    assert watch.clock.now > Clock().now + LEASE
    assert stage.state() == "dead"
    assert stage.tick() is None  # it is told so, and may not register with what it knows


def test_a_node_that_was_only_slow_is_found_out(store: Store) -> None:
    join(store, "one", 0, lease_sec=LEASE)
    silence(store, "one")
    watch = Watch(store)
    watch.on_sleep = lambda: beat(store, "one")
    with pytest.raises(StillRunning, match="one"):
        watch.standstill.watch()


@pytest.mark.parametrize("late", ["resumes", "arrives"])
def test_who_comes_in_the_last_moment_keeps_the_cluster_as_it_is(store: Store, late: str) -> None:
    join(store, "one", 0, lease_sec=LEASE)
    silence(store, "one")
    watch = Watch(store)
    watch.standstill.watch()
    beat(store, "one") if late == "resumes" else join(store, "two")
    with pytest.raises(StillRunning), store.database.transaction() as tx:
        watch.standstill.enforce(tx)
    assert stored_cluster(store.database).shape == SHAPE


def test_nobody_registers_with_the_numbers_from_before(store: Store) -> None:
    late = Stage(store)
    late.member.admit = partial(locked_cluster, store.database, shape=SHAPE)
    reshaped(store)
    with pytest.raises(ClusterMismatch, match="has total_tokens=320, here total_tokens=640; partitions=8"):
        late.tick()
    late.member.admit = partial(locked_cluster, store.database, shape=SMALLER)
    assert late.tick() is not None


def test_a_script_that_has_the_numbers_from_before_sets_no_lock(store: Store) -> None:
    desk = LockDesk(store, SHAPE, "script")
    desk.register([("key", "gpu%", None, None)])
    reshaped(store)
    with pytest.raises(ClusterMismatch):
        desk.register([("other", "gpu%", None, None)])


# -- what is right afterwards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SMALLER, LARGER], ids=["smaller", "larger"])
def test_locks_pools_and_claims_are_where_their_keys_are(store: Store, shape: object) -> None:
    assert isinstance(shape, type(SHAPE))
    desk = LockDesk(store, SHAPE, "script")
    desk.register([(key, "gpu%" if n % 2 else ["cpu%", "%"], "why", None) for n, key in enumerate(KEYS)])
    listed = desk.list()
    node = join(store, "one", *range(SHAPE.partitions), lease_sec=LEASE)
    fence = max(claim(store, "one", node, f"free{n}") for n in range(5))
    silence(store, "one")
    told = reshaped(store, shape)
    assert told == Reshaped(pools=2, locks=len(KEYS), claims=5)

    assert stored_cluster(store.database).former == (SHAPE,)
    ordinary = rows(store, "SELECT partition_id, first_token, last_token FROM {partition} WHERE pool = '' ORDER BY 1")
    assert ordinary == [(number, *shape.tokens.range(number)) for number in range(shape.partitions)]
    with store.database.transaction() as tx:
        pools = store.partitions.pools(tx)
    assert sorted(number for numbers in pools.values() for number in numbers) == list(
        range(shape.partitions, shape.partitions + 2 * shape.lock_partitions)
    )
    after = LockDesk(store, shape, "script").list()
    assert [replace(lock, partition=0) for lock in after] == [replace(lock, partition=0) for lock in listed]
    places = {'["gpu%"]': shape.pool_tokens, '["cpu%","%"]': shape.pool_tokens}
    for lock in after:
        pool = '["gpu%"]' if lock.patterns == ("gpu%",) else '["cpu%","%"]'
        assert lock.partition == pools[pool][places[pool].partition_for(lock.key)]
    for key, token, partition, state in rows(store, "SELECT task_key, token_id, partition_id, state FROM {claim}"):
        assert (token, partition, state) == (shape.tokens.token(key), shape.tokens.partition_for(key), "lost")

    successor = join(store, "two", *range(shape.partitions))
    taken_over = wanted("task of free0", "free0", shape.tokens.partition_for("free0"))
    with store.database.transaction() as tx:
        granted = store.claims.claim(tx, "two", successor, [taken_over])[taken_over.run]
    assert isinstance(granted, Granted) and granted.attempt == 2 and granted.fence > fence


def test_what_has_ended_keeps_the_numbers_under_which_it_ran_and_so_do_plans(store: Store) -> None:
    node = join(store, "one", *range(SHAPE.partitions), lease_sec=LEASE)
    claim(store, "one", node, "key")
    rows(store, "UPDATE {claim} SET state = 'done', finished_on = clock_timestamp()")
    rows(store, "INSERT INTO {rebalance} (trigger_reason) VALUES ('initial')")
    before = rows(store, "SELECT * FROM {claim}")
    silence(store, "one")
    assert reshaped(store).claims == 0
    assert rows(store, "SELECT * FROM {claim}") == before
    assert rows(store, "SELECT trigger_reason FROM {rebalance}") == [("initial",)]


def test_the_shapes_from_before_are_remembered_each_once(store: Store) -> None:
    for shape in (SMALLER, LARGER, SHAPE, SMALLER):
        reshaped(store, shape)
    assert stored_cluster(store.database).former == (LARGER, SHAPE)
    assert stored_cluster(store.database).shape == SMALLER
    versions = rows(store, "SELECT DISTINCT version FROM {partition}")
    assert versions == [(4,)]  # of tokens: it grows
    assert SMALLER.tokens == TokenMap(320, 8, "double_sha256")
