"""Whether a worker can do its work: it may renew its lease in one thread while another cannot consume at all."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable

from jobsync_celery.runtime.clock import boot_clock

#: An idle event loop turns about once a second.
_SLOWEST_TURN_SEC = 2.0
#: So long after one connection is back the others' are, if they can be: a try takes up to four seconds, the pause
#: before it two, and a node looks around once a second.
_ALL_BACK_SEC = 8.0
#: So many of the innermost calls tell what a loop waits for, and on whose behalf.
_TOLD_CALLS = 6


class Pulse:
    """Signs of life of a worker's event loop. Each writer is one thread; anybody may read.

    Arguments:
        turns: false if the loop may stand still for long, as where it runs the task bodies itself.
    """

    def __init__(self, *, turns: bool = True, clock: Callable[[], float] = boot_clock) -> None:
        self._clock = clock
        self._turns = turns
        self._thread: int | None = None
        self._turned_at: float | None = None
        self._cut_off_at: float | None = None
        self._back_at: float | None = None

    def turned(self) -> None:
        """The event loop goes round once more."""
        self._thread = threading.get_ident()
        self._turned_at = self._clock()

    def connected(self) -> None:
        """There is a connection to the broker."""
        if self._cut_off_at is not None:
            self._back_at = self._clock()
        self._cut_off_at = None
        self.turned()

    def disconnected(self) -> None:
        """There is none; the loop stands still until there is. Told again, it is since the first time."""
        if self._cut_off_at is None:
            self._cut_off_at = self._clock()
        self._turned_at = None

    def cut_off(self, limit: float) -> bool:
        """Whether there has been no connection to the broker for more than ``limit`` seconds."""
        since = self._cut_off_at
        return since is not None and self._clock() - since > limit

    def shaken(self) -> bool:
        """Whether the broker is away, or just back: others notice either seconds before or after this worker."""
        # In this order: whoever connects sets the one before it clears the other.
        if self._cut_off_at is not None:
            return True
        back = self._back_at
        return back is not None and self._clock() - back < _ALL_BACK_SEC

    def hangs(self, limit: float) -> bool:
        """Whether the loop should turn, and has not for more than ``limit`` seconds (and a slow turn)."""
        since = self._turned_at
        return self._turns and since is not None and self._clock() - since > limit + _SLOWEST_TURN_SEC

    def whereabouts(self) -> str:
        """What the loop's thread is doing: its innermost calls, ``function (file:line)`` each, the innermost first."""
        frame = None if self._thread is None else sys._current_frames().get(self._thread)
        calls = traceback.extract_stack(frame)[-_TOLD_CALLS:] if frame is not None else []
        return " < ".join(f"{call.name} ({_short(call.filename)}:{call.lineno})" for call in reversed(calls))


def _short(filename: str) -> str:
    return "/".join(filename.replace("\\", "/").rsplit("/", 2)[-2:])
