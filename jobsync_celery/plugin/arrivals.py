"""A request becomes a delivery: its key, where its message was found, and where it belongs."""

from __future__ import annotations

from typing import Any

from celery.worker import state as worker_state

from jobsync_celery.errors import KeyMissing
from jobsync_celery.plugin.coordinated import Coordination, Registry
from jobsync_celery.plugin.delivery import Delivery
from jobsync_celery.plugin.router import PartitionQueues
from jobsync_celery.plugin.settlement import fail

#: No partition: of a pool that nobody has made yet, or of a queue that carries none.
NOWHERE = -1


class Arrivals:
    """Reads what the gate has to know of a request. A pure look-up: it asks no server."""

    def __init__(self, registry: Registry, queues: PartitionQueues) -> None:
        self._registry = registry
        self._queues = queues

    def coordination(self, request: Any) -> Coordination | None:
        """How the request's task is coordinated; None for an ordinary one."""
        return self._registry.get(request.task.name)

    def delivery(self, coordination: Coordination, request: Any, connection: int) -> Delivery | None:
        """The delivery of a request that came on broker connection number ``connection``; without a key it is failed.

        Its partition is that of the queue it came on, if a message of its key may lie there: in the queue where it
        belongs, or in a lock pool's, since its key may be locked. Otherwise it is :data:`NOWHERE`.
        """
        try:
            key = coordination.key(request.args, request.kwargs)
        except KeyMissing as error:
            fail(request, error)
            worker_state.task_ready(request)
            return None
        token = self._queues.tokens.token(key)
        home = self._home(coordination, key, token)
        # A task registered after its worker had started may belong to a lock pool whose number nobody here knows.
        found = None if home == NOWHERE else self._queues.number(request.delivery_info.get("routing_key"))
        fits = found is not None and (found == home or self._queues.carries_locked(found))
        partition = found if fits and found is not None else NOWHERE
        return Delivery(request, key, token, partition, connection, home=home, pool=coordination.pool)

    def _home(self, coordination: Coordination, key: str, token: int) -> int:
        if not coordination.pool:
            return self._queues.tokens.partition(token)
        number = self._queues.number(str(self._queues.for_key(key, coordination.pool).name))
        return NOWHERE if number is None else number
