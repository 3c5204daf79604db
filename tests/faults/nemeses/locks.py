"""Task locks come and go: keys move between queues and workers while their tasks run."""

from __future__ import annotations

from contextlib import closing

from tests.faults.nemeses.base import ALL, Nemesis, Strike, Surroundings
from tests.faults.waiting import hold

_KEYS = [*(f"key{n}" for n in range(400)), *(f"hot{n}" for n in range(5))]
#: Of workers that are always there, that may be there, and that never are: then the next pattern counts, or all waits.
_PATTERNS = (["w1"], ["w2", "w%"], ["w_"], ["w6", "w3"], ["nobody"], ["%"])


class LocksChange(Nemesis):
    """Keys are locked to some workers and unlocked again, over and over, and all are unlocked in the end."""

    name = "locks-change"

    def run(self, at: Surroundings) -> Strike:
        hit, changes = len(at.stage.busy()), 0
        with closing(at.stage.producer()) as app:
            jobsync = app.jobsync
            try:
                for _ in range(at.rng.randint(8, 20)):
                    chosen = [(key, at.rng.choice(_PATTERNS), None) for key in at.rng.sample(_KEYS, 40)]
                    changes += jobsync.register_locks_bulk(chosen)
                    hold(at.rng.uniform(0.0, 0.3))
                    changes += sum(jobsync.clear_lock(key) for key in at.rng.sample(_KEYS, 10))
            finally:
                changes += jobsync.clear_all_locks()
        return Strike(ALL, f"{changes} keys were locked or unlocked", hit)


NEMESES: tuple[Nemesis, ...] = (LocksChange(),)
