"""Three workers restarted in turn under load, in each way there is: nothing is lost, doubled or moved without need.

``JOBSYNC_RESTART_TASKS`` is how many tasks each way has to endure; ``--log-cli-level=INFO`` shows what came of them.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection

import pytest

from e2e.load import Stream, load
from e2e.moves import Moves
from e2e.site import Site
from e2e.stand_ins import Worker
from e2e.waiting import until

logger = logging.getLogger(__name__)

TASKS = int(os.environ.get("JOBSYNC_RESTART_TASKS", "300"))
NAMES = ("w1", "w2", "w3")
GRACE = 120.0
SHARED = {"workers": NAMES, "jobsync": {"partitions": 24}}


@pytest.fixture(scope="module")
def moves(shared: Site) -> Moves:
    return Moves(shared)


def test_workers_restarted_in_turn_under_load_lose_and_double_nothing_and_move_each_partition_twice_at_most(
    shared: Site, moves: Moves
) -> None:
    roll(shared, moves, "drained, then SIGTERM", drained=True)
    roll(shared, moves, "SIGTERM alone", rejoin_grace_sec=GRACE)


def test_with_a_grace_that_is_long_enough_a_rolling_restart_moves_nothing(shared: Site, moves: Moves) -> None:
    for name in NAMES:  # the test before has left them with it, if it ran
        if not with_grace(shared, name):
            restart(shared, name, rejoin_grace_sec=GRACE)
    roll(shared, moves, "SIGTERM with a grace", most=0, rejoin_grace_sec=GRACE)


def roll(site: Site, moves: Moves, way: str, *, most: int = 2, drained: bool = False, **jobsync: float) -> None:
    """Restart the workers in turn while ``TASKS`` tasks come in, and see what became of them."""
    begun = time.monotonic()
    told = []
    chores: list[Chores] = []
    with load(site, sec=0.01, spread=0.04, pause=0.015) as stream:
        for number, name in enumerate(NAMES, start=1):
            published(stream, TASKS * number // 4)
            mark = moves.mark()
            if drained:
                if name == NAMES[1]:
                    chores.append(Chores(site, site.node(name)))
                drain(site, name)
            restart(site, name, **jobsync)
            made = moves.since(mark)
            assert max(made.values()) <= most, (name, made)
            told.append(f"{name} {sum(made.values())} moves, {max(made.values())} at most")
        published(stream, TASKS)
    judge(site, stream.ids)
    for each in chores:
        each.judge()
    site.assert_brokers_are_empty()
    broker, seconds = "redis" if site.is_redis else "rabbitmq", time.monotonic() - begun
    logger.info("%s, %s: %d tasks once each in %.0f s; %s", broker, way, len(stream.ids), seconds, "; ".join(told))


class Chores:
    """What a worker has in hand besides when it drains: a long task, those behind it, scheduled and retried ones."""

    def __init__(self, site: Site, node: str) -> None:
        self._site = site
        key = site.key_of(node, "long")
        self.long = site.call("step", key, 0, 1.5)
        held = [site.call("step", key, n) for n in (1, 2, 3)]
        scheduled = [site.call("step", site.key_of(node, "eta", n), n, countdown=3) for n in range(3)]
        self._retried = [site.call("again", site.key_of(node, "again", n), 2, countdown=1.0).id for n in range(3)]
        self._once = [each.id for each in (self.long, *held, *scheduled)]
        site.until_begun(self.long.id, *self._retried)

    def judge(self) -> None:
        """Each ended once, here or elsewhere, and so did each retry."""
        self._site.until_ended(*self._once, *self._retried)
        self._site.assert_once(self._once)
        again = Counter((run.id, run.retries, run.how) for run in self._site.history.runs(*self._retried))
        ways = ((0, "Retry"), (1, "Retry"), (2, "returned"))
        assert again == Counter((each, number, how) for each in self._retried for number, how in ways)
        claims = self._site.claims(*self._once, *self._retried)
        assert [claim for claim in claims if claim["lost_runs"] > 0] == []


def judge(site: Site, ids: Collection[str]) -> None:
    """Each task began once, ended once, and had one claim, which was never lost after it had begun, or may have."""
    site.until_ended(*ids, timeout=60 + len(ids) / 20)
    site.assert_once(ids)
    wanted = set(ids)
    lines = Counter((line["event"], line["id"]) for line in site.history.lines() if line["event"] != "tick")
    assert {lines[event, id_] for event in ("start", "end") for id_ in wanted} == {1}
    claims = [claim for claim in site.claims() if claim["task_id"] in wanted]
    assert len(claims) == len(wanted)
    assert [claim for claim in claims if claim["lost_runs"] > 0 or claim["state"] != "done"] == []


def published(stream: Stream, count: int) -> None:
    until(lambda: len(stream.ids) >= count, f"{count} tasks are published", timeout=60 + count / 10)


def worker(site: Site, name: str) -> Worker:
    """The one that runs under this name now."""
    return next(each for each in reversed(site.workers) if each.hostname() == site.node(name))


def restart(site: Site, name: str, **jobsync: float) -> None:
    """SIGTERM, and another worker of this name as soon as the first has ended; until it has its share."""
    worker(site, name).stop()
    site.worker(name, jobsync=jobsync or None)
    site.until_shared(*NAMES)


def with_grace(site: Site, name: str) -> bool:
    return f'"rejoin_grace_sec": {GRACE}' in worker(site, name).container._env["JOBSYNC_E2E"]


def drain(site: Site, name: str) -> None:
    """``jobsync drain --wait``, which returns when the worker has nothing any more."""
    command = [sys.executable, "-m", "jobsync_celery", "drain", site.node(name), "--wait", "--json"]
    done = subprocess.run([*command, "--url", site.database_url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["partitions"], told["running"]) == (0, 0)
