"""What a worker is in its cluster, in a word, by what it knows itself."""

from __future__ import annotations

from jobsync_celery.plugin.worker import WorkerNode
from jobsync_celery.runtime.vitals import DRAINING, FORWARDS, NO_LEASE, OFF, STOPPING, TAKES_PART


def standing(node: WorkerNode | None) -> str:
    """One of the words of :mod:`runtime.vitals`; None stands for a worker whose coordination is off. Any thread."""
    if node is None:
        return OFF
    if node.stopping:
        return STOPPING
    if not node.participates:
        return FORWARDS
    if not node.lease.trusted:
        return NO_LEASE
    return DRAINING if node.node.membership.draining else TAKES_PART
