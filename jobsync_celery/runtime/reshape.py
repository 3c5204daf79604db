"""Giving a stopped cluster another shape."""

from __future__ import annotations

from jobsync_celery.errors import SettingsError
from jobsync_celery.runtime.standstill import Standstill
from jobsync_celery.store.database import set_patience
from jobsync_celery.store.reshape import Reshaped, Reshaping
from jobsync_celery.store.schema import ClusterShape
from jobsync_celery.store.store import Store

#: Seconds; nobody waits for a cluster that is stopped.
_PATIENCE = 600.0


def reshape(store: Store, standstill: Standstill, shape: ClusterShape) -> Reshaped:
    """Make the partitions anew, in one transaction; what followed them.

    Task locks, their pools, history and claims stay. Every key is in the partition of its new token afterwards, and
    fences go on growing.

    Raises:
        StillRunning: a node is live.
    """
    standstill.watch()
    reshaping = Reshaping(store.database)
    with store.database.transaction("jobsync reshape") as tx:
        set_patience(tx, _PATIENCE)
        store.leaders.lock(tx)
        cluster = reshaping.locked(tx)
        standstill.enforce(tx)
        return reshaping.rebuild(tx, cluster, shape)


def check_shape(shape: ClusterShape) -> None:
    """Raise SettingsError for a shape that a cluster of its kind cannot have."""
    if shape.kind != "celery":
        raise SettingsError(
            f"the partitions of a cluster of kind {shape.kind!r} follow from its settings: it has no queues, so begin"
            " another one under another appname"
        )
