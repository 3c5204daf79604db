"""A cluster is stopped in the middle of its work and started again with fewer partitions, then with more."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from e2e.site import Site
from e2e.waiting import until
from jobsync_celery.cli.main import jobsync

TASKS, KEYS = 400, 60


def ask(app: Celery, *words: str) -> Any:
    """What ``celery -A app jobsync WORDS --json`` answers."""
    done = CliRunner().invoke(jobsync, [*words, "--json"], obj=CLIContext(app, no_color=True, workdir=None))
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def work_for_a_moment(site: Site, partitions: int, done: int) -> None:
    """Two workers until so many tasks are done, then none."""
    names = [f"w{each}-{partitions}" for each in (1, 2)]
    workers = [site.worker(name, jobsync={"partitions": partitions}) for name in names]
    until(lambda: len(site.history.ended()) >= done, f"{done} tasks are done with {partitions} partitions", every=0.05)
    for worker in workers:
        worker.kill("SIGTERM")
    for worker in workers:
        assert worker.container.wait() == 0, worker.logs()[-3000:]


def test_every_task_runs_once_through_fewer_and_more_partitions(site: Site) -> None:
    wide, narrow, wider = (site.producer(partitions=partitions) for partitions in (16, 4, 40))
    ids = [
        wide.tasks["e2e.step"].apply_async((f"key{n % KEYS}", n), {"sec": 0.0 if n % 10 else 0.05}).id
        for n in range(TASKS)
    ]
    work_for_a_moment(site, 16, TASKS // 10)
    before = site.claims()
    told = ask(narrow, "schema", "reshape")
    assert (told["before"]["partitions"], told["after"]["partitions"], told["left"]) == (16, 4, 0)
    assert {each["queue"] for each in told["queues"]} <= {f"{site.prefix}{n:03}" for n in range(4, 16)}
    assert sum(sum(each["moved"].values()) for each in told["queues"]) > 0
    assert site.claims() == before  # none was running or lost
    late = wide.tasks["e2e.step"].apply_async(("key1", TASKS)).id  # by a producer that was forgotten
    work_for_a_moment(site, 4, TASKS // 2)
    told = ask(wider, "schema", "reshape")
    assert (told["before"]["partitions"], told["after"]["partitions"], told["left"]) == (4, 40, 0)
    work_for_a_moment(site, 40, TASKS + 1)
    site.assert_once([*ids, late])
    assert site.waiting(*site.queues()) == 0


@pytest.mark.cluster("w1", jobsync={"partitions": 16})
def test_a_running_cluster_is_not_reshaped_and_a_worker_of_the_former_shape_is_refused(celery_setup: Any) -> None:
    site = celery_setup.app
    del site
