"""The prefetch window follows the latency of commits.

Two commits stand between a delivery and its acknowledgement, so the window bounds throughput: window ÷ latency. What
is on its way through the database is therefore allowed on top of what the user configured for the pool.
"""

from __future__ import annotations

import math
from typing import Any

from jobsync_celery.plugin.delivery import Stage

_LOOK_SEC = 0.25
#: At most so many messages for each pool slot on top of the configured window.
_MOST_PER_SLOT = 64
#: Windows shrink slowly, so that a lull does not cost the next burst.
_DECAY = 0.9


class Window:
    """Widens a worker's prefetch count by what is on its way through the database."""

    def __init__(self, worker: Any, gate: Any) -> None:
        self._worker = worker
        self._gate = gate
        self._consumer: Any = None
        self._entry: Any = None
        self._wish = 0.0
        self._added = 0

    def attach(self, consumer: Any) -> None:
        """A new connection begins with the configured window."""
        self.detach()
        self._consumer = consumer
        self._added = 0
        self._entry = self._worker.timer.call_repeatedly(_LOOK_SEC, self._look)

    def detach(self) -> None:
        """Stop looking."""
        if self._entry is not None:
            self._entry.cancel()
            self._entry = None

    def _look(self) -> None:
        lanes = self._gate.lanes
        passing = len(lanes.stage(Stage.CLAIMING, Stage.ENDING))
        most = _MOST_PER_SLOT * self._worker.concurrency
        # More than what was seen: a window that is full cannot show how much more would pass.
        self._wish = min(most, max(4.0 * passing, self._wish * _DECAY if passing or self._wish > 1 else 0.0))
        target = math.ceil(self._wish)
        change = target - self._added
        if abs(change) >= max(2, self._added // 4) or (target == 0 and change):
            qos = self._consumer.qos
            (qos.increment_eventually if change > 0 else qos.decrement_eventually)(abs(change))
            self._added = target
