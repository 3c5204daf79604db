"""Which queues this worker consumes: its ordinary ones, and the partitions that it owns. Never another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import Celery

from jobsync_celery.plugin.router import PartitionQueues

logger = logging.getLogger(__name__)


class Consumption:
    """The worker's selection of queues; belongs to the event loop's thread.

    The selection outlives a broker connection: after a reconnect Celery consumes what is selected.
    """

    def __init__(self, app: Celery, queues: PartitionQueues) -> None:
        self._queues = queues
        self._known = app.amqp.queues
        self._consumer: Any = None
        self._turns = False
        self._wanted: set[int] = set()
        self._paused: set[int] = set()
        self._failure: Exception | None = None
        for queue in queues.queues:
            self._known.add(queue)
        if self._known._consume_from is None:
            # With no selection a queue that a publish creates may join the set to consume from.
            self._known._consume_from = dict(self._known.consume_from)

    def attach(self, consumer: Any) -> None:
        """A new connection: its consumer was made from the selection, and begins to consume when the loop turns."""
        self._consumer = consumer
        self._turns = False
        self._failure = None

    def turn(self) -> None:
        """The event loop turns: what is added from now on is consumed at once."""
        self._turns = True

    def detach(self) -> None:
        """The connection is gone, and what was held with it: nothing is paused on the next one."""
        self._consumer = None
        self._failure = None
        for partition in self._paused:
            self._select(partition)
        self._paused.clear()

    def raise_failure(self) -> None:
        """Raise what made a change fail, so that the worker connects anew: the next connection begins with all of it.

        Not where it fails, for there the steps after it would be lost.

        Raises:
            Exception: one of the consumer's ``connection_errors``. Celery ends a worker for a channel that was closed.
        """
        error, self._failure = self._failure, None
        if error is not None:
            raise error if isinstance(error, self._consumer.connection_errors) else ConnectionError(str(error))

    def add(self, partition: int) -> None:
        """Consume a partition."""
        self._wanted.add(partition)
        if partition not in self._paused:
            self._select(partition)

    def cancel(self, partition: int) -> None:
        """Consume a partition no more."""
        self._wanted.discard(partition)
        self._paused.discard(partition)
        self._deselect(partition)

    def pause(self, partition: int) -> None:
        """Fetch nothing more from a partition for now."""
        if partition in self._wanted and partition not in self._paused:
            self._paused.add(partition)
            self._deselect(partition)

    def resume(self, partition: int) -> None:
        """Fetch from a paused partition again."""
        if partition in self._paused:
            self._paused.discard(partition)
            self._select(partition)

    def _select(self, partition: int) -> None:
        name = self._queues.name(partition)
        if name not in self._known:  # a lock pool's, which was learnt since
            self._known.add(self._queues.queue(partition))
        self._known.select_add(self._known[name])
        if self._consumer is not None:
            # A message that came before the loop turns would find nobody to take it, and end the worker.
            add = self._consumer.add_task_queue if self._turns else self._add_only
            self._try(add, name)

    def _add_only(self, name: str) -> None:
        self._consumer.task_consumer.add_queue(self._known[name])

    def _deselect(self, partition: int) -> None:
        name = self._queues.name(partition)
        self._known.deselect([name])
        if self._consumer is not None:
            self._try(self._consumer.task_consumer.cancel_by_queue, name)

    def _try(self, change: Callable[[str], None], name: str) -> None:
        try:
            change(name)
        except (*self._consumer.connection_errors, *self._consumer.channel_errors) as error:
            self._failure = error
            logger.debug("jobsync: changing what is consumed failed at %s: it is connected anew", name, exc_info=True)
