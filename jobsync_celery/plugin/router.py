"""Routing: a pure function from a task's key to the queue of its partition."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kombu.entity import Exchange, Queue

from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.plugin.coordinated import Registry

#: Message header: which publish a run belongs to. A retry keeps it; a new publish or ``replace`` makes a new one.
ORIGIN = "jobsync_origin"
#: Message header: how often a message was forwarded to another queue, but for those that followed a task lock.
HOPS = "jobsync_hops"


class PartitionQueues:
    """The queues that carry the partitions: ``jobsync-000``, ``jobsync-001``, …, and those of lock pools.

    A lock pool's queues are named after its patterns, so that producers can name them without a database. The
    numbers of its partitions are given by the database, and learnt by those who own them.

    Arguments:
        lock_partitions: how many partitions each lock pool has.
    """

    def __init__(self, prefix: str, tokens: TokenMap, lock_partitions: int = 1) -> None:
        digits = max(3, len(str(tokens.partitions - 1)))
        self.tokens = tokens
        self._prefix = prefix
        self._pool_tokens = replace(tokens, partitions=min(lock_partitions, tokens.total_tokens))
        self.queues = [_queue(f"{prefix}{number:0{digits}}") for number in range(tokens.partitions)]
        self._by_number = dict(enumerate(self.queues))
        self._numbers = {queue.name: number for number, queue in self._by_number.items()}

    def learn(self, number: int, pool: str, position: int) -> None:
        """A partition of a lock pool has this number. Any thread."""
        queue = self.of_pool(pool, position)
        self._by_number[number] = queue
        self._numbers[queue.name] = number

    def queue(self, partition: int) -> Queue:
        """The queue of a partition; of a lock pool's only once it was learnt."""
        return self._by_number[partition]

    def name(self, partition: int) -> str:
        """The name of a partition's queue."""
        return str(self._by_number[partition].name)

    def number(self, name: str | None) -> int | None:
        """The partition that a queue carries; None for any other queue."""
        return None if name is None else self._numbers.get(name)

    def carries_locked(self, partition: int) -> bool:
        """Whether it is a lock pool's."""
        return partition >= self.tokens.partitions

    def of_pool(self, pool: str, position: int) -> Queue:
        """The queue of a lock pool's partition."""
        digest = hashlib.sha256(pool.encode()).hexdigest()[:12]
        return _queue(f"{self._prefix}lock-{digest}-{position}")

    def for_key(self, key: str, pool: str = "") -> Queue:
        """The queue of the key's partition, or of its partition in a lock pool."""
        if pool:
            return self.of_pool(pool, self._pool_tokens.partition_for(key))
        return self.queues[self.tokens.partition_for(key)]


class TokenRouter:
    """Celery router: sends a coordinated task to its partition's queue and leaves the others alone."""

    def __init__(self, registry: Registry, queues: PartitionQueues) -> None:
        self._registry = registry
        self._queues = queues

    def __call__(
        self,
        name: str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
        task: Any = None,
        **_: Any,
    ) -> dict[str, Any] | None:
        """Route by key; raises :class:`KeyMissing` to the publisher if the call has none."""
        coordination = self._registry.get(name)
        if coordination is None:
            return None
        queue = self._queues.for_key(coordination.key(args, kwargs), coordination.pool)
        headers = {ORIGIN: os.urandom(8).hex(), **(options.get("headers") or {})}
        headers.pop(HOPS, None)  # a retry copies the headers of the message before it
        options["headers"] = headers
        return {"queue": queue}


def _queue(name: str) -> Queue:
    return Queue(name, Exchange(name, type="direct"), routing_key=name)
