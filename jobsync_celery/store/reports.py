"""Read-only questions about a cluster: status, history, balance. No locks, no promises beyond one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from jobsync_celery.store.database import Database
from jobsync_celery.store.leader import Leader, Leaders
from jobsync_celery.store.nodes import NodeRow, Nodes


@dataclass(frozen=True)
class NodeShare:
    """A node, and what it has: ``targets`` are the partitions it should have, ``owned`` those it has."""

    node: NodeRow
    targets: int
    owned: int
    tokens: int
    running: int
    ended: int


@dataclass(frozen=True)
class ClusterStatus:
    """A cluster at one moment, by the database's clock."""

    at: datetime
    leader: Leader
    nodes: tuple[NodeShare, ...]
    partitions: int
    unowned: int
    moving: int
    running: int
    rebalances_last_hour: int
    locks: int
    unserved_locks: int

    @property
    def live(self) -> tuple[NodeShare, ...]:
        """The nodes that are live or draining."""
        return tuple(share for share in self.nodes if share.node.state in ("live", "draining"))

    @property
    def state(self) -> str:
        """In one word or two: stable, rebalancing, degraded, no leader."""
        silent = [share.node.silent for share in self.live]
        if all(silent):
            return "no leader"
        if self.unowned or self.moving:
            return "rebalancing"
        if self.unserved_locks or any(silent) or any(share.node.state == "dead" for share in self.nodes):
            return "degraded"
        return "stable"


class Reports:
    """Questions to the tables of one cluster."""

    def __init__(self, database: Database) -> None:
        self._nodes = Nodes(database)
        self._leaders = Leaders(database)
        sql = database.sql
        self._shares = sql(
            "SELECT n.name,"
            " (SELECT count(*) FROM {partition} p WHERE p.target = n.name AND p.pool = '') AS targets,"
            " (SELECT count(*) FROM {partition} p WHERE p.owner_incarnation = n.incarnation AND p.pool = '') AS owned,"
            " (SELECT coalesce(sum(p.last_token - p.first_token + 1), 0) FROM {partition} p"
            " WHERE p.owner_incarnation = n.incarnation AND p.pool = '') AS tokens,"
            " (SELECT count(*) FROM {claim} c WHERE c.incarnation = n.incarnation AND c.state = 'running') AS running,"
            " (SELECT count(*) FROM {claim} c WHERE c.incarnation = n.incarnation AND c.state <> 'running') AS ended"
            " FROM {node} n"
        )
        self._totals = sql(
            "SELECT clock_timestamp() AS at, count(*) FILTER (WHERE pool = '') AS partitions,"
            " count(*) FILTER (WHERE owner IS NULL) AS unowned,"
            " count(*) FILTER (WHERE owner IS NOT NULL AND target IS DISTINCT FROM owner) AS moving,"
            " (SELECT count(*) FROM {claim} WHERE state = 'running') AS running,"
            " (SELECT count(*) FROM {rebalance} WHERE triggered_at > clock_timestamp() - interval '1 hour')"
            " AS rebalances_last_hour, (SELECT count(*) FROM {lock}) AS locks,"
            " (SELECT count(*) FROM {lock} l JOIN {partition} p USING (partition_id)"
            " WHERE p.caretaker OR p.target IS NULL) AS unserved_locks FROM {partition}"
        )
        self._owner = sql(
            "SELECT CASE WHEN NOT p.caretaker THEN p.owner END FROM {partition} p WHERE p.partition_id ="
            " coalesce((SELECT l.partition_id FROM {lock} l WHERE l.task_id = :key), :partition)"
        )

    def status(self, tx: Connection) -> ClusterStatus:
        """The cluster as it is now."""
        shares = {row.name: row for row in tx.execute(self._shares)}
        nodes = []
        for node in self._nodes.everyone(tx):
            row = shares.get(node.name)
            if row is not None:
                nodes.append(NodeShare(node, row.targets, row.owned, int(row.tokens), row.running, row.ended))
        totals = tx.execute(self._totals).one()
        return ClusterStatus(leader=self._leaders.current(tx), nodes=tuple(nodes), **totals._mapping)

    def owner(self, tx: Connection, key: str, partition: int) -> str | None:
        """The node that owns a key now; None if its partition is free, or no node matches its lock.

        Arguments:
            partition: the key's, while it is not locked.
        """
        owner: str | None = tx.execute(self._owner, {"key": key, "partition": partition}).scalar_one_or_none()
        return owner
