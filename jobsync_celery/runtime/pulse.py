"""Whether a worker can do its work: it may renew its lease in one thread while another cannot consume at all."""

from __future__ import annotations

from collections.abc import Callable

from jobsync_celery.runtime.clock import boot_clock

#: An idle event loop turns about once a second.
_SLOWEST_TURN_SEC = 2.0


class Pulse:
    """Signs of life of a worker's event loop. Each writer is one thread; anybody may read.

    Arguments:
        turns: false if the loop may stand still for long, as where it runs the task bodies itself.
    """

    def __init__(self, *, turns: bool = True, clock: Callable[[], float] = boot_clock) -> None:
        self._clock = clock
        self._turns = turns
        self._turned_at: float | None = None
        self._cut_off_at: float | None = None

    def turned(self) -> None:
        """The event loop goes round once more."""
        self._turned_at = self._clock()

    def connected(self) -> None:
        """There is a connection to the broker."""
        self._cut_off_at = None
        self.turned()

    def disconnected(self) -> None:
        """There is none; the loop stands still until there is."""
        self._cut_off_at = self._clock()
        self._turned_at = None

    def cut_off(self, limit: float) -> bool:
        """Whether there has been no connection to the broker for more than ``limit`` seconds."""
        since = self._cut_off_at
        return since is not None and self._clock() - since > limit

    def hangs(self, limit: float) -> bool:
        """Whether the loop should turn, and has not for more than ``limit`` seconds (and a slow turn)."""
        since = self._turned_at
        return self._turns and since is not None and self._clock() - since > limit + _SLOWEST_TURN_SEC
