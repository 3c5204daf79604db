"""Names that are waited for: what a node had stays with its name until it returns, or its time is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from member_stage import Stage
from node_stage import Cluster
from stage import SHAPE, Outage, counts, eventually, join, rows, store_at
from watching import INTERVAL, TIMEOUT
from watching import Cluster as Watchers

from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.runtime.rebalancing import rebalance
from jobsync_celery.store.store import Store


@pytest.fixture
def watchers(database_url: str) -> Iterator[Watchers]:
    watchers = Watchers(store_at(database_url))
    yield watchers
    for watcher in watchers.watchers.values():
        watcher.link.close()


@pytest.fixture
def cluster(database_url: str) -> Iterator[Callable[..., Cluster]]:
    made = []

    def make(**how: float) -> Cluster:
        made.append(Cluster(database_url, **how))
        return made[-1]

    yield make
    for each in made:
        each.close()


def time_is_over(store: Store) -> None:
    """The database's clock is past everything that is waited for."""
    rows(store, "UPDATE {node} SET awaited_until = clock_timestamp() WHERE awaited_until IS NOT NULL")


def owners(store: Store) -> list[tuple[int, str, str]]:
    return rows(store, "SELECT partition_id, owner, target FROM {partition} ORDER BY 1")


def left(cluster: Cluster) -> set[str]:
    return {name for (name,) in rows(cluster.store, "SELECT name FROM {node} WHERE state = 'left'")}


# -- nodes that stop in good order


@pytest.mark.parametrize("names", ["a", "c", "bc", "abc"], ids=["leader", "another", "two", "all"])
def test_nodes_that_stop_and_return_in_time_find_what_they_had_and_nothing_ever_moved(
    cluster: Callable[..., Cluster], names: str
) -> None:
    three = cluster(grace=60)
    three.start("a", "b", "c")
    eventually(three.balanced)
    before, plans = owners(three.store), rows(three.store, "SELECT count(*) FROM {rebalance}")
    rest = {number: (owner, owner) for number, owner, _ in before if owner not in names}
    three.stop(*names)
    assert left(three) == set(names)
    three.all_hear()
    assert {number: (owner, target) for number, owner, target in owners(three.store) if owner} == rest
    three.start(*names)
    eventually(three.balanced)
    three.all_hear()
    assert owners(three.store) == before and left(three) == set()
    assert rows(three.store, "SELECT count(*) FROM {rebalance}") == plans


def test_without_a_grace_nodes_restarted_in_turn_get_back_what_they_had(cluster: Callable[..., Cluster]) -> None:
    three = cluster()
    three.start("a", "b", "c")
    eventually(three.balanced)
    for name in "abc":
        before = {number for number, owner, _ in owners(three.store) if owner == name}
        three.stop(name)
        eventually(three.balanced)
        three.start(name)
        eventually(three.balanced)
        after = {number for number, owner, _ in owners(three.store) if owner == name}
        assert after <= before and len(before - after) <= 1  # of 64 for three one has one more


def test_who_does_not_return_in_time_is_waited_for_to_the_moment_and_not_until_the_next_heartbeat(
    cluster: Callable[..., Cluster],
) -> None:
    three = cluster(grace=0.5, interval=30)
    three.start("a", "b", "c")
    eventually(three.balanced)
    three.stop("c")
    assert "c" in counts(three.store, "target")
    eventually(three.balanced)
    assert rows(three.store, "SELECT name FROM {node} ORDER BY name") == [("a",), ("b",)]


def test_who_was_drained_before_it_stops_is_not_waited_for(cluster: Callable[..., Cluster]) -> None:
    two = cluster(grace=60)
    two.start("a", "b")
    eventually(two.balanced)
    with two.store.database.transaction() as tx:
        two.store.nodes.order_drain(tx, "b")
        two.store.notify(tx, "orders")
        two.store.notify(tx, "members")
    eventually(lambda: counts(two.store) == {"a": SHAPE.partitions})
    two.stop("b")
    assert rows(two.store, "SELECT name FROM {node}") == [("a",)]


def test_an_order_to_drain_ends_the_wait_for_one_that_is_stopping(cluster: Callable[..., Cluster]) -> None:
    two = cluster(grace=60)
    two.start("a", "b")
    eventually(two.balanced)
    stopping = two.workers.pop("b")
    stopping.node.drain()
    assert stopping.node.drained.wait(5)
    two.all_hear()
    assert "b" in counts(two.store, "target")
    with two.store.database.transaction() as tx:
        two.store.nodes.order_drain(tx, "b")
        two.store.notify(tx, "members")
    eventually(two.balanced)
    assert stopping.node.leave(5)
    assert left(two) == set()


