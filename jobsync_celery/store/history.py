"""The history of plans, and the partitions as they stand: questions only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from jobsync_celery.store.database import Database


@dataclass(frozen=True)
class PastPlan:
    """A line of ``sync_rebalance``."""

    id: int
    triggered_at: datetime
    reason: str | None
    leader: str | None
    term: int | None
    nodes_before: int | None
    nodes_after: int | None
    tokens_moved: int | None
    duration_ms: float | None


@dataclass(frozen=True)
class PartitionRow:
    """A partition for people; ``pool`` is the text of a lock pool's patterns, and ``position`` which of its."""

    number: int
    first_token: int
    last_token: int
    pool: str
    position: int
    caretaker: bool
    target: str | None
    owner: str | None
    last_owner: str | None
    assigned_at: datetime | None
    claimed_at: datetime | None

    @property
    def state(self) -> str:
        """In a word: free, moving, caretaker (its owner may not run what is in it) or owned."""
        if self.owner is None:
            return "free"
        if self.owner != self.target:
            return "moving"
        return "caretaker" if self.caretaker else "owned"


class History:
    """Past plans, and where the last one has led."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._plans = sql(
            "SELECT id, triggered_at, trigger_reason AS reason, leader_node AS leader, term, nodes_before,"
            " nodes_after, tokens_moved, duration_ms FROM {rebalance} ORDER BY triggered_at DESC, id DESC LIMIT :limit"
        )
        self._partitions = sql(
            "SELECT p.partition_id AS number, p.first_token, p.last_token, p.pool, p.caretaker, p.target, p.owner,"
            " p.last_owner, p.assigned_at, p.claimed_at, (SELECT count(*) FROM {partition} q"
            " WHERE q.pool = p.pool AND q.first_token < p.first_token) AS position"
            " FROM {partition} p WHERE CAST(:number AS int) IS NULL OR p.partition_id = :number ORDER BY p.partition_id"
        )

    def plans(self, tx: Connection, limit: int) -> list[PastPlan]:
        """The latest plans that moved something, the latest first."""
        return [PastPlan(**row._mapping) for row in tx.execute(self._plans, {"limit": limit})]

    def partitions(self, tx: Connection) -> list[PartitionRow]:
        """Every partition, by number."""
        return [PartitionRow(**row._mapping) for row in tx.execute(self._partitions, {"number": None})]

    def partition(self, tx: Connection, number: int) -> PartitionRow | None:
        """One partition; None if there is none of that number."""
        row = tx.execute(self._partitions, {"number": number}).first()
        return None if row is None else PartitionRow(**row._mapping)
