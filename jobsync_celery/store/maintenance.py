"""What is past its retention: counted, and deleted in bounded batches that wait for nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import TextClause
from sqlalchemy.engine import Connection

from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.store.database import Database, Link, Timeouts

#: A batch may take long on a slow disk, but hardly waits for locks; a client that falls silent soon lets go of its own.
_BATCH_TIMEOUTS = Timeouts(statement=60.0, lock=0.2, idle_in_transaction=5.0)
#: VACUUM reads all indexes of a table in full, so it pays only for some part of it: as large as autovacuum's of claims.
_DEAD_PART = 0.1
_LEAST_DEAD = 1000


@dataclass(frozen=True)
class _Rows:
    """Rows that may go when they are old; ``dated`` says how old they are, by an index where there can be many.

    ``bare`` is what else has to be gone before, so far that a count supposes it gone.
    """

    table: str
    dated: str
    which: str = "true"
    bare: str = "true"


_KINDS = {
    "dead_nodes": _Rows("node", "coalesce(last_heartbeat, awaited_until, created_on)", "state IN ('dead', 'left')"),
    "lock_creators": _Rows(
        "node", "created_on", "state = 'admin' AND NOT EXISTS (SELECT FROM {lock} l WHERE l.created_by = {node}.name)"
    ),
    "history": _Rows("rebalance", "triggered_at"),
    "audit": _Rows("audit", "created_on"),
    "sightings": _Rows("sighting", "last_on"),
    "claims": _Rows("claim", "finished_on", "state <> 'running'"),
    "observations": _Rows("observation", "began_on"),
    # One that has not said that it leaves may be cut off, and come back: as a new one if its row is gone, and what it
    # had begun before would be told of twice. Runs of the last moment may have begun after it was seen last.
    "observers": _Rows(
        "observer",
        "greatest(seen_on, left_on)",
        "(left_on IS NOT NULL OR seen_on < CAST(:before AS timestamptz) - interval '1 day')",
        "NOT EXISTS (SELECT FROM {observation} o WHERE o.observer_id = {observer}.observer_id"
        " AND o.began_on < CAST(:before AS timestamptz) + interval '1 minute')",
    ),
}

_COUNT = "SELECT count(*) FROM {rows} WHERE {which} AND {dated} < :before"
_GONE = (
    "gone AS (DELETE FROM {rows} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {rows}"
    " WHERE {which} AND {bare} AND {dated} < :before AND {dated} >= CAST(:oldest AS timestamptz)"
    " ORDER BY {dated} LIMIT :limit FOR UPDATE SKIP LOCKED)) RETURNING {returned})"
)
_DELETE = "WITH {gone} SELECT count(*) AS deleted, max(dated) AS newest, 0 AS audited FROM gone"
# In order, so that two who clean up at once do not wait for each other crosswise.
_DELETE_AND_COPY = (
    "WITH {gone}, copied AS (INSERT INTO {audit} (date, task_id, node, task_name, created_on)"
    " SELECT CAST(dated AT TIME ZONE 'UTC' AS date), task_id, node, task_name, dated FROM gone"
    " WHERE state = 'done' ORDER BY 1, 2 ON CONFLICT DO NOTHING RETURNING date)"
    " SELECT count(*) AS deleted, max(dated) AS newest, (SELECT count(*) FROM copied) AS audited FROM gone"
)
_COPIED = "task_id, node, task_name, state, finished_on AS dated"


@dataclass(frozen=True)
class Batch:
    """What a batch did; the next one may begin at ``newest``."""

    deleted: int
    newest: datetime | None
    audited: int = 0


class Maintenance:
    """Counts and deletes old rows by kind.

    The kinds: dead_nodes, lock_creators, history, audit, sightings, claims, observations, observers.
    """

    def __init__(self, database: Database) -> None:
        def sql(template: str, rows: _Rows, returned: str = "") -> TextClause:
            return database.sql(
                template.replace("{gone}", _GONE),
                rows=f"{{{rows.table}}}",
                dated=rows.dated,
                which=rows.which,
                bare=rows.bare,
                returned=returned or f"{rows.dated} AS dated",
            )

        self._database = database
        self._now = database.sql("SELECT clock_timestamp()")
        self._count = {kind: sql(_COUNT, rows) for kind, rows in _KINDS.items()}
        self._delete = {kind: sql(_DELETE, rows) for kind, rows in _KINDS.items()}
        self._delete_and_copy = sql(_DELETE_AND_COPY, _KINDS["claims"], _COPIED)
        self._size = database.sql("SELECT reltuples FROM pg_class WHERE oid = to_regclass(:table)")
        self._gently = database.sql("SELECT set_config('vacuum_cost_delay', '2ms', false)")
        # Not truncated: claims would have to wait for that.
        self._vacuum = {
            table: database.sql(f"VACUUM (ANALYZE, SKIP_LOCKED, TRUNCATE false) {{{table}}}")
            for table in {"lock", *(rows.table for rows in _KINDS.values())}
        }

    def link(self) -> Link:
        """A connection for counts and batches."""
        return self._database.link("jobsync maintenance", _BATCH_TIMEOUTS)

    def now(self, link: Link) -> datetime:
        """The database's clock, by which everything is judged."""
        now: datetime = link.statement(self._now)[0][0]
        return now

    def count(self, link: Link, kind: str, before: datetime) -> int:
        """How many rows of a kind are from before a time."""
        return int(link.statement(self._count[kind], {"before": before})[0][0])

    def delete(
        self,
        tx: Connection,
        kind: str,
        before: datetime,
        limit: int,
        oldest: datetime | None = None,
        copy: bool = False,
        alone: bool = False,
    ) -> Batch:
        """Delete the oldest rows of a kind from before a time, but those that somebody has locked.

        With the last observations go the observers of which there is nothing any more.

        Arguments:
            oldest: where the last batch ended, so that the index entries of what it deleted are not read again.
            copy: copy claims that are done into the audit.
            alone: leave observers to a call of their own.
        """
        statement = self._delete_and_copy if copy else self._delete[kind]
        params = {"before": before, "limit": limit, "oldest": oldest or "-infinity"}
        batch = Batch(*tx.execute(statement, params).one())
        if kind == "observations" and batch.deleted < limit and not alone:
            self.delete(tx, "observers", before, limit)
        return batch

    def helps_to_vacuum(self, link: Link, table: str, deleted: int) -> bool:
        """Whether a table, given by its noun, lost so many rows that VACUUM pays now; else autovacuum will do."""
        if deleted < _LEAST_DEAD:
            return False
        size = link.statement(self._size, {"table": getattr(self._database.tables, table)})[0][0]
        return bool(deleted >= _DEAD_PART * size)

    def vacuum(self, table: str, longest: float) -> Sequence[str]:
        """VACUUM (ANALYZE) as gently as autovacuum; if it was not done, why.

        That is so where the role does not own the table, somebody else has locked it, or ``longest`` (in seconds) is
        over.
        """
        link = self._database.link("jobsync maintenance", Timeouts(statement=longest))
        try:
            link.statement(self._gently)
            return link.command(self._vacuum[table])
        except StoreUnavailable as error:
            return [f"VACUUM of {getattr(self._database.tables, table)} was not finished: {error}"]
        finally:
            link.close()


def table_of(kind: str) -> str:
    """The noun of the table that has the rows of a kind."""
    return _KINDS[kind].table
