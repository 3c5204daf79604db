"""How the processes that run tasks tell their worker's main process: through a pipe that never makes them wait."""

from __future__ import annotations

import itertools
import marshal
import os
import select
import struct
import threading
from collections import deque
from typing import Protocol

from jobsync_celery.core.observation import Run, storable
from jobsync_celery.runtime.clock import boot_clock

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]

_SIZE = struct.Struct("<H")
#: The process, the run's number in it, the time. A begin goes on with what is run, and how many its process left out.
_OF_AN_END = 3
#: Room for seconds of a busy worker's records, so that they are read in few turns.
_ROOM = 1 << 20
_READ = 1 << 18
#: A longer record might be torn.
_LONGEST = select.PIPE_BUF - _SIZE.size


class Listener(Protocol):
    """Who is told of runs: a :class:`~jobsync_celery.core.observation.Notebook`."""

    def begin(self, pid: int, number: int, at: float, run: Run, dropped: int) -> None:
        """A run began."""

    def end(self, pid: int, number: int, at: float) -> None:
        """A run ended."""


class Recorder:
    """The pipe; made before the pool forks, and shared by all processes of a worker.

    A record is written whole or not at all. When there is no room, a run is left out and counted; of one that was told
    of, the end is told as soon as there is room again.

    What a task's process does here is on the way of every run, in code that other code has just driven out of the
    processor's caches: so there are few calls, and all that can be left to the reader is.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            try:
                fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _ROOM)
            except OSError:
                pass  # more than this user may have: then it is as large as it is
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._unsent: deque[bytes] = deque()
        self._dropped = 0
        self._rest = b""
        self._in_process()
        os.register_at_fork(after_in_child=self._in_process)

    def begin(self, task_name: str, key: str | None, task_id: str, retries: int, redelivered: bool) -> int | None:
        """A run begins here: its number in this process, or None if there was no room to say so."""
        number = next(self._numbers)
        record = (self._pid, number, boot_clock(), task_name, key, task_id, retries, redelivered, self._dropped)
        try:
            packed = marshal.dumps(record)
            if len(packed) <= _LONGEST and (not self._unsent or self._send_rest()):
                os.write(self._writer, _SIZE.pack(len(packed)) + packed)
                return number
        except (OSError, ValueError):  # it is full, or its reader is gone; or a message said what cannot be packed
            pass
        with self._lock:
            self._dropped += 1
        return None

    def end(self, number: int) -> None:
        """The run of this number has ended."""
        packed = marshal.dumps((self._pid, number, boot_clock()))
        packed = _SIZE.pack(len(packed)) + packed
        try:
            if not self._unsent:
                os.write(self._writer, packed)
                return
        except OSError:
            pass
        self._unsent.append(packed)
        self._send_rest()

    def read(self, listener: Listener) -> None:
        """Pass on what was written since; in the main process, by one thread."""
        while data := self._read():
            data = self._rest + data
            at = 0
            while at + _SIZE.size <= len(data):
                end = at + _SIZE.size + _SIZE.unpack_from(data, at)[0]
                if end > len(data):
                    break
                record = marshal.loads(data[at + _SIZE.size : end])
                if len(record) == _OF_AN_END:
                    listener.end(*record)
                else:
                    pid, number, when, *run, dropped = record
                    listener.begin(pid, number, when, storable(*run), dropped)
                at = end
            self._rest = data[at:]

    def close(self) -> None:
        """Nobody runs tasks here any more."""
        os.close(self._reader)
        os.close(self._writer)

    def _in_process(self) -> None:
        self._pid = os.getpid()

    def _read(self) -> bytes:
        try:
            return os.read(self._reader, _READ)
        except BlockingIOError:
            return b""

    def _send_rest(self) -> bool:
        """Tell of the ends for which there was no room; whether there is more room."""
        with self._lock:
            try:
                while self._unsent:
                    os.write(self._writer, self._unsent[0])
                    self._unsent.popleft()
            except OSError:
                return False
        return True
