"""The producer: a steady stream of tasks, paced so that it lasts until the story ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from jobsync_celery.demo.script import Job
from jobsync_celery.runtime.clock import boot_clock

_TICK_SEC = 0.01
_SHORTEST_SEC = 0.2


class Publisher(threading.Thread):
    """Publishes jobs in a thread of its own; :attr:`error` is what ended it early."""

    def __init__(self, jobs: Sequence[Job], publish: Callable[[Job], None]) -> None:
        super().__init__(name="demo publisher", daemon=True)
        self._jobs = jobs
        self._publish = publish
        self._ended = threading.Event()
        self._step_ends, self._after = boot_clock(), 1.0
        self.published = 0
        self.error: Exception | None = None

    @property
    def finished(self) -> bool:
        """Whether everything is published."""
        return self.published == len(self._jobs)

    def pace(self, step: float, after: float) -> None:
        """Spread what is left over this step of the story and what comes after; a late step slows the stream."""
        self._step_ends, self._after = boot_clock() + step, after

    def run(self) -> None:
        """Publish until everything is out or :meth:`end` is called."""
        due, last = 0.0, boot_clock()
        while not self.finished and not self._ended.wait(_TICK_SEC):
            now = boot_clock()
            left = max(_SHORTEST_SEC, max(0.0, self._step_ends - now) + self._after)
            due, last = due + (now - last) * (len(self._jobs) - self.published) / left, now
            try:
                due = self._send(due)
            except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
                self.error = error
                return

    def end(self) -> None:
        """Stop publishing, and return when it has stopped."""
        self._ended.set()
        if self.is_alive():
            self.join(timeout=5)

    def _send(self, due: float) -> float:
        while due >= 1 and not self.finished and not self._ended.is_set():
            self._publish(self._jobs[self.published])
            self.published += 1
            due -= 1
        return due
