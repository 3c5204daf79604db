"""Three workers restarted in turn under load, in each way there is: nothing is lost, doubled or moved without need.

``JOBSYNC_RESTART_TASKS`` is how many tasks each way has to endure; ``-s`` shows what came of them.
"""

from __future__ import annotations

import json
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


def test_a_drained_worker_leaves_long_held_scheduled_and_retried_tasks_to_end_once(shared: Site) -> None:
    node = shared.node("w2")
    key = shared.key_of(node, "long")
    long = shared.call("step", key, 0, 2.0)
    shared.until_begun(long.id)
    held = [shared.call("step", key, n) for n in (1, 2, 3)]
    scheduled = [shared.call("step", shared.key_of(node, "eta", n), n, countdown=3) for n in range(3)]
    retried = [shared.call("again", shared.key_of(node, "again", n), 2, countdown=1.0) for n in range(3)]
    shared.until_begun(*(each.id for each in retried))
    drained = drain(shared, "w2")
    assert (drained["partitions"], drained["running"]) == (0, 0)
    assert long.id in shared.history.ended()
    restart(shared, "w2")
    ids = [each.id for each in (long, *held, *scheduled)]
    shared.until_ended(*ids, *(each.id for each in retried))
    shared.assert_once(ids)
    again = Counter((run.id, run.retries, run.how) for run in shared.history.runs(*(each.id for each in retried)))
    ways = ((0, "Retry"), (1, "Retry"), (2, "returned"))
    assert again == Counter((each.id, number, how) for each in retried for number, how in ways)
    assert not [claim for claim in shared.claims() if claim["attempt"] > 1]
    shared.assert_brokers_are_empty()


def roll(site: Site, moves: Moves, way: str, *, most: int = 2, drained: bool = False, **jobsync: float) -> None:
    """Restart the workers in turn while ``TASKS`` tasks come in, and see what became of them."""
    begun = time.monotonic()
    told = []
    with load(site, sec=0.01, spread=0.04, pause=0.015) as stream:
        for number, name in enumerate(NAMES, start=1):
            published(stream, TASKS * number // 4)
            mark = moves.mark()
            if drained:
                drain(site, name)
            restart(site, name, **jobsync)
            made = moves.since(mark)
            assert max(made.values()) <= most, (name, made)
            told.append(f"{name} {sum(made.values())} moves, {max(made.values())} at most")
        published(stream, TASKS)
    judge(site, stream.ids)
    seconds = time.monotonic() - begun
    broker = "redis" if site.is_redis else "rabbitmq"
    print(f"{broker}, {way}: {len(stream.ids)} tasks in {seconds:.0f} s, 0 lost, 0 doubled; {'; '.join(told)}")


def judge(site: Site, ids: Collection[str]) -> None:
    """Each task began once, ended once, and had one claim, which was never lost."""
    site.until_ended(*ids, timeout=60 + len(ids) / 20)
    site.assert_once(ids)
    wanted = set(ids)
    lines = Counter((line["event"], line["id"]) for line in site.history.lines() if line["event"] != "tick")
    assert {lines[event, id_] for event in ("start", "end") for id_ in wanted} == {1}
    claims = [claim for claim in site.claims() if claim["task_id"] in wanted]
    assert len(claims) == len(wanted)
    assert [claim for claim in claims if claim["attempt"] > 1 or claim["state"] != "done"] == []
    site.assert_brokers_are_empty()


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


def drain(site: Site, name: str) -> dict[str, int]:
    """``jobsync drain --wait``, and what it told."""
    command = [sys.executable, "-m", "jobsync_celery", "drain", site.node(name), "--wait", "--json"]
    done = subprocess.run([*command, "--url", site.database_url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, int] = json.loads(done.stdout)
    return answer
