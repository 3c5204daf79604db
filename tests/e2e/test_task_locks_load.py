"""Locks come and go while tasks flow and workers restart: nothing overlaps, is lost, or runs where it may not.

``JOBSYNC_LOCKS=1000 JOBSYNC_LOCK_TASKS=20000`` is the test at full length, ``JOBSYNC_LOCK_SEED`` another course.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from e2e.history import Run, now, out_of_fence, overlaps
from e2e.site import TIMEOUT, Site
from e2e.stand_ins import Worker
from e2e.waiting import until
from e2e.whereabouts import DRAWN, Locked, Presence, astray

LOCKS = int(os.environ.get("JOBSYNC_LOCKS", "60"))
TASKS = int(os.environ.get("JOBSYNC_LOCK_TASKS", "1500"))
SEED = int(os.environ.get("JOBSYNC_LOCK_SEED", "1"))
NAMES = ("gpu-1", "gpu-2", "cpu-1", "cpu-2")
PATTERNS = (("gpu-%",), ("cpu-%",), ("gpu-1%", "cpu-%"), ("cpu-2%", "gpu-%", "%"), ("%-2@%",), ("tpu-%", "gpu-%"))
#: How long a change of members takes to be known and acted on, at worst, and some more for a loaded machine.
SETTLE = TIMEOUT + 5.0
#: How long before its death a worker may have ended a run without having recorded it.
UNRECORDED_SEC = 1.0


class Locksmith:
    """Locks and unlocks keys, and notes for each lock which claims it was in force for."""

    def __init__(self, site: Site, chance: Random, keys: list[str]) -> None:
        self._site, self._chance, self._keys = site, chance, keys
        self._held: dict[str, Locked] = {}
        self.locked: list[Locked] = []
        self.story: list[str] = []
        self.set = self.cleared = self.expired = 0

    def _drawn(self) -> int:
        return int(self._site.rows("SELECT last_value FROM sync_fence_seq")[0]["last_value"]) & DRAWN

    def step(self) -> None:
        """One change."""
        how = self._chance.random()
        if how < 0.4:
            self._one(None)
        elif how < 0.55:
            self._one(self._chance.uniform(0.5, 1.5))
        elif how < 0.75:
            self._bulk()
        elif how < 0.97 and self._held:
            self._clear([self._chance.choice(list(self._held))])
        elif self._held:
            self._clear(list(self._held))

    def _one(self, expires: float | None) -> None:
        key, patterns = self._chance.choice(self._keys), self._chance.choice(PATTERNS)
        self._change([key], f"lock {key} {patterns} {expires}")
        began = now()
        days = None if expires is None else expires / 86400
        self._site.app.jobsync.register_lock(key, list(patterns), "one", expires_in_days=days)
        self._note({key: patterns}, float("inf") if expires is None else began + expires)

    def _bulk(self) -> None:
        wanted = {key: self._chance.choice(PATTERNS) for key in self._chance.sample(self._keys, 5)}
        self._change(wanted, f"lock {wanted}")
        self._site.app.jobsync.register_locks_bulk([(key, list(each), "bulk") for key, each in wanted.items()])
        self._note(wanted, float("inf"))

    def _clear(self, keys: list[str]) -> None:
        self._change(keys, f"clear {keys}")
        jobsync = self._site.app.jobsync
        if len(keys) == 1:
            self.cleared += jobsync.clear_lock(keys[0])
        else:
            creators = {lock.created_by for lock in jobsync.list_locks()}
            self.cleared += sum(jobsync.clear_locks_by_creator(creator) for creator in creators)

    def _change(self, keys: Any, what: str) -> None:
        """The locks of these keys are in force for the claims so far, and no more for sure."""
        upto = self._drawn()
        self.story.append(f"{now():.3f} {what}")
        for key in keys:
            if lock := self._held.pop(key, None):
                lock.upto = upto
                self.expired += lock.expires < now()

    def _note(self, wanted: dict[str, tuple[str, ...]], expires: float) -> None:
        returned, after = now(), self._drawn()
        self.set += len(wanted)
        for key, patterns in wanted.items():
            self._held[key] = Locked(key, patterns, returned, after, expires=expires)
            self.locked.append(self._held[key])

    def end(self) -> None:
        """Everything is unlocked."""
        self._change(list(self._held), "clear all")
        self.cleared += self._site.app.jobsync.clear_all_locks()


class Restarts:
    """Workers that leave or are killed, and come back; now and then all of a kind at once."""

    KINDS = (*([name] for name in NAMES), ["gpu-1", "gpu-2"], ["cpu-1", "cpu-2"])

    def __init__(self, site: Site, chance: Random, workers: dict[str, Worker]) -> None:
        self._site, self._chance, self._workers = site, chance, workers
        self.presence = Presence()
        self.story: list[str] = []
        #: (node, when) of each SIGKILL.
        self.kills: list[tuple[str, float]] = []
        for name in workers:
            self.presence.came(site.node(name), now())

    def step(self) -> None:
        """One of them, or all of a kind, goes and comes back."""
        kind, how = self._chance.choice(self.KINDS), self._chance.choice(("SIGTERM", "SIGKILL"))
        last = max(self._incarnations().values())
        for name in kind:
            self._end(name, how)
        for name in kind:
            self._workers[name].container.wait()
        if self._chance.random() < 0.5:
            self._site.until_shared(*(name for name in NAMES if name not in kind))
        for name in kind:
            self._workers[name].container.begin()
        nodes = [self._site.node(name) for name in kind]
        until(lambda: all(self._incarnations().get(node, 0) > last for node in nodes), f"{nodes} are back")
        self._site.until_shared(*NAMES)
        for node in nodes:
            self.presence.came(node, now())

    def _end(self, name: str, how: str) -> None:
        node = self._site.node(name)
        self.story.append(f"{now():.3f} {how} {name}")
        self.presence.goes(node, now())
        self._workers[name].kill(how)
        if how == "SIGKILL":
            self.kills.append((node, now()))

    def _incarnations(self) -> dict[str, int]:
        rows = self._site.rows("SELECT name, incarnation FROM sync_node WHERE state = 'live'")
        return {row["name"]: row["incarnation"] for row in rows}

    def explain(self, run: Run) -> bool:
        """Whether a kill of its worker may have kept the end of a run, or its body, from being recorded."""
        return any(run.node == node and at - UNRECORDED_SEC < run.last <= at for node, at in self.kills)


def flow(site: Site, chance: Random, keys: list[str], smith: Locksmith) -> list[str]:
    """Publish all tasks, and change locks in step with them; the ids."""
    ids = []
    for n in range(TASKS):
        ids.append(site.call("step", chance.choice(keys), n, 0.005, ignore_result=True).id)
        while smith.set < LOCKS * (n + 1) // TASKS:
            smith.step()
        time.sleep(0.01)  # the pace of the flow; nothing is waited for
    return ids


@pytest.mark.timeout(180 + TASKS // 10)
@pytest.mark.cluster(*NAMES, jobsync={"partitions": 16})
def test_locks_are_heeded_while_tasks_flow_and_workers_restart(
    celery_setup: Any, site: Site, record_property: Any
) -> None:
    began, keys = now(), [f"key{n}" for n in range(max(20, LOCKS // 5))]
    smith = Locksmith(site, Random(SEED), keys)
    restarts = Restarts(site, Random(SEED + 1), dict(zip(NAMES, celery_setup.worker_cluster, strict=True)))
    with ThreadPoolExecutor(1) as background:
        flowing = background.submit(flow, site, Random(SEED + 2), keys, smith)
        while not flowing.done():
            restarts.step()
    ids = flowing.result()
    smith.end()
    site.until_ended(*ids, timeout=120 + TASKS / 50)
    runs = site.history.runs()
    judged, wrong = astray(runs, smith.locked, restarts.presence, SETTLE)
    record_property("locks", f"{smith.set} set, {smith.cleared} cleared, {smith.expired} expired")
    record_property("tasks", f"{len(ids)} in {now() - began:.1f} s, {judged} judged")
    record_property("ends of workers", len(restarts.story))
    by_run: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in runs:
        by_run[(run.id, run.retries)].append(run)
    # Whoever ran again was cut off by a kill, or had ended so shortly before one that nobody knew.
    doubled = [run for each in by_run.values() for run in each[:-1] if not restarts.explain(run)]
    faults = [f"{run} is forbidden by {lock}" for run, lock in wrong]
    faults += [f"{first} overlaps {second}" for first, second in overlaps(runs)]
    faults += [f"{second} has no larger fence than {first}" for first, second in out_of_fence(runs)]
    faults += [f"{run} was run again, though nobody killed its worker then" for run in doubled]
    if faults:
        timeline = "\n".join(sorted(smith.story + restarts.story))
        pytest.fail(f"seed {SEED}\n{timeline}\n\n" + "\n".join(faults), pytrace=False)
    assert judged > LOCKS // 2, "the test has seen locks at work"
    assert {claim["state"] for claim in site.settled(*ids)} == {"done"}
    assert {run.id for run in runs if run.how == "returned"} == set(ids)
    site.assert_brokers_are_empty()
