"""The prefetch window follows the latency of commits.

Two commits stand between a delivery and its acknowledgement, so the window bounds throughput: window ÷ latency. What
is on its way through the database is therefore allowed on top of what the user configured for the pool.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from jobsync_celery.plugin.delivery import Stage
from jobsync_celery.plugin.lanes import Lanes

_LOOK_SEC = 0.25
#: What two commits take that wait to be worth their while; rate × time in passage is what is passing (Little's law).
_PASSAGE_SEC = 0.1
_RATE_SEC = 0.02
#: At most so many messages for each pool slot on top of the configured window.
_MOST_PER_SLOT = 128
#: Windows shrink slowly, so that a lull does not cost the next burst.
_DECAY = 0.9


class Window:
    """Widens a worker's prefetch count by what is on its way through the database.

    Arguments:
        clock: seconds of a clock that is never set back.
    """

    def __init__(self, worker: Any, lanes: Lanes, clock: Callable[[], float] = time.monotonic) -> None:
        self._worker = worker
        self._lanes = lanes
        self._clock = clock
        self._consumer: Any = None
        self._entry: Any = None
        self._wish = 0.0
        self._added = 0
        self._since = 0.0
        self._ended = 0

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

    def passed(self, ended: int) -> None:
        """So many runs have ended since the last call: a burst is to be followed at once, not at the next look."""
        self._ended += ended
        now = self._clock()
        if now - self._since > _RATE_SEC and self._entry is not None:
            rate, self._since, self._ended = self._ended / (now - self._since), now, 0
            self._set(max(self._wish, rate * _PASSAGE_SEC))

    def _look(self) -> None:
        passing = len(self._lanes.stage(Stage.CLAIMING, Stage.ENDING))
        # More than what was seen: a window that is full cannot show how much more would pass.
        self._set(max(4.0 * passing, self._wish * _DECAY if passing or self._wish > 1 else 0.0))

    def _set(self, wish: float) -> None:
        self._wish = min(wish, _MOST_PER_SLOT * self._worker.concurrency)
        target = math.ceil(self._wish)
        change = target - self._added
        if abs(change) >= max(2, self._added // 4) or (target == 0 and change):
            qos = self._consumer.qos
            (qos.increment_eventually if change > 0 else qos.decrement_eventually)(abs(change))
            self._added = target
