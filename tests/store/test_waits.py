"""Rows of nodes that are waited for: how long they stay, and what they do not count as."""

from __future__ import annotations

import pytest
from cluster import Cluster


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


def leave(cluster: Cluster, name: str, incarnation: int, grace: float = 60) -> None:
    cluster.within(lambda tx: cluster.store.nodes.drain(tx, name, incarnation, grace))
    cluster.within(lambda tx: cluster.store.nodes.remove(tx, name, incarnation))
    cluster.within(cluster.store.partitions.free_orphans)


def awaited(cluster: Cluster) -> dict[str, float]:
    return cluster.within(cluster.store.waits.awaited)


def states(cluster: Cluster) -> dict[str, str]:
    return dict(cluster.rows("SELECT name, state FROM {node}"))


def test_who_leaves_what_others_wait_with_keeps_its_row_which_counts_nowhere_as_one_that_beats(
    cluster: Cluster,
) -> None:
    leave(cluster, "a", cluster.join("a", 0))
    assert states(cluster) == {"a": "left"} and 55 < awaited(cluster)["a"] <= 60
    recent = "SELECT count(*) FROM {node} WHERE last_heartbeat > NOW() - INTERVAL '15 seconds'"
    assert cluster.rows(recent) == [(0,)]
    assert cluster.within(cluster.store.nodes.members) == ()
    returned = cluster.join("a")
    assert states(cluster) == {"a": "live"} and awaited(cluster) == {}
    assert cluster.rows("SELECT target, owner FROM {partition} WHERE partition_id = 0") == [("a", None)]
    cluster.within(lambda tx: cluster.store.nodes.remove(tx, "a", returned))
    assert states(cluster) == {}  # it had not drained, so nobody was asked to wait


def test_without_a_grace_and_without_partitions_nobody_is_waited_for(cluster: Cluster) -> None:
    leave(cluster, "a", cluster.join("a", 0), grace=0)
    leave(cluster, "b", cluster.join("b"))
    assert states(cluster) == {} and awaited(cluster) == {}


def test_the_dead_are_waited_for_as_long_as_who_buries_them_says_and_the_stopping_as_they_said(
    cluster: Cluster,
) -> None:
    nodes = cluster.store.nodes
    live, stopping, drained = cluster.join("live"), cluster.join("stopping"), cluster.join("drained")
    cluster.within(lambda tx: nodes.drain(tx, "stopping", stopping, 30))
    cluster.within(lambda tx: nodes.drain(tx, "drained", drained))
    for name, incarnation in (("live", live), ("stopping", stopping), ("drained", drained)):
        assert cluster.within(lambda tx, n=name, i=incarnation: nodes.declare_dead(tx, n, i, None, grace=60))
    assert {name: 10 * round(seconds / 10) for name, seconds in awaited(cluster).items()} == {
        "live": 60,
        "stopping": 30,
    }


def test_what_is_over_ends_alone_and_everything_when_that_is_asked(cluster: Cluster) -> None:
    for number, name in enumerate("abc"):
        leave(cluster, name, cluster.join(name, number))
    cluster.rows("UPDATE {node} SET awaited_until = clock_timestamp() WHERE name = 'a'")
    assert cluster.within(cluster.store.waits.end_overdue) == ["a"]
    assert sorted(awaited(cluster)) == sorted(states(cluster)) == ["b", "c"]
    [(until,)] = cluster.rows("SELECT extract(epoch FROM awaited_until)::float8 FROM {node} WHERE name = 'b'")
    assert cluster.within(lambda tx: cluster.store.waits.end_overdue(tx, until)) == ["b"]
    assert sorted(states(cluster)) == ["c"]
    dead = cluster.join("dead")
    cluster.within(lambda tx: cluster.store.nodes.declare_dead(tx, "dead", dead, None, grace=60))
    assert sorted(cluster.within(cluster.store.waits.end_all)) == ["c", "dead"]
    assert awaited(cluster) == {} and states(cluster) == {"dead": "dead"}
    assert cluster.within(cluster.store.waits.end_all) == []


def test_locks_of_a_creator_that_is_waited_for_are_no_orphans(cluster: Cluster) -> None:
    leave(cluster, "a", cluster.join("a", 0))
    orphans = "SELECT count(*) FROM {node} WHERE name = 'a'"
    assert cluster.rows(orphans) == [(1,)]
    cluster.within(cluster.store.waits.end_all)
    assert cluster.rows(orphans) == [(0,)]
