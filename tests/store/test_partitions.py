"""Partitions: an owner changes only by release, by eviction, or by taking a free one as its target."""

from __future__ import annotations

import pytest
from cluster import Cluster
from sqlalchemy.engine import Connection

from jobsync_celery.store.partitions import Share


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


def owners(cluster: Cluster) -> dict[int, tuple[str | None, int | None]]:
    seats = cluster.within(cluster.store.partitions.seats)
    return {seat.number: (seat.owner, seat.owner_incarnation) for seat in seats if seat.owner}


def share(cluster: Cluster, name: str, incarnation: int) -> Share:
    link = cluster.link("share")
    try:
        return cluster.store.partitions.share(link, name, incarnation)
    finally:
        link.close()


def test_a_free_partition_is_taken_by_its_target_only(cluster: Cluster) -> None:
    partitions = cluster.store.partitions
    a, b = cluster.join("a"), cluster.join("b")
    cluster.within(lambda tx: partitions.assign(tx, {0: "a", 1: "b", 2: None}))
    assert cluster.within(lambda tx: partitions.take(tx, [0, 1, 2, 3], "a", a)) == {0}
    assert cluster.within(lambda tx: partitions.take(tx, [0, 1], "b", b)) == {1}
    assert owners(cluster) == {0: ("a", a), 1: ("b", b)}


def test_an_owned_partition_is_taken_by_nobody_not_even_its_new_target(cluster: Cluster) -> None:
    a, b = cluster.join("a", 0), cluster.join("b")
    cluster.within(lambda tx: cluster.store.partitions.assign(tx, {0: "b"}))
    assert not cluster.within(lambda tx: cluster.store.partitions.take(tx, [0], "b", b))
    assert owners(cluster) == {0: ("a", a)}


@pytest.mark.parametrize("state", ["draining", "dead", "left", "older incarnation", "missing"])
def test_a_node_that_is_not_live_takes_nothing(cluster: Cluster, state: str) -> None:
    incarnation = cluster.join("a")
    cluster.within(lambda tx: cluster.store.partitions.assign(tx, {0: "a"}))
    if state == "missing":
        cluster.rows("DELETE FROM {node}")
    elif state == "older incarnation":
        cluster.rows("UPDATE {node} SET incarnation = incarnation + 1")
    else:
        cluster.rows("UPDATE {node} SET state = :state", state=state)
    assert not cluster.within(lambda tx: cluster.store.partitions.take(tx, [0], "a", incarnation))
    assert owners(cluster) == {}


def test_only_the_owning_incarnation_releases(cluster: Cluster) -> None:
    partitions = cluster.store.partitions
    a, b = cluster.join("a", 0, 1), cluster.join("b", 2)
    assert not cluster.within(lambda tx: partitions.release(tx, [0, 1, 2, 3], b + 1))
    assert cluster.within(lambda tx: partitions.release(tx, [0, 2, 3], a)) == {0}
    assert owners(cluster) == {1: ("a", a), 2: ("b", b)}
    assert not cluster.within(lambda tx: partitions.release(tx, [0], a))


def test_who_had_a_partition_last_is_remembered_through_release_eviction_and_taking(cluster: Cluster) -> None:
    partitions = cluster.store.partitions
    a = cluster.join("a", 0, 1)
    cluster.within(lambda tx: partitions.release(tx, [0], a))
    cluster.bury("a", a)
    assert cluster.within(partitions.free_orphans) == [1]
    assert {seat.last_owner for seat in cluster.within(partitions.seats)[:2]} == {"a"}
    cluster.join("b", 0)
    seats = cluster.within(partitions.seats)
    assert (seats[0].owner, seats[0].last_owner, seats[1].last_owner) == ("b", "a", "a")


def test_a_plan_touches_only_the_partitions_whose_target_changes(cluster: Cluster) -> None:
    partitions = cluster.store.partitions
    cluster.within(lambda tx: partitions.assign(tx, {0: "a", 1: "a"}))
    before = cluster.rows("SELECT version, assigned_at FROM {partition} WHERE partition_id = 0")
    cluster.within(lambda tx: partitions.assign(tx, {0: "a", 1: "b"}))
    cluster.within(lambda tx: partitions.assign(tx, {}))
    assert cluster.rows("SELECT version, assigned_at FROM {partition} WHERE partition_id = 0") == before
    assert cluster.rows("SELECT target, version FROM {partition} WHERE partition_id = 1") == [("b", 2)]


