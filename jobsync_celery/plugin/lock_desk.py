"""Task locks for users: in workers, scripts and shells alike, each call a transaction of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from jobsync_celery.core.locks import patterns_of
from jobsync_celery.core.tokens import key_text
from jobsync_celery.errors import LockInvalid
from jobsync_celery.plugin.cluster import Cluster
from jobsync_celery.runtime.task_locks import LockRequest, TaskLocks
from jobsync_celery.store.database import Connection, set_patience
from jobsync_celery.store.locks import TaskLock
from jobsync_celery.store.schema import ensure_schema

_DAY_SEC = 86400.0
#: A hundred years: dates that Python and PostgreSQL both know.
_MOST_DAYS = 36_525
#: Seconds for thousands of locks at once.
_PATIENCE = 60.0
#: Seconds after which a script that has stopped half-way lets go of what others wait for; well within a usual lease.
_SILENCE = 5.0

Patterns = str | Iterable[str]


class LockDesk:
    """Sets, lists and clears the task locks of a cluster.

    Arguments:
        creator: who sets the locks that are set here.
    """

    def __init__(self, cluster: Cluster, creator: str) -> None:
        self._cluster = cluster
        self.creator = creator
        self._locks = TaskLocks(cluster.store, cluster.shape, cluster.config.rejoin_grace_sec)

    def register(self, requests: Iterable[tuple[object, Patterns, str | None, float | None]]) -> int:
        """Lock keys, given as (key, patterns, reason, days until it expires); how many keys that are.

        All are checked before one is set. Raises KeyInvalid and LockInvalid.
        """
        wanted = [_request(*request) for request in requests]
        with self._changing() as tx:
            self._locks.set(tx, wanted, self.creator)
        return len({request.key for request in wanted})

    def clear(self, keys: Sequence[object]) -> int:
        """Unlock these keys; how many were locked."""
        texts = [key_text(key) for key in keys]
        with self._changing() as tx:
            return self._locks.clear(tx, texts)

    def clear_by_creator(self, creator: str, before: datetime | None = None) -> int:
        """Unlock what ``creator`` had locked, before a time of the database if given; how many keys that were."""
        with self._changing() as tx:
            return self._locks.clear_by_creator(tx, creator, before)

    def now(self) -> datetime:
        """The database's time."""
        with self._changing() as tx:
            return self._cluster.store.locks.now(tx)

    def clear_all(self) -> int:
        """Unlock everything; how many keys that were."""
        with self._changing() as tx:
            return self._locks.clear_all(tx)

    def list(self) -> list[TaskLock]:
        """All task locks, the oldest first."""
        with self._changing() as tx:
            return self._cluster.store.locks.list(tx)

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        database = self._cluster.store.database
        ensure_schema(database, self._cluster.shape)
        with database.transaction("jobsync locks") as tx:
            set_patience(tx, _PATIENCE, _SILENCE)
            yield tx


def creator_of(cluster: Cluster, node: str | None) -> str:
    """Who sets locks in this process: the node it is, else the name in the settings, else the machine."""
    return node or cluster.config.node_name or f"admin@{socket.gethostname()}"


def _request(key: object, patterns: Patterns, reason: object, expires_in_days: object) -> LockRequest:
    text = key_text(key)
    if reason is None or (isinstance(reason, str) and "\0" not in reason):
        return LockRequest(text, patterns_of(patterns), reason, _seconds(text, expires_in_days))
    raise LockInvalid(f"the reason for locking {text!r} must be a text without NUL, not {reason!r}")


def _seconds(key: str, days: object) -> float | None:
    if days is None:
        return None
    if not isinstance(days, (int, float)) or isinstance(days, bool) or not 0 < days <= _MOST_DAYS:
        raise LockInvalid(
            f"the lock of {key!r} must expire in more than 0 and at most {_MOST_DAYS} days, not {days!r}; leave the"
            " days away for a lock that does not expire"
        )
    return days * _DAY_SEC
