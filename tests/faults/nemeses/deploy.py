"""What operators do all the time: rolling restarts, and more or fewer workers."""

from __future__ import annotations

from tests.faults.nemeses.base import Nemesis, Strike, Surroundings, strike
from tests.faults.waiting import Stuck, until
from tests.faults.workers import Worker

_MOST = 6


class RollingRestart(Nemesis):
    """Each worker in turn: SIGTERM, wait for its end, start it again, wait until it owns something."""

    name = "rolling-restart"

    def run(self, at: Surroundings) -> Strike:
        hit = []
        workers = at.stage.wanted
        for worker in workers:
            hit += at.stage.busy(worker)
            try:
                _stopped(worker)
            finally:
                worker.start()
            at.stage.until_ready(worker)
        return strike(workers, "SIGTERM, one after the other", hit)


class RestartAll(Nemesis):
    """SIGTERM to all at once, and all start again: a deploy without grace."""

    name = "restart-all"

    def run(self, at: Surroundings) -> Strike:
        bodies = at.stage.busy()
        workers = at.stage.wanted
        try:
            codes = at.stage.stop_workers()
        finally:
            for worker in workers:
                worker.start()
        for worker in workers:  # nobody could own anything before
            at.stage.until_ready(worker)
        _all_well(codes)
        return strike(workers, "SIGTERM to all at once", bodies)


class Scale(Nemesis):
    """Down to one worker, up to six, and back, each step by SIGTERM or a start."""

    name = "scale"

    def run(self, at: Surroundings) -> Strike:
        stage, before = at.stage, at.stage.wanted
        bodies = stage.busy()
        names = [f"w{n}" for n in range(1, _MOST + 1)]
        try:
            for worker in before[1:]:
                _stopped(worker)
            until(stage.settled, f"{before[0].name} owns everything")
            for name in names:
                if name not in stage.workers or not stage.workers[name].running:
                    stage.add(name)
            until(stage.settled, "six workers share", 120.0)
            for worker in [worker for worker in stage.wanted if worker not in before]:
                bodies += stage.busy(worker)
                _stopped(worker)
        finally:
            for worker in before:
                if not worker.running:
                    worker.start()
        return strike([*stage.workers.values()], f"{len(before)} workers to 1 to {_MOST} to {len(before)}", bodies)


def _stopped(worker: Worker) -> None:
    _all_well({worker.name: worker.stop()})


def _all_well(codes: dict[str, int | None]) -> None:
    bad = {name: code for name, code in codes.items() if code != 0}
    if bad:
        raise Stuck(f"after SIGTERM workers ended with {bad}")


NEMESES: tuple[Nemesis, ...] = (RollingRestart(), RestartAll(), Scale())
