"""What task bodies append to the history: one write for each line, so that lines of many processes do not mix."""

from __future__ import annotations

import json
import os
import time
from types import TracebackType

from celery import Task
from celery.exceptions import Ignore, Reject, Retry

from jobsync_celery import current_claim
from jobsync_celery.plugin.router import ORIGIN
from tests.faults.history import RunId
from tests.faults.model import Policy

TICK_SEC = 0.05
# macOS has no CLOCK_BOOTTIME; its monotonic clock counts sleep too.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def now() -> float:
    """Seconds since boot, the same clock in every process."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


class FailedForGood(Exception):
    """A body that is meant to fail."""


#: The last line, by what the body raises; none for anything else.
_LAST = {None: "end", Ignore: "replaced", Retry: "retried", Reject: "requeued", FailedForGood: "failed"}


class Recorder:
    """Records that a body runs: a start, ticks while it stays, and how it was over.

    The path of the history is the app's setting ``faults_history``. ``policy`` is by default what the body was
    decorated with, below ``@app.task``. The start line also says when the process had last looked at the lease. A body
    without a claim has fence 0 and no node: the checker says so.
    """

    def __init__(self, task: Task, key: object, n: int, policy: Policy | None = None) -> None:
        claim = current_claim()
        request = task.request
        self._path = task.app.conf.faults_history
        self._file = -1
        self._looked = getattr(claim, "_looked_at", None)
        origin = request.get(ORIGIN) or (request.headers or {}).get(ORIGIN) or ""
        self.run = RunId(request.id, origin, request.retries or 0)
        self._fields = {
            "id": self.run.task_id,
            "origin": self.run.origin,
            "retries": self.run.retries,
            "key": str(key),
            "n": n,
            "node": claim.node or "",
            "fence": claim.fence,
            "attempt": claim.attempt,
            "pid": os.getpid(),
            "policy": policy or _policy(task),
        }

    def __enter__(self) -> Recorder:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._line("start", looked=self._looked)
        except OSError:
            os.close(self._file)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind in _LAST:
                self._line(_LAST[kind])
        finally:
            os.close(self._file)

    def tick(self) -> None:
        """Leave a sign of life."""
        self._line("tick")

    def note(self, event: str) -> None:
        """Leave a line of another name: what the body has reached."""
        self._line(event)

    def stay(self, seconds: float) -> None:
        """Run for so long, with a sign of life every 50 ms."""
        end = now() + seconds
        while (left := end - now()) > 0:
            time.sleep(min(TICK_SEC, left))
            self.tick()

    def _line(self, event: str, **more: object) -> None:
        text = json.dumps({"event": event, "at": now(), **self._fields, **more}, separators=(",", ":")) + "\n"
        line = text.encode()
        if os.write(self._file, line) != len(line):
            raise OSError(f"{self._path}: a line was cut short; is the disk full?")


def _policy(task: Task) -> Policy:
    """The ``on_lease_lost`` of a decorator below ``@app.task``."""
    return getattr(getattr(task.run, "__jobsync__", None), "on_lease_lost", "finish")
