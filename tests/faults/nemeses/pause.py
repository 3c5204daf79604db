"""SIGSTOP, past the lease or nearly so, then SIGCONT: the parent, one process of the pool, or all."""

from __future__ import annotations

import signal
from random import Random
from typing import TYPE_CHECKING

from tests.faults.nemeses.base import Nemesis, Strike, Surroundings, strike
from tests.faults.waiting import hold
from tests.faults.workers import Worker

if TYPE_CHECKING:
    from tests.faults.stage import Stage

_LEASE_SEC = 2.0
_MORE_SEC = 1.5


class PauseParent(Nemesis):
    """The main process is stopped; its pool goes on without it."""

    name = "pause-parent"

    def run(self, at: Surroundings) -> Strike:
        worker, bodies = at.stage.aim(at.rng)
        try:
            worker.signal(signal.SIGSTOP)
            detail = _last(at.stage, worker, at.rng)
        finally:
            worker.signal(signal.SIGCONT)
        return strike(worker, detail, bodies)


class PauseGroup(Nemesis):
    """Main process and pool are stopped together, as a hang of the machine would."""

    name = "pause-group"

    def run(self, at: Surroundings) -> Strike:
        worker, bodies = at.stage.aim(at.rng)
        try:
            worker.signal_group(signal.SIGSTOP)
            detail = _last(at.stage, worker, at.rng)
        finally:
            worker.signal_group(signal.SIGCONT)
        return strike(worker, detail, bodies)


class PauseChild(Nemesis):
    """One process of the pool is stopped in the middle of a body; the worker knows nothing of it."""

    name = "pause-child"

    def run(self, at: Surroundings) -> Strike:
        worker, bodies = at.stage.aim(at.rng)
        pid = bodies[0].pid if bodies else worker.children()[0]
        sec = at.rng.uniform(1.0, 2.5 * _LEASE_SEC)
        try:
            worker.signal_child(pid, signal.SIGSTOP)
            hold(sec)
        finally:
            worker.signal_child(pid, signal.SIGCONT)
        return strike(worker, f"process {pid} for {sec:.1f} s", bodies)


def _last(stage: Stage, worker: Worker, rng: Random) -> str:
    """Let the pause last: mostly until the others have taken over and longer, else for about the lease."""
    if rng.random() < 0.7:
        stage.until_lost(worker)
        hold(rng.uniform(0.0, _MORE_SEC))
        return "until its partitions were taken over"
    sec = rng.uniform(0.6, 1.2) * _LEASE_SEC
    hold(sec)
    return f"for {sec:.2f} s"


NEMESES: tuple[Nemesis, ...] = (PauseParent(), PauseGroup(), PauseChild())
