"""``on_lease_lost="terminate"``: a body ends with its lease, also when the worker above it cannot act."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.history import Run, now
from e2e.site import TIMEOUT, Site
from e2e.waiting import until

CONF = {"e2e_mortal": True}
#: What a child needs to notice, on a busy machine.
NOTICE = 0.1


@pytest.mark.cluster("w1", "w2", conf=CONF)
@pytest.mark.parametrize("group", [False, True], ids=["parent", "group"])
def test_a_body_ends_at_the_deadline_of_its_stopped_worker_and_runs_elsewhere(
    celery_setup: Any, site: Site, group: bool
) -> None:
    stopped = celery_setup.worker_cluster[0]
    result = site.call("mortal", site.key_of(stopped.hostname(), "mortal"), 5, 60.0)
    site.until_begun(result.id)
    stopped.freeze(group=group)
    until(lambda: len(site.history.runs(result.id)) == 2, "the other node runs it")
    assert result.get(timeout=30) == 5
    thawed = now()
    stopped.thaw(group=group)
    site.until_shared("w1", "w2")
    first, second = site.history.runs(result.id)
    assert first.how is None, "it was killed, not finished"
    assert first.last <= (thawed if group else second.began) + NOTICE
    assert (first.attempt, second.attempt) == (1, 2) and first.fence < second.fence
    _works_again(site, result.id, [first, second])


@pytest.mark.cluster("w1", "w2", conf=CONF)
def test_the_other_tasks_of_that_worker_finish(celery_setup: Any, site: Site) -> None:
    stopped = celery_setup.worker_cluster[0]
    host = stopped.hostname()
    mortal = site.call("mortal", site.key_of(host, "mortal"), 1, 60.0)
    patient = site.call("slow_first", site.key_of(host, "patient"), 2, TIMEOUT + 2.0)
    site.until_begun(mortal.id, patient.id)
    stopped.freeze(group=False)
    assert mortal.get(timeout=30) == 1
    assert patient.get(timeout=30) == 2
    until(lambda: site.history.runs(patient.id)[0].how == "returned", "the first body runs to its end")
    stopped.thaw(group=False)
    site.until_shared("w1", "w2")
    _works_again(site, mortal.id, site.history.runs(mortal.id))


@pytest.mark.cluster(conf=CONF)
def test_threads_cannot_be_terminated_so_such_a_worker_is_refused(site: Site) -> None:
    worker = site.worker("w1", "-P", "threads")
    assert worker.container.wait() != 0
    assert "on_lease_lost='terminate' needs the prefork pool" in worker.logs()


def _works_again(site: Site, task_id: str, runs: list[Run]) -> None:
    [claim] = site.settled(task_id)
    assert (claim["state"], claim["attempt"]) == ("done", 2)
    assert site.results([site.call("step", f"after{n}", n) for n in range(20)]) == [*range(20)]
    site.assert_brokers_are_empty()
    assert len(site.history.runs(task_id)) == len(runs), "nothing ran again"
