"""What the process that runs tasks learns of its worker's partitions: just before a body starts, if they have changed.

A pool child cannot be told anything while it waits for a job, and need not be: what it keeps matters when a body runs.
"""

from __future__ import annotations

import threading

from jobsync_celery.runtime.listeners import Listeners
from jobsync_celery.runtime.tenures import Tenures

_SIGNAL = "tenure_changed"


class TenureWatch:
    """Sends ``tenure_changed`` in this process; make it before the pool forks.

    A new child begins with what its parent has seen, which is nothing where there are children.
    """

    def __init__(self, tenures: Tenures, listeners: Listeners) -> None:
        self._tenures = tenures
        self._listeners = listeners
        self._lock = threading.Lock()
        self._changes = 0
        self._seen: dict[int, int] = {}

    def look(self) -> None:
        """Call the receivers if there is news for them; return when they have returned, in whatever thread they run."""
        if self._tenures.changes == self._changes or not self._listeners.hear(_SIGNAL):
            return
        with self._lock:  # the pool may have threads, and each is to find what the receivers prepare
            changes = self._tenures.changes
            if changes == self._changes:
                return
            here = self._tenures.all()
            gained = frozenset(number for number, tenure in here.items() if self._seen.get(number) != tenure)
            lost = frozenset(number for number, tenure in self._seen.items() if here.get(number) != tenure)
            if gained or lost:
                self._listeners.call(_SIGNAL, {"gained": gained, "lost": lost, "tenures": here})
            self._seen = here
            self._changes = changes
