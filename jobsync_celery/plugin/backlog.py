"""What lies in the queues of a cluster that is stopped, and moving it into other queues; for the command line.

Messages are moved as they are, bytes and properties, in the order of each queue. None is lost if this is killed: on
Redis a message changes queues in one step, on RabbitMQ its copy is confirmed before it is acknowledged.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import amqp
from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import KombuError
from kombu.serialization import prepare_accept_content
from kombu.utils import json

from jobsync_celery.errors import BrokerUnavailable
from jobsync_celery.plugin.redis_channel import SET_ASIDE, restore_unacked, server_of
from jobsync_celery.plugin.redis_scripts import MOVE
from jobsync_celery.plugin.stranded import unacked_runs

logger = logging.getLogger(__name__)
_loads: Any = json.loads
_dumps: Any = json.dumps

_CONNECT_SEC = 5.0
_BATCH = 100


class Letter(NamedTuple):
    """What has to be known of a message to find its place; without arguments if they cannot be read."""

    task: str
    args: Any
    kwargs: Any


class Place(NamedTuple):
    """Where a message is published; ``queue`` is declared first, and ``dropped`` are headers that it loses."""

    queue: Queue
    exchange: str
    routing_key: str
    dropped: frozenset[str] = frozenset()


Placing = Callable[[Letter], Place]


class _Mover(Protocol):
    def move(self, name: str, placing: Placing) -> Counter[str]:
        """Move everything out of a queue; how many into which."""

    def restore(self, names: Collection[str]) -> int:
        """Put back what workers that are gone had fetched of these queues; how many messages."""

    def fetched(self, names: Collection[str]) -> int:
        """How many messages of these queues somebody has fetched; 0 where the broker does not tell."""


class Backlog:
    """The queues of an app's broker. Enter it to connect; every failure of the broker is a BrokerUnavailable."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Any = None
        self._mover: _Mover

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

    def _mover_for(self, channel: Any) -> _Mover:
        kind = self._connection.transport.driver_type
        if kind == "redis":
            return _RedisMover(channel, self._app.conf.accept_content)
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


class _RedisMover:
    def __init__(self, channel: Any, accept: Any) -> None:
        self._channel = channel
        self._accept = prepare_accept_content(accept)
        self._declared: set[str] = set()
        self._client, *_ = server_of(channel)
        self._script = self._client.register_script(MOVE)

    def restore(self, names: Collection[str]) -> int:
        return restore_unacked(self._channel, names, ())

    def fetched(self, names: Collection[str]) -> int:
        return len(unacked_runs(self._channel, names))

    def move(self, name: str, placing: Placing) -> Counter[str]:
        moved: Counter[str] = Counter()
        for step in self._channel.priority_steps:
            key = self._key(name, step)
            while batch := self._client.lrange(key, -_BATCH, -1):
                for raw in reversed(batch):
                    queue, keys, changed = self._readdressed(raw, placing)
                    # Nothing, if somebody took it meanwhile.
                    moved[queue] += int(self._script(keys=[key, *keys], args=[raw, changed]))
        return +moved

    def _readdressed(self, raw: bytes, placing: Placing) -> tuple[str, list[str], str | bytes]:
        """Where a message goes, and what it looks like there; as it is, and aside, if it is none."""
        try:
            payload = _loads(raw)
            letter = _letter(self._channel.Message(payload, channel=self._channel), self._accept)
        except (ValueError, TypeError, KeyError, AttributeError):
            logger.warning("jobsync: an unreadable message is set aside in %s", SET_ASIDE)
            return SET_ASIDE, [self._channel.global_keyprefix + SET_ASIDE], raw
        place = placing(letter)
        _declare_once(place.queue, self._channel, self._declared)
        payload["headers"] = {name: each for name, each in payload["headers"].items() if name not in place.dropped}
        payload["properties"]["delivery_info"] = {"exchange": place.exchange, "routing_key": place.routing_key}
        priority = self._channel._get_message_priority(payload, reverse=False)
        queues = self._channel._lookup(place.exchange, place.routing_key)
        return place.queue.name, [self._key(queue, priority) for queue in queues], _dumps(payload)

    def _key(self, queue: str, priority: int) -> str:
        return str(self._channel.global_keyprefix + self._channel._q_for_pri(queue, priority))


class _AmqpMover:
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
            place = placing(_letter(self._channel.message_to_python(message), self._accept))
            _declare_once(place.queue, self._channel, self._declared)
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


def _declare_once(queue: Queue, channel: Any, declared: set[str]) -> None:
    if queue.name not in declared:
        queue(channel).declare()
        declared.add(queue.name)


def _letter(message: Any, accept: Any) -> Letter:
    message.accept = accept
    headers = message.headers
    try:
        body = message.decode()
        if "task" in headers:
            args, kwargs, _ = body
            return Letter(headers["task"], args, kwargs)
        return Letter(body["task"], body.get("args"), body.get("kwargs"))
    except Exception:  # noqa: BLE001 - serializers raise what they like; whoever receives the message says so
        return Letter(str(headers.get("task") or ""), None, None)
