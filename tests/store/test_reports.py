"""Reports: the state of a cluster in a word, and what each node has."""

from __future__ import annotations

import pytest
from cluster import Cluster, ending, wanted

from jobsync_celery.core.model import Member
from jobsync_celery.store.leader import Rebalance
from jobsync_celery.store.reports import ClusterStatus, Reports

ALL = range(8)


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


def status(cluster: Cluster) -> ClusterStatus:
    return cluster.within(Reports(cluster.database).status)


def test_without_a_live_node_there_is_no_leader(cluster: Cluster) -> None:
    assert status(cluster).state == "no leader"
    cluster.bury("a", cluster.join("a", *ALL))
    assert status(cluster).state == "no leader"


def test_a_cluster_is_stable_when_every_partition_is_with_its_target(cluster: Cluster) -> None:
    a = cluster.join("a", *ALL)
    assert status(cluster).state == "stable"
    cluster.within(lambda tx: cluster.store.partitions.assign(tx, {0: "b"}))
    moving = status(cluster)
    assert (moving.state, moving.moving, moving.unowned) == ("rebalancing", 1, 0)
    cluster.within(lambda tx: cluster.store.partitions.release(tx, [0], a))
    free = status(cluster)
    assert (free.state, free.moving, free.unowned) == ("rebalancing", 0, 1)
    cluster.join("b", 0)
    assert status(cluster).state == "stable"


def test_a_dead_node_leaves_the_cluster_degraded(cluster: Cluster) -> None:
    cluster.join("a", *ALL)
    cluster.bury("b", cluster.join("b"))
    assert status(cluster).state == "degraded"


def test_each_node_is_shown_with_what_it_has(cluster: Cluster) -> None:
    a, b = cluster.join("a", 0, 1, 2), cluster.join("b", 3)
    cluster.within(lambda tx: cluster.store.partitions.assign(tx, {2: "b"}))
    wants = [wanted("t", "k"), wanted("u", "l")]
    granted = cluster.claim("a", a, *wants)
    cluster.end(ending(wants[0], granted[0]))
    cluster.within(lambda tx: cluster.store.leaders.take_term(tx, Member("a", a)))
    cluster.within(lambda tx: cluster.store.leaders.record(tx, Rebalance("join", "a", 1, 1, 2, 10, 1.0)))
    cluster.rows("INSERT INTO {node} (name, state) VALUES ('script', 'admin')")
    seen = status(cluster)
    shares = {share.node.name: share for share in seen.nodes}
    assert set(shares) == {"a", "b"}
    assert (shares["a"].targets, shares["a"].owned, shares["a"].tokens) == (2, 3, 30)
    assert shares["a"].running == 1
    assert (shares["b"].targets, shares["b"].owned, shares["b"].tokens) == (2, 1, 10)
    assert shares["b"].node.incarnation == b and shares["b"].node.lag is not None
    assert (seen.leader.node, seen.leader.term) == ("a", 1)
    assert (seen.partitions, seen.running, seen.rebalances_last_hour) == (8, 1, 1)
    assert {share.node.name for share in seen.live} == {"a", "b"}


def test_the_owner_of_a_partition_is_who_has_it_not_who_should(cluster: Cluster) -> None:
    reports = Reports(cluster.database)
    cluster.join("a", 0)
    cluster.within(lambda tx: cluster.store.partitions.assign(tx, {0: "b", 1: "b"}))
    assert cluster.within(lambda tx: reports.owner(tx, "key", 0)) == "a"
    assert cluster.within(lambda tx: reports.owner(tx, "key", 1)) is None
