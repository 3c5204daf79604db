"""What workers tell when they are asked from outside: probes, remote control, and events."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
from celery.bin.base import CLIContext
from celery.bin.control import control, inspect
from click.testing import CliRunner
from faults.proxy import PASS, Exchange, Mode, Proxy

from e2e.site import Site, with_port
from e2e.waiting import until
from jobsync_celery.__main__ import main
from jobsync_celery.core.model import spans
from jobsync_celery.servers import PrivatePostgres

#: It leads, and its loop stands still while a task runs.
LEASE = 2.0
#: Those that take part.
TWO = {"w1", "w2"}
SHARED = {
    "workers": ("w1",),
    "options": ("-P", "solo"),
    "jobsync": {"heartbeat_interval_sec": 0.5, "heartbeat_timeout_sec": LEASE},
}


@pytest.fixture(scope="module")
def way(shared: Site) -> Iterator[Proxy]:
    """w2's way to the broker."""
    exchange = Exchange()
    proxy = Proxy(exchange, urlsplit(shared.broker_url).port or 0)
    yield proxy
    proxy.close()
    exchange.close()


@pytest.fixture(scope="module")
def cluster(shared: Site, way: Proxy) -> Site:
    """Two workers that take part, and two that do not."""
    shared.worker("w2", "-E", broker=with_port(shared.broker_url, way.port))
    shared.worker("other", "-Q", f"{shared.prefix}other")
    shared.worker("off", off=True)
    shared.until_shared("w1", "w2")
    return shared


