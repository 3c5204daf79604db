"""Wall clocks that are wrong, for one process and what it starts; boot and monotonic clocks stay true."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.nemeses.base import DATABASE, Nemesis, Strike, Surroundings, strike
from tests.faults.waiting import hold

if TYPE_CHECKING:
    from tests.faults.stage import Stage

_HOUR = 3600
_MISSING = "wall clocks are shifted by a library that needs Linux and a C compiler (cc)"


class WorkerClock(Nemesis):
    """A worker starts with its wall clock an hour off, or it steps while it runs; it is killed afterwards."""

    name = "clock-worker"

    def left_out(self, stage: Stage) -> str | None:
        return None if stage.clock("probe") else _MISSING

    def run(self, at: Surroundings) -> Strike:
        worker, offset = at.rng.choice(at.stage.wanted), at.rng.choice((-_HOUR, _HOUR))
        clock, steps = at.stage.clock(worker.name), at.rng.random() < 0.5
        assert clock is not None
        try:
            worker.kill()
            clock.set(0 if steps else offset)
            worker.start(clock.environment())
            at.stage.until_ready(worker)
            bodies = at.stage.busy(worker)
            clock.set(offset)
            hold(at.rng.uniform(1.0, 4.0))
            bodies += at.stage.busy(worker)
            worker.kill()
        finally:
            if not worker.running:
                worker.start()
        return strike(worker, f"wall clock {'stepped by' if steps else 'off by'} {offset:+d} s", bodies)


class DatabaseClock(Nemesis):
    """The database's clock steps, and later steps back."""

    name = "clock-database"

    def left_out(self, stage: Stage) -> str | None:
        return None if stage.postgres.clock else _MISSING

    def run(self, at: Surroundings) -> Strike:
        hit, clock = len(at.stage.busy()), at.stage.postgres.clock
        offset = at.rng.choice((-_HOUR, -10, -1, 1, 10, _HOUR))
        assert clock is not None
        try:
            clock.set(offset)
            hold(at.rng.uniform(1.0, 6.0))
        finally:
            clock.set(0)
        return Strike(DATABASE, f"clock stepped by {offset:+d} s and back", hit)


NEMESES: tuple[Nemesis, ...] = (WorkerClock(), DatabaseClock())
