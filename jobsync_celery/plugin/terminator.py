"""Ends a body that must not outlive its lease: a pool child watches the deadline itself, and ends itself.

The worker cannot do it: it may be stopped, and then it is not its own lease that it loses but its children's.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from jobsync_celery.runtime.lease import Lease

#: How often a running body's lease is looked at. It also bounds how late the end is, unless C code keeps the GIL.
_LOOK_SEC = 0.02
_IDLE_LOOKS = 50
#: The exit status by which the worker tells this end from a crash: "try again later" of sysexits.h.
LEASE_LOST_STATUS = 75


class Terminator:
    """Ends this process when the lease of the body that it runs has ended.

    Make it before the pool forks. Its thread begins with the first body in each child, and sleeps between bodies.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._pid = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._watched: int | None = None
        self._asleep = False

    @contextmanager
    def watching(self, incarnation: int) -> Iterator[None]:
        """End this process, without a word, if ``incarnation`` loses its lease before the block ends."""
        if self._pid != os.getpid():
            self._begin()
        with self._changed:
            self._watched = incarnation
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="jobsync-terminator", daemon=True)
                self._thread.start()
            elif self._asleep:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._watched = None

    def _begin(self) -> None:
        """In a new process: a thread of the parent did not come along."""
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._thread, self._watched, self._asleep = None, None, False

    def _run(self) -> None:
        idle = 0
        while True:
            with self._changed:
                if self._watched is not None:
                    idle = 0
                    if not self._lease.holds(self._watched):
                        os._exit(LEASE_LOST_STATUS)
                elif (idle := idle + 1) > _IDLE_LOOKS:
                    self._asleep = True
                    self._changed.wait_for(lambda: self._watched is not None)
                    self._asleep = False
            time.sleep(_LOOK_SEC)
