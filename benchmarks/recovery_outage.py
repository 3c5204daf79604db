"""PostgreSQL goes away under load and comes back: how long until all is as before, and whether anything went wrong."""

from __future__ import annotations

import time
from bisect import bisect_left

from e2e.history import Run, doubled, now, overlaps
from e2e.load import load
from e2e.waiting import until
from recovery_cases import Round
from recovery_scene import Scene, covering_keys

RESUME_SEC = 5.0
_STEADY_SEC = 5.0
_AFTER_SEC = 6.0
_BODY_SEC, _PAUSE_SEC = 0.01, 0.02
BOUNDS = {
    "first start": RESUME_SEC,
    "a start in every partition": RESUME_SEC,
    "the rate of before": RESUME_SEC,
    "tasks lost": 0.0,
    "tasks doubled": 0.0,
    "overlaps": 0.0,
    "nodes evicted": 0.0,
}


def outage(scene: Scene, seconds: float) -> Round:
    """PostgreSQL is stopped at once, without a word to its clients, and stays away so long."""
    site = scene.site
    partitions = site.owners().keys()
    incarnations = _incarnations(scene)
    with load(site, keys=covering_keys(site, partitions), sec=_BODY_SEC, pause=_PAUSE_SEC) as stream:
        began = now()
        until(lambda: now() > began + _STEADY_SEC, "the load is steady", every=0.1)
        scene.postgres.stop(immediate=True)
        gone = now()
        try:
            time.sleep(seconds)
        finally:
            scene.postgres.start()
        back = now()
        until(lambda: now() > back + _AFTER_SEC, "it goes on", every=0.1)
    until(lambda: set(stream.ids) <= site.history.ended(), "the backlog is worked off", timeout=120, every=0.5)
    runs = site.history.runs(*stream.ids)
    before = sum(began <= run.began < began + _STEADY_SEC for run in runs) / _STEADY_SEC
    again = [run for run in runs if run.began > back]
    in_each = {scene.partition_of(str(run.key)): run.began - back for run in reversed(again)}
    assert set(in_each) == set(partitions), "every partition had messages to start"
    return {
        "first start": again[0].began - back,
        "a start in every partition": max(in_each.values()),
        "the rate of before": _reached(again, before) - back,
        "tasks lost": float(len(set(stream.ids) - {run.id for run in runs if run.how == "returned"})),
        "tasks doubled": float(len(doubled(runs))),
        "overlaps": float(len(overlaps(runs))),
        "nodes evicted": float(_incarnations(scene) != incarnations or any(_evicted(scene))),
        "(tasks a second before)": before,
        "(backlog at its return)": float(len(again)),
        "(last start after it was gone)": max(run.began for run in runs if run.began < back) - gone,
    }


def _reached(runs: list[Run], rate: float) -> float:
    """The end of the first second in which as many tasks began."""
    starts = [run.began for run in runs]
    for number, at in enumerate(starts):
        if number + 1 - bisect_left(starts, at - 1.0) >= rate:
            return at
    raise AssertionError(f"{rate:.0f} tasks a second were never reached")


def _incarnations(scene: Scene) -> dict[str, int]:
    return {row["name"]: row["incarnation"] for row in scene.site.rows("SELECT name, incarnation FROM sync_node")}


def _evicted(scene: Scene) -> list[bool]:
    return ["was declared dead" in worker.logs() for worker in scene.site.workers]
