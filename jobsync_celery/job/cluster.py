"""The cluster that a Job's settings name: found, or made, before its node joins."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from jobsync_celery.errors import JoinTimeout, StoreUnavailable
from jobsync_celery.runtime.assembly import store_of
from jobsync_celery.runtime.lock_desk import LockDesk
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.nodes import NodeRow
from jobsync_celery.store.schema import ClusterShape, ensure_schema, find_cluster

KIND = "job"
#: Jobs have no queues, so their tokens may lie in many more partitions than a Celery cluster's.
_PARTITIONS, _LOCK_PARTITIONS = 1000, 64
#: How long a Job waits for its share, beyond what the settings hold its first plan back for: seconds, and leases.
_JOIN_SEC, _JOIN_LEASES = 60.0, 4
_RETRY_SEC = 0.5


class JobCluster:
    """A Job's cluster, as one node of it sees it; opens nothing until it is asked.

    Arguments:
        config: with the node's name.
    """

    def __init__(self, config: CoordinationConfig) -> None:
        self.config = config
        self.store = store_of(config)
        partitions = min(_PARTITIONS, config.total_tokens)
        self.shape = ClusterShape(config.total_tokens, partitions, config.hash_function, KIND, _LOCK_PARTITIONS)
        #: Whether the tables are those of a cluster of another kind, where a Job may ask and lock, and owns nothing.
        self.foreign = False
        self._found = False
        self._desk: LockDesk | None = None

    @property
    def patience(self) -> float:
        """How long a node waits for its share before it gives up, in seconds."""
        config = self.config
        return config.wait_on_enter + max(_JOIN_SEC, _JOIN_LEASES * config.heartbeat_timeout_sec)

    def find(self, until: float) -> None:
        """Find the cluster, or make it; while the database does not answer, try again.

        Raises:
            JoinTimeout: it has not answered ``until`` then, by the monotonic clock.
            StoreError: it refuses this, or the cluster was made with other settings.
        """
        while True:
            try:
                found = find_cluster(self.store.database)
                self.foreign = found is not None and found.shape.kind != KIND
                if found is not None and self.foreign:
                    self.shape = found.shape
                ensure_schema(self.store.database, self.shape)
            except StoreUnavailable as error:
                if time.monotonic() + _RETRY_SEC > until:
                    raise JoinTimeout(f"{self.config.node_name} cannot join: {error}") from error
                threading.Event().wait(_RETRY_SEC)
            else:
                self._found = True
                return

    def desk(self) -> LockDesk:
        """Where this node sets task locks."""
        if not self._found:  # outside of the block
            self.find(time.monotonic())
        if self._desk is None:
            self._desk = LockDesk(self.store, self.shape, self.config.node_name or "", keep=True)
        return self._desk

    def nodes(self) -> Sequence[NodeRow]:
        """Every node with a row, oldest first."""
        with self.store.database.transaction("jobsync nodes") as tx:
            return self.store.nodes.everyone(tx)

    def close(self) -> None:
        """Close what is open; it opens again when it is asked."""
        if self._desk is not None:
            self._desk.close()
