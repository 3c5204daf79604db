"""How the processes that run tasks tell their worker's main process: through a pipe that never makes them wait.

A pool's child tells of a run once, when it has ended. While it runs, it stands in the child's slot, in shared memory.
"""

from __future__ import annotations

import itertools
import marshal
import mmap
import os
import select
import struct
import threading
import time
from collections import deque
from typing import Any, Protocol
from zlib import crc32

from jobsync_celery.core.observation import Run, storable
from jobsync_celery.runtime.clock import boot_clock

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]

_SIZE = struct.Struct("<H")
#: Elements of a record. That of an end has three: the process, the run's number in it, the time. A begin goes on with
#: what is run, and how many its process left out; a run that stood in a slot, moreover, with the time of its end, if
#: that is known.
_OF_BEGIN, _OF_RUN = 9, 10
#: Room for seconds of a busy worker's records, so that they are read in few turns.
_ROOM = 1 << 20
_READ = 1 << 18
#: A longer record might be torn. The time of an end has nine bytes.
_LONGEST = select.PIPE_BUF - _SIZE.size - 9
#: A slot begins with the checksum of what follows: its process may be in the midst of writing, or have died there.
_SUM = struct.Struct("<I")
_SLOT = _SUM.size + _SIZE.size + _LONGEST


class Listener(Protocol):
    """Who is told of runs: a :class:`~jobsync_celery.core.observation.Notebook`."""

    def begin(self, pid: int, number: int, at: float, run: Run, dropped: int) -> None:
        """A run began."""

    def end(self, pid: int, number: int, at: float) -> None:
        """A run ended."""


class Recorder:
    """The pipe and the slots; made before the pool forks, and shared by all processes of a worker.

    A record is written whole or not at all. When there is no room, a run is left out and counted; of one that was told
    of, the end is told as soon as there is room again.

    What a task's process does here is on the way of every run, in code that other code has just driven out of the
    processor's caches: so there are few calls, and all that can be left to the reader is.

    Arguments:
        slots: how many children can have one. Others tell of each begin, too, and so does the main process, whose
            threads run tasks side by side.
    """

    _slot: int | None
    _told: tuple[Any, ...]

    def __init__(self, slots: int = 0) -> None:
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            try:
                fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _ROOM)
            except OSError:
                pass  # more than this user may have: then it is as large as it is
        self._slots = _shared_memory(slots)
        #: Of each child that has a slot, the newest run that the listener knows of.
        self._newest: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._unsent: deque[bytes] = deque()
        self._dropped = 0
        self._rest = b""
        self._in_process()
        os.register_at_fork(after_in_child=self._in_process)

    def enter(self, number: int) -> None:
        """This child has the slot of that number from now on; whose it was is gone."""
        start = number * _SLOT
        if start + _SLOT > len(self._slots):
            return
        self._slot = start
        # A process id comes again one day, and its slot may still show what a former process ran: numbers only grow.
        self._numbers = itertools.count(time.monotonic_ns())
        if left := _standing_in(self._slots, start):  # it may have died under this
            packed = marshal.dumps((*left, None))
            self._unsent.append(_SIZE.pack(len(packed)) + packed)
            self._send_rest()

    def begin(self, task_name: str, key: str | None, task_id: str, retries: int, redelivered: bool) -> int | None:
        """A run begins here: its number in this process, or None if there was no room to say so."""
        number = next(self._numbers)
        record = (self._pid, number, boot_clock(), task_name, key, task_id, retries, redelivered, self._dropped)
        try:
            packed = marshal.dumps(record)
            if len(packed) <= _LONGEST and (not self._unsent or self._send_rest()):
                packed = _SIZE.pack(len(packed)) + packed
                if self._slot is None:
                    os.write(self._writer, packed)
                else:
                    summed = _SUM.pack(crc32(packed)) + packed
                    self._slots[self._slot : self._slot + len(summed)] = summed
                    self._told = record
                return number
        except (OSError, ValueError):  # it is full, or its reader is gone; or a message said what cannot be packed
            pass
        with self._lock:
            self._dropped += 1
        return None

    def end(self, number: int) -> None:
        """The run of this number has ended."""
        packed = marshal.dumps((*((self._pid, number) if self._slot is None else self._told), boot_clock()))
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
        """Pass on what was written since, and what stands in slots; in the main process, by one thread."""
        standing = self._standing()  # first: what ends meanwhile comes through the pipe
        before = self._newest.copy()
        while data := self._read():
            data = self._rest + data
            at = 0
            while at + _SIZE.size <= len(data):
                end = at + _SIZE.size + _SIZE.unpack_from(data, at)[0]
                if end > len(data):
                    break
                self._pass_on(marshal.loads(data[at + _SIZE.size : end]), listener)
                at = end
            self._rest = data[at:]
        for record in standing:
            self._meet(record, listener)
        # What was met only now may be standing at the next reading.
        present = {record[0] for record in standing}
        self._newest = {pid: last for pid, last in self._newest.items() if pid in present or before.get(pid) != last}

    def close(self) -> None:
        """Nobody runs tasks here any more."""
        os.close(self._reader)
        os.close(self._writer)

    def _in_process(self) -> None:
        self._pid = os.getpid()
        self._slot = None
        self._told = ()

    def _pass_on(self, record: tuple[Any, ...], listener: Listener) -> None:
        if len(record) == _OF_RUN:
            self._meet(record, listener)
        elif len(record) == _OF_BEGIN:
            _begin(record, listener)
        if len(record) != _OF_BEGIN and record[-1] is not None:
            listener.end(record[0], record[1], record[-1])

    def _meet(self, record: tuple[Any, ...], listener: Listener) -> None:
        """A run of a child that has a slot: ended, or standing there still. The listener hears once that it began."""
        pid, number = record[:2]
        if number > self._newest.get(pid, 0):
            self._newest[pid] = number
            _begin(record, listener)

    def _standing(self) -> list[tuple[Any, ...]]:
        """What stands in the slots, but for what is being written."""
        starts = range(0, len(self._slots), _SLOT)
        return [record for start in starts if (record := _standing_in(self._slots, start))]

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


def _shared_memory(slots: int) -> mmap.mmap | bytearray:
    try:
        return mmap.mmap(-1, slots * _SLOT) if slots else bytearray()
    except OSError:  # there is not so much: children do without slots
        return bytearray()


def _standing_in(slots: mmap.mmap | bytearray, start: int) -> tuple[Any, ...]:
    """The record in a slot; empty if there is none, or not all of it."""
    [size] = _SIZE.unpack_from(slots, start + _SUM.size)
    if not 0 < size <= _LONGEST:
        return ()
    summed = bytes(slots[start : start + _SUM.size + _SIZE.size + size])
    packed = summed[_SUM.size :]
    if _SUM.pack(crc32(packed)) != summed[: _SUM.size]:
        return ()
    return marshal.loads(packed[_SIZE.size :])  # type: ignore[no-any-return]


def _begin(record: tuple[Any, ...], listener: Listener) -> None:
    pid, number, at, name, key, task_id, retries, redelivered, dropped = record[:_OF_BEGIN]
    listener.begin(pid, number, at, storable(name, key, task_id, retries, redelivered), dropped)
