"""What was done, task by task: the rows of ``sync_audit``, written together with the ends of their claims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy.engine import Connection

from jobsync_celery.store.database import Database
from jobsync_celery.store.outcomes import Ending


@dataclass(frozen=True)
class Done:
    """A task that was done, and by which node."""

    node: str
    task_id: str


class Audit:
    """The rows of ``sync_audit``."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        # A claim that was lost, and that nobody took over, was done all the same.
        self._record = sql(
            "WITH open AS (SELECT c.task_id, c.origin, c.retries"
            " FROM json_to_recordset(CAST(:ended AS json)) AS e (task_id text, origin text, retries int, fence bigint)"
            " JOIN {claim} c ON c.task_id = e.task_id AND c.origin = e.origin AND c.retries = e.retries"
            " AND c.fence = e.fence WHERE c.state IN ('running', 'lost', 'done')"
            " ORDER BY c.task_key FOR NO KEY UPDATE OF c SKIP LOCKED),"
            " closed AS (UPDATE {claim} c SET state = 'done',"
            " finished_on = CASE c.state WHEN 'done' THEN c.finished_on ELSE clock_timestamp() END FROM open"
            " WHERE c.task_id = open.task_id AND c.origin = open.origin AND c.retries = open.retries"
            " RETURNING c.task_id, c.task_name),"
            " written AS (INSERT INTO {audit} (date, task_id, node, task_name)"
            " SELECT :date, closed.task_id, :node, closed.task_name FROM closed ON CONFLICT DO NOTHING)"
            " SELECT task_id FROM closed"
        )
        self._of = sql("SELECT node, task_id FROM {audit} WHERE date = :date ORDER BY created_on, task_id")

    def record(self, tx: Connection, day: date, node: str, endings: Sequence[Ending]) -> set[str]:
        """Record these claims as done, and their tasks as done on that day; the ids of those that were still ours.

        To record one twice is no error. A claim that somebody has locked, under ``guard`` say, is left out.
        """
        params = {"ended": json.dumps([ending.record() for ending in endings]), "date": day, "node": node}
        return set(tx.execute(self._record, params).scalars()) if endings else set()

    def of(self, tx: Connection, day: date) -> list[Done]:
        """What was done on a day, by all nodes, in the order in which it was recorded."""
        return [Done(*row) for row in tx.execute(self._of, {"date": day})]
