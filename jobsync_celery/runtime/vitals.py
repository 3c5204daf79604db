"""A small file in which a worker says how it is, for probes of the same machine.

Whoever reads it needs no database, no broker and no app. Its times are of the boot clock, which all processes of a
machine share, so that no step of the wall clock makes a worker look dead.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from jobsync_celery.errors import JobsyncError

#: Names the file to workers and to probes.
FILE_VARIABLE = "JOBSYNC_PROBE_FILE"

#: What a worker is in its cluster.
TAKES_PART = "takes part"
STARTING = "starting"
NO_LEASE = "no lease"
DRAINING = "draining"
STOPPING = "stopping"
FORWARDS = "forwards only"
OFF = "coordination off"

#: All versions of the record have this length, so that writing it needs no room on the disk and leaves no gap.
_LENGTH = 2048
_TRIES = 20
_WHY_NOT = {
    STARTING: "is starting",
    NO_LEASE: "has no lease",
    DRAINING: "is draining",
    STOPPING: "is stopping",
}


class Vitals(NamedTuple):
    """How a worker is.

    Arguments:
        written: when this was written; of a worker that is stopped or gone that is long ago.
        turned: when its event loop last went round; None while it need not, as without a connection to the broker.
        trusted_until: the end of its lease; None if it has none, or needs none.
    """

    node: str
    pid: int
    state: str
    written: float
    turned: float | None = None
    trusted_until: float | None = None


class Verdict(NamedTuple):
    """What a probe comes to, and why."""

    well: bool
    why: str


def liveness(seen: Vitals, now: float, limit: float) -> Verdict:
    """Whether a worker's main process runs and its event loop goes round: if not, only a restart helps.

    A database or broker that is away is no reason to restart anything, and makes no difference here.
    """
    silent = _silent(seen, now, limit)
    if silent is not None:
        return Verdict(False, silent)
    if seen.turned is None:
        return Verdict(True, f"{seen.node} runs ({seen.state}), and its event loop need not turn just now")
    stood = max(0.0, now - seen.turned)
    if stood > limit:
        return Verdict(False, f"the event loop of {seen.node} has not turned for {stood:.0f} s")
    return Verdict(True, f"{seen.node} runs ({seen.state}), its event loop turned {stood:.1f} s ago")


def readiness(seen: Vitals, now: float, limit: float) -> Verdict:
    """Whether a worker takes part with a lease that it trusts, or is not meant to take part."""
    silent = _silent(seen, now, limit)
    if silent is not None:
        return Verdict(False, silent)
    if seen.state in (FORWARDS, OFF):
        return Verdict(True, f"{seen.node} is not meant to take part: {seen.state}")
    if seen.state != TAKES_PART:
        return Verdict(False, f"{seen.node} {_WHY_NOT.get(seen.state, f'is {seen.state}')}")
    left = (seen.trusted_until or 0.0) - now
    if left <= 0:
        return Verdict(False, f"the lease of {seen.node} has ended")
    return Verdict(True, f"{seen.node} takes part, its lease is good for {left:.1f} s")


def _silent(seen: Vitals, now: float, limit: float) -> str | None:
    ago = now - seen.written
    if ago < -1.0:
        return f"what pid {seen.pid} of {seen.node} wrote is from before the machine was started"
    if ago > limit:
        return f"{seen.node} (pid {seen.pid}) has written nothing for {ago:.0f} s: it is stopped, or gone"
    return None


class VitalsFile:
    """The file, for the worker that writes it.

    Raises:
        JobsyncError: it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._fd = -1
        try:
            self._open()
        except OSError as error:
            raise JobsyncError(f"the probe file {self.path} cannot be written: {error.strerror}") from error

    def write(self, seen: Vitals) -> None:
        """Say how the worker is now.

        Raises:
            OSError: it could not be written.
        """
        if not self._there():  # somebody cleared the temporary folder up
            os.close(self._fd)
            self._open()
        text = json.dumps(seen._asdict(), ensure_ascii=False)
        os.pwrite(self._fd, text.encode()[: _LENGTH - 1].ljust(_LENGTH - 1) + b"\n", 0)

    def _open(self) -> None:
        """Begin anew: what an earlier process wrote says nothing of this one."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        self._fd = os.open(self.path, flags, 0o644)

    def _there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False


def read(path: str) -> Vitals | None:
    """What the worker wrote last; None if it has written nothing yet.

    Raises:
        JobsyncError: the file cannot be read, or is none of a worker.
    """
    try:
        text = _settled(path)
        return Vitals(**json.loads(text)) if text else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JobsyncError(f"the probe file {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise JobsyncError(f"{path} is no probe file of a worker of this version") from error


def _settled(path: str) -> str:
    """The text when nobody was just writing it."""
    text, before = _text(path), ""
    for _ in range(_TRIES):
        if text == before:
            break
        before, text = text, _text(path)
    return text


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(_LENGTH).strip()


def as_dict(seen: Vitals, now: float) -> dict[str, Any]:
    """What was read, with times as seconds from now."""
    return {
        "node": seen.node,
        "pid": seen.pid,
        "state": seen.state,
        "written_sec_ago": round(now - seen.written, 3),
        "turned_sec_ago": None if seen.turned is None else round(now - seen.turned, 3),
        "lease_left_sec": None if seen.trusted_until is None else round(seen.trusted_until - now, 3),
    }
