"""Keeping the tables small, in bounded batches that block nobody."""

from __future__ import annotations

from dataclasses import dataclass

from jobsync_celery.store.database import Database

_BATCH = 5000


@dataclass(frozen=True)
class Retention:
    """How long rows are kept, in seconds."""

    claims: float
    history: float = 30 * 86400.0
    dead_nodes: float = 7 * 86400.0


class Maintenance:
    """Deletes what is past its retention."""

    def __init__(self, database: Database) -> None:
        self._database = database
        sql = database.sql
        self._claims = sql(
            "DELETE FROM {claim} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {claim}"
            " WHERE state <> 'running' AND created_on < clock_timestamp() - make_interval(secs => :age)"
            " AND finished_on < clock_timestamp() - make_interval(secs => :age) LIMIT :batch FOR UPDATE SKIP LOCKED))"
        )
        self._history = sql(
            "DELETE FROM {rebalance} WHERE triggered_at < clock_timestamp() - make_interval(secs => :age)"
        )
        self._dead = sql(
            "DELETE FROM {node} WHERE state = 'dead'"
            " AND last_heartbeat < clock_timestamp() - make_interval(secs => :age)"
        )

    def run(self, retention: Retention) -> dict[str, int]:
        """Delete what is past its retention; how many rows of each kind went."""
        claims = 0
        while True:
            with self._database.transaction("jobsync maintenance") as tx:
                deleted = tx.execute(self._claims, {"age": retention.claims, "batch": _BATCH}).rowcount
            claims += deleted
            if deleted < _BATCH:
                break
        with self._database.transaction("jobsync maintenance") as tx:
            history = tx.execute(self._history, {"age": retention.history}).rowcount
            nodes = tx.execute(self._dead, {"age": retention.dead_nodes}).rowcount
        return {"claims": claims, "rebalances": history, "dead_nodes": nodes}
