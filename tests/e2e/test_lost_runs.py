"""A task that keeps killing what runs it stops, is failed with the reason, and its key moves on."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.site import Site
from e2e.waiting import until
from jobsync_celery.errors import GaveUp

CONF = {"worker_lost_wait": 0.5}


@pytest.mark.cluster("w1", conf=CONF)
def test_a_task_that_kills_its_pool_child_starts_three_times(celery_setup: Any, site: Site) -> None:
    deadly = site.call("deadly", "deadly", "child")
    after = site.call("step", "deadly", 1)
    with pytest.raises(GaveUp, match="lost 3 times"):
        deadly.get(timeout=60)
    assert after.get(timeout=30) == 1
    _given_up(site, deadly.id, starts=3)


@pytest.mark.cluster("w1", "w2", conf=CONF)
def test_a_task_that_kills_its_worker_stops_and_takes_no_other_task_with_it(celery_setup: Any, site: Site) -> None:
    deadly = site.call("deadly", "deadly", "worker")
    others = [site.call("step", f"key{n}", n, 0.2) for n in range(60)]

    def revive() -> bool:
        for worker in site.workers:
            if worker.container.exit_code is not None:
                worker.container.begin()
        return any(claim["state"] == "failed" for claim in site.claims(deadly.id))

    until(revive, "it is given up", 120)
    with pytest.raises(GaveUp, match="lost 3 times"):
        deadly.get(timeout=60)
    assert site.results(others) == [*range(60)]
    _given_up(site, deadly.id, starts=3)
    assert {claim["state"] for claim in site.settled(*(each.id for each in others))} == {"done"}


def _given_up(site: Site, task_id: str, *, starts: int) -> None:
    [claim] = site.settled(task_id)
    assert claim["state"] == "failed" and "died while it ran" in claim["reason"]
    assert len(site.history.runs(task_id)) == starts
    site.assert_brokers_are_empty()
    assert len(site.history.runs(task_id)) == starts
