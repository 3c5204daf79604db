"""Orders to one node from its own process: its loop carries them out, also when the database was away meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from node_stage import Cluster
from stage import eventually, rows


@pytest.fixture
def cluster(database_url: str) -> Iterator[Cluster]:
    cluster = Cluster(database_url)
    cluster.start("a", "b")
    eventually(cluster.balanced)
    yield cluster
    cluster.close()


def row(cluster: Cluster, name: str) -> tuple[str, bool]:
    [found] = rows(cluster.store, "SELECT state, drain_ordered FROM {node} WHERE name = :name", name=name)
    return found[0], found[1]


def test_a_node_that_is_told_to_drain_hands_everything_over_until_it_is_told_otherwise(cluster: Cluster) -> None:
    told = cluster.workers["b"]
    told.node.orders.drain()
    eventually(lambda: row(cluster, "b") == ("draining", True) and not told.surface.consumed)
    assert told.node.membership.drain_ordered and told.lease.trusted
    told.node.orders.undrain()
    eventually(lambda: row(cluster, "b") == ("live", False) and cluster.balanced())


def test_an_order_is_kept_while_the_node_has_no_row(cluster: Cluster) -> None:
    told = cluster.workers["b"]
    with cluster.store.database.transaction() as tx:
        cluster.store.nodes.declare_dead(tx, "b", told.node.membership.incarnation or 0, None)
        told.node.orders.drain()
    eventually(lambda: row(cluster, "b") == ("draining", True) and not told.surface.consumed)


def test_an_order_that_is_lifted_while_the_node_has_no_row_is_lifted(cluster: Cluster) -> None:
    told = cluster.workers["b"]
    told.node.orders.drain()
    eventually(lambda: told.node.membership.drain_ordered and not told.surface.consumed)
    with cluster.store.database.transaction() as tx:
        cluster.store.nodes.declare_dead(tx, "b", told.node.membership.incarnation or 0, None)
        told.node.orders.undrain()
    eventually(lambda: row(cluster, "b") == ("live", False) and cluster.balanced())


def test_the_leader_plans_when_it_is_told_to_and_another_node_does_not(cluster: Cluster) -> None:
    nodes = [worker.node for worker in cluster.workers.values()]
    eventually(lambda: any(node.leadership.leading for node in nodes))
    leader, other = sorted(nodes, key=lambda node: not node.leadership.leading)  # who registered first
    # Else the plan that is due when the leader has seen the other node could come first, and leave nothing to plan.
    eventually(lambda: leader.leadership._planned == leader.leadership._composition())
    rows(cluster.store, "UPDATE {partition} SET target = NULL WHERE partition_id = 0 RETURNING 1")
    other.orders.rebalance()
    eventually(lambda: not other.orders._rebalance)
    leader.orders.rebalance()
    eventually(lambda: ("requested", leader.name) in planned(cluster) and cluster.balanced())
    assert [reason for reason, _ in planned(cluster)].count("requested") == 1


def planned(cluster: Cluster) -> list[tuple[str, str]]:
    return rows(cluster.store, "SELECT trigger_reason, leader_node FROM {rebalance} ORDER BY id")
