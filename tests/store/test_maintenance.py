"""Maintenance: what is past its retention goes, in batches, and nothing else."""

from __future__ import annotations

import pytest
from cluster import Cluster, ending, wanted

from jobsync_celery.store import maintenance
from jobsync_celery.store.maintenance import Maintenance, Retention

DAY = 86400.0
OLD = "clock_timestamp() - interval '40 days'"


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


def ended(cluster: Cluster, *states: str) -> None:
    incarnation = cluster.join("a", 0)
    wants = [wanted(f"{state}-{number}", f"k{number}") for number, state in enumerate(states)]
    granted = cluster.claim("a", incarnation, *wants)
    cluster.end(*[ending(*each) for each in zip(wants, granted, states, strict=True) if each[2] != "running"])


def test_ended_claims_go_after_their_retention_and_running_ones_never(cluster: Cluster) -> None:
    ended(cluster, "done", "failed", "retried", "lost", "running")
    assert Maintenance(cluster.database).run(Retention(claims=DAY))["claims"] == 0
    cluster.rows(f"UPDATE {{claim}} SET created_on = {OLD}")  # long tasks, ended just now
    assert Maintenance(cluster.database).run(Retention(claims=DAY))["claims"] == 0
    cluster.rows(f"UPDATE {{claim}} SET finished_on = {OLD}")
    assert Maintenance(cluster.database).run(Retention(claims=DAY))["claims"] == 4
    assert list(cluster.states().values()) == ["running"]


def test_claims_go_in_batches(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_BATCH", 3)
    ended(cluster, *["done"] * 7)
    cluster.rows(f"UPDATE {{claim}} SET created_on = {OLD}, finished_on = {OLD}")
    assert Maintenance(cluster.database).run(Retention(claims=DAY))["claims"] == 7


def test_maintenance_waits_for_nobody(cluster: Cluster) -> None:
    ended(cluster, "done", "done")
    cluster.rows(f"UPDATE {{claim}} SET created_on = {OLD}, finished_on = {OLD}")
    with cluster.database.transaction() as tx:
        tx.execute(cluster.database.sql("SELECT FROM {claim} WHERE task_id = 'done-0' FOR UPDATE"))
        assert Maintenance(cluster.database).run(Retention(claims=DAY))["claims"] == 1
    assert list(cluster.states()) == ["done-0"]


def test_old_history_and_long_dead_nodes_go_and_live_ones_stay_however_silent(cluster: Cluster) -> None:
    for name in ("dead", "fresh", "live"):
        incarnation = cluster.join(name)
        if name != "live":
            cluster.bury(name, incarnation)
    cluster.rows(f"UPDATE {{node}} SET last_heartbeat = {OLD} WHERE name <> 'fresh'")
    cluster.rows(f"INSERT INTO {{rebalance}} (triggered_at) VALUES ({OLD}), (clock_timestamp())")
    assert Maintenance(cluster.database).run(Retention(claims=DAY)) == {"claims": 0, "rebalances": 1, "dead_nodes": 1}
    assert sorted(cluster.rows("SELECT name FROM {node}")) == [("fresh",), ("live",)]
