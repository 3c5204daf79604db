"""From any thread to the worker's event loop, in order."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class Inbox:
    """Calls for the event loop's thread, run in the order in which they were posted.

    The hub keeps its own calls in a set, so one pending ``call_soon`` drains a queue of ours instead.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._lock = threading.Lock()
        self._scheduled = False

    def post(self, call: Callable[..., None], *args: Any) -> None:
        """Run ``call(*args)`` on the loop, soon. Any thread."""
        self._calls.append((call, args))
        with self._lock:
            if self._scheduled:
                return
            self._scheduled = True
        self._hub.call_soon(self.drain)

    def later(self, seconds: float, call: Callable[..., None]) -> None:
        """Run ``call()`` on the loop in so many seconds; in the loop's thread."""
        self._hub.call_later(seconds, self.post, call)

    def once(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """A way to ask for ``call()`` in so many seconds; asked again before that, it happens once all the same."""
        asked = False

        def happen() -> None:
            nonlocal asked
            asked = False
            call()

        def ask() -> None:
            nonlocal asked
            if not asked:
                asked = True
                self.later(seconds, happen)

        return ask

    def drain(self) -> None:
        """Run what is posted; in the loop's thread."""
        with self._lock:
            self._scheduled = False
        # Calls posted meanwhile are run too: the loop might sleep a second before it comes here again.
        while self._calls:
            call, args = self._calls.popleft()
            try:
                call(*args)
            except Exception:  # one bad call must not lose the others, nor end the worker's loop
                logger.exception("jobsync: a step of the gate failed")
