"""What the doctor reads of a cluster and its server: one snapshot, which locks nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from jobsync_celery.store.database import Database

#: How far back runs, plans and sightings count, in seconds.
LATELY_SEC = 3600.0
#: A transaction that is idle for so long and holds our tables is not busy but forgotten, in seconds.
_FORGOTTEN_SEC = 10.0
_SOME = 5


@dataclass(frozen=True)
class Unsettled:
    """A partition that has no owner, or another than its target; ``planned`` seconds ago by the database's clock."""

    partition: int
    pool: str
    target: str | None
    owner: str | None
    version: int
    planned: float | None


@dataclass(frozen=True)
class OddLock:
    """A task lock whose creator has no row, or that no live node matches."""

    key: str
    patterns: Sequence[str]
    created_by: str | None


@dataclass(frozen=True)
class RepeatedRun:
    """A run that was begun more than once."""

    task_id: str
    task_name: str | None
    key: str
    node: str
    state: str
    attempt: int
    lost_runs: int


@dataclass(frozen=True)
class LongTask:
    """The longest run of a task lately, in seconds."""

    task_name: str | None
    seconds: float


@dataclass(frozen=True)
class Blocker:
    """A database session that others wait for, or that has forgotten its transaction on our tables."""

    pid: int
    role: str | None
    application: str | None
    state: str | None
    seconds: float
    waiting: int


@dataclass(frozen=True)
class Server:
    """The database server. Of a standby ``sync_state`` is None where the role may not see it."""

    version: int
    recovering: bool
    fsync: bool
    synchronous_commit: str
    connections: int
    most_connections: int
    standbys: Sequence[tuple[str, str | None]]


@dataclass(frozen=True)
class Examination:
    """What the tables and the server say, beside the status."""

    unsettled: Sequence[Unsettled]
    plans_by_reason: Mapping[str, int]
    orphaned_locks: Sequence[OddLock]
    orphaned_locks_total: int
    unserved_locks: Sequence[OddLock]
    unserved_locks_total: int
    repeated: Sequence[RepeatedRun]
    repeated_total: int
    longest: Sequence[LongTask]
    oldest_ended: float | None
    blockers: Sequence[Blocker]
    server: Server


# Ended within the hour, by the index of times, or running.
_LATE_CLAIMS = (
    "(SELECT * FROM {claim} e WHERE e.state <> 'running' AND e.finished_on > now() - make_interval(secs => :lately)"
    " UNION ALL SELECT * FROM {claim} r WHERE r.finished_on IS NULL)"
)
_REPEATED = "FROM {late} c WHERE c.attempt > 1"


