"""What workers tell when they are asked from outside: probes, remote control, and events."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from e2e.site import Site
from e2e.waiting import until
from jobsync_celery.__main__ import main
from jobsync_celery.servers import PrivatePostgres

SHARED = {"workers": ("w1",), "options": ("-E",)}


@pytest.fixture(scope="module")
def cluster(shared: Site) -> Site:
    """A worker with the pool prefork, one with solo, and two that take no part."""
    shared.worker("w2", "-E", "-P", "solo")
    shared.worker("other", "-Q", f"{shared.prefix}other")
    shared.worker("off", off=True)
    shared.until_shared("w1", "w2")
    return shared


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


def test_a_worker_that_is_stopped_is_neither_live_nor_ready(cluster: Site) -> None:
    w1 = next(worker for worker in cluster.workers if worker.hostname() == cluster.node("w1"))
    w1.freeze(group=False)
    try:
        until_probed(cluster, "w1", "liveness", "not live", limit=2)
        until_probed(cluster, "w1", "readiness", "not ready")
    finally:
        w1.thaw(group=False)
    until_probed(cluster, "w1", "liveness", "live", limit=2)
    cluster.until_shared("w1", "w2")


def test_without_the_database_a_worker_is_live_and_not_ready(cluster: Site, postgres: PrivatePostgres) -> None:
    postgres.stop()
    try:
        until_probed(cluster, "w1", "readiness", "not ready")
        for name in ("w1", "w2", "other", "off"):
            assert probe(cluster, name, "liveness", limit=10)[0] == 0
        assert probe(cluster, "off", "readiness")[0] == probe(cluster, "other", "readiness")[0] == 0
    finally:
        postgres.start()
    until_probed(cluster, "w1", "readiness", "ready")