def test_every_change_of_target_or_owner_is_a_new_version(cluster: Cluster) -> None:
    a = cluster.join("a", 0)
    cluster.within(lambda tx: cluster.store.partitions.release(tx, [0], a))
    assert cluster.rows("SELECT version, claimed_at FROM {partition} WHERE partition_id = 0") == [(3, None)]


def test_a_share_says_what_is_owned_what_is_free_to_take_and_what_is_to_go(cluster: Cluster) -> None:
    a, b = cluster.join("a", 0, 1), cluster.join("b", 2)
    cluster.within(lambda tx: cluster.store.partitions.assign(tx, {1: "b", 2: "a", 3: "a"}))
    assert share(cluster, "a", a) == Share(owned=frozenset({0, 1}), take=frozenset({3}), release=frozenset({1}))
    assert share(cluster, "b", b) == Share(owned=frozenset({2}), take=frozenset(), release=frozenset({2}))
    assert share(cluster, "a", a + 100) == Share(frozenset(), frozenset({3}), frozenset())


def test_orphans_are_what_belongs_to_a_dead_or_missing_incarnation(cluster: Cluster) -> None:
    a, b = cluster.join("a", 0), cluster.join("b", 1)
    c = cluster.join("c", 2)
    cluster.within(lambda tx: cluster.store.nodes.drain(tx, "a", a))
    cluster.bury("b", b)
    cluster.rows("DELETE FROM {node} WHERE name = 'c'")
    assert c and cluster.within(cluster.store.partitions.free_orphans) == [1, 2]
    assert owners(cluster) == {0: ("a", a)}
    assert cluster.within(cluster.store.partitions.free_orphans) == []


def test_a_partition_freed_meanwhile_is_taken_by_one_of_two(cluster: Cluster) -> None:
    """Two processes under one name: only the incarnation of the row may take."""
    partitions = cluster.store.partitions
    old = cluster.join("a")
    cluster.within(lambda tx: partitions.assign(tx, {0: "a"}))
    with cluster.database.transaction() as tx:
        assert cluster.store.nodes.declare_dead(tx, "a", old, None)
        taking = cluster.meanwhile(lambda: cluster.within(lambda tx: partitions.take(tx, [0], "a", old), "taker"))
        cluster.await_blocked("taker")
    assert taking.result(10) == frozenset()
    new = cluster.join("a")
    assert cluster.within(lambda tx: partitions.take(tx, [0], "a", new)) == {0}


def test_a_plan_waits_for_the_taking_it_meets_and_does_not_change_the_owner(cluster: Cluster) -> None:
    partitions = cluster.store.partitions
    a = cluster.join("a")
    cluster.within(lambda tx: partitions.assign(tx, {0: "a"}))

    def assign(tx: Connection) -> None:
        partitions.assign(tx, {0: "b"})

    with cluster.database.transaction() as tx:
        assert partitions.take(tx, [0], "a", a) == {0}
        planning = cluster.meanwhile(lambda: cluster.within(assign, "planner"))
        cluster.await_blocked("planner")
    planning.result(10)
    assert cluster.rows("SELECT target, owner FROM {partition} WHERE partition_id = 0") == [("b", "a")]


def test_the_token_view_shows_every_token_of_an_owned_partition_with_its_owner(cluster: Cluster) -> None:
    a = cluster.join("a", 0, 1)
    cluster.join("b", 2)
    count = "SELECT node, count(*) FROM {token} GROUP BY node ORDER BY node"
    assert cluster.rows(count) == [("a", 20), ("b", 10)]
    cluster.within(lambda tx: cluster.store.partitions.assign(tx, {0: "b"}))
    assert cluster.rows(count) == [("a", 20), ("b", 10)]  # it is the owner that counts
    cluster.within(lambda tx: cluster.store.partitions.release(tx, [0], a))
    assert cluster.rows(count) == [("a", 10), ("b", 10)]
    assert cluster.rows("SELECT min(token_id), max(token_id) FROM {token} WHERE node = 'a'") == [(10, 19)]
