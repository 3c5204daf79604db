"""Where messages of partition queues belong when their queues are given up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from celery import Celery
from celery.app.routes import Router
from celery.exceptions import QueueNotFound
from kombu.entity import Queue

from jobsync_celery.errors import JobsyncError, KeyMissing
from jobsync_celery.plugin.coordinated import Registry
from jobsync_celery.plugin.letters import Letter, Place
from jobsync_celery.plugin.router import HOPS, ORIGIN, PartitionQueues, TokenRouter
from jobsync_celery.store.revisions import ClusterShape

_NO_LETTER = Letter("", (), {})
_ADDRESS = ("queue", "exchange", "routing_key")


def queues_of(prefix: str, shape: ClusterShape) -> PartitionQueues:
    """The queues of a cluster of this shape."""
    return PartitionQueues(prefix, shape.tokens, shape.lock_partitions)


def names_of(prefix: str, shape: ClusterShape, pools: Collection[str]) -> list[str]:
    """The names of all queues of a cluster of this shape, those of these lock pools too."""
    queues = queues_of(prefix, shape)
    locked = [queues.of_pool(pool, at) for pool in sorted(pools) for at in range(shape.pool_tokens.partitions)]
    return [str(queue.name) for queue in [*queues.queues, *locked]]


class PlacesByKey:
    """The partitions' queues. What has no key that could be told is a matter for whichever worker gets it."""

    def __init__(self, registry: Registry, queues: PartitionQueues) -> None:
        self._registry = registry
        self._queues = queues

    def __call__(self, letter: Letter) -> Place:
        """The queue of the message's key."""
        queue = self._queue(letter)
        return Place(queue, "", str(queue.name))

    def _queue(self, letter: Letter) -> Queue:
        coordination = self._registry.get(letter.task)
        if coordination is None or letter.args is None:
            return self._queues.queues[0]
        try:
            return self._queues.for_key(coordination.key(letter.args, letter.kwargs), coordination.pool)
        except KeyMissing:
            return self._queues.queues[0]


class OrdinaryPlaces:
    """Where Celery itself would publish each task: by the app's routes without ours, or into one named queue.

    Arguments:
        ours: our router, which is left out.
        barred: queues that nothing may be put into.

    Raises JobsyncError for a queue that the app does not have and may not make.
    """

    def __init__(self, app: Celery, ours: TokenRouter, queue: str | None, barred: Collection[str]) -> None:
        self._app = app
        self._barred = barred
        routes = [route for route in app.amqp.routes if route is not ours]
        self._router = Router(routes, app.amqp.queues, app.conf.task_create_missing_queues, app=app)
        self._named = None if queue is None else self._place({"queue": queue})

    def __call__(self, letter: Letter) -> Place:
        """The message's place, without the headers that are ours."""
        return self._named or self._place(self._address_of(letter), letter)

    def _address_of(self, letter: Letter) -> dict[str, Any]:
        """What the task itself says of where it is published."""
        task = self._app.tasks.get(letter.task)
        return {name: value for name in _ADDRESS if (value := getattr(task, name, None)) is not None}

    def _place(self, address: dict[str, Any], letter: Letter = _NO_LETTER) -> Place:
        try:
            task = self._app.tasks.get(letter.task)
            route = self._router.route(address, letter.task, letter.args or (), letter.kwargs or {}, task)
        except (QueueNotFound, KeyError) as error:
            raise JobsyncError(f"the app has no such queue: {error}") from error
        queue = route.get("queue")
        if queue is None:
            queue = self._app.amqp.queues[self._app.conf.task_default_queue]
        elif isinstance(queue, str):
            queue = self._app.amqp.queues[queue]
        if queue.name in self._barred:
            raise JobsyncError(f"queue {queue.name} carries a partition itself: messages cannot be moved there")
        exchange, routing_key = route.get("exchange"), route.get("routing_key")
        # As Celery publishes: to a direct exchange's queue by the queue's name.
        if not (exchange and routing_key) and (queue.exchange.type or "direct") == "direct":
            exchange, routing_key = "", queue.name
        elif exchange is None:
            exchange = queue.exchange.name or self._app.conf.task_default_exchange
            routing_key = routing_key or queue.routing_key or self._app.conf.task_default_routing_key
        exchange = getattr(exchange, "name", exchange)
        return Place(queue, str(exchange), str(routing_key), frozenset((ORIGIN, HOPS)))
