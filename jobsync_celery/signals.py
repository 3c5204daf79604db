"""Signals of a worker that takes part in coordination, to connect to as to Celery's own.

    from jobsync_celery.signals import partitions_assigned, partitions_revoked

    @partitions_assigned.connect
    def open_them(partitions, tokens, **kwargs): ...

Receivers take keyword arguments and ``**kwargs``, for more may be added. Each gets ``sender``, the
:class:`jobsync_celery.JobSync`, and ``node``, this worker's node name, as well. Connect them where the app is made, so
that they are there before the worker takes its first partition.

All but ``tenure_changed`` are sent in the worker's main process, in one thread of their own: in order, once each, and
never two at a time. Errors are logged, and count as a return. Nothing waits for a slow receiver but the partitions
that it is called for and what comes after it.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = [
    "leader_changed",
    "lease_lost",
    "node_joined",
    "node_left",
    "partitions_assigned",
    "partitions_revoked",
    "tenure_changed",
]

#: This worker has these partitions now; their tasks start here when all receivers have returned.
#: ``partitions``: frozenset of numbers. ``tokens``: the set of their tokens, which takes no memory until it is copied.
partitions_assigned = Signal(name="partitions_assigned", providing_args={"node", "partitions", "tokens"})

#: This worker gives these partitions up: nothing of them starts here any more, though bodies may still run.
#: ``partitions``, ``tokens``: as above. ``lost``: False if another worker gets them only when all receivers have
#: returned; True if the lease has ended, and another worker may have them at any moment: write nothing.
partitions_revoked = Signal(name="partitions_revoked", providing_args={"node", "partitions", "tokens", "lost"})

#: Another node is in the cluster; those that are there already are told too. ``name``, ``incarnation``: which.
node_joined = Signal(name="node_joined", providing_args={"node", "name", "incarnation"})

#: Another node is gone. ``name``, ``incarnation``: which. ``reason``: ``"left"`` in good order, or ``"dead"``.
node_left = Signal(name="node_left", providing_args={"node", "name", "incarnation", "reason"})

#: Another node leads than before, or one at all. ``name``, ``incarnation``: which. ``previous``: the name of the one
#: before, or None. ``me``: whether it is this worker.
leader_changed = Signal(name="leader_changed", providing_args={"node", "name", "incarnation", "previous", "me"})

#: This worker trusts its lease no longer. ``reason``: a sentence. ``final``: False if it was only not renewed in time,
#: and may be yet; True if this incarnation is over.
lease_lost = Signal(name="lease_lost", providing_args={"node", "reason", "final"})

#: In the process that runs tasks, a pool child or, with threads and solo, the worker itself: just before a coordinated
#: body starts, if this worker has gained or lost partitions since the last one here, and in a new process before the
#: first one. The body starts when all receivers have returned. ``gained``, ``lost``: frozensets of partition numbers;
#: one that was lost and is back is in both. ``tenures``: a dict of all partitions that are here -> their tenure.
tenure_changed = Signal(name="tenure_changed", providing_args={"node", "gained", "lost", "tenures"})
