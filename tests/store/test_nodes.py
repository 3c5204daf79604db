"""Nodes: an incarnation per registration, heartbeats without an expiry test, and death by compare-and-set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
from cluster import Cluster, identity, wanted
from relay import Relay

from jobsync_celery.store.database import Database, Link
from jobsync_celery.store.nodes import WATCHERS, Nodes, Renewal


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


@pytest.fixture
def beat(cluster: Cluster) -> Iterator[Link]:
    link = cluster.link("heartbeat")
    yield link
    link.close()


def renew(cluster: Cluster, link: Link, name: str, incarnation: int) -> Renewal:
    answer = cluster.store.nodes.renew(link, name, incarnation)
    assert answer is not None
    return answer


def test_a_live_or_draining_name_is_not_registered_again_but_a_dead_or_left_one_is(cluster: Cluster) -> None:
    nodes = cluster.store.nodes
    first = cluster.join("a")
    assert cluster.within(lambda tx: nodes.register(tx, identity("a"))) is None
    assert cluster.within(lambda tx: nodes.drain(tx, "a", first))
    assert not cluster.within(lambda tx: nodes.drain(tx, "a", first))
    assert cluster.within(lambda tx: nodes.register(tx, identity("a"))) is None
    assert cluster.bury("a", first)
    second = cluster.join("a")
    cluster.within(lambda tx: nodes.remove(tx, "a", second))
    third = cluster.join("a")
    assert first < second < third


def test_a_new_incarnation_says_everything_anew(cluster: Cluster, beat: Link) -> None:
    old = cluster.join("a", presence="old")
    renew(cluster, beat, "a", old)
    cluster.bury("a", old)
    new = replace(identity("a", lease_sec=3.0, weight=2.0, presence="new"), hostname="h2", pid=8, kind="celery")
    incarnation = cluster.within(lambda tx: cluster.store.nodes.register(tx, new))
    found = cluster.store.nodes.find(beat, "a")
    assert found is not None and not found.gone
    assert (found.incarnation, found.state, found.renewals) == (incarnation, "live", 0)
    assert (found.presence, found.hostname, found.pid) == ("new", "h2", 8)
    (member,) = cluster.within(cluster.store.nodes.members)
    assert (member.weight, member.timeout) == (2.0, 3.0)


def test_an_unknown_name_is_not_found_and_a_dead_one_is_gone(cluster: Cluster, beat: Link) -> None:
    assert cluster.store.nodes.find(beat, "a") is None
    cluster.bury("a", cluster.join("a"))
    found = cluster.store.nodes.find(beat, "a")
    assert found is not None and found.gone


def test_a_heartbeat_of_a_dead_missing_or_older_incarnation_is_not_answered(cluster: Cluster, beat: Link) -> None:
    nodes = cluster.store.nodes
    assert nodes.renew(beat, "nobody", 1) is None
    first = cluster.join("a")
    cluster.bury("a", first)
    assert nodes.renew(beat, "a", first) is None
    second = cluster.join("a")
    assert nodes.renew(beat, "a", first) is None
    assert renew(cluster, beat, "a", second).state == "live"
    cluster.within(lambda tx: nodes.remove(tx, "a", second))
    assert nodes.renew(beat, "a", second) is None


def test_whoever_was_not_declared_dead_resumes_however_long_it_was_away(cluster: Cluster, beat: Link) -> None:
    incarnation = cluster.join("a", lease_sec=1.0)
    cluster.rows("UPDATE {node} SET last_heartbeat = clock_timestamp() - interval '1 day'")
    assert renew(cluster, beat, "a", incarnation).state == "live"
    (member,) = cluster.within(cluster.store.nodes.members)
    assert member.renewals == 1 and member.age < 5


def test_a_draining_node_goes_on_renewing(cluster: Cluster, beat: Link) -> None:
    incarnation = cluster.join("a")
    cluster.within(lambda tx: cluster.store.nodes.drain(tx, "a", incarnation))
    assert renew(cluster, beat, "a", incarnation).state == "draining"


def test_only_the_oldest_nodes_watch_and_they_see_everybody_not_dead(cluster: Cluster, beat: Link) -> None:
    names = [f"n{number}" for number in range(WATCHERS + 2)]
    incarnations = {name: cluster.join(name) for name in names}
    answers = {name: renew(cluster, beat, name, incarnation) for name, incarnation in incarnations.items()}
    assert [name for name in names if answers[name].watching] == names[:WATCHERS]
    assert {member.name for member in answers["n0"].members} == set(names)
    cluster.bury("n0", incarnations["n0"])
    answer = renew(cluster, beat, names[WATCHERS], incarnations[names[WATCHERS]])
    assert {member.name for member in answer.members} == set(names[1:])
    assert {member.timeout for member in answer.members} == {15.0}


def test_a_younger_node_watches_in_the_place_of_one_that_has_been_silent_for_half_of_its_lease(
    cluster: Cluster, beat: Link
) -> None:
    names = [f"n{number}" for number in range(WATCHERS + 1)]
    incarnations = {name: cluster.join(name) for name in names}
    silence = "UPDATE {node} SET last_heartbeat = clock_timestamp() - make_interval(secs => :age) WHERE name = 'n1'"
    for age, watches in ((7.0, False), (8.0, True)):
        cluster.rows(silence, age=age)
        assert renew(cluster, beat, names[-1], incarnations[names[-1]]).watching is watches


def test_a_node_learns_that_a_partition_waits_for_it_to_take_or_to_release(cluster: Cluster, beat: Link) -> None:
    a, b = cluster.join("a", 0), cluster.join("b")
    assert not renew(cluster, beat, "a", a).misplaced
    cluster.within(lambda tx: cluster.store.partitions.assign(tx, {0: "b"}))
    assert renew(cluster, beat, "a", a).misplaced
    assert not renew(cluster, beat, "b", b).misplaced  # not free yet
    cluster.within(lambda tx: cluster.store.partitions.release(tx, [0], a))
    assert not renew(cluster, beat, "a", a).misplaced
    assert renew(cluster, beat, "b", b).misplaced


@pytest.mark.parametrize("left", ["partition", "claim"])
def test_watchers_learn_that_something_belongs_to_an_incarnation_that_is_gone(
    cluster: Cluster, beat: Link, left: str
) -> None:
    a, b = cluster.join("a"), cluster.join("b", 0)
    cluster.claim("b", b, wanted("t"))
    assert not renew(cluster, beat, "a", a).unsettled
    cluster.rows("DELETE FROM {node} WHERE name = 'b'")
    if left == "claim":
        cluster.within(cluster.store.partitions.free_orphans)
    else:
        cluster.within(cluster.store.claims.settle)
    assert renew(cluster, beat, "a", a).unsettled
    cluster.within(cluster.store.partitions.free_orphans)
    cluster.within(cluster.store.claims.settle)
    assert not renew(cluster, beat, "a", a).unsettled


def test_a_heartbeat_is_one_statement(cluster: Cluster, relay: Relay) -> None:
    incarnation = cluster.join("a")
    database = Database(relay.url)
    nodes, link = Nodes(database), database.link("a")
    link.connect()
    relay.queries.clear()
    for _ in range(3):
        assert nodes.renew(link, "a", incarnation)
    assert len(relay.queries) == 3
    link.close()


def test_death_is_declared_only_of_the_counter_that_was_seen(cluster: Cluster, beat: Link) -> None:
    nodes = cluster.store.nodes
    incarnation = cluster.join("a")
    renew(cluster, beat, "a", incarnation)
    assert not cluster.within(lambda tx: nodes.declare_dead(tx, "a", incarnation, 0))
    assert not cluster.within(lambda tx: nodes.declare_dead(tx, "a", incarnation + 1, 1))
    assert cluster.within(lambda tx: nodes.declare_dead(tx, "a", incarnation, 1))
    assert not cluster.within(lambda tx: nodes.declare_dead(tx, "a", incarnation, 1))


def test_a_claim_in_progress_delays_a_declaration_of_death_but_no_heartbeat(cluster: Cluster, beat: Link) -> None:
    incarnation = cluster.join("a", 0)
    with cluster.database.transaction() as tx:
        cluster.store.claims.claim(tx, "a", incarnation, [wanted("t")])
        renew(cluster, beat, "a", incarnation)  # returns though the claim's locks are held
        death = cluster.meanwhile(
            lambda: cluster.within(lambda tx: cluster.store.nodes.declare_dead(tx, "a", incarnation, None), "killer")
        )
        cluster.await_blocked("killer")
        assert not death.done()
    assert death.result(10)
    assert cluster.states() == {"t": "running"}


def test_a_heartbeat_that_waited_for_a_declaration_of_death_finds_itself_dead(cluster: Cluster, beat: Link) -> None:
    incarnation = cluster.join("a")
    with cluster.database.transaction() as tx:
        assert cluster.store.nodes.declare_dead(tx, "a", incarnation, 0)
        renewal = cluster.meanwhile(lambda: cluster.store.nodes.renew(beat, "a", incarnation))
        cluster.await_blocked("heartbeat")
    assert renewal.result(10) is None


def test_a_declaration_of_death_that_waited_for_a_heartbeat_fails(cluster: Cluster) -> None:
    incarnation = cluster.join("a")
    with cluster.database.transaction() as tx:
        tx.execute(cluster.database.sql("UPDATE {node} SET renewals = renewals + 1 WHERE name = 'a'"))
        death = cluster.meanwhile(
            lambda: cluster.within(lambda tx: cluster.store.nodes.declare_dead(tx, "a", incarnation, 0), "killer")
        )
        cluster.await_blocked("killer")
    assert death.result(10) is False


def test_a_name_is_registered_by_one_of_two_at_once(cluster: Cluster) -> None:
    with cluster.database.transaction() as tx:
        first = cluster.store.nodes.register(tx, identity("a"))
        second = cluster.meanwhile(
            lambda: cluster.within(lambda tx: cluster.store.nodes.register(tx, identity("a")), "second")
        )
        cluster.await_blocked("second")
    assert second.result(10) is None
    assert cluster.rows("SELECT incarnation FROM {node}") == [(first,)]


def test_a_node_leaves_without_a_trace_but_a_dead_one_stays_in_the_record(cluster: Cluster) -> None:
    a, b = cluster.join("a"), cluster.join("b")
    cluster.bury("b", b)
    for name, incarnation in (("a", a), ("b", b)):
        cluster.within(partial(cluster.store.nodes.remove, name=name, incarnation=incarnation))
    (row,) = cluster.within(cluster.store.nodes.everyone)
    assert (row.name, row.state) == ("b", "dead")