def test_who_leaves_without_having_drained_is_waited_for_too(database_url: str) -> None:
    stage = Stage(store_at(database_url))
    stage.tick()
    join(stage.store, "b")
    with stage.store.database.transaction() as tx:
        rebalance(tx, stage.store, SHAPE.tokens, "initial")
    stage.member.leave(60)
    assert stage.state() == "left" and counts(stage.store, "target") == {"a": 32, "b": 32}
    stage.link.close()


def test_if_all_have_left_and_none_returns_in_time_the_next_plan_is_a_first_one(database_url: str) -> None:
    stage = Stage(store_at(database_url))
    stage.tick()
    with stage.store.database.transaction() as tx:
        rebalance(tx, stage.store, SHAPE.tokens, "initial")
    stage.member.drain(60)
    stage.member.leave(60)
    assert counts(stage.store, "target") == {"a": 64}
    time_is_over(stage.store)
    returned = Stage(stage.store)
    returned.tick()
    assert counts(stage.store, "target") == {None: 64}
    for each in (stage, returned):
        each.link.close()


# -- nodes that die


def test_within_the_grace_a_dead_name_keeps_its_targets_and_returning_moves_nothing(watchers: Watchers) -> None:
    watchers.rejoin_grace = 30.0
    watchers.settled("a", "b", "c")
    before = counts(watchers.store, "target")
    watchers.silence("b")
    watchers.run(TIMEOUT + 2 * INTERVAL)
    assert watchers.states()["b"] == "dead" and counts(watchers.store)[None] == before["b"]
    assert counts(watchers.store, "target") == before and len(watchers.history()) == 1
    watchers.join("b")
    watchers.run(40)
    assert counts(watchers.store, "target") == before and len(watchers.history()) == 1


def test_after_the_grace_the_partitions_of_the_dead_go_to_the_others(watchers: Watchers) -> None:
    watchers.rejoin_grace = 20.0
    watchers.settled("a", "b")
    watchers.silence("b")
    watchers.run(TIMEOUT + 2 * INTERVAL)
    assert watchers.states()["b"] == "dead"
    time_is_over(watchers.store)
    watchers.run(2 * INTERVAL)
    assert counts(watchers.store, "target") == {"a": 64} and watchers.states()["b"] == "dead"


def test_after_the_grace_by_the_leaders_own_clock_nobody_is_waited_for_though_the_databases_was_set_back(
    watchers: Watchers,
) -> None:
    """Only the watchers' clock passes here; that of the database stays behind it as if it had been set back."""
    watchers.rejoin_grace = 60.0
    watchers.settled("a", "b", "c", "d")
    before = counts(watchers.store, "target")
    watchers.silence("c")
    watchers.run(20.0)
    watchers.silence("d")
    watchers.run(20.0)
    assert watchers.states() == {"a": "live", "b": "live", "c": "dead", "d": "dead"}
    assert counts(watchers.store, "target") == before
    watchers.run(40.0)
    assert counts(watchers.store, "target")["d"] == before["d"] and "c" not in counts(watchers.store, "target")
    watchers.leave("a")  # the next leader has heard of the wait as well
    watchers.run(80.0)
    assert counts(watchers.store, "target") == {"b": 64}


def test_the_evictor_wakes_when_the_grace_is_over_though_no_heartbeat_has_told_it(watchers: Watchers) -> None:
    watchers.rejoin_grace = 0.5
    watchers.settled("a", "b")
    watchers.silence("b")
    while watchers.states()["b"] != "dead":
        watchers.run(0.25)
    due = watchers.watchers["a"].leadership.next_due(watchers.clock.now)
    assert due is not None and due <= watchers.clock.now + 0.5


def test_a_new_leader_learns_who_is_waited_for(watchers: Watchers) -> None:
    watchers.rejoin_grace = 30.0
    watchers.settled("a", "b", "c")
    watchers.silence("c")
    watchers.run(TIMEOUT + 2 * INTERVAL)
    waiting = counts(watchers.store, "target")["c"]
    watchers.leave("a")
    watchers.run(2 * INTERVAL)
    assert counts(watchers.store, "target") == {"b": 64 - waiting, "c": waiting}
    time_is_over(watchers.store)
    watchers.run(2 * INTERVAL)
    assert counts(watchers.store, "target") == {"b": 64}


def test_a_plan_that_the_database_did_not_hear_is_made_later(
    watchers: Watchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchers.rejoin_grace = 20.0
    watchers.settled("a", "b")
    watchers.silence("b")
    watchers.run(TIMEOUT + 2 * INTERVAL)
    leader = watchers.watchers["a"]
    time_is_over(watchers.store)
    leader.beat()
    with Outage(leader.link, monkeypatch), pytest.raises(StoreUnavailable):
        leader.tick()
    watchers.run(1.0)
    assert counts(watchers.store, "target") == {"a": 64}
