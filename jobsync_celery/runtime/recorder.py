"""How the processes that run tasks tell their worker's main process: through a pipe that never makes them wait."""

from __future__ import annotations

import itertools
import marshal
import os
import select
import struct
import threading
from collections import deque
from collections.abc import Iterator

from jobsync_celery.core.observation import Begun, Ended
from jobsync_celery.runtime.clock import boot_clock

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]

_SIZE = struct.Struct("<H")
#: Room for seconds of a busy worker's records, so that they are read in few turns.
_ROOM = 1 << 20
_READ = 1 << 18
_LONGEST_TEXT = 255


class Recorder:
    """The pipe; made before the pool forks, and shared by all processes of a worker.

    A record is written whole or not at all. When there is no room, a run is left out and counted; of one that was told
    of, the end is told as soon as there is room again.
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

    def begin(self, task_name: str, key: str | None, task_id: str, retries: int, redelivered: bool) -> int | None:
        """A run begins here: its number in this process, or None if there was no room to say so."""
        number = next(self._numbers)
        begun = (os.getpid(), number, boot_clock(), _text(task_name), key, _text(task_id), retries, redelivered)
        with self._lock:
            if self._send_rest() and self._send(_packed((*begun, self._dropped))):
                return number
            self._dropped += 1
        return None

    def end(self, number: int) -> None:
        """The run of this number has ended."""
        packed = _packed((os.getpid(), number, boot_clock()))
        with self._lock:
            self._unsent.append(packed)
            self._send_rest()

    def read(self) -> Iterator[Begun | Ended]:
        """What was written since; in the main process, by one thread."""
        while data := self._read():
            data = self._rest + data
            at = 0
            while at + _SIZE.size <= len(data):
                end = at + _SIZE.size + _SIZE.unpack_from(data, at)[0]
                if end > len(data):
                    break
                record = marshal.loads(data[at + _SIZE.size : end])
                yield Begun(*record) if len(record) > len(Ended._fields) else Ended(*record)
                at = end
            self._rest = data[at:]

    def close(self) -> None:
        """Nobody runs tasks here any more."""
        os.close(self._reader)
        os.close(self._writer)

    def _read(self) -> bytes:
        try:
            return os.read(self._reader, _READ)
        except BlockingIOError:
            return b""

    def _send_rest(self) -> bool:
        while self._unsent:
            if not self._send(self._unsent[0]):
                return False
            self._unsent.popleft()
        return True

    def _send(self, packed: bytes) -> bool:
        if len(packed) > select.PIPE_BUF:  # it might be torn
            return False
        try:
            os.write(self._writer, packed)
        except OSError:  # full, or its reader is gone: the task goes on all the same
            return False
        return True


def _packed(record: tuple[int | float | str | bool | None, ...]) -> bytes:
    data = marshal.dumps(record)
    return _SIZE.pack(len(data)) + data


def _text(value: object) -> str:
    """What can be stored as text, and is not too long."""
    text = str(value)[:_LONGEST_TEXT]
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "?").encode("utf-8", "replace").decode()
