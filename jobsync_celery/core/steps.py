"""Whether a clock was set: two clocks that both run keep their distance."""

from __future__ import annotations

from dataclasses import dataclass

from jobsync_celery.core.lease import DRIFT

#: What is less is not worth a word, in seconds.
LEAST_STEP = 1.0


@dataclass(frozen=True, slots=True)
class Distance:
    """How far the database's clock is ahead of the observer's boot clock: somewhere between two bounds, in seconds.

    The boot clock is never set and goes on while a machine sleeps, so if the distance changes the other one was set.
    """

    least: float
    most: float
    at: float

    @classmethod
    def of(cls, sent_at: float, received_at: float, database_time: float) -> Distance:
        """From one answer: the database read its clock between the two moments of the observer's."""
        return cls(database_time - received_at, database_time - sent_at, received_at)

    def step_since(self, before: Distance) -> float:
        """By how much the database's clock was set since then, at least; negative if back; 0 if it was not."""
        slack = DRIFT * abs(self.at - before.at)
        forth = self.least - before.most - slack
        back = before.least - self.most - slack
        if forth >= LEAST_STEP:
            return forth
        return -back if back >= LEAST_STEP else 0.0
