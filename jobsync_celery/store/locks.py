"""Task locks in the database: which keys are tied to which nodes, and where their messages belong.

A key belongs to one partition at a time. Who locks or unlocks it first locks the rows of the partitions that it may
leave or enter, which every claim shares: so no claim stands in a partition that the key left before it was made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from jobsync_celery.core.locks import patterns_in
from jobsync_celery.store.database import Database, Link, Row


@dataclass(frozen=True)
class TaskLock:
    """A key that is tied to nodes, as the database has it.

    ``unserved``: no live node matches any of its patterns, so the key's tasks wait.
    """

    key: str
    patterns: tuple[str, ...]
    reason: str | None
    created_at: datetime
    created_by: str | None
    expires_at: datetime | None
    partition: int
    unserved: bool


@dataclass(frozen=True)
class NewLock:
    """A lock to be set; ``expires_in`` is in seconds, None for never."""

    key: str
    pool: str
    partition: int
    reason: str | None = None
    expires_in: float | None = None


@dataclass(frozen=True)
class Placements:
    """Which partition each locked key belongs to, as of a version.

    ``age`` seconds ago it became so; infinity if no key was ever locked. ``lease`` is the longest of the nodes that
    are there, in seconds.
    """

    version: int
    age: float
    locked: Mapping[str, int]
    lease: float = 0.0


class Locks:
    """The rows of ``sync_lock``."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._set = sql(
            "INSERT INTO {lock} AS l (task_id, node_patterns, partition_id, reason, created_at, created_by, expires_at)"
            " SELECT w.key, CAST(w.pool AS jsonb), w.partition_id, w.reason, clock_timestamp(), :created_by,"
            " clock_timestamp() + make_interval(secs => w.expires_in)"
            " FROM unnest(CAST(:keys AS text[]), CAST(:pools AS text[]), CAST(:partitions AS int[]),"
            " CAST(:reasons AS text[]), CAST(:expires_in AS float8[]))"
            " AS w (key, pool, partition_id, reason, expires_in) ORDER BY w.key"
            " ON CONFLICT (task_id) DO UPDATE SET node_patterns = excluded.node_patterns,"
            " partition_id = excluded.partition_id, reason = excluded.reason, created_at = excluded.created_at,"
            " created_by = excluded.created_by, expires_at = excluded.expires_at"
        )
        # What leaves the key where it is does not count as a change: nobody has to learn of it.
        self._renew = sql(
            "UPDATE {lock} l SET reason = w.reason, created_at = clock_timestamp(), created_by = :created_by"
            " FROM unnest(CAST(:keys AS text[]), CAST(:pools AS text[]), CAST(:partitions AS int[]),"
            " CAST(:reasons AS text[]), CAST(:expires_in AS float8[]))"
            " AS w (key, pool, partition_id, reason, expires_in)"
            " WHERE l.task_id = w.key AND l.partition_id = w.partition_id AND l.node_patterns = CAST(w.pool AS jsonb)"
            " AND l.expires_at IS NULL AND w.expires_in IS NULL RETURNING l.task_id"
        )
        # Every change counts itself in this row, by a trigger.
        self._take_turns = sql("SELECT FROM {cluster} FOR NO KEY UPDATE")
        self._take_turn = sql("SELECT FROM {cluster} FOR NO KEY UPDATE SKIP LOCKED")
        self._cluster = sql("SELECT FROM {cluster}")
        self._clear = sql("DELETE FROM {lock} WHERE task_id = ANY(CAST(:keys AS text[]))")
        self._clear_due = sql(
            "DELETE FROM {lock} WHERE task_id = ANY(CAST(:keys AS text[])) AND expires_at <= clock_timestamp()"
        )
        self._clear_created = sql(
            "DELETE FROM {lock} WHERE task_id = ANY(CAST(:keys AS text[])) AND created_by = :created_by"
            " AND (CAST(:before AS timestamptz) IS NULL OR created_at < :before)"
        )
        self._by_creator = sql(
            "SELECT task_id FROM {lock} WHERE created_by = :created_by"
            " AND (CAST(:before AS timestamptz) IS NULL OR created_at < :before)"
        )
        self._all = sql("SELECT task_id FROM {lock}")
        self._locked = sql("SELECT task_id FROM {lock} WHERE task_id = ANY(CAST(:keys AS text[]))")
        self._now = sql("SELECT clock_timestamp()")
        # What an operator has locked by hand is left for later.
        self._due = sql(
            "SELECT task_id FROM {lock} WHERE expires_at <= clock_timestamp() LIMIT :limit FOR UPDATE SKIP LOCKED"
        )
        orphaned = (
            "created_at < :before AND created_by IS NOT NULL AND coalesce(expires_at > clock_timestamp(), true)"
            " AND NOT EXISTS (SELECT FROM {node} n WHERE n.name = {lock}.created_by)"
        )
        self._orphaned = sql(
            "SELECT task_id FROM {lock} WHERE {orphaned} LIMIT :limit FOR UPDATE SKIP LOCKED", orphaned=orphaned
        )
        self._count_due = sql("SELECT count(*) FROM {lock} WHERE expires_at <= clock_timestamp()")
        self._count_orphaned = sql("SELECT count(*) FROM {lock} WHERE {orphaned}", orphaned=orphaned)
        self._list = sql(
            "SELECT l.task_id, p.pool, l.reason, l.created_at, l.created_by, l.expires_at, l.partition_id,"
            " p.caretaker OR p.target IS NULL AS unserved"
            " FROM {lock} l JOIN {partition} p USING (partition_id)"
            " WHERE CAST(:key AS text) IS NULL OR l.task_id = :key ORDER BY l.created_at, l.task_id"
        )
        self._placements = sql(
            "SELECT (SELECT locks_version FROM {cluster}) AS version, l.task_id, l.partition_id,"
            " coalesce(extract(epoch FROM clock_timestamp() - (SELECT locks_changed_at FROM {cluster})), 'Infinity')"
            "::float8 AS age, (SELECT coalesce(max(n.lease_sec), 0) FROM {node} n"
            " WHERE n.state IN ('live', 'draining')) AS lease"
            " FROM (SELECT) AS always LEFT JOIN {lock} l ON true"
        )
        self._creator = sql(
            "INSERT INTO {node} (name, incarnation, kind, state) VALUES (:name, nextval('{incarnation_seq}'), :kind,"
            " 'admin') ON CONFLICT (name) DO NOTHING"
        )

    def set(self, tx: Connection, locks: Sequence[NewLock], created_by: str) -> None:
        """Set locks, in place of those that the keys had."""
        renewed = set(tx.execute(self._renew, _columns(locks, created_by)).scalars())
        if new := [lock for lock in locks if lock.key not in renewed]:
            tx.execute(self._set, _columns(new, created_by))

    def introduce(self, tx: Connection, name: str, kind: str) -> None:
        """Leave a row for a creator of locks that is no node, so that its locks are not taken for orphans."""
        tx.execute(self._creator, {"name": name, "kind": kind})

    def take_turns(self, tx: Connection, *, wait: bool = True) -> bool:
        """Until the transaction ends nobody else changes locks; false if somebody does now, and we do not wait.

        To be called before partitions are locked: somebody's open transaction must not make others hold those.
        """
        taken = tx.execute(self._take_turns if wait else self._take_turn).rowcount
        return bool(
            taken or not tx.execute(self._cluster).rowcount
        )  # or nobody coordinates here, and nothing is locked

    def clear(self, tx: Connection, keys: Collection[str]) -> int:
        """Clear the locks of these keys; how many there were."""
        return tx.execute(self._clear, {"keys": list(keys)}).rowcount

    def clear_due(self, tx: Connection, keys: Collection[str]) -> int:
        """Clear those locks of these keys that have expired."""
        return tx.execute(self._clear_due, {"keys": list(keys)}).rowcount

    def clear_created(self, tx: Connection, keys: Collection[str], created_by: str, before: datetime | None) -> int:
        """Clear those locks of these keys that one creator set, before a time if one is given."""
        return tx.execute(
            self._clear_created, {"keys": list(keys), "created_by": created_by, "before": before}
        ).rowcount

    def keys(self, tx: Connection) -> list[str]:
        """The keys that are locked."""
        return list(tx.execute(self._all).scalars())

    def locked(self, tx: Connection, keys: Collection[str]) -> list[str]:
        """Which of these keys are locked."""
        return list(tx.execute(self._locked, {"keys": list(keys)}).scalars())

    def created(self, tx: Connection, created_by: str, before: datetime | None) -> list[str]:
        """The keys that one creator has locked, before a time if one is given."""
        return list(tx.execute(self._by_creator, {"created_by": created_by, "before": before}).scalars())

    def now(self, tx: Connection) -> datetime:
        """The database's clock, by which locks are created and expire."""
        now: datetime = tx.execute(self._now).scalar_one()
        return now

    def due(self, tx: Connection, limit: int | None = None) -> list[str]:
        """The keys whose locks have expired, by the database's clock; not those whose rows somebody holds."""
        return list(tx.execute(self._due, {"limit": limit}).scalars())

    def orphaned(self, tx: Connection, before: datetime, limit: int | None = None) -> list[str]:
        """The keys whose locks are from before a time, their creators gone, and which have not expired.

        Not those whose rows somebody holds.
        """
        return list(tx.execute(self._orphaned, {"before": before, "limit": limit}).scalars())

    def count_due(self, link: Link) -> int:
        """How many locks have expired, by the database's clock."""
        return int(link.statement(self._count_due)[0][0])

    def count_orphaned(self, link: Link, before: datetime) -> int:
        """How many locks are from before a time, and their creators gone."""
        return int(link.statement(self._count_orphaned, {"before": before})[0][0])

    def list(self, tx: Connection) -> list[TaskLock]:
        """All locks, the oldest first."""
        return [_lock(row) for row in tx.execute(self._list, {"key": None})]

    def of_key(self, tx: Connection, key: str) -> TaskLock | None:
        """The lock of a key; None if it has none."""
        row = tx.execute(self._list, {"key": key}).first()
        return None if row is None else _lock(row)

    def placements(self, link: Link) -> Placements:
        """Which partition each locked key belongs to; one statement."""
        rows = link.statement(self._placements)
        locked = {row.task_id: row.partition_id for row in rows if row.task_id is not None}
        return Placements(rows[0].version, rows[0].age, locked, rows[0].lease)


def _columns(locks: Sequence[NewLock], created_by: str) -> dict[str, object]:
    return {
        "keys": [lock.key for lock in locks],
        "pools": [lock.pool for lock in locks],
        "partitions": [lock.partition for lock in locks],
        "reasons": [lock.reason for lock in locks],
        "expires_in": [lock.expires_in for lock in locks],
        "created_by": created_by,
    }


def _lock(row: Row) -> TaskLock:
    return TaskLock(
        key=row.task_id,
        patterns=patterns_in(row.pool),
        reason=row.reason,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        partition=row.partition_id,
        unserved=row.unserved,
    )
