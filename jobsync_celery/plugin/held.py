"""Messages that only wait: they widen the prefetch window, and too many of them pause their partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from jobsync_celery.plugin.delivery import Delivery


class Held:
    """Messages that only wait. Each widens the prefetch window by one, so that it starves nobody.

    Celery does the same for messages with an ETA. Beyond ``limit`` held messages the partition that holds most is
    paused, so only its keys wait.

    Arguments:
        pause, resume: called with a partition's number.
    """

    def __init__(self, limit: int, pause: Callable[[int], None], resume: Callable[[int], None]) -> None:
        self._limit = limit
        self._pause = pause
        self._resume = resume
        self._qos: object = None
        self._count: Counter[int] = Counter()
        self._paused: set[int] = set()

    def attach(self, qos: object) -> None:
        """A new connection begins with a window of its own, and nothing held."""
        self._qos = qos
        self._count.clear()
        self._paused.clear()

    @property
    def paused(self) -> list[int]:
        """The partitions that are paused."""
        return sorted(self._paused)

    @property
    def total(self) -> int:
        """How many messages are held."""
        return self._count.total() if hasattr(self._count, "total") else sum(self._count.values())

    def add(self, delivery: Delivery) -> None:
        """This message waits."""
        if delivery.counted:
            return
        delivery.counted = True
        self._qos.increment_eventually()  # type: ignore[attr-defined]
        self._count[delivery.partition] += 1
        if self.total > self._limit:
            fullest = max(self._count, key=lambda number: self._count[number])
            if fullest not in self._paused:
                self._paused.add(fullest)
                self._pause(fullest)

    def discard(self, delivery: Delivery) -> None:
        """It waits no more."""
        if not delivery.counted:
            return
        delivery.counted = False
        self._qos.decrement_eventually()  # type: ignore[attr-defined]
        number = delivery.partition
        self._count[number] -= 1
        if number in self._paused and self._count[number] <= self._limit // 2:
            self._paused.discard(number)
            self._resume(number)
        if not self._count[number]:
            del self._count[number]
