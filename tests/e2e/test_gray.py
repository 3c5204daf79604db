"""A worker that lives but cannot consume gives its partitions up, and takes part again when it can."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from faults.proxy import PASS, Exchange, Mode, Proxy

from e2e.examined import finding, found
from e2e.history import overlaps
from e2e.site import TIMEOUT, Site, with_port
from e2e.waiting import until


@pytest.fixture
def ways(site: Site) -> Iterator[tuple[Proxy, Proxy]]:
    """Two ways to the broker."""
    exchange = Exchange()
    port = urlsplit(site.broker_url).port or 0
    proxies = Proxy(exchange, port), Proxy(exchange, port)
    yield proxies
    for proxy in proxies:
        proxy.close()
    exchange.close()


@pytest.fixture
def way(ways: tuple[Proxy, Proxy]) -> Proxy:
    """One worker's way to the broker."""
    return ways[0]


@pytest.mark.parametrize("how", ["refuse", "stall"])
def test_a_worker_cut_off_from_the_broker_gives_its_partitions_up(site: Site, way: Proxy, how: str) -> None:
    site.worker("w1")
    cut = site.worker("w2", broker=with_port(site.broker_url, way.port))
    site.until_shared("w1", "w2")
    running = site.call("slow_first", site.key_of(cut.hostname(), "running"), 0, TIMEOUT + 6)
    site.until_begun(running.id)
    keys = [site.key_of(cut.hostname(), "waiting", n) for n in range(8)]
    way.set(Mode(how))
    site.until_shared("w1")
    assert site.results([site.call("step", key, n) for n, key in enumerate(keys)]) == [*range(8)]
    assert {run.host for run in site.history.runs() if run.key in keys} == {site.node("w1")}
    # A client that gets no answer waits for it, and the event loop with it: such a worker is evicted. On RabbitMQ that
    # takes a change of the prefetch window just then.
    hung = "has not turned" in cut.logs()
    assert ("has had no connection to the broker" in cut.logs()) is not hung
    assert cut.hostname() in finding(site, "node-cut-off" if not hung else "node-died").what
    assert not hung or how == "stall"
    until(lambda: site.history.runs(running.id)[0].how == "returned", "what ran meanwhile ends")
    way.set(PASS)
    site.until_shared("w1", "w2")
    assert running.get(timeout=60) == 0
    assert site.results([site.call("step", key, n) for n, key in enumerate(keys)]) == [*range(8)]
    site.assert_brokers_are_empty()
    runs = site.history.runs(running.id)
    assert [run.attempt for run in runs] == ([1, 2] if hung else [1])
    assert hung or not overlaps(site.history.runs())


def test_a_worker_whose_event_loop_hangs_is_replaced_and_comes_back(site: Site) -> None:
    site.worker("w1")
    hung = site.worker("w2")
    site.until_shared("w1", "w2")
    keys = [site.key_of(hung.hostname(), "waiting", n) for n in range(8)]
    site.app.control.broadcast("hang", arguments={"sec": 3 * TIMEOUT + 4}, destination=[hung.hostname()])
    results = [site.call("step", key, n) for n, key in enumerate(keys)]
    site.until_shared("w1")
    assert site.results(results) == [*range(8)]
    site.until_shared("w1", "w2")
    assert "has not turned" in hung.logs() and "turns again" in hung.logs()
    told = [line for each in found(site, "node-restless") for line in each.evidence]
    assert any("at hang (e2e/app.py:" in line for line in told), told
    assert site.results([site.call("step", key, n) for n, key in enumerate(keys)]) == [*range(8)]
    site.assert_brokers_are_empty()
    assert not overlaps(site.history.runs())


def test_an_outage_of_the_whole_broker_moves_nothing(site: Site, way: Proxy) -> None:
    for name in ("w1", "w2"):
        site.worker(name, broker=with_port(site.broker_url, way.port))
    until(lambda: all("ready." in worker.logs() for worker in site.workers), "both consume")
    way.set(Mode("delay", 0.05))  # so that the outage comes while they are still asking for their partitions' queues
    site.until_shared("w1", "w2")
    before = site.owners()
    way.set(Mode("refuse"))
    until(lambda: states(site) == {"draining"}, "all drain")
    assert site.owners() == before
    way.set(PASS)
    results = [site.call("step", f"key{n}", n) for n in range(40)]
    assert site.results(results) == [*range(40)]
    until(lambda: states(site) == {"live"}, "all are live")
    site.until_shared("w1", "w2")


@pytest.mark.cluster(jobsync={"heartbeat_timeout_sec": 3 * TIMEOUT})
def test_nor_does_one_that_workers_notice_and_get_over_one_after_the_other(
    site: Site, ways: tuple[Proxy, Proxy]
) -> None:
    workers = [
        site.worker(name, broker=with_port(site.broker_url, way.port))
        for name, way in zip(("w1", "w2"), ways, strict=True)
    ]
    site.until_shared("w1", "w2")
    site.until_ready()
    before, moves = site.owners(), site.rows("SELECT id FROM sync_rebalance")
    # At the third try a second or two have gone by.
    for mode, told, all_are in ((Mode("refuse"), "(3/None)", "draining"), (PASS, "takes part again", "live")):
        for worker, way in zip(workers, ways, strict=True):
            way.set(mode)
            until(lambda worker=worker, told=told: told in worker.logs(), f"{worker.hostname()} tells: {told}")
        until(lambda all_are=all_are: states(site) == {all_are}, f"all are {all_are}")
    assert site.results([site.call("step", f"key{n}", n) for n in range(40)]) == [*range(40)]
    assert site.owners() == before and site.rows("SELECT id FROM sync_rebalance") == moves


def states(site: Site) -> set[str]:
    return {node["state"] for node in site.rows("SELECT state FROM sync_node")}
