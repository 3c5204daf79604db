"""The leader's row: the first lock of every plan, a term that grows, and the history."""

from __future__ import annotations

from functools import partial

import pytest
from cluster import Cluster

from jobsync_celery.core.model import Member
from jobsync_celery.store.leader import Leader, Rebalance


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


def test_nobody_leads_before_the_first_plan(cluster: Cluster) -> None:
    assert cluster.within(cluster.store.leaders.current) == Leader(None, None, 0, None)


def test_a_term_grows_by_one_with_each_leader(cluster: Cluster) -> None:
    leaders = cluster.store.leaders
    for term, name in enumerate("aba", 1):
        taken = cluster.within(partial(leaders.take_term, member=Member(name, term)))
        assert (taken.node, taken.incarnation, taken.term) == (name, term, term)
        assert cluster.within(leaders.current) == taken and taken.since is not None


def test_one_at_a_time_holds_the_leaders_row_and_readers_do_not_wait(cluster: Cluster) -> None:
    leaders = cluster.store.leaders
    with cluster.database.transaction() as tx:
        leaders.lock(tx)
        assert cluster.within(leaders.current).term == 0
        second = cluster.meanwhile(lambda: cluster.within(leaders.lock, "second"))
        cluster.await_blocked("second")
        leaders.take_term(tx, Member("a", 1))
    assert second.result(10).node == "a"  # and it sees what the first one wrote


def test_the_history_keeps_a_line_per_plan(cluster: Cluster) -> None:
    line = Rebalance("node dead", "a", 3, 3, 2, 1250, 4.5)
    cluster.within(lambda tx: cluster.store.leaders.record(tx, line))
    columns = "trigger_reason, leader_node, term, nodes_before, nodes_after, tokens_moved, duration_ms"
    assert cluster.rows(f"SELECT {columns} FROM {{rebalance}}") == [tuple(vars(line).values())]
