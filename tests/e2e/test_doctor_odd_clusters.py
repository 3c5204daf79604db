"""Clusters that are set up oddly, or have lost their nodes, and what the doctor says of them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import redis

from e2e.examined import finding, found
from e2e.site import Site
from e2e.waiting import until
from jobsync_celery.doctor.finding import Finding


@pytest.fixture
def broker_url(redis_url: str) -> str:
    """One is enough."""
    return redis_url


@pytest.mark.cluster(jobsync={"partitions": 1})
def test_more_nodes_than_partitions_a_node_without_weight_and_none_at_all(site: Site) -> None:
    workers = [site.worker("w1"), site.worker("w2"), site.worker("w3", jobsync={"weight": 0})]
    until(site.shares, "there are tables")
    until(lambda: len(found(site, "node-without-tokens")) == 2, "two nodes have no tokens", every=0.5)
    evidence = {each.what: each.evidence[0] for each in found(site, "node-without-tokens")}
    assert evidence.pop(f"{site.node('w3')} has no tokens") == "its weight is 0"
    assert [*evidence.values()] == ["3 nodes share 1 partition"]
    for worker in workers:
        worker.kill("SIGTERM")
    for worker in workers:
        worker.container.wait()
    assert finding(site, "no-leader").what == "no node is live: nothing coordinated runs"


@pytest.mark.cluster(jobsync={"partitions": 4})
def test_shares_that_differ_and_a_leader_that_died(site: Site) -> None:
    w1 = site.worker("w1")
    site.until_shared("w1")
    site.worker("w2")
    site.worker("w3")
    site.until_shared("w1", "w2", "w3")
    assert "3 nodes share 4 partitions" in finding(site, "unbalanced").cause
    w1.kill("SIGKILL")
    assert "leads, term 2" in finding(site, "leader-changed").evidence[0]


@pytest.mark.cluster(jobsync={"rejoin_grace_sec": 300})
def test_partitions_that_wait_for_a_name_to_return(site: Site) -> None:
    site.worker("w1")
    leaver = site.worker("w2")
    site.until_shared("w1", "w2")
    leaver.kill("SIGTERM")
    leaver.container.wait()
    named = finding(site, "partitions-stuck")
    assert (named.severity, named.what.endswith(f"wait for {leaver.hostname()} to return")) == ("risk", True)


@pytest.mark.cluster(jobsync={"minimum_nodes": 2})
def test_a_first_plan_that_is_held_back(site: Site) -> None:
    site.worker("w1")
    until(site.shares, "there are tables")
    named = finding(site, "node-without-tokens")
    assert "minimum_nodes=2" in named.evidence[1]


@pytest.mark.cluster(jobsync={"partitions": 140})
def test_very_many_queues_and_a_receiver_that_does_not_return(site: Site, tmp_path: Path) -> None:
    site.listen(tmp_path / "calls.jsonl", sleep=0.0, hang=12.0)
    w1 = site.worker("w1")
    site.until_shared("w1")
    assert "140 partitions for 1 node" in finding(site, "too-many-partitions").evidence
    site.worker("w2")
    stuck = until(lambda: [*filter(waits_for_receiver, found(site, "partitions-stuck"))], "it is named", every=0.5)
    assert w1.hostname() in stuck[0].what


def waits_for_receiver(each: Finding) -> bool:
    return "a receiver of partitions_revoked" in each.cause


@pytest.mark.cluster
def test_coordinated_messages_that_wait_where_no_worker_with_jobsync_looks(site: Site) -> None:
    site.worker("w1", "-Q", site.prefix.rstrip("-"))
    site.until_shared("w1")
    app = site.app
    app.tasks["e2e.step"].apply_async(("key", 1), queue=app.conf.task_default_queue)
    assert "e2e.step" in finding(site, "coordinated-waiting-elsewhere").evidence[0]
    assert finding(site, "queue-unconsumed").what == f"nobody consumes {app.conf.task_default_queue}"


@pytest.mark.cluster
def test_a_redis_that_throws_messages_away_and_a_broker_that_is_away(site: Site) -> None:
    site.worker("w1")
    site.until_shared("w1")
    with closing(redis.Redis.from_url(site.broker_url)) as client:
        before = {name: client.config_get(name)[name] for name in ("maxmemory", "maxmemory-policy")}
        client.config_set("maxmemory", "4gb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert finding(site, "redis-evicts").evidence[0].endswith("allkeys-lru")
        for name, value in before.items():
            client.config_set(name, value)
    site.app.conf.broker_url = site.app.conf.broker_read_url = "redis://127.0.0.1:1/0"
    named = finding(site, "broker-unreachable")
    assert "redis://127.0.0.1:1/0 does not answer" in named.evidence[0]
