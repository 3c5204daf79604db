"""Ends and fences: an end is recorded while nobody took the run over, and fences of a key grow (S5 to S7)."""

from __future__ import annotations

from contextlib import closing

import pytest
from cluster import Cluster, ending, wanted

from jobsync_celery.store.outcomes import Granted, Known, Outcome


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


def fence(outcome: Outcome) -> int:
    assert isinstance(outcome, Granted), outcome
    return outcome.fence


# S5, S6: ends


def test_an_end_recorded_twice_is_recorded(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    (granted,) = cluster.claim("a", incarnation, wanted("t"))
    assert cluster.end(ending(wanted("t"), granted)) == {wanted("t").run}
    assert cluster.end(ending(wanted("t"), granted)) == {wanted("t").run}


def test_an_end_that_was_recorded_is_not_changed_by_another(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    (granted,) = cluster.claim("a", incarnation, wanted("t"))
    cluster.end(ending(wanted("t"), granted))
    for state in ("failed", "retried", "lost"):
        # Nobody else has the run, so its message is ours to settle; what is recorded stands.
        assert cluster.end(ending(wanted("t"), granted, state)) == {wanted("t").run}
    assert cluster.states() == {"t": "done"}


def test_a_late_success_of_an_evicted_node_is_recorded_while_nobody_took_over(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    (granted,) = cluster.claim("a", incarnation, wanted("t"))
    cluster.bury("a", incarnation)
    cluster.within(lambda tx: cluster.store.claims.lose(tx, incarnation))
    assert cluster.states() == {"t": "lost"}
    assert cluster.end(ending(wanted("t"), granted)) == {wanted("t").run}
    b = cluster.join("b", 1)
    assert cluster.claim("b", b, wanted("t", "k", 1)) == [Known("done")]


def test_a_late_success_after_a_take_over_is_not_recorded(cluster: Cluster) -> None:
    a, b = cluster.join("a", 0), cluster.join("b", 1)
    (granted,) = cluster.claim("a", a, wanted("t"))
    cluster.bury("a", a)
    (taken,) = cluster.claim("b", b, wanted("t", "k", 1))
    assert cluster.end(ending(wanted("t"), granted)) == set()
    assert cluster.states() == {"t": "running"}
    assert cluster.end(ending(wanted("t"), taken)) == {wanted("t").run}


def test_the_next_claim_of_a_key_may_travel_with_the_end_of_the_one_before(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    (granted,) = cluster.claim("a", incarnation, wanted("one"))
    with closing(cluster.link("claimer")) as link:
        both = cluster.store.claims.commit(link, "a", incarnation, [ending(wanted("one"), granted)], [wanted("two")])
    assert both.recorded == {wanted("one").run}
    outcome = both.outcomes[wanted("two").run]
    assert fence(outcome) > fence(granted)


def test_settling_leaves_the_claims_of_live_and_draining_nodes_alone(cluster: Cluster) -> None:
    a, b, c = cluster.join("a", 0), cluster.join("b", 1), cluster.join("c", 2)
    for number, (name, incarnation) in enumerate((("a", a), ("b", b), ("c", c))):
        cluster.claim(name, incarnation, wanted(name, name, number))
    cluster.within(lambda tx: cluster.store.nodes.drain(tx, "b", b))
    cluster.rows("DELETE FROM {node} WHERE name = 'c'")
    assert cluster.within(cluster.store.claims.settle) == 1
    assert cluster.states() == {"a": "running", "b": "running", "c": "lost"}


# S7: fences


def test_fences_of_a_key_grow_across_runs_nodes_and_take_overs(cluster: Cluster) -> None:
    fences: list[int] = []
    for number in range(4):
        name = f"n{number}"
        incarnation = cluster.join(name, 0)
        first, second = wanted(f"t{number}"), wanted("carried", origin=name)
        (granted,) = cluster.claim(name, incarnation, first)
        cluster.end(ending(first, granted))
        fences += [fence(granted), fence(cluster.claim(name, incarnation, second)[0])]
        cluster.bury(name, incarnation)
        cluster.within(cluster.store.partitions.free_orphans)
    assert fences == sorted(set(fences))


def test_the_timeline_of_the_database_is_in_the_high_bits_of_a_fence(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    timeline = cluster.rows("SELECT {timeline}()")[0][0]
    (granted,) = cluster.claim("a", incarnation, wanted("t"))
    assert timeline == 1 and fence(granted) >> 40 == timeline
    cluster.end(ending(wanted("t"), granted))
    cluster.rows("CREATE OR REPLACE FUNCTION {timeline}() RETURNS bigint LANGUAGE sql AS 'SELECT 2::bigint'")
    cluster.rows("SELECT setval('{fence_seq}', 1)")  # a failover lost what the sequence had given
    (after,) = cluster.claim("a", incarnation, wanted("u"))
    assert fence(after) > fence(granted) and fence(after) >> 40 == 2
