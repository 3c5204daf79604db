"""Asks the broker, briefly: which queues have messages, who consumes them, and what is odd about it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

from celery import Celery

from jobsync_celery.doctor.case import BrokerSeen, QueueSeen
from jobsync_celery.plugin.cluster import Cluster
from jobsync_celery.plugin.profile import broker_of, readable_tasks

#: Seconds: to connect, and for the workers to answer.
_CONNECT_SEC = 3.0
_ANSWER_SEC = 1.0
#: So many messages of an ordinary queue are looked at, and queues of a former, larger partitioning.
_PEEKED = 200
_BEYOND = 64


class NoBroker(Exception):
    """The broker does not answer; the message says how."""


def look_at_broker(
    app: Celery, cluster: Cluster, queues: Collection[str], former: Collection[str], nodes: int
) -> BrokerSeen:
    """Ask the broker and the workers. Nothing is fetched, and nothing made.

    Arguments:
        queues: the partitions'.
        former: those of partitions that there are no more.
        nodes: how many workers should answer.

    Raises:
        NoBroker: it does not answer.
    """
    try:
        with app.connection_for_read(connect_timeout=_CONNECT_SEC) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=2 * _CONNECT_SEC)
            return _Look(app, cluster, connection).all(queues, former, nodes)
    except Exception as error:  # each transport raises errors of its own, and none of them is ours
        raise NoBroker(f"{broker_of(app)} does not answer ({type(error).__name__})") from error


class _Look:
    def __init__(self, app: Celery, cluster: Cluster, connection: Any) -> None:
        self._app = app
        self._cluster = cluster
        self._connection = connection
        self._redis = connection.transport.driver_type == "redis"

    def all(self, partitions: Collection[str], former: Collection[str], nodes: int) -> BrokerSeen:
        answers = self._app.control.inspect(timeout=_ANSWER_SEC).active_queues() or {}
        consumed = {each["name"] for queues in answers.values() for each in queues or ()}
        consumed |= set(partitions)  # whether these have owners is for the tables to say
        app = self._app
        ordinary = {app.conf.task_default_queue, *(str(queue.name) for queue in app.conf.task_queues or ())}
        # Where not all workers answer, one of the others may consume what seems to be nobody's.
        sure = len(answers) >= max(1, nodes)
        found = (
            self._queue(name, consumed, sure)
            for name in dict.fromkeys((*sorted(ordinary), *partitions, *former, *self._beyond()))
        )
        return BrokerSeen(
            str(self._connection.transport.driver_type),
            broker_of(app),
            [each for each in found if each is not None],
            self._coordinated(ordinary) if self._redis else {},
            self._eviction() if self._redis else None,
        )

    def _beyond(self) -> list[str]:
        """The queues of partitions that there are no more, or were never."""
        queues, prefix = self._cluster.queues, self._cluster.config.queue_prefix
        count, digits = queues.tokens.partitions, len(queues.name(0)) - len(prefix)
        return [f"{prefix}{number:0{digits}}" for number in range(count, count + _BEYOND)]

    def _queue(self, name: str, consumed: Collection[str], sure: bool) -> QueueSeen | None:
        """None if there is no such queue."""
        if self._redis:
            return self._redis_queue(name, consumed, sure)
        channel = self._connection.channel()
        try:
            declared = channel.queue_declare(queue=name, passive=True)
        except self._connection.channel_errors:
            return None  # and the channel is closed with it
        channel.close()
        return QueueSeen(name, int(declared.message_count), name in consumed or declared.consumer_count > 0)

    def _redis_queue(self, name: str, consumed: Collection[str], sure: bool) -> QueueSeen:
        """On one channel, since each has a connection of its own."""
        waiting = int(self._connection.default_channel._size(name))
        if name in consumed:
            return QueueSeen(name, waiting, True)
        return QueueSeen(name, waiting, False if sure else None)

    def _coordinated(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The coordinated tasks among a queue's first messages: of Redis only, where looking does not fetch."""
        found, known = {}, readable_tasks(self._cluster)
        for name in names:
            bodies = self._connection.default_channel.client.lrange(name, -_PEEKED, -1)
            tasks = {task for body in bodies if (task := _task_of(body)) and task in known}
            if tasks:
                found[name] = sorted(tasks)
        return found

    def _eviction(self) -> str | None:
        """The policy; None where CONFIG is not allowed, or memory has no limit."""
        client = self._connection.default_channel.client
        try:
            limit = int(client.config_get("maxmemory")["maxmemory"])
            return str(client.config_get("maxmemory-policy")["maxmemory-policy"]) if limit else None
        except Exception:  # noqa: BLE001 - managed servers refuse the command in words of their own
            return None


def _task_of(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["headers"]["task"])
    except (ValueError, KeyError, TypeError):
        return None
