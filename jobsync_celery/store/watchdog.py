"""A limit on the client's side for every statement.

The server's timeouts end nothing when the server, or a proxy before it, has stopped answering while its TCP
stack still acknowledges. A thread shuts the socket of a statement that takes too long: its owner gets an
error.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_TICK = 0.5
_IDLE_TICKS = 60


class Watchdog:
    """Shuts sockets whose statements overrun; its thread runs only while there are statements."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[object, tuple[int, float]] = {}
        self._thread: threading.Thread | None = None
        self._idle = 0

    @contextmanager
    def watching(self, fileno: int, limit: float) -> Iterator[None]:
        """Shut the socket ``fileno`` if the block takes more than ``limit`` seconds."""
        entry = object()
        with self._lock:
            self._watched[entry] = (fileno, time.monotonic() + limit)
            self._idle = 0
            self._ensure_thread()
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(entry, None)

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="jobsync-watchdog", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_TICK)
            with self._lock:
                self._cut_overdue()
                self._idle += 1
                if self._idle > _IDLE_TICKS and not self._watched:
                    self._thread = None
                    return

    def _cut_overdue(self) -> None:
        """Under the lock, so that no descriptor is closed and used anew between look-up and shutdown."""
        now = time.monotonic()
        for entry, (fileno, end) in list(self._watched.items()):
            if now >= end:
                del self._watched[entry]
                shut(fileno)


def shut(fileno: int) -> None:
    """End both directions of a socket; its owner finds it closed, and closes the descriptor itself."""
    try:
        with socket.socket(fileno=os.dup(fileno)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # gone already, which is what was wanted
