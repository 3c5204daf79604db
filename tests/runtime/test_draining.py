"""Nodes that others have drain: they obey their rows, give everything up, and take part again when that is lifted."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from member_stage import Stage
from node_stage import Cluster
from stage import SHAPE, counts, eventually, join, rows, store_at

from jobsync_celery.errors import NodeUnknown
from jobsync_celery.runtime.draining import lift_drain, order_drain


@pytest.fixture
def cluster(database_url: str) -> Iterator[Cluster]:
    cluster = Cluster(database_url)
    yield cluster
    cluster.close()


def renewals(cluster: Cluster, name: str) -> int:
    return int(rows(cluster.store, "SELECT renewals FROM {node} WHERE name = :name", name=name)[0][0])


def order(cluster: Cluster, name: str) -> None:
    with cluster.store.database.transaction() as tx:
        order_drain(tx, cluster.store, name)


def lift(cluster: Cluster, name: str) -> None:
    with cluster.store.database.transaction() as tx:
        assert lift_drain(tx, cluster.store, name)


def states(cluster: Cluster) -> dict[str, str]:
    return dict(rows(cluster.store, "SELECT name, state FROM {node}"))


@pytest.mark.parametrize("name", ["a", "d"], ids=["leader", "not-watching"])
def test_a_node_that_is_ordered_to_drain_gives_everything_up_and_takes_part_again_when_that_is_lifted(
    cluster: Cluster, name: str
) -> None:
    cluster.start("a")
    eventually(cluster.balanced)
    cluster.start("b", "c")
    eventually(cluster.balanced)
    cluster.start("d")
    eventually(cluster.balanced)
    drained = cluster.workers.pop(name)
    order(cluster, name)
    eventually(cluster.balanced)
    assert not drained.surface.consumed and drained.lease.trusted
    before = len(rows(cluster.store, "SELECT FROM {rebalance}"))
    beats = renewals(cluster, name)
    eventually(lambda: renewals(cluster, name) > beats + 1)
    assert not drained.surface.consumed and states(cluster)[name] == "draining"
    assert len(rows(cluster.store, "SELECT FROM {rebalance}")) == before  # it stays empty without further plans
    cluster.workers[name] = drained
    lift(cluster, name)
    eventually(cluster.balanced)
    assert states(cluster)[name] == "live"


def test_the_last_node_gives_everything_up_too_and_has_it_again_afterwards(cluster: Cluster) -> None:
    cluster.start("a", "b")
    eventually(cluster.balanced)
    for name in cluster.workers:
        order(cluster, name)
    eventually(lambda: counts(cluster.store) == {None: SHAPE.partitions})
    assert not any(worker.surface.consumed for worker in cluster.workers.values())
    lift(cluster, "b")
    eventually(lambda: counts(cluster.store) == {"b": SHAPE.partitions})
    lift(cluster, "a")
    eventually(cluster.balanced)


def test_a_newcomer_takes_over_from_nodes_that_were_all_ordered_to_drain(cluster: Cluster) -> None:
    cluster.start("a")
    eventually(cluster.balanced)
    order(cluster, "a")
    eventually(lambda: counts(cluster.store) == {None: SHAPE.partitions})
    cluster.start("b")
    eventually(lambda: counts(cluster.store) == {"b": SHAPE.partitions})


def test_a_drained_node_that_stops_leaves_at_once(cluster: Cluster) -> None:
    cluster.start("a", "b")
    eventually(cluster.balanced)
    leaver = cluster.workers.pop("a")
    order(cluster, "a")
    eventually(cluster.balanced)
    plans = rows(cluster.store, "SELECT count(*) FROM {rebalance}")
    leaver.node.drain()
    assert leaver.node.drained.wait(5)
    assert leaver.node.leave(5)
    cluster.all_hear()
    assert states(cluster) == {"b": "live"} and rows(cluster.store, "SELECT count(*) FROM {rebalance}") == plans


def test_a_drained_node_that_was_evicted_takes_nothing_when_it_is_back(cluster: Cluster) -> None:
    cluster.start("a", "b")
    eventually(cluster.balanced)
    drained = cluster.workers.pop("a")
    order(cluster, "a")
    eventually(cluster.balanced)
    go = drained.freeze()
    eventually(lambda: states(cluster)["a"] == "dead")
    go.set()
    eventually(lambda: states(cluster)["a"] == "draining")
    cluster.all_hear()
    assert cluster.balanced() and not drained.surface.consumed
    drained.close()


def test_what_was_taken_in_a_transaction_whose_answer_was_lost_is_given_up_too(cluster: Cluster) -> None:
    cluster.start("a", "b")
    eventually(cluster.balanced)
    drained = cluster.workers.pop("a")
    go = drained.freeze()
    [mine] = rows(cluster.store, "SELECT incarnation FROM {node} WHERE name = 'a'")
    stranger = min(cluster.workers["b"].surface.consumed)
    taken = "UPDATE {partition} SET owner = 'a', owner_incarnation = :mine WHERE partition_id = :stranger"
    rows(cluster.store, taken, mine=mine[0], stranger=stranger)
    order(cluster, "a")
    go.set()
    eventually(lambda: counts(cluster.store) == {"b": SHAPE.partitions})


# -- the member alone, on a clock of its own


@pytest.fixture
def stage(database_url: str) -> Iterator[Stage]:
    stage = Stage(store_at(database_url))
    yield stage
    stage.link.close()


def order_one(stage: Stage) -> None:
    with stage.store.database.transaction() as tx:
        order_drain(tx, stage.store, "a")


def lift_one(stage: Stage) -> bool:
    with stage.store.database.transaction() as tx:
        return lift_drain(tx, stage.store, "a")


def test_an_order_to_drain_is_obeyed_until_it_is_lifted(stage: Stage) -> None:
    stage.tick()
    order_one(stage)
    assert stage.state() == "draining"
    stage.tick()
    assert stage.member.draining and len(stage.facts.of("node_draining")) == 1
    stage.member.resume()  # as a node does that has no reason of its own to drain
    assert stage.state() == "draining" and stage.member.draining
    assert lift_one(stage)
    assert stage.state() == "draining"  # it is for the node to say
    stage.tick()
    stage.member.resume()
    assert stage.state() == "live" and not stage.member.draining
    assert not lift_one(stage)


def test_a_node_that_drains_for_a_reason_of_its_own_goes_on_when_an_order_is_lifted(stage: Stage) -> None:
    stage.tick()
    stage.member.drain()
    order_one(stage)
    stage.tick()
    lift_one(stage)
    stage.tick()
    assert stage.state() == "draining" and stage.member.draining
    stage.member.resume()  # its own reason is over
    assert stage.state() == "live"


def test_a_node_keeps_to_an_order_through_the_end_of_its_own_reason(stage: Stage) -> None:
    stage.tick()
    stage.member.drain()
    order_one(stage)
    stage.tick()
    stage.member.resume()
    assert stage.state() == "draining" and stage.member.draining


def test_a_node_that_registers_anew_is_bound_by_the_order_still_and_its_successor_is_not(stage: Stage) -> None:
    stage.tick()
    order_one(stage)
    stage.tick()
    rows(stage.store, "UPDATE {node} SET state = 'dead'")
    assert stage.tick() is None
    answer = stage.tick()
    assert answer is not None and (answer.state, answer.drain_ordered) == ("draining", True)
    assert stage.member.draining
    rows(stage.store, "UPDATE {node} SET state = 'dead'")
    successor = Stage(stage.store)
    answer = successor.tick()
    assert answer is not None and (answer.state, answer.drain_ordered) == ("live", False)
    successor.link.close()


def test_only_live_nodes_can_be_ordered_to_drain(stage: Stage) -> None:
    stage.tick()
    join(stage.store, "worker-1")
    rows(stage.store, "INSERT INTO {node} (name, state) VALUES ('gone', 'dead'), ('script', 'admin')")
    for name, hint in (("worker-2", "did you mean 'worker-1'?"), ("gone", "declared dead"), ("script", "there are a,")):
        for order_of in (order_drain, lift_drain):
            with pytest.raises(NodeUnknown, match=re.escape(hint)), stage.store.database.transaction() as tx:
                order_of(tx, stage.store, name)