class Monitor:
    """Receives events as ``celery events`` does, those of ours only."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._seen: list[dict[str, Any]] = []
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._capture, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _capture(self) -> None:
        receiver = self._site.app.events.Receiver(
            self._site.app.connection_for_read(), handlers={"*": self._seen.append}, routing_key="jobsync.#"
        )
        with receiver.consumer_context() as (connection, _, _):
            self._ready.set()
            while not self._over.is_set():
                with suppress(socket.timeout):
                    connection.drain_events(timeout=0.2)

    def of(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """Type -> the events of a worker."""
        found: dict[str, list[dict[str, Any]]] = {}
        for event in list(self._seen):
            if event["hostname"] == event["node"] == self._site.node(name):
                found.setdefault(event["type"], []).append(event)
        return found

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)


@pytest.fixture(scope="module")
def monitor(cluster: Site) -> Iterator[Monitor]:
    """Whoever watches."""
    monitor = Monitor(cluster)
    yield monitor
    monitor.close()


def probe(site: Site, name: str, question: str, limit: float = 60) -> tuple[int, str]:
    words = ["probe", question, "--file", site.probe_file(name), "--limit", str(limit)]
    done = CliRunner().invoke(main, words)
    return done.exit_code, done.stdout


def until_probed(site: Site, name: str, question: str, word: str, limit: float = 60) -> None:
    """Wait until a probe says so."""
    until(lambda: probe(site, name, question, limit)[1].startswith(f"{word}: "), f"{name} is {word}")


def test_every_kind_of_worker_is_live_and_ready(cluster: Site) -> None:
    for name in ("w1", "w2", "other", "off"):
        until_probed(cluster, name, "readiness", "ready")
        until_probed(cluster, name, "liveness", "live")
    assert "its lease is good for" in probe(cluster, "w1", "readiness")[1]
    assert "forwards only" in probe(cluster, "other", "readiness")[1]
    assert "coordination off" in probe(cluster, "off", "readiness")[1]


def celery(site: Site, command: click.Command, *words: str) -> str:
    """What ``celery inspect`` or ``celery control`` prints."""
    done = CliRunner().invoke(command, list(words), obj=CLIContext(site.app, no_color=True, workdir=None))
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def ask(site: Site, command: str, *names: str, **arguments: Any) -> dict[str, Any]:
    """Worker -> its answer to a command of remote control."""
    destination = [site.node(name) for name in names] or None
    replies = site.app.control.broadcast(
        command,
        arguments=arguments,
        destination=destination,
        reply=True,
        timeout=10,
        limit=len(names) or len(site.workers),
    )
    return {node.partition("@")[0]: answer for reply in replies for node, answer in reply.items()}


def inspected(site: Site, name: str) -> dict[str, Any]:
    return ask(site, "jobsync", name)[name]


def test_the_command_line_shows_what_a_worker_knows_of_itself(cluster: Site) -> None:
    [told] = json.loads(celery(cluster, inspect, "jobsync", "--json", "-d", cluster.node("w1"))).values()
    assert told["node"] == cluster.node("w1") and told["state"] == "takes part"
    assert told["lease"]["trusted"] and 0 < told["lease"]["left_sec"] <= LEASE
    assert (told["leads"], told["leader"]) == (True, cluster.node("w1")) and told["term"] >= 1
    owned = sorted(number for number, owner in cluster.owners().items() if owner == told["node"])
    assert told["partitions"]["count"] == len(owned) and told["partitions"]["numbers"] == spans(owned)
    assert told["database"] == {"reachable": True, "away_sec": None}
    assert set(told["claims"].values()) == {0}


def test_claims_in_hand_are_counted(cluster: Site) -> None:
    key = cluster.key_of(cluster.node("w2"), "counted")
    results = [cluster.call("step", key, n, 0.5) for n in range(3)]
    until(lambda: inspected(cluster, "w2")["claims"] == told(running=1, held_back=2), "one runs, two are held back")
    assert cluster.results(results) == [0, 1, 2]


def told(**counts: int) -> dict[str, int]:
    names = ("running", "ending", "ready", "claiming", "held_back", "forwarding")
    return dict.fromkeys(names, 0) | counts


def test_every_worker_says_what_it_is(cluster: Site) -> None:
    answers = ask(cluster, "jobsync", "w1", "w2", "other", "off")
    states = {name: answer["state"] for name, answer in answers.items()}
    expected = {"w1": "takes part", "w2": "takes part", "other": "forwards only", "off": "coordination off"}
    assert states == expected


def test_a_named_worker_drains_and_takes_part_again(cluster: Site, monitor: Monitor) -> None:
    assert "ordered" in ask(cluster, "jobsync_drain", "w2")["w2"]["ok"]
    cluster.until_shared("w1")
    seen = inspected(cluster, "w2")
    assert (seen["state"], seen["drain_ordered"], seen["partitions"]["count"]) == ("draining", True, 0)
    until_probed(cluster, "w2", "readiness", "not ready")
    rows = cluster.rows("SELECT drain_ordered FROM sync_node WHERE name = %s", cluster.node("w2"))
    assert rows == [{"drain_ordered": True}]
    assert "ordered" in ask(cluster, "jobsync_undrain", "w2")["w2"]["ok"]
    cluster.until_shared("w1", "w2")
    ours = {"jobsync-node-draining", "jobsync-partitions-released", "jobsync-node-resumed", "jobsync-partitions-taken"}
    until(lambda: set(monitor.of("w2")) >= ours, "w2 has told of it")
    until(lambda: "jobsync-rebalanced" in monitor.of("w1"), "the leader has told of it, though it was not asked to")
    [taken] = monitor.of("w2")["jobsync-partitions-taken"]
    assert taken["numbers"] == spans(n for n, owner in sorted(cluster.owners().items()) if owner == taken["node"])
    assert cluster.database_url not in json.dumps(monitor.of("w1"))


def test_without_the_broker_a_worker_is_live_and_tells_afterwards(cluster: Site, monitor: Monitor, way: Proxy) -> None:
    until_probed(cluster, "w2", "readiness", "ready")
    way.set(Mode("refuse"))
    until_probed(cluster, "w2", "readiness", "not ready")  # it drains itself
    assert probe(cluster, "w2", "liveness", limit=2)[0] == 0
    cut = time.time()
    assert "jobsync-cannot-consume" not in monitor.of("w2")
    way.set(PASS)
    until(lambda: "jobsync-cannot-consume" in monitor.of("w2"), "w2 tells what happened meanwhile")
    assert monitor.of("w2")["jobsync-cannot-consume"][0]["timestamp"] <= cut
    cluster.until_shared("w1", "w2")
    until_probed(cluster, "w2", "readiness", "ready")


def test_a_drain_of_nobody_in_particular_is_refused(cluster: Site) -> None:
    refused = {name: answer["error"] for name, answer in ask(cluster, "jobsync_drain").items()}
    assert refused["w1"] == f"no worker was named: give -d {cluster.node('w1')}, or say all for every worker"
    assert "no worker was named" in refused["w2"] and "no node: forwards only" in refused["other"]
    assert "coordination off" in refused["off"]
    said = celery(cluster, control, "jobsync_drain", cluster.node("w2"), "-d", cluster.node("w1"))
    assert "ERROR" in said and f"name workers by -d, as in -d {cluster.node('w1')}" in said
    assert {row["state"] for row in cluster.rows("SELECT state FROM sync_node")} == {"live"}


def test_all_drain_if_that_is_said(cluster: Site) -> None:
    assert {name for name, answer in ask(cluster, "jobsync_drain", whom="all").items() if "ok" in answer} == TWO
    until(lambda: {row["state"] for row in cluster.rows("SELECT state FROM sync_node")} == {"draining"}, "all drain")
    assert {name for name, answer in ask(cluster, "jobsync_undrain", whom="all").items() if "ok" in answer} == TWO
    cluster.until_shared("w1", "w2")


def test_the_leader_makes_a_plan_and_the_others_say_who_leads(cluster: Site) -> None:
    until(lambda: inspected(cluster, "w1")["leads"], "the oldest leads, which had drained a moment ago")
    until(lambda: plans_by_order(cluster), "the plan is the one that was asked for")
    answers = ask(cluster, "jobsync_rebalance", "w1", "w2", "other")
    assert "leads, and makes a plan" in answers["w1"]["ok"]
    assert answers["w2"]["error"] == f"{cluster.node('w2')} does not lead; {cluster.node('w1')} does"
    assert "forwards only" in answers["other"]["error"]
    cluster.until_shared("w1", "w2")


def plans_by_order(cluster: Site) -> bool:
    """Take a partition's target away and have the leader plan; false if it had a reason of its own just then."""
    cluster.rows("UPDATE sync_partition SET target = NULL WHERE partition_id = 0")
    ask(cluster, "jobsync_rebalance", "w1")
    planned = "SELECT target FROM sync_partition WHERE partition_id = 0 AND target IS NOT NULL"
    until(lambda: cluster.rows(planned) != [], "there is a plan")
    latest = "SELECT trigger_reason FROM sync_rebalance ORDER BY id DESC LIMIT 1"
    return cluster.rows(latest) == [{"trigger_reason": "requested"}]


