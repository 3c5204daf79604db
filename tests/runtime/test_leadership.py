"""Leading: who leads, who is evicted by whom, and when a plan is made; nodes are rows, time is the test's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stage import SHAPE, counts, identity, rows, store_at, wanted
from watching import INTERVAL, TIMEOUT, Cluster

from jobsync_celery.core.model import Member
from jobsync_celery.runtime.leadership import FirstPlan
from jobsync_celery.runtime.rebalancing import back_up, leads
from jobsync_celery.store.claims import LOST_AT_ONCE
from jobsync_celery.store.store import Store


@pytest.fixture
def cluster(database_url: str) -> Iterator[Cluster]:
    cluster = Cluster(store_at(database_url))
    yield cluster
    for watcher in cluster.watchers.values():
        watcher.link.close()


def test_the_oldest_live_node_leads_and_a_draining_one_only_if_all_drain() -> None:
    a, b, c = Member("a", 1, "draining"), Member("b", 2), Member("c", 3)
    assert leads([c, b, a]) == b
    assert leads([a, Member("b", 2, "draining")]) == a
    assert leads([]) is None


def test_only_the_leader_plans(cluster: Cluster) -> None:
    a, b, c = (cluster.join(name) for name in "abc")
    for watcher in (c, b):
        watcher.beat()
        cluster.clock.pass_by(1)
        watcher.tick()
        assert not watcher.leadership.leading
    assert counts(cluster.store, "target") == {None: 64}
    a.beat()
    cluster.clock.pass_by(1)
    a.tick()
    assert a.leadership.leading
    assert sorted(counts(cluster.store, "target").values()) == [21, 21, 22]
    assert cluster.leader() == ("a", 1)
    assert a.facts.of("leader_changed") == [{"name": "a", "term": 1}]


def test_without_faults_nothing_moves_and_nothing_is_written(cluster: Cluster) -> None:
    cluster.settled("a", "b", "c")
    before = rows(cluster.store, "SELECT * FROM {partition} ORDER BY 1"), cluster.history(), cluster.leader()
    cluster.run(60)
    after = rows(cluster.store, "SELECT * FROM {partition} ORDER BY 1"), cluster.history(), cluster.leader()
    assert after == before
    assert len(cluster.history()) == 1
    assert set(cluster.states().values()) == {"live"}


def test_joins_within_half_a_second_are_one_plan(cluster: Cluster) -> None:
    cluster.settled("a")
    leader = cluster.watchers["a"]
    for name in "bc":
        cluster.join(name)
        leader.beat()
        leader.tick()
        cluster.clock.pass_by(0.24)
    assert len(cluster.history()) == 1
    cluster.clock.pass_by(0.03)
    leader.tick()
    assert len(cluster.history()) == 2
    assert sorted(counts(cluster.store, "target").values()) == [21, 21, 22]
    assert cluster.history()[-1][1:4] == ("a", 1, 3)


def test_a_departure_is_planned_at_once(cluster: Cluster) -> None:
    cluster.settled("a", "b")
    cluster.leave("b")
    leader = cluster.watchers["a"]
    leader.beat()
    leader.tick()
    assert counts(cluster.store, "target") == {"a": 64}


def test_a_drain_is_planned_at_once_and_by_the_next_oldest_if_the_leader_drains(cluster: Cluster) -> None:
    cluster.settled("a", "b")
    with cluster.store.database.transaction() as tx:
        cluster.store.nodes.drain(tx, "a", cluster.watchers["a"].incarnation)
    for watcher in cluster.watchers.values():
        watcher.beat()
        watcher.tick()
    assert counts(cluster.store, "target") == {"b": 64}
    assert cluster.leader() == ("b", 2)


def drain(cluster: Cluster, name: str) -> None:
    with cluster.store.database.transaction() as tx:
        cluster.store.nodes.drain(tx, name, cluster.watchers[name].incarnation)


def undrain(cluster: Cluster, name: str) -> None:
    with cluster.store.database.transaction() as tx:
        cluster.store.nodes.undrain(tx, name, cluster.watchers[name].incarnation)


def pass_by(cluster: Cluster, seconds: float, *, shaken: bool) -> None:
    """All renew their leases, and the first ticks."""
    leader = cluster.watchers["a"]
    for _ in range(round(seconds / 0.25)):
        for watcher in cluster.watchers.values():
            watcher.beat()
        leader.tick(shaken=shaken)
        cluster.clock.pass_by(0.25)


def test_while_the_broker_may_be_away_for_all_draining_nodes_keep_what_they_have(cluster: Cluster) -> None:
    cluster.settled("a", "b")
    drain(cluster, "b")
    pass_by(cluster, 3, shaken=True)
    assert counts(cluster.store, "target") == {"a": 32, "b": 32}
    due = cluster.watchers["a"].leadership.next_due(cluster.clock.now)
    assert due is not None and due > cluster.clock.now - 0.25  # it does not turn in circles
    pass_by(cluster, 1, shaken=False)
    assert counts(cluster.store, "target") == {"a": 64}


def test_nothing_has_moved_if_they_come_back_meanwhile(cluster: Cluster) -> None:
    cluster.settled("a", "b")
    drain(cluster, "b")
    pass_by(cluster, 2, shaken=True)
    undrain(cluster, "b")
    pass_by(cluster, 2, shaken=True)
    pass_by(cluster, 2, shaken=False)
    assert counts(cluster.store, "target") == {"a": 32, "b": 32} and len(cluster.history()) == 1


def test_nor_if_all_drain_for_longer_than_a_lease_and_come_back_one_after_the_other(cluster: Cluster) -> None:
    cluster.settled("a", "b")
    for name in "ba":
        drain(cluster, name)
        pass_by(cluster, 1, shaken=True)
    pass_by(cluster, 2 * TIMEOUT, shaken=True)
    undrain(cluster, "a")
    pass_by(cluster, TIMEOUT / 2, shaken=True)
    undrain(cluster, "b")
    pass_by(cluster, 2, shaken=False)
    assert counts(cluster.store, "target") == {"a": 32, "b": 32} and len(cluster.history()) == 1


def test_meanwhile_joins_departures_and_deaths_are_planned_as_ever(cluster: Cluster) -> None:
    cluster.settled("a", "b", "c")
    kept = counts(cluster.store, "target")["b"]
    silent = cluster.silence("c")
    pass_by(cluster, TIMEOUT - 3, shaken=True)
    drain(cluster, "b")
    cluster.join("d")
    pass_by(cluster, 1, shaken=True)
    shares = counts(cluster.store, "target")
    assert set(shares) == set("abcd") and shares["b"] == kept
    cluster.leave("d")
    pass_by(cluster, 0.5, shaken=True)
    shares = counts(cluster.store, "target")
    assert set(shares) == set("abc") and shares["b"] == kept
    pass_by(cluster, 4, shaken=True)
    assert cluster.states()[silent.name] == "dead"
    assert counts(cluster.store, "target") == {"a": 64 - kept, "b": kept}
    silent.link.close()


def test_a_leader_that_loses_its_broker_again_and_again_has_draining_nodes_keep_theirs_for_a_lease_at_most(
    cluster: Cluster,
) -> None:
    cluster.settled("a", "b")
    drain(cluster, "b")
    begun = cluster.clock.now
    while "b" in counts(cluster.store, "target"):
        pass_by(cluster, 0.25, shaken=True)
    assert TIMEOUT <= cluster.clock.now - begun < TIMEOUT + 2


def test_beat_leaves_who_drains_to_a_leader_that_renews(cluster: Cluster) -> None:
    cluster.settled("a", "b")
    drain(cluster, "b")
    back_up_all(cluster)
    assert counts(cluster.store, "target") == {"a": 32, "b": 32}
    cluster.leave("b")
    back_up_all(cluster)
    assert counts(cluster.store, "target") == {"a": 64}


def test_beat_hands_over_what_a_draining_node_has_if_the_leader_is_silent(cluster: Cluster) -> None:
    cluster.settled("a", "b", "c")
    drain(cluster, "b")
    rows(
        cluster.store,
        "UPDATE {node} SET last_heartbeat = last_heartbeat - interval '11 s' WHERE name = 'a' RETURNING 1",
    )
    back_up_all(cluster)
    assert "b" not in counts(cluster.store, "target")


def back_up_all(cluster: Cluster) -> None:
    with cluster.store.database.transaction() as tx:
        back_up(tx, cluster.store, SHAPE.tokens)


def test_a_silent_node_is_evicted_by_the_leader_when_its_lease_has_ended(cluster: Cluster) -> None:
    cluster.settled("a", "b", "c")
    victim = cluster.silence("b")
    claim(cluster.store, "b", victim.incarnation)
    cluster.run(TIMEOUT - INTERVAL)
    assert cluster.states()["b"] == "live"
    cluster.run(2 * INTERVAL + 0.5)
    assert cluster.states() == {"a": "live", "b": "dead", "c": "live"}
    assert counts(cluster.store, "target") == {"a": 32, "c": 32}
    assert "b" not in counts(cluster.store)
    assert rows(cluster.store, "SELECT state FROM {claim}") == [("lost",)]
    assert cluster.watchers["a"].facts.of("node_evicted")[0]["by"] == "a"
    assert not cluster.watchers["c"].facts.of("node_evicted")
    assert cluster.history()[-1][0] == "node dead" and cluster.leader() == ("a", 1)


def test_a_silent_leader_is_evicted_by_the_next_oldest_who_takes_the_term(cluster: Cluster) -> None:
    cluster.settled("a", "b", "c")
    cluster.silence("a")
    cluster.run(TIMEOUT + INTERVAL + 0.5)
    assert cluster.states() == {"a": "dead", "b": "live", "c": "live"}
    assert cluster.leader() == ("b", 2)
    assert cluster.watchers["b"].facts.of("node_evicted")[0]["victim"] == "a"
    assert not cluster.watchers["c"].facts.of("node_evicted")
    assert counts(cluster.store, "target") == {"b": 32, "c": 32}


def test_the_leader_and_the_next_oldest_may_die_together(cluster: Cluster) -> None:
    cluster.settled("a", "b", "c")
    cluster.silence("a")
    cluster.silence("b")
    cluster.run(TIMEOUT + INTERVAL + 0.5)
    assert cluster.states() == {"a": "dead", "b": "dead", "c": "live"}
    assert cluster.leader() == ("c", 2)
    assert counts(cluster.store, "target") == {"c": 64}


def test_the_leader_wakes_when_a_lease_could_end(cluster: Cluster) -> None:
    cluster.settled("a", "b")
    cluster.silence("b")
    leader = cluster.watchers["a"]
    leader.beat()
    due = leader.leadership.next_due(cluster.clock.now)
    assert due is not None and 0 < due - cluster.clock.now <= TIMEOUT * 1.01


def test_an_observer_that_was_away_itself_evicts_nobody(cluster: Cluster) -> None:
    cluster.settled("a", "b", "c")
    cluster.clock.pass_by(5 * TIMEOUT)  # the database was away
    for watcher in cluster.watchers.values():
        watcher.tick()
        watcher.beat()
        watcher.tick()
    cluster.run(TIMEOUT * 2)
    assert set(cluster.states().values()) == {"live"} and len(cluster.history()) == 1


def test_after_an_outage_the_silent_get_a_whole_timeout(cluster: Cluster) -> None:
    cluster.settled("a", "b")
    cluster.silence("b")
    cluster.clock.pass_by(5 * TIMEOUT)
    cluster.run(TIMEOUT - 1)
    assert cluster.states()["b"] == "live"
    cluster.run(INTERVAL + 2)
    assert cluster.states()["b"] == "dead"


def test_a_suspect_that_renews_in_the_last_moment_is_not_evicted(cluster: Cluster) -> None:
    cluster.settled("a", "b")
    silent = cluster.silence("b")
    leader = cluster.watchers["a"]
    for _ in range(5):
        leader.beat()
        cluster.clock.pass_by(INTERVAL)
    cluster.clock.pass_by(0.2)
    silent.beat()  # after the leader's last look
    leader.tick()
    assert cluster.states()["b"] == "live" and len(cluster.history()) == 1
    silent.link.close()


# the first plan


def test_the_first_plan_waits_for_the_number_of_nodes_and_says_so(cluster: Cluster) -> None:
    cluster.first_plan = FirstPlan(minimum_nodes=3)
    cluster.join("a")
    cluster.join("b")
    cluster.run(6)
    assert counts(cluster.store, "target") == {None: 64}
    held = cluster.watchers["a"].facts.of("plan_held_back")
    assert held and (held[-1]["nodes"], held[-1]["minimum_nodes"]) == (2, 3)
    cluster.join("c")
    cluster.run(4)
    assert sorted(counts(cluster.store, "target").values()) == [21, 21, 22]
    cluster.obey()
    cluster.leave("c")
    cluster.run(2)
    assert counts(cluster.store, "target") == {"a": 32, "b": 32}  # it holds back the first one only


def test_the_first_plan_waits_for_the_time_on_enter(cluster: Cluster) -> None:
    cluster.first_plan = FirstPlan(wait_on_enter=5.0)
    cluster.join("a")
    cluster.run(4.5)
    assert counts(cluster.store, "target") == {None: 64}
    cluster.run(2)
    assert counts(cluster.store, "target") == {"a": 64}


# settling


def test_what_a_row_deleted_by_hand_left_behind_is_settled(cluster: Cluster) -> None:
    cluster.settled("a", "b")
    victim = cluster.silence("b")
    claim(cluster.store, "b", victim.incarnation)
    rows(cluster.store, "DELETE FROM {node} WHERE name = 'b'")
    cluster.run(2 * INTERVAL)
    assert counts(cluster.store, "target") == {"a": 64}
    assert rows(cluster.store, "SELECT state FROM {claim}") == [("lost",)]
    assert counts(cluster.store) == {"a": 32, None: 32}


def test_a_claim_held_under_a_guard_is_settled_at_a_later_heartbeat(cluster: Cluster) -> None:
    cluster.settled("a", "b")
    victim = cluster.silence("b")
    claim(cluster.store, "b", victim.incarnation)
    with cluster.store.database.transaction("user") as tx:
        tx.execute(cluster.store.database.sql("SELECT FROM {claim} FOR UPDATE"))
        cluster.run(TIMEOUT + 2 * INTERVAL)
        assert cluster.states()["b"] == "dead" and counts(cluster.store, "target") == {"a": 64}
        assert rows(cluster.store, "SELECT state FROM {claim}") == [("running",)]
    cluster.run(2 * INTERVAL)
    assert rows(cluster.store, "SELECT state FROM {claim}") == [("lost",)]


def test_a_term_grows_by_one_with_each_change_of_leader(cluster: Cluster) -> None:
    cluster.settled("a", "b", "c")
    terms = [cluster.leader()]
    for name in "ab":
        cluster.leave(name)
        cluster.run(INTERVAL)
        terms.append(cluster.leader())
    cluster.join("d")
    cluster.run(INTERVAL * 2)
    assert terms == [("a", 1), ("b", 2), ("c", 3)] and cluster.leader() == ("c", 3)
    assert identity("d").name in counts(cluster.store, "target")


def claim(store: Store, name: str, incarnation: int) -> None:
    """A running claim of one of this node's partitions."""
    number = int(rows(store, "SELECT min(partition_id) FROM {partition} WHERE owner = :name", name=name)[0][0])
    with store.database.transaction() as tx:
        outcomes = store.claims.claim(tx, name, incarnation, [wanted("t", partition=number)])
    assert type(next(iter(outcomes.values()))).__name__ == "Granted"


def test_however_many_claims_the_dead_have_the_leader_goes_on_beating_while_it_marks_them_lost(
    cluster: Cluster,
) -> None:
    store = cluster.store
    leader, victim = cluster.join("a"), cluster.join("b")
    cluster.run(4)
    rows(
        store,
        "INSERT INTO {claim} (task_id, task_key, token_id, partition_id, node, incarnation, fence)"
        " SELECT n, n, 0, 0, 'b', :incarnation, n FROM generate_series(1, :count) AS n",
        incarnation=victim.incarnation,
        count=2 * LOST_AT_ONCE + 10,
    )
    cluster.silence("b")
    while not rows(store, "SELECT FROM {node} WHERE state = 'dead'"):
        cluster.run(INTERVAL)
    leader.beat()
    turns = 0
    while leader.leadership.next_due(cluster.clock.now) == cluster.clock.now:
        leader.tick()
        turns += 1
    assert turns <= 3 and rows(store, "SELECT DISTINCT state FROM {claim}") == [("lost",)]
