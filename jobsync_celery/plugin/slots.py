"""Pool slots: a granted request waits in the gate, where it can still be given back, until one is free."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

#: Called with a free slot: starts one request and returns true, or returns false if none waits any more.
Start = Callable[[], bool]


class Slots(Protocol):
    """Free slots of a pool, handed out one by one."""

    def want(self, waiting: int) -> None:
        """So many requests wait for a slot."""

    def release(self) -> None:
        """A slot that was handed out is free again, and its pool did not say so itself."""

    def finished(self) -> None:
        """A request that was started has left the pool."""

    def reset(self) -> None:
        """The broker connection was lost: nobody waits any more."""


class SemaphoreSlots(Slots):
    """The prefork pool's own semaphore, shared with ordinary tasks in the order of asking.

    What waits in the semaphore is only the wish for a slot, never a request.
    """

    _MOST_WISHES = 64

    def __init__(self, semaphore: Any, start: Start) -> None:
        self._semaphore = semaphore
        self._start = start
        self._wishes = 0
        self._generation = 0

    def want(self, waiting: int) -> None:
        while self._wishes < min(waiting, self._MOST_WISHES):
            self._wishes += 1
            waiting -= 1
            self._semaphore.acquire(self._granted, self._generation)

    def release(self) -> None:
        self._semaphore.release()

    def finished(self) -> None:
        """The pool released the semaphore itself."""

    def reset(self) -> None:
        self._generation += 1  # Celery clears the semaphore's queue on connection loss
        self._wishes = 0

    def _granted(self, generation: int) -> None:
        if generation == self._generation:
            self._wishes -= 1
        if generation != self._generation or not self._start():
            self._semaphore.release()


class CountedSlots(Slots):
    """Threads and solo pools, which take any number of jobs: count them ourselves."""

    #: The solo pool runs the body inside the event loop, which must come round now and then.
    _LONGEST_TURN_SEC = 0.02

    def __init__(self, limit: int, start: Start) -> None:
        self._limit = limit
        self._start = start
        self._busy = 0
        self._starting = False

    def want(self, waiting: int) -> None:
        if self._starting:
            return
        self._starting = True
        end = time.monotonic() + self._LONGEST_TURN_SEC
        try:
            while waiting > 0 and self._busy < self._limit:
                waiting -= 1
                self._busy += 1
                if not self._start():
                    self._busy -= 1
                    return
                if time.monotonic() > end:
                    return  # the end of the body that ran is being recorded: its answer brings us back here
        finally:
            self._starting = False

    def release(self) -> None:
        """Counted when the request is finished."""

    def finished(self) -> None:
        self._busy -= 1

    def reset(self) -> None:
        """Nothing of ours waits inside the pool."""


def slots_for(worker: Any, start: Start) -> Slots:
    """The slots of a worker's pool."""
    semaphore = getattr(worker, "semaphore", None)
    if semaphore is not None and worker.pool_putlocks and worker.pool_cls.uses_semaphore:
        return SemaphoreSlots(semaphore, start)
    return CountedSlots(max(1, worker.pool.limit or 1), start)
