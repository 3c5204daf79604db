"""Calling the user's receivers: one after another, their errors contained, the slow ones named in the log."""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from jobsync_celery.runtime.events import Events

#: When a receiver is first called slow; again after twice that time, and so on.
SLOW_SEC = 5.0
#: From a scheme's user name to the last @, since a password that was not encoded may hold one.
_PASSWORD = re.compile(r"(://[^\s:@/]*):\S*@")


@dataclass(frozen=True)
class Receiver:
    """Something of the user's that is to be called, and its name for the log."""

    name: str
    call: Callable[[], object]


class Audience(Protocol):
    """Who listens to what."""

    def hears(self, signal: str) -> bool:
        """Whether somebody listens to a signal now."""
        ...

    def receivers(self, signal: str, fields: Mapping[str, Any]) -> Iterable[Receiver]:
        """Who is to be called, in order, for a signal with these fields."""
        ...


class Nobody:
    """An audience that hears nothing."""

    def hears(self, signal: str) -> bool:
        """Never."""
        return False

    def receivers(self, signal: str, fields: Mapping[str, Any]) -> Iterable[Receiver]:
        """None."""
        return ()


class Listeners:
    """Calls an audience's receivers, in the thread that asks for it.

    Arguments:
        let_pass: errors that are not a receiver's own, and end the call.
        slow: after how many seconds a receiver that has not returned is named in the log.
    """

    def __init__(
        self,
        audience: Audience,
        events: Events,
        *,
        let_pass: tuple[type[BaseException], ...] = (),
        slow: float = SLOW_SEC,
    ) -> None:
        self._audience = audience
        self._events = events
        self._let_pass = let_pass
        self._slow = slow

    def hear(self, *signals: str) -> bool:
        """Whether somebody listens to one of these now."""
        return any(self._audience.hears(signal) for signal in signals)

    def call(self, signal: str, fields: Mapping[str, Any]) -> None:
        """Call every receiver of a signal, and return when the last has returned or failed."""
        for receiver in self._audience.receivers(signal, fields):
            with _Patience(self._slow, partial(self._tell_slow, signal, receiver.name)):
                try:
                    receiver.call()
                except self._let_pass:
                    raise
                # Also an exit: it would end the thread that all later calls need.
                except BaseException as error:  # noqa: BLE001 - a user's receiver: its errors are its own
                    self._events("listener_failed", signal=signal, receiver=receiver.name, error=_told(error))

    def _tell_slow(self, signal: str, receiver: str, seconds: float) -> None:
        self._events("listener_slow", signal=signal, receiver=receiver, seconds=seconds)


class _Patience:
    """Says so while a receiver goes on and on.

    Arguments:
        tell: called with the seconds waited, first after ``first`` seconds, then whenever they have doubled.
    """

    def __init__(self, first: float, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._over = threading.Event()
        self._timer = self._wait(first, first)

    def _wait(self, seconds: float, due: float) -> threading.Timer:
        timer = threading.Timer(seconds, self._ended, (due,))
        timer.daemon = True
        timer.start()
        return timer

    def _ended(self, waited: float) -> None:
        if not self._over.is_set():
            self._tell(waited)
            self._timer = self._wait(waited, 2 * waited)

    def __enter__(self) -> None:
        """The receiver is called."""

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._timer.cancel()


def _told(error: BaseException) -> str:
    """An error with its traceback, without the passwords that URLs in it may hold."""
    return _PASSWORD.sub(r"\1:***@", "".join(traceback.format_exception(error)).rstrip())
