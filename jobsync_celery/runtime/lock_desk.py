"""Task locks for users: on nodes, in scripts and shells alike, each call a transaction of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from jobsync_celery.core.locks import patterns_of
from jobsync_celery.core.tokens import key_text
from jobsync_celery.errors import JobsyncError, LockInvalid
from jobsync_celery.runtime.task_locks import LockRequest, TaskLocks
from jobsync_celery.store.database import Connection, set_patience
from jobsync_celery.store.locks import TaskLock
from jobsync_celery.store.schema import ClusterShape, ensure_schema
from jobsync_celery.store.store import Store

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
        keep: whether the connection stays open between calls, until :meth:`close`.
    """

    def __init__(self, store: Store, shape: ClusterShape, creator: str, *, keep: bool = False) -> None:
        self._store = store
        self._shape = shape
        self.creator = creator
        self._locks = TaskLocks(store, shape)
        self._link = store.database.link("jobsync locks")
        self._turn = threading.Lock()
        self._keep = keep
        self._ensured = False

    def close(self) -> None:
        """Close a connection that was kept; the next call opens it again."""
        with self._turn:
            self._link.close()

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

    def clear_all(self) -> int:
        """Unlock everything; how many keys that were."""
        with self._changing() as tx:
            return self._locks.clear_all(tx)

    def list(self) -> list[TaskLock]:
        """All task locks, the oldest first."""
        with self._changing() as tx:
            return self._store.locks.list(tx)

    def provide(self, provider: Callable[[], object] | None, *, clear_existing: bool) -> None:
        """Have ``provider`` set the locks it knows of; then clear what this creator had set before, if wanted.

        In this order, so that none of its keys is unlocked in between. Raises JobsyncError if the provider raises.
        """
        with self._changing() as tx:
            begun = self._store.locks.now(tx)
        if provider is not None:
            try:
                provider()
            except JobsyncError:
                raise
            except Exception as error:
                raise JobsyncError(f"the lock_provider failed, and its node waits for it: {error!r}") from error
        if clear_existing:
            self.clear_by_creator(self.creator, before=begun)

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        with self._turn:
            if not self._ensured:
                ensure_schema(self._store.database, self._shape)
                self._ensured = True
            try:
                with self._link.transaction() as tx:
                    set_patience(tx, _PATIENCE, _SILENCE)
                    yield tx
            finally:
                if not self._keep:
                    self._link.close()


def creator_of(node: str | None, named: str | None) -> str:
    """Who sets locks in this process: the node it is, else the name in the settings, else the machine."""
    return node or named or f"admin@{socket.gethostname()}"


class LockCalls:
    """The calls by which a user locks keys: the same on every object that has a cluster."""

    def _desk(self) -> LockDesk:
        raise NotImplementedError

    def register_lock(
        self,
        task_id: object,
        node_patterns: Patterns,
        reason: str | None = None,
        expires_in_days: float | None = None,
    ) -> None:
        """Lock a key to nodes, in place of the lock that it had.

        When this returns, no claim of the key is granted but to a node that matches. What was granted before that and
        has not begun is taken back as soon as its node hears of the change, which takes milliseconds, and a heartbeat
        at most. What has begun goes on.

        Arguments:
            task_id: the key, as tasks give it.
            node_patterns: a pattern of SQL's LIKE for node names, or several in order of preference: the first counts
                that any live node matches. While none does, the key's tasks wait.
            expires_in_days: after so many days, or parts of a day, the lock clears itself.

        Raises:
            KeyInvalid, LockInvalid: the key, a pattern, the reason or the time is none.
            TooManyPools: there are too many different lists of patterns already.
        """
        self._desk().register([(task_id, node_patterns, reason, expires_in_days)])

    def register_locks_bulk(self, locks: Iterable[tuple[object, Patterns, str | None]]) -> int:
        """Lock many keys at once, given as (key, patterns, reason): all or none. How many keys that are."""
        return self._desk().register((key, patterns, reason, None) for key, patterns, reason in locks)

    def list_locks(self) -> list[TaskLock]:
        """The task locks that are in force, the oldest first."""
        return self._desk().list()

    def clear_lock(self, task_id: object) -> bool:
        """Unlock a key; whether it was locked."""
        return self._desk().clear([task_id]) > 0

    def clear_locks_by_creator(self, creator: str) -> int:
        """Unlock what ``creator``, a node or a script by its name, had locked; how many keys that were."""
        return self._desk().clear_by_creator(creator)

    def clear_all_locks(self) -> int:
        """Unlock everything; how many keys that were."""
        return self._desk().clear_all()


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
