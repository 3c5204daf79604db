"""What a worker writes for the probes of its machine, once a second, in a thread of its own.

The event loop only leaves the time at which it went round, so that no disk can hold it up; and the thread asks neither
database nor broker, so that their absence changes nothing but what it writes.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from celery import bootsteps
from celery.worker import state as worker_state

from jobsync_celery.plugin.standing import standing
from jobsync_celery.plugin.worker import WorkerNode
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.vitals import FILE_VARIABLE, STARTING, STOPPING, Vitals, VitalsFile

logger = logging.getLogger(__name__)

_INTERVAL_SEC = 1.0


class ProbeStep(bootsteps.StartStopStep):
    """Writes the probe file, where one is named. Also where coordination is off: a probe has to know that, too.

    Raises:
        JobsyncError: the file cannot be written.
    """

    name = "jobsync.Probe"
    label = "jobsync probe file"
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, probe_file: str | None = None, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._path = probe_file or os.environ.get(FILE_VARIABLE)
        self.enabled = bool(self._path)

    def create(self, worker: Any) -> None:
        """Nothing is started yet: a file that cannot be written ends the worker here."""
        assert self._path is not None
        self._file = VitalsFile(self._path)

    def start(self, worker: Any) -> None:
        """The pool is there."""
        Writer(worker, self._file).start()


class Writer:
    """Writes how a worker is until the process ends, while it stops too."""

    def __init__(self, worker: Any, file: VitalsFile) -> None:
        self._worker = worker
        self._file = file
        self._pid = os.getpid()
        self._turned: float | None = None
        self._begun = worker.hub is None
        # Where the loop runs the bodies itself it stands still as long as they take.
        self._turns = worker.pool_cls.__module__.rpartition(".")[2] != "solo"
        self._failed = False

    def start(self) -> None:
        """Begin; only after the pool has forked."""
        if self._worker.hub is not None:
            self._worker.hub.on_tick.add(self._turn)
            self._worker.hub.on_close.add(self._halt)
        threading.Thread(target=self._run, name="jobsync-probe", daemon=True).start()

    def vitals(self) -> Vitals:
        """How the worker is now."""
        node = getattr(self._worker, "jobsync", None)
        turned, state = self._turned, self._state(node)
        return Vitals(
            node=self._worker.hostname if node is None else node.name,
            pid=self._pid,
            state=state,
            written=boot_clock(),
            turned=turned if self._turns and state != STOPPING else None,
            trusted_until=None if node is None or not node.participates else node.lease.deadline,
        )

    def _state(self, node: WorkerNode | None) -> str:
        if self._worker.blueprint.state != bootsteps.RUN or worker_state.should_stop is not None:
            return STOPPING
        return standing(node) if self._begun else STARTING

    def _turn(self) -> None:
        self._begun = True
        self._turned = boot_clock()

    def _halt(self, hub: Any) -> None:
        """The loop is left, for want of a connection or for good; it need not turn until it has begun again."""
        self._turned = None

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self._write()
            pause.wait(_INTERVAL_SEC)

    def _write(self) -> None:
        try:
            self._file.write(self.vitals())
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.error("jobsync: the probe file %s cannot be written: %s", self._file.path, error.strerror)
            self._failed = True
