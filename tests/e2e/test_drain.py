"""Workers that are drained from the command line, under load: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from e2e.load import load
from e2e.site import Site


def command(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """``python -m jobsync_celery WORDS`` on the site's database."""
    call = [sys.executable, "-m", "jobsync_celery", *words, "--url", site.database_url]
    return subprocess.run(call, capture_output=True, text=True, check=False)


def state(site: Site, node: str) -> str:
    """A node's, as the command line tells it."""
    told = json.loads(command(site, "nodes", "--json").stdout)
    return next(str(each["state"]) for each in told["nodes"] if each["name"] == node)


@pytest.mark.cluster("w1", "w2", "w3", jobsync={"partitions": 12})
def test_drained_workers_lose_and_double_nothing_whether_they_are_taken_back_or_stopped(
    celery_setup: Any, site: Site
) -> None:
    leaver, other, _ = celery_setup.worker_cluster
    name = leaver.hostname()
    with load(site) as stream:
        assert command(site, "drain", other.hostname(), "--wait").returncode == 0
        site.until_shared("w1", "w3")
        assert state(site, other.hostname()) == "draining"
        assert command(site, "undrain", other.hostname()).returncode == 0
        site.until_shared("w1", "w2", "w3")

        long = site.call("step", site.key_of(name, "long"), 0, 3.0)
        site.until_begun(long.id)
        drained = command(site, "drain", name, "--wait", "--json")
        assert drained.returncode == 0, drained.stderr
        told = json.loads(drained.stdout)
        assert (told["empty"], told["partitions"], told["running"]) == (True, 0, 0)
        assert long.id in site.history.ended()  # it was waited for
        site.until_shared("w2", "w3")
        behind = site.call("step", site.history.runs(long.id)[0].key, 1)
        site.until_ended(behind.id)
        before = len(site.rows("SELECT id FROM sync_rebalance"))
        began = {run.id for run in site.history.runs() if run.node == name}
        leaver.kill("SIGTERM")
        assert leaver.container.wait() == 0
        assert {run.id for run in site.history.runs() if run.node == name} == began  # it took no more
        assert len(site.rows("SELECT id FROM sync_rebalance")) == before  # its end moved nothing
    site.until_ended(*stream.ids, long.id, behind.id)
    site.assert_once([*stream.ids, long.id, behind.id])
    site.assert_brokers_are_empty()