def test_a_worker_that_is_stopped_is_neither_live_nor_ready(cluster: Site) -> None:
    w2 = next(worker for worker in cluster.workers if worker.hostname() == cluster.node("w2"))
    w2.freeze(group=False)
    try:
        until_probed(cluster, "w2", "liveness", "not live", limit=2)
        until_probed(cluster, "w2", "readiness", "not ready")
    finally:
        w2.thaw(group=False)
    until_probed(cluster, "w2", "liveness", "live", limit=2)
    until_probed(cluster, "w2", "readiness", "ready")
    cluster.until_shared("w1", "w2")


def test_without_the_database_a_worker_is_live_and_not_ready(cluster: Site, postgres: PrivatePostgres) -> None:
    postgres.stop()
    cluster.app.control.broadcast("hang", arguments={"sec": 3.5}, destination=[cluster.node("w2")])
    try:
        until_probed(cluster, "w1", "readiness", "not ready")
        until_probed(cluster, "w2", "liveness", "not live", limit=2)
        assert "the event loop of" in probe(cluster, "w2", "liveness", limit=2)[1]
        for name in ("w1", "w2", "other", "off"):
            assert probe(cluster, name, "liveness", limit=10)[0] == 0
        seen = inspected(cluster, "w1")
        assert (seen["state"], seen["lease"]["trusted"]) == ("no lease", False)
        assert seen["database"]["reachable"] is False and seen["database"]["away_sec"] > 0
        assert "recorded as soon as the database answers" in ask(cluster, "jobsync_drain", "w2")["w2"]["ok"]
        assert probe(cluster, "off", "readiness")[0] == probe(cluster, "other", "readiness")[0] == 0
    finally:
        postgres.start()
    until_probed(cluster, "w1", "readiness", "ready")
    cluster.until_shared("w1")
    ask(cluster, "jobsync_undrain", "w2")
    cluster.until_shared("w1", "w2")
