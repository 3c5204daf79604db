"""Keeping the tables small: what is past its retention goes, in batches of one short transaction each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial

from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.runtime.task_locks import TaskLocks
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.database import Connection, Link
from jobsync_celery.store.failures import met_a_lock
from jobsync_celery.store.maintenance import Batch, Maintenance, table_of
from jobsync_celery.store.schema import ClusterShape
from jobsync_celery.store.store import Store

#: Rows in a transaction: the more the cheaper, while one lasts a few hundredths of a second.
BATCH = 5000
#: Clearing locks holds partitions still, so claims wait for it.
LOCKS_BATCH = 500
#: Seconds for each vacuum: at least, though time is over, and at most.
_LEAST_VACUUM, _LONGEST_VACUUM = 60.0, 6 * 3600.0
_DAY = 86400.0
_EARLIEST = datetime.min.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class Retention:
    """How long rows are kept, in seconds; None: they are not touched.

    ``orphaned_locks`` counts from when they were set. With ``copy`` the runs that are done go into the audit when
    their claims are deleted.
    """

    claims: float | None = None
    audit: float | None = None
    history: float | None = 30 * _DAY
    dead_nodes: float | None = 7 * _DAY
    orphaned_locks: float | None = None
    copy: bool = False
    observations: float | None = None

    @classmethod
    def of(cls, config: CoordinationConfig, kind: str) -> Retention:
        """As the settings of a cluster of this kind say; Jobs write the audit themselves."""
        return cls(
            claims=config.claim_retention,
            audit=config.audit_retention,
            history=config.history_retention,
            dead_nodes=config.dead_node_retention,
            orphaned_locks=config.dead_node_retention if config.clear_orphaned_locks else None,
            copy=config.audit and kind == "celery",
            observations=config.observation_retention,
        )


@dataclass(frozen=True)
class Cleaned:
    """What was deleted of one kind, or would be; ``left`` says that the rest had to be left for later."""

    what: str
    kept_for: float | None
    rows: int = 0
    audited: int = 0
    left: bool = False


@dataclass(frozen=True)
class Tidied:
    """What a run did: rows by kind, tables that were vacuumed, and why others were not."""

    cleaned: tuple[Cleaned, ...]
    vacuumed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing had to be left for later."""
        return not any(each.left for each in self.cleaned)


@dataclass(frozen=True)
class _Chore:
    """One kind of rows: how to count and how to delete those from before a time; with ``turns`` as who changes locks.

    Deleting takes a transaction, and where the last batch ended.
    """

    what: str
    table: str
    age: float
    limit: int
    turns: bool
    count: Callable[[Link], int]
    delete: Callable[[Connection, datetime | None], Batch]


class Housekeeping:
    """Counts or deletes what a retention allows."""

    def __init__(self, store: Store, shape: ClusterShape, retention: Retention) -> None:
        self._store = store
        self._maintenance = Maintenance(store.database)
        self._locks = TaskLocks(store, shape)
        self._retention = retention

    def count(self) -> Tidied:
        """What :meth:`clean` would delete now; changes nothing."""
        with closing(self._maintenance.link()) as link:
            return Tidied(tuple(self._each(link, lambda chore: Cleaned(chore.what, chore.age, chore.count(link)))))

    def clean(self, *, vacuum: bool = True, longest: float = math.inf) -> Tidied:
        """Delete what is past its retention, and vacuum what lost a large part of its rows.

        Waits for nobody: what somebody else holds stays for the next time.

        Arguments:
            longest: seconds after which no further batch begins; what remains is left.
        """
        end = time.monotonic() + longest
        lost: dict[str, int] = {}

        def clean(chore: _Chore) -> Cleaned:
            done = self._clean(link, chore, end)
            lost[chore.table] = lost.get(chore.table, 0) + done.rows
            return done

        with closing(self._maintenance.link()) as link:
            cleaned = tuple(self._each(link, clean))
            worn = [table for table, rows in lost.items() if self._maintenance.helps_to_vacuum(link, table, rows)]
        vacuumed, remarks = self._vacuum(worn, end) if vacuum else ((), ())
        return Tidied(cleaned, vacuumed, remarks)

    def _each(self, link: Link, work: Callable[[_Chore], Cleaned]) -> Iterator[Cleaned]:
        """In an order in which nothing makes more of what comes later: so a count before is true."""
        now = self._maintenance.now(link)
        kept = self._retention
        for what, age, chore in (
            ("lock_creators", kept.dead_nodes, self._chore),
            ("orphaned_locks", kept.orphaned_locks, self._orphaned),
            ("expired_locks", 0.0, self._expired),
            ("dead_nodes", kept.dead_nodes, self._chore),
            ("history", kept.history, self._chore),
            ("audit", kept.audit, self._chore),
            ("sightings", kept.history, self._chore),
            ("claims", kept.claims, self._chore),
            ("observations", kept.observations, self._chore),
            ("observers", kept.observations, self._chore),
        ):
            yield Cleaned(what, None) if age is None else work(chore(what, age, _ago(now, age)))

    def _chore(self, what: str, age: float, before: datetime) -> _Chore:
        copy = what == "claims" and self._retention.copy
        return _Chore(
            what,
            table_of(what),
            age,
            BATCH,
            # Who sets locks leaves its row first.
            what == "lock_creators",
            lambda link: self._maintenance.count(link, what, before),
            lambda tx, oldest: self._maintenance.delete(tx, what, before, BATCH, oldest, copy, alone=True),
        )

    def _expired(self, what: str, age: float, before: datetime) -> _Chore:
        count = self._store.locks.count_due
        return self._unlocking(what, age, count, lambda tx: self._locks.expire(tx, LOCKS_BATCH))

    def _orphaned(self, what: str, age: float, before: datetime) -> _Chore:
        count = partial(self._store.locks.count_orphaned, before=before)
        return self._unlocking(what, age, count, lambda tx: self._locks.clear_orphaned(tx, before, LOCKS_BATCH))

    def _unlocking(
        self, what: str, age: float, count: Callable[[Link], int], clear: Callable[[Connection], int]
    ) -> _Chore:
        return _Chore(what, "lock", age, LOCKS_BATCH, True, count, lambda tx, _: Batch(clear(tx), None))

    def _clean(self, link: Link, chore: _Chore, end: float) -> Cleaned:
        rows = audited = 0
        newest: datetime | None = None
        left = True
        while (begun := time.monotonic()) < end:
            try:
                with link.transaction() as tx:
                    if chore.turns and not self._store.locks.take_turns(tx, wait=False):
                        break
                    batch = chore.delete(tx, newest)
            except StoreUnavailable as error:
                if not met_a_lock(error):
                    raise
                break
            rows += batch.deleted
            audited += batch.audited
            newest = batch.newest
            if batch.deleted < chore.limit:
                left = False
                break
            # As long as it took: claims commit to the same disk.
            time.sleep(time.monotonic() - begun)
        return Cleaned(chore.what, chore.age, rows, audited, left)

    def _vacuum(self, tables: list[str], end: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        vacuumed: list[str] = []
        remarks: list[str] = []
        for table in tables:
            longest = min(max(end - time.monotonic(), _LEAST_VACUUM), _LONGEST_VACUUM)
            said = self._maintenance.vacuum(table, longest)
            remarks.extend(said)
            if not said:
                vacuumed.append(self._store.database.prefix + table)
        return tuple(vacuumed), tuple(remarks)


def _ago(now: datetime, seconds: float) -> datetime:
    return now - timedelta(seconds=seconds) if seconds < (now - _EARLIEST).total_seconds() else _EARLIEST
