"""SIGKILL: the main process alone, one process of the pool, or the whole group."""

from __future__ import annotations

import signal
from random import Random
from typing import TYPE_CHECKING

from tests.faults.nemeses.base import Nemesis, Strike, Surroundings, strike
from tests.faults.waiting import happens
from tests.faults.workers import Worker

if TYPE_CHECKING:
    from tests.faults.stage import Stage


class KillMain(Nemesis):
    """The main process is killed; its pool is orphaned, and may go on for a while."""

    name = "kill-main"

    def run(self, at: Surroundings) -> Strike:
        worker, bodies = at.stage.aim(at.rng)
        worker.kill_main()
        return strike(worker, _come_back(at.stage, worker, at.rng), bodies)


class KillGroup(Nemesis):
    """Main process and pool are killed together, as the kernel or a lost machine would."""

    name = "kill-group"

    def run(self, at: Surroundings) -> Strike:
        worker, bodies = at.stage.aim(at.rng)
        worker.kill()
        return strike(worker, _come_back(at.stage, worker, at.rng), bodies)


class KillLeader(Nemesis):
    """The group of the oldest node, which is the leader, is killed."""

    name = "kill-leader"

    def run(self, at: Surroundings) -> Strike:
        rows = at.stage.tables.ask("SELECT name FROM sync_node WHERE state = 'live' ORDER BY incarnation LIMIT 1")
        name = rows[0]["name"] if rows else ""
        worker = next((worker for worker in at.stage.wanted if worker.name == name), at.stage.wanted[0])
        bodies = at.stage.busy(worker)
        worker.kill()
        return strike(worker, _come_back(at.stage, worker, at.rng), bodies)


class KillChild(Nemesis):
    """One process of the pool is killed, while it runs a body."""

    name = "kill-child"

    def run(self, at: Surroundings) -> Strike:
        worker = at.rng.choice(at.stage.wanted)
        killed = []
        for _ in range(at.rng.randint(1, 3)):
            bodies = at.stage.busy(worker)
            killed += [body for body in bodies[:1] if worker.signal_child(body.pid, signal.SIGKILL)]
            happens(lambda: len(worker.children()) == 2, 5.0)  # Celery replaces it
        return strike(worker, f"{len(killed)} processes of the pool", killed)


def _come_back(stage: Stage, worker: Worker, rng: Random) -> str:
    """Start the worker again, now or when the others have taken over."""
    try:
        if rng.random() < 0.5:
            return "and started again at once"
        stage.until_lost(worker)
        return "and started again after the take-over"
    finally:
        worker.start()


NEMESES: tuple[Nemesis, ...] = (KillMain(), KillGroup(), KillLeader(), KillChild())
