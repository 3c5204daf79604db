"""A node cut from database, broker or both, and rejoined."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import TYPE_CHECKING

from tests.faults import black_hole
from tests.faults.nemeses.base import BROKER, DATABASE, Nemesis, Strike, Surroundings, strike
from tests.faults.proxy import BOTH, PASS, TO_CLIENT, Mode
from tests.faults.waiting import happens, hold, now
from tests.faults.workers import Worker

if TYPE_CHECKING:
    from tests.faults.stage import Stage

_SIDES = {"database": (DATABASE,), "broker": (BROKER,), "both": (DATABASE, BROKER)}
_MODES = {
    "refuse": Mode("refuse"),
    "reset": Mode("reset"),
    "stall": Mode("stall", directions=BOTH),
    "drop": Mode("drop", directions=BOTH),
    "deaf": Mode("drop", directions=(TO_CLIENT,)),
}
_MOST_SEC = 8.0


class Cut(Nemesis):
    """One node cannot reach one side or both; the others can.

    refuse, reset: it is told so. stall, drop: a black hole, which connections survive or not. deaf: what it says
    arrives, but no answer does, so that it does not know what was committed.
    """

    def __init__(self, side: str, how: str) -> None:
        self.name = f"cut-{side}-{how}"
        self._sides = _SIDES[side]
        self._how = how

    def run(self, at: Surroundings) -> Strike:
        worker, bodies = at.stage.aim(at.rng)
        sec = at.rng.uniform(0.3, 2.5)
        with self._cut(at.stage, worker):
            detail = self._last(at, worker) if at.rng.random() < 0.6 else ""
            hold(sec)
        return strike(worker, f"{detail} and {sec:.1f} s more" if detail else f"for {sec:.1f} s", bodies)

    @contextmanager
    def _cut(self, stage: Stage, worker: Worker) -> Iterator[None]:
        """Break for as long as the block lasts."""
        try:
            stage.cut([worker], self._sides, _MODES[self._how])
            yield
        finally:
            stage.cut([worker], self._sides, PASS)

    def _last(self, at: Surroundings, worker: Worker) -> str:
        """Wait until the others have taken over, or it seems that they will not."""
        began = now()
        if happens(lambda: worker.name not in (at.stage.owners() or {0: worker.name}).values(), _MOST_SEC):
            return f"until it had no partition left after {now() - began:.1f} s"
        return f"kept its partitions for {_MOST_SEC:.0f} s"


class BlackHole(Cut):
    """The kernel drops all packets between one node and one side or both: not even TCP answers."""

    def __init__(self, side: str) -> None:
        super().__init__(side, "blackhole")

    def left_out(self, stage: Stage) -> str | None:
        return black_hole.missing()

    @contextmanager
    def _cut(self, stage: Stage, worker: Worker) -> Iterator[None]:
        with ExitStack() as holes:
            for side in self._sides:
                holes.enter_context(black_hole.black_hole(getattr(worker, side).port))
            yield


class FlakyNetwork(Nemesis):
    """All connections of all workers are reset, some times in a row."""

    name = "connections-reset"

    def run(self, at: Surroundings) -> Strike:
        hit = 0
        for _ in range(at.rng.randint(2, 5)):
            hit += len(at.stage.busy())
            for worker in at.stage.wanted:
                worker.database.reset()
                worker.broker.reset()
            hold(at.rng.uniform(0.2, 1.2))
        names = ",".join(worker.name for worker in at.stage.wanted)
        return Strike(names, "all connections reset, again and again", hit)


NEMESES: tuple[Nemesis, ...] = (
    *(Cut(side, how) for side, how in product(_SIDES, _MODES)),
    *(BlackHole(side) for side in _SIDES),
    FlakyNetwork(),
)
