"""PostgreSQL is away: ordinary queues go on, coordinated work waits and resumes by itself."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from e2e.history import now
from e2e.load import load
from e2e.site import TIMEOUT, Site
from e2e.waiting import until
from jobsync_celery.servers import PrivatePostgres

MINUTE = 60.0


def incarnations(site: Site) -> dict[str, int]:
    return {row["name"]: row["incarnation"] for row in site.rows("SELECT name, incarnation FROM sync_node")}


def test_a_worker_started_without_the_database_serves_ordinary_queues_and_joins_later(
    site: Site, postgres: PrivatePostgres
) -> None:
    postgres.stop()
    worker = site.worker("w1")
    plain = [site.call("plain", n) for n in range(5)]
    waiting = [site.call("step", f"key{n}", n) for n in range(5)]
    assert site.results(plain) == list(range(5))
    until(lambda: "the coordination database does not answer" in worker.logs(), "the worker says so")
    assert "Ordinary queues are still served" in worker.logs()
    assert site.history.runs(*(result.id for result in waiting)) == []
    postgres.start()
    assert site.results(waiting) == list(range(5))
    site.assert_once(result.id for result in waiting)
    site.until_shared("w1")
    assert "the coordination database answers again" in worker.logs()


@pytest.mark.cluster("w1", "w2")
def test_an_outage_longer_than_the_lease_loses_doubles_and_evicts_nothing(
    celery_setup: Any, site: Site, postgres: PrivatePostgres
) -> None:
    before, owners = incarnations(site), site.owners()
    with load(site, sec=0.05, pause=0.02) as stream:
        for away in (postgres.stop, postgres.kill):
            outage(site, postgres, away)
            until(lambda: len(site.history.ended("e2e.step")) > len(stream.ids) - 50, "the backlog is worked off")
    site.until_ended(*stream.ids)
    site.assert_once(stream.ids)
    assert incarnations(site) == before
    assert site.owners() == owners
    site.assert_brokers_are_empty()


@pytest.mark.timeout(300)
@pytest.mark.cluster("w1", "w2", "w3")
@pytest.mark.parametrize("broker_url", [pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
def test_a_minute_without_postgresql_under_load_loses_doubles_and_evicts_nothing(
    celery_setup: Any, site: Site, postgres: PrivatePostgres
) -> None:
    before, owners = incarnations(site), site.owners()
    long = site.call("step", "long", 0, MINUTE + 10)
    site.until_begun(long.id)
    behind = site.call("step", "long", 1)
    with load(site, sec=0.05, pause=0.1) as stream:
        outage(site, postgres, partial(postgres.stop, immediate=True), MINUTE)
    assert site.history.runs(long.id)[0].how is None, "it runs across the whole outage"
    site.until_ended(*stream.ids, long.id, behind.id)
    site.assert_once([*stream.ids, long.id, behind.id])
    assert incarnations(site) == before
    assert site.owners() == owners
    for worker in celery_setup.worker_cluster:
        assert "was declared dead" not in worker.logs() and "lost its lease" not in worker.logs()
    site.assert_brokers_are_empty()


def outage(site: Site, postgres: PrivatePostgres, away: Callable[[], None], seconds: float = TIMEOUT + 1) -> None:
    """Take the database away for longer than a lease, and see ordinary tasks go on meanwhile."""
    away()
    try:
        gone = now()
        until(lambda: now() > gone + seconds, "the leases are over", timeout=seconds + 10, every=0.1)
        last = [run for run in site.history.runs() if run.task != "e2e.plain"][-1].began
        assert last < gone + TIMEOUT, "nothing coordinated starts without a lease"
        assert site.results([site.call("plain", n) for n in range(4)]) == list(range(4))
    finally:
        postgres.start()
