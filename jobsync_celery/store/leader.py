"""The leader's row: one lock that orders plans and evictions, and a term that counts leaders."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from jobsync_celery.core.model import Member
from jobsync_celery.store.database import Database


@dataclass(frozen=True)
class Leader:
    """Who leads, in which term, since when (database time); ``node`` is None before the first plan."""

    node: str | None
    incarnation: int | None
    term: int
    since: datetime | None


@dataclass(frozen=True)
class Rebalance:
    """One line of the history of plans."""

    reason: str
    leader: str | None
    term: int
    nodes_before: int
    nodes_after: int
    tokens_moved: int
    duration_ms: float


class Leaders:
    """The single row of ``sync_leader`` and the history in ``sync_rebalance``."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._current = sql("SELECT node, incarnation, term, since FROM {leader}")
        self._lock = sql("SELECT node, incarnation, term, since FROM {leader} FOR UPDATE")
        self._take_term = sql(
            "UPDATE {leader} SET node = :node, incarnation = :incarnation, term = term + 1, since = clock_timestamp()"
            " RETURNING node, incarnation, term, since"
        )
        self._record = sql(
            "INSERT INTO {rebalance} (trigger_reason, leader_node, term, nodes_before, nodes_after, tokens_moved,"
            " duration_ms) VALUES (:reason, :leader, :term, :nodes_before, :nodes_after, :tokens_moved, :duration_ms)"
        )

    def current(self, tx: Connection) -> Leader:
        """Who leads, as last written; no lock."""
        return Leader(*tx.execute(self._current).one())

    def lock(self, tx: Connection) -> Leader:
        """Lock the leader's row: the first lock of every transaction that plans or evicts."""
        return Leader(*tx.execute(self._lock).one())

    def take_term(self, tx: Connection, member: Member) -> Leader:
        """Begin a new term with ``member`` as the leader; the row must be locked."""
        params = {"node": member.name, "incarnation": member.incarnation}
        return Leader(*tx.execute(self._take_term, params).one())

    def record(self, tx: Connection, rebalance: Rebalance) -> None:
        """Add a plan to the history."""
        tx.execute(self._record, vars(rebalance))
