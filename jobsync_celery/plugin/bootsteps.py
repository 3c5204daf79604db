"""Celery's bootsteps: the node lives with the worker, its queues with each broker connection."""

from __future__ import annotations

import logging
import time
from typing import Any

from amqp.exceptions import ResourceLocked
from celery import bootsteps
from celery.worker import state as worker_state

from jobsync_celery.errors import UnsupportedPool
from jobsync_celery.plugin.coordinated import Registry
from jobsync_celery.plugin.reconnection import reconnect_soon
from jobsync_celery.plugin.remote import listen
from jobsync_celery.plugin.worker import WorkerNode

logger = logging.getLogger(__name__)

#: How long to wait for RabbitMQ to notice that a connection is gone.
_LOCKED_QUEUE_SEC = 1.0


class NodeStep(bootsteps.StartStopStep):
    """Makes the node before the pool forks: its children share the lease and hold the node's name with it."""

    name = "jobsync.Node"
    label = "jobsync node"
    requires = ("celery.worker.components:Hub", "celery.worker.components:Pool")

    def __init__(self, worker: Any, node_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        worker.jobsync = None
        self._node_name = node_name
        self.enabled = worker.app.jobsync.cluster is not None

    def create(self, worker: Any) -> None:
        """The hub and the pool are made, and no child is forked yet."""
        _refuse_unsupported(worker)
        cluster = worker.app.jobsync.cluster
        listen(worker)
        _limit_silence(worker.app, cluster.config.heartbeat_timeout_sec)
        name = self._node_name or cluster.config.node_name or worker.hostname
        participates = _participates(worker.app.amqp.queues, cluster.config.queue_prefix)
        if participates:
            _refuse_immortal(worker, cluster.registry)
        worker.jobsync = worker.app.jobsync.node = WorkerNode(worker, cluster, name, participates=participates)


class QueuesStep(bootsteps.StartStopStep):
    """Stands between the consumer and the pool, and follows the broker connection."""

    name = "jobsync.Queues"
    label = "jobsync queues"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._node: WorkerNode | None = consumer.controller.jobsync
        if self._node is None:
            return
        # Strategies keep this handler when the Tasks step starts, so it has to be ours before that.
        consumer.on_task_request = self._node.gate.on_request

        def connection_for_read(heartbeat: Any = None) -> Any:
            connection = consumer.app.connection_for_read(heartbeat=_heartbeat(consumer, heartbeat))
            connection.transport_cls = _safe(connection.get_transport_cls())
            reconnect_soon(connection)
            return consumer.ensure_connected(connection)

        consumer.connection_for_read = connection_for_read
        _outlive_locked_queue(consumer)

    def start(self, consumer: Any) -> None:
        if self._node is not None:
            self._node.connected(consumer)

    def register_with_event_loop(self, consumer: Any, hub: Any) -> None:
        """The pool has registered before."""
        if self._node is not None:
            self._node.turning()

    def stop(self, consumer: Any) -> None:
        if self._node is None:
            return
        if _stopping(consumer):
            self._node.drain(consumer)
        else:
            self._node.disconnected()

    def terminate(self, consumer: Any) -> None:
        if self._node is not None:
            self._node.stopping = True


def _safe(transport_cls: Any) -> Any:
    """The transport that cannot lose a message to SIGKILL."""
    if transport_cls.driver_type != "redis":
        return transport_cls
    from jobsync_celery.plugin.redis_channel import safe_transport  # needs the client library of Redis

    return safe_transport(transport_cls)


def _stopping(consumer: Any) -> bool:
    closing = consumer.controller.blueprint.state != bootsteps.RUN
    return bool(closing or worker_state.should_stop or worker_state.should_terminate)


def _outlive_locked_queue(consumer: Any) -> None:
    """Try again where Celery would end the worker: its queue for remote control is still another connection's.

    So it is after a network failure of which RabbitMQ does not know yet. Its heartbeats will tell it.
    """
    consumer.connection_errors = (*consumer.connection_errors, ResourceLocked)
    begin_anew = consumer.on_connection_error_after_connected

    def after_a_pause(error: Exception) -> None:
        if isinstance(error, ResourceLocked):
            time.sleep(_LOCKED_QUEUE_SEC)
        begin_anew(error)

    consumer.on_connection_error_after_connected = after_a_pause


def _heartbeat(consumer: Any, heartbeat: float | None) -> float | None:
    """RabbitMQ gives a hung worker's messages to others after its heartbeat: keep that within the lease."""
    lease = consumer.app.jobsync.cluster.config.heartbeat_timeout_sec
    return None if heartbeat is None else min(heartbeat, lease) if heartbeat else lease


def _limit_silence(app: Any, lease: float) -> None:
    """A Redis that falls silent would keep the event loop waiting for its answer for ever.

    The client asks three times more before it gives up; all of that is to be over within a lease.
    """
    options = app.conf.broker_transport_options or {}
    if (app.conf.broker_url or "").startswith(("redis", "rediss", "sentinel")):
        app.conf.broker_transport_options = {"socket_timeout": max(0.5, lease / 4), **options}


def _participates(queues: Any, prefix: str) -> bool:
    """Whether the worker takes part: without ``-Q``, or with ``jobsync`` among its ``-Q`` queues."""
    word = prefix.rstrip("-_.:")
    if queues._consume_from is None:
        return True
    return queues._consume_from.pop(word, None) is not None


def pool_name(worker: Any) -> str:
    """A pool's name on the command line: prefork, threads, solo …"""
    pool = worker.pool_cls if isinstance(worker.pool_cls, str) else worker.pool_cls.__module__
    return str(pool).rpartition(".")[2]


def _refuse_immortal(worker: Any, registry: Registry) -> None:
    """Threads cannot be killed, so nobody may count on it."""
    for name, coordination in registry.all().items():
        if coordination.on_lease_lost == "terminate" and pool_name(worker) != "prefork":
            raise UnsupportedPool(f"task {name}: on_lease_lost='terminate' needs the prefork pool")


def _refuse_unsupported(worker: Any) -> None:
    if pool_name(worker) in ("gevent", "eventlet"):
        raise UnsupportedPool("jobsync supports the pools prefork, threads and solo: start the worker with one of them")
    if worker.pool_start_method == "spawn":
        raise UnsupportedPool("jobsync needs worker_pool_start_method='fork': children share the lease in memory")
    if worker.hub is None:
        raise UnsupportedPool("jobsync needs Celery's event loop: use Redis or RabbitMQ as the broker")
