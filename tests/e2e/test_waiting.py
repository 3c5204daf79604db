"""What a worker only has in hand, for an ETA, a rate limit or its key, when it goes or is killed."""

import os
import signal
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from e2e.history import now
from e2e.site import Site
from e2e.waiting import until


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
@pytest.mark.cluster("w1", "w2")
def test_scheduled_limited_and_held_tasks_move_to_the_next_owner(celery_setup: Any, site: Site, how: str) -> None:
    leaver = celery_setup.worker_cluster[0]
    keys = [site.key_of(leaver.hostname(), "moved", n) for n in range(6)]
    eta = datetime.now(timezone.utc) + timedelta(seconds=6)
    due = now() + 6
    later = [site.call("step", key, n, eta=eta) for n, key in enumerate(keys)]
    limited = [site.call("limited", keys[0], n) for n in range(10)]
    busy = site.call("slow_first", keys[1], 0, 1.5)
    held = [site.call("step", keys[1], n) for n in range(5)]
    site.until_begun(busy.id)
    until(lambda: leaver.logs().count(" received") == len(later) + len(limited) + 6, "the worker has them all")
    leaver.kill(how)
    site.results([*later, *limited, *held])
    assert leaver.container.wait() is not None
    assert busy.get(timeout=30) == 0
    site.assert_once(result.id for result in (*later, *limited, *held))
    early = [run for run in site.history.runs(*(result.id for result in later)) if run.began < due - 0.1]
    assert early == []
    assert {run.node for run in site.history.runs(*(result.id for result in later))} == {site.node("w2")}
    site.assert_brokers_are_empty()


@pytest.mark.cluster("w1", "w2")
def test_a_cold_shutdown_leaves_nothing_behind_and_what_ran_runs_elsewhere(celery_setup: Any, site: Site) -> None:
    leaver = celery_setup.worker_cluster[0]
    keys = [site.key_of(leaver.hostname(), "cold", n) for n in range(4)]
    cut = [site.call("slow_first", key, n, 60) for n, key in enumerate(keys)]
    held = [site.call("step", key, n) for n, key in enumerate(keys)]
    until(lambda: len(site.history.runs()) == 2, "two run")
    leaver.kill("SIGQUIT")
    assert site.results([*cut, *held]) == [*range(4)] * 2
    leaver.container.wait()
    site.until_shared("w2")
    site.assert_once(result.id for result in held)
    site.assert_serial()
    assert {claim["state"] for claim in site.settled()} == {"done"}
    site.assert_brokers_are_empty()


@pytest.mark.cluster("w1", "w2", options=("-c", "1"))
def test_a_child_that_dies_while_its_worker_stops_holds_up_neither_the_worker_nor_its_task(
    celery_setup: Any, site: Site
) -> None:
    """Celery has closed the pool by then, so it does not look for children that have died."""
    leaver = celery_setup.worker_cluster[0]
    key = site.key_of(leaver.hostname())
    cut, held = site.call("slow_first", key, 0, 60), site.call("step", key, 1)
    site.until_begun(cut.id)
    leaver.kill("SIGTERM")
    until(lambda: "is draining" in leaver.logs(), "the worker stops")
    [run] = site.history.runs(cut.id)
    os.kill(run.pid, signal.SIGKILL)
    assert leaver.container.wait() == 0
    assert site.results([cut, held]) == [0, 1]
    assert {claim["attempt"] for claim in site.settled(cut.id)} == {2}
    site.assert_once([held.id])
    site.assert_brokers_are_empty()


@pytest.mark.cluster("w1", "w2")
def test_a_worker_stopped_while_the_database_is_away_loses_nothing(
    celery_setup: Any, site: Site, postgres: Any
) -> None:
    leaver = celery_setup.worker_cluster[0]
    keys = [site.key_of(leaver.hostname(), "away", n) for n in range(4)]
    ran = [site.call("slow_first", key, n, 2.0) for n, key in enumerate(keys)]
    held = [site.call("step", key, n) for n, key in enumerate(keys)]
    until(lambda: len(site.history.runs()) == 2, "two run")
    postgres.stop()
    try:
        leaver.kill("SIGTERM")
        leaver.container.wait()
    finally:
        postgres.start()
    site.results([*ran, *held])
    site.until_shared("w2")
    site.assert_serial()
    assert {claim["state"] for claim in site.settled()} == {"done"}
    site.assert_brokers_are_empty()
