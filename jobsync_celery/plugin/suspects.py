"""Runs that were lost before: one of them may be what killed its worker, the others only ran beside it.

Each start of a suspect is recorded first, so that its next loss is known to be its own. One that would be given up at
its next loss also starts only while no other such run is running here: an innocent neighbour is not lost with it.
"""

from __future__ import annotations

from collections.abc import Callable

from jobsync_celery.plugin.delivery import Delivery, Stage
from jobsync_celery.plugin.lanes import Lanes
from jobsync_celery.runtime.claimer import Answer, Claimer


class Suspects:
    """The suspects among what is granted; belongs to the event loop's thread."""

    def __init__(self, scribe: Claimer, lanes: Lanes) -> None:
        self._scribe = scribe
        self._lanes = lanes
        self._waiting: list[Delivery] = []

    def must_wait(self, delivery: Delivery) -> bool:
        """Whether it may not start now; if so, :meth:`released` has it when there is a chance again."""
        if not _last_chance(delivery) or not any(
            _last_chance(one) and (one.stage is Stage.STARTED or one.beginning) for one in self._lanes
        ):
            return False
        self._waiting.append(delivery)
        return True

    def released(self) -> list[Delivery]:
        """What had to wait, since a run has ended."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def begin(self, delivery: Delivery, then: Callable[[Delivery, Answer], None]) -> bool:
        """Record that a suspect begins, and call ``then`` with the answer; false if it is none, or recorded already."""
        granted = delivery.granted
        if granted is None or not granted.lost_runs or delivery.begun:
            return False

        def answered(answer: Answer) -> None:
            delivery.beginning = False
            then(delivery, answer)

        delivery.beginning = True
        self._scribe.begin(delivery.run, granted.fence, answered)
        return True


def _last_chance(delivery: Delivery) -> bool:
    return delivery.granted is not None and delivery.granted.last_chance
