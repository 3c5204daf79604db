"""What lies in the queues of a cluster that is stopped, and moving it into other queues; for the command line.

Messages are moved as they are, bytes and properties, in the order of each queue. None is lost if this is killed: on
Redis a message changes queues in one step, on RabbitMQ its copy is confirmed before it is acknowledged.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import amqp
from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import KombuError
from kombu.serialization import prepare_accept_content

from jobsync_celery.errors import BrokerUnavailable
from jobsync_celery.plugin.letters import Mover, Placing, declare_once, letter_of

logger = logging.getLogger(__name__)

_CONNECT_SEC = 5.0


class Backlog:
    """The queues of an app's broker. Enter it to connect; every failure of the broker is a BrokerUnavailable."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Any = None
        self._mover: Mover

    def __enter__(self) -> Backlog:
        options = {**self._app.conf.broker_transport_options, "confirm_publish": True}
        self._connection = self._app.connection_for_write(transport_options=options, connect_timeout=_CONNECT_SEC)
        with self._asking():
            self._connection.ensure_connection(
                max_retries=1, interval_start=0, interval_step=0, timeout=2 * _CONNECT_SEC
            )
            self._mover = self._mover_for(self._connection.default_channel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._connection.release()
        except self._failures:  # it is of no more use either way
            logger.debug("jobsync: closing the connection failed", exc_info=True)

    def waiting(self, name: str) -> int:
        """How many messages wait in a queue; 0 if there is none of that name.

        Raises BrokerUnavailable if somebody consumes it, as far as the broker tells.
        """
        with self._asking():
            channel = self._connection.channel()
            try:
                _, messages, consumers = channel.queue_declare(queue=name, passive=True)
            except self._connection.channel_errors:
                return 0
            finally:
                if channel.is_open if hasattr(channel, "is_open") else not channel.closed:
                    channel.close()
        if consumers:
            raise BrokerUnavailable(f"queue {name} is still consumed: stop all workers first")
        return int(messages)

    def restore(self, names: Collection[str]) -> int:
        """Put back what workers that are gone had fetched of these queues; how many messages."""
        with self._asking():
            return self._mover.restore(names)

    def fetched(self, names: Collection[str]) -> int:
        """How many messages of these queues somebody has fetched; only Redis tells."""
        with self._asking():
            return self._mover.fetched(names)

    def move(self, name: str, placing: Placing) -> Mapping[str, int]:
        """Move everything out of a queue, in order; how many messages into which queue."""
        with self._asking():
            return self._mover.move(name, placing)

    def delete(self, name: str, *, filled: bool = False) -> bool:
        """Delete a queue of ours with its exchange, if it is empty or may be ``filled``; whether it is gone.

        Who has declared it before, and still publishes into it, loses that without a word.
        """
        with self._asking(), self._connection.channel() as channel:
            try:
                Queue(name, exchange=name, routing_key=name)(channel).declare()
                channel.queue_delete(name, if_unused=True, if_empty=not filled)
                channel.exchange_delete(name, if_unused=True)
            except self._connection.channel_errors:  # in use, or not empty
                return False
        return True

    def _mover_for(self, channel: Any) -> Mover:
        kind = self._connection.transport.driver_type
        if kind == "redis":
            from jobsync_celery.plugin.redis_backlog import RedisMover  # needs the client library of Redis

            return RedisMover(channel, self._app.conf.accept_content)
        if kind == "amqp":
            return _AmqpMover(channel, self._app.conf.accept_content)
        raise BrokerUnavailable(f"messages can be moved on Redis and RabbitMQ, not on {kind!r}")

    @property
    def _failures(self) -> tuple[type[BaseException], ...]:
        connection = self._connection
        # kombu takes a KeyError for a lost connection to Redis, for the sake of its poller.
        errors = {*connection.connection_errors, *connection.channel_errors, KombuError, OSError} - {KeyError}
        return tuple(errors)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            told = " ".join(str(error).split())
            raise BrokerUnavailable(
                f"the broker does not answer, or refuses: {type(error).__name__}: {told}"
            ) from error


class _AmqpMover(Mover):
    def __init__(self, channel: Any, accept: Any) -> None:
        self._channel = channel
        self._accept = prepare_accept_content(accept)
        self._declared: set[str] = set()

    def restore(self, names: Collection[str]) -> int:
        return 0  # the broker does so by itself as soon as a connection is gone

    def fetched(self, names: Collection[str]) -> int:
        return 0

    def move(self, name: str, placing: Placing) -> Counter[str]:
        moved: Counter[str] = Counter()
        while (message := self._channel.basic_get(name)) is not None:
            place = placing(letter_of(self._channel.message_to_python(message), self._accept))
            declare_once(place.queue, self._channel, self._declared)
            properties = dict(message.properties)
            headers = properties.get("application_headers") or {}
            properties["application_headers"] = {k: v for k, v in headers.items() if k not in place.dropped}
            # Mandatory: the broker refuses what it can put nowhere, instead of forgetting it.
            self._channel.basic_publish(
                amqp.Message(message.body, **properties), place.exchange, place.routing_key, mandatory=True
            )
            self._channel.basic_ack(message.delivery_tag)
            moved[place.queue.name] += 1
        return moved