class Examinations:
    """Makes them."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._unsettled = sql(
            "SELECT partition_id AS partition, pool, target, owner, version,"
            " extract(epoch FROM clock_timestamp() - assigned_at)::float8 AS planned"
            " FROM {partition} WHERE owner IS NULL OR owner IS DISTINCT FROM target ORDER BY partition_id"
        )
        self._reasons = sql(
            "SELECT coalesce(trigger_reason, '') AS reason, count(*) AS plans FROM {rebalance}"
            " WHERE triggered_at > clock_timestamp() - make_interval(secs => :lately) GROUP BY 1"
        )
        self._orphaned = sql(
            "SELECT l.task_id AS key, l.node_patterns AS patterns, l.created_by, count(*) OVER () AS total"
            " FROM {lock} l LEFT JOIN {node} n ON l.created_by = n.name WHERE n.name IS NULL"
            " ORDER BY l.created_at LIMIT :some"
        )
        self._unserved = sql(
            "SELECT l.task_id AS key, l.node_patterns AS patterns, l.created_by, count(*) OVER () AS total"
            " FROM {lock} l JOIN {partition} p USING (partition_id) WHERE p.caretaker OR p.target IS NULL"
            " ORDER BY l.created_at LIMIT :some"
        )
        self._repeated = sql(
            "SELECT c.task_id, c.task_name, c.task_key AS key, c.node, c.state, c.attempt, c.lost_runs,"
            f" count(*) OVER () AS total {_REPEATED} ORDER BY c.attempt DESC, c.created_on DESC LIMIT :some",
            late=_LATE_CLAIMS,
        )
        self._longest = sql(
            "SELECT c.task_name, max(extract(epoch FROM coalesce(c.finished_on, clock_timestamp()) - c.created_on))"
            "::float8 AS seconds FROM {late} c GROUP BY 1 ORDER BY 2 DESC LIMIT :some",
            late=_LATE_CLAIMS,
        )
        self._oldest = sql(
            "SELECT extract(epoch FROM clock_timestamp() - min(finished_on))::float8 FROM {claim}"
            " WHERE state <> 'running'"
        )
        self._blockers = sql(
            "SELECT a.pid, a.usename AS role, a.application_name AS application, a.state,"
            " extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.query_start))::float8 AS seconds,"
            " (SELECT count(*) FROM pg_stat_activity w WHERE w.wait_event_type = 'Lock'"
            " AND a.pid = ANY(pg_blocking_pids(w.pid))) AS waiting FROM pg_stat_activity a"
            " WHERE a.pid <> pg_backend_pid() AND a.xact_start < clock_timestamp() - make_interval(secs => :forgotten)"
            " AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted"
            " AND l.relation = ANY(SELECT to_regclass(named)::oid FROM unnest(CAST(:tables AS text[])) AS named))"
            " AND (a.state LIKE 'idle in transaction%' OR EXISTS (SELECT FROM pg_stat_activity w"
            " WHERE w.wait_event_type = 'Lock' AND a.pid = ANY(pg_blocking_pids(w.pid))))"
            " ORDER BY waiting DESC, seconds DESC LIMIT :some"
        )
        self._tables = [
            getattr(database.tables, noun)
            for noun in ("cluster", "node", "partition", "claim", "lock", "leader", "rebalance", "audit", "sighting")
        ]
        self._server = sql(
            "SELECT current_setting('server_version_num')::int / 10000 AS version, pg_is_in_recovery() AS recovering,"
            " current_setting('fsync')::bool AS fsync,"
            # Our own sessions set it; what is asked here is what the user's sessions get.
            " coalesce((SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'), '')"
            " AS synchronous_commit,"
            " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,"
            " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
            " AS most_connections"
        )
        # Where the role may not see it, the row is there and its columns are NULL.
        self._standbys = sql(
            "SELECT coalesce(application_name, '') AS name, sync_state FROM pg_stat_replication"
            " r WHERE coalesce(state, 'streaming') = 'streaming'"
            # Neither backups nor subscribers take over.
            " AND application_name NOT IN ('pg_receivewal', 'pg_basebackup') AND NOT EXISTS"
            " (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')"
            " ORDER BY 1"
        )

    def take(self, tx: Connection) -> Examination:
        """Ask everything."""
        asked = {"lately": LATELY_SEC, "some": _SOME}
        orphaned, orphans = self._counted(tx, self._orphaned, OddLock)
        unserved, unserved_total = self._counted(tx, self._unserved, OddLock)
        repeated, repeats = self._counted(tx, self._repeated, RepeatedRun)
        blocking = {"forgotten": _FORGOTTEN_SEC, "some": _SOME, "tables": self._tables}
        return Examination(
            unsettled=self.unsettled(tx),
            plans_by_reason={row.reason: row.plans for row in tx.execute(self._reasons, {"lately": LATELY_SEC})},
            orphaned_locks=orphaned,
            orphaned_locks_total=orphans,
            unserved_locks=unserved,
            unserved_locks_total=unserved_total,
            repeated=repeated,
            repeated_total=repeats,
            longest=[LongTask(**row._mapping) for row in tx.execute(self._longest, asked)],
            oldest_ended=tx.execute(self._oldest).scalar_one(),
            blockers=[Blocker(**row._mapping) for row in tx.execute(self._blockers, blocking)],
            server=self._asked_server(tx),
        )

    def unsettled(self, tx: Connection) -> list[Unsettled]:
        """The partitions that are not where they are to be."""
        return [Unsettled(**row._mapping) for row in tx.execute(self._unsettled)]

    def _asked_server(self, tx: Connection) -> Server:
        row = tx.execute(self._server).one()
        standbys = [(each.name, each.sync_state) for each in tx.execute(self._standbys)]
        return Server(**row._mapping, standbys=standbys)

    def _counted(self, tx: Connection, query: Any, made: Any) -> tuple[list[Any], int]:
        rows = [dict(row._mapping) for row in tx.execute(query, {"lately": LATELY_SEC, "some": _SOME})]
        total = rows[0]["total"] if rows else 0
        return [made(**{name: value for name, value in row.items() if name != "total"}) for row in rows], total
