"""Waiting for what is to happen, with a bound, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Generous: what goes well does not wait, and the machine may be loaded.
PATIENCE = 60.0


class Stuck(Exception):
    """What was waited for did not happen in time; the message says what."""


def now() -> float:
    """Seconds since boot, the same clock in every process; it counts sleep and never steps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def until(condition: Callable[[], T], what: str, timeout: float = PATIENCE, every: float = 0.05) -> T:
    """What the condition returns once that is true; raises :class:`Stuck` after ``timeout`` seconds."""
    end = now() + timeout
    while not (value := condition()):
        if now() > end:
            raise Stuck(f"after {timeout:.0f} s it is still not so that {what}")
        time.sleep(every)
    return value


def happens(condition: Callable[[], object], timeout: float, every: float = 0.05) -> bool:
    """Whether the condition became true in time: for what may also not happen."""
    try:
        until(condition, "", timeout, every)
    except Stuck:
        return False
    return True


def hold(seconds: float) -> None:
    """Let a fault last so long. A duration, not a wait: nothing is taken to have happened after it."""
    end = now() + seconds
    while (left := end - now()) > 0:
        time.sleep(min(left, 0.2))
