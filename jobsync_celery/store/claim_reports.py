"""Questions about claims, for people. A claim table may hold a day at a thousand a second, so reports are bounded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from jobsync_celery.store.database import Database

#: A table of up to so many rows is searched whole.
_SMALL = 500_000
#: How far back a larger one is searched if nothing else is asked for.
LATELY_SEC = 3600.0


@dataclass(frozen=True)
class ClaimRow:
    """A claim for people; ``seconds`` is how long it ran, or has run. ``lone``: its node is dead or gone."""

    task_id: str
    origin: str
    retries: int
    task_name: str | None
    key: str
    token: int
    partition: int
    node: str
    state: str
    attempt: int
    fence: int | None
    awaited: bool
    created_on: datetime
    finished_on: datetime | None
    seconds: float
    reason: str | None
    lone: bool


_COLUMNS = """
    c.task_id, c.origin, c.retries, c.task_name, c.task_key AS key, c.token_id AS token, c.partition_id AS partition,
    c.node, c.state, c.attempt, c.fence, c.awaited, c.created_on, c.finished_on, c.reason,
    extract(epoch FROM coalesce(c.finished_on, clock_timestamp()) - c.created_on)::float8 AS seconds,
    c.state = 'running' AND NOT EXISTS (SELECT FROM {node} n WHERE n.incarnation = c.incarnation
        AND n.state IN ('live', 'draining')) AS lone
""".strip()

# Written out, so that running claims are found by their own small index and others by the ranges of their times.
_RUNNING = "c.state = 'running'"
_ENDED = "c.state = ANY(CAST(:states AS text[])) AND c.state <> 'running'"
# now() is the same for a whole statement, so the index of times can be asked.
_LISTING = (
    "SELECT {columns} FROM {claim} c WHERE {condition} AND (CAST(:node AS text) IS NULL OR c.node = :node)"
    " AND (CAST(:key AS text) IS NULL OR c.task_key = :key)"
    " AND (CAST(:since AS float8) IS NULL OR c.created_on > now() - make_interval(secs => :since))"
    " ORDER BY c.created_on DESC, c.task_id LIMIT :limit"
)


class ClaimReports:
    """Questions to ``sync_claim``."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._running = sql(_LISTING, columns=_COLUMNS, condition=_RUNNING)
        self._ended = sql(_LISTING, columns=_COLUMNS, condition=_ENDED)
        self._task = sql(
            "SELECT {columns} FROM {claim} c WHERE c.task_id = :task_id ORDER BY c.created_on, c.retries LIMIT 100",
            columns=_COLUMNS,
        )
        self._size = sql("SELECT reltuples::float8 FROM pg_class WHERE oid = to_regclass(:table)")
        self._table = database.tables.claim
        self._left = sql(
            "SELECT (SELECT count(*) FROM {partition} p WHERE p.owner_incarnation = :incarnation) AS owned,"
            " (SELECT count(*) FROM {claim} c WHERE c.incarnation = :incarnation AND c.finished_on IS NULL) AS running"
        )

    def window(self, tx: Connection) -> float | None:
        """How far back claims that have ended are searched, in seconds; None for the whole of a small table."""
        rows = tx.execute(self._size, {"table": self._table}).scalar()
        return LATELY_SEC if rows is not None and rows > _SMALL else None

    def latest(
        self,
        tx: Connection,
        states: Collection[str],
        *,
        node: str | None = None,
        key: str | None = None,
        since: float | None = None,
        limit: int = 20,
    ) -> list[ClaimRow]:
        """The latest claims in these states, the latest first; those that run first of all.

        Arguments:
            since: how many seconds back they may have begun; those that run are listed however old they are.
        """
        asked = {"node": node, "key": key, "limit": limit, "states": sorted(states)}
        found: list[ClaimRow] = []
        if "running" in states:
            found = [ClaimRow(**row._mapping) for row in tx.execute(self._running, {**asked, "since": None})]
        if len(found) < limit and set(states) - {"running"}:
            rest = tx.execute(self._ended, {**asked, "since": since, "limit": limit - len(found)})
            found += [ClaimRow(**row._mapping) for row in rest]
        return found

    def of_task(self, tx: Connection, task_id: str) -> list[ClaimRow]:
        """The claims of a task, retries and new publishes too, the earliest first."""
        return [ClaimRow(**row._mapping) for row in tx.execute(self._task, {"task_id": task_id})]

    def left(self, tx: Connection, incarnation: int) -> tuple[int, int]:
        """How many partitions a node has, and how many claims of it run."""
        row = tx.execute(self._left, {"incarnation": incarnation}).one()
        return row.owned, row.running
