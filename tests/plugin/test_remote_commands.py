"""The commands of remote control, as far as they need no worker: how they are listed, and whom they refuse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.control import control, inspect
from celery.utils.collections import AttributeDict
from click.testing import CliRunner

from jobsync_celery import JobSync
from jobsync_celery.plugin import remote


@pytest.mark.parametrize(
    ("group", "listed"),
    [
        (inspect, {"jobsync": "What this worker knows of itself as a node"}),
        (
            control,
            {
                "jobsync_drain [all]": "Take no more keys and hand them over",
                "jobsync_undrain [all]": "Take part again after jobsync_drain",
                "jobsync_rebalance": "Have the leader make a plan now",
            },
        ),
    ],
)
def test_the_lists_of_commands_say_what_ours_do(group: Any, listed: dict[str, str]) -> None:
    app = Celery("proj", broker="memory://", set_as_current=False)
    shown = CliRunner().invoke(group, ["--list"], obj=CLIContext(app, no_color=True, workdir=None)).stdout
    for name, told in listed.items():
        assert name in shown and told in shown
    assert max(map(len, shown.splitlines())) <= 80


def state_of(app: Celery, **known: Any) -> AttributeDict:
    consumer = SimpleNamespace(controller=SimpleNamespace(jobsync=None))
    return AttributeDict(app=app, hostname="w1@host", consumer=consumer, **known)


@pytest.mark.parametrize("command", [remote.jobsync_drain, remote.jobsync_undrain, remote.jobsync_rebalance])
def test_a_worker_without_coordination_refuses_orders(command: Any) -> None:
    plain, off = (Celery("proj", broker="memory://", set_as_current=False) for _ in range(2))
    JobSync(off, None)
    assert command(state_of(plain, jobsync_named=True)) == {"error": "the app of this worker has no JobSync"}
    assert command(state_of(off, jobsync_named=True)) == {"error": "coordination off in this worker"}


def test_a_worker_without_coordination_says_so() -> None:
    plain, off = (Celery("proj", broker="memory://", set_as_current=False) for _ in range(2))
    JobSync(off, None)
    assert remote.jobsync(state_of(plain)) == {"error": "the app of this worker has no JobSync"}
    assert remote.jobsync(state_of(off))["state"] == "coordination off"
