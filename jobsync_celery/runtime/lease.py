"""The lease as every process of a node sees it: in memory shared between the worker and its pool children.

A job carries a :class:`Pass`; the process that starts it asks :meth:`Lease.permits` first. A stopped parent cannot
tell its children anything, so they must be able to see for themselves that the deadline has passed.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import NamedTuple

from jobsync_celery.runtime.clock import boot_clock

_INCARNATION, _DEADLINE, _EPOCH = range(3)
_NANO = 1_000_000_000


class Pass(NamedTuple):
    """Under which incarnation, and in which epoch of its broker connection, a job was handed to the pool."""

    incarnation: int
    epoch: int


class Lease:
    """(incarnation, deadline, epoch) in anonymous shared memory: one writer, the node; readers in every child.

    Create it before the pool forks.
    """

    def __init__(self, clock: Callable[[], float] = boot_clock) -> None:
        self._clock = clock
        self._cells = memoryview(mmap.mmap(-1, 24)).cast("q")

    # The writer stores the incarnation first, then the deadline; readers read the deadline first. The other order
    # can show a new incarnation with the old deadline, or the reverse, across a re-registration.

    def renew(self, incarnation: int, trusted_until: float) -> None:
        """Trust ``incarnation`` until ``trusted_until`` (seconds of the boot clock)."""
        if self._cells[_INCARNATION] != incarnation:
            self._cells[_DEADLINE] = 0
            self._cells[_INCARNATION] = incarnation
        self._cells[_DEADLINE] = int(trusted_until * _NANO)

    def close(self) -> None:
        """Trust nothing any more: nothing starts until the next :meth:`renew`."""
        self._cells[_DEADLINE] = 0

    def advance(self) -> None:
        """Begin a new epoch: jobs handed to the pool before and not yet started are refused."""
        self._cells[_EPOCH] += 1

    @property
    def current(self) -> Pass:
        """The pass a job gets now."""
        return Pass(self._cells[_INCARNATION], self._cells[_EPOCH])

    @property
    def incarnation(self) -> int:
        """The incarnation that is, or was, trusted."""
        return self._cells[_INCARNATION]

    @property
    def trusted(self) -> bool:
        """Whether the deadline is still ahead."""
        return self._cells[_DEADLINE] > self._clock() * _NANO

    @property
    def deadline(self) -> float:
        """Until when, in seconds of the boot clock; 0.0 if closed."""
        return self._cells[_DEADLINE] / _NANO

    def holds(self, incarnation: int) -> bool:
        """Whether this incarnation is trusted now, in whatever epoch."""
        deadline = self._cells[_DEADLINE]
        return self._cells[_INCARNATION] == incarnation and deadline > self._clock() * _NANO

    def permits(self, given: Pass) -> bool:
        """Whether a job with this pass may start now."""
        deadline = self._cells[_DEADLINE]
        here = (self._cells[_INCARNATION], self._cells[_EPOCH])
        return here == given and deadline > self._clock() * _NANO
