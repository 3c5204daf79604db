"""Read-only questions about a cluster: status, history, balance. No locks, no promises beyond one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from jobsync_celery.store.database import Database
from jobsync_celery.store.leader import Leader, Leaders
from jobsync_celery.store.nodes import NodeRow, Nodes

# Terms that began within the hour; the first one of a cluster changed nothing. Without an older plan, as where the
# history was cleared, the oldest term known of the hour is the first that counts.
_LEADER_CHANGES = """
    (SELECT CASE WHEN l.since IS NULL OR l.since < clock_timestamp() - interval '1 hour' THEN 0
        ELSE greatest(0, l.term - coalesce(
            (SELECT h.term FROM {rebalance} h WHERE h.triggered_at <= clock_timestamp() - interval '1 hour'
                ORDER BY h.triggered_at DESC LIMIT 1),
            (SELECT least(l.term, 1) FROM {cluster} c WHERE c.created_on > clock_timestamp() - interval '1 hour'),
            least((SELECT min(h.term) FROM {rebalance} h), l.term) - 1)) END FROM {leader} l)
""".strip()


@dataclass(frozen=True)
class NodeShare:
    """A node, and what it has: ``targets`` are the partitions it should have, ``owned`` those it has."""

    node: NodeRow
    targets: int
    owned: int
    tokens: int
    running: int


@dataclass(frozen=True)
class ClusterStatus:
    """A cluster at one moment, by the database's clock.

    ``awaited_keys`` run while another node waits for them to end. ``waiting`` are those of the unowned partitions that
    wait for a node to return under its name.
    """

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
    leader_changes_last_hour: int = 0
    awaited_keys: int = 0
    waiting: int = 0

    @property
    def live(self) -> tuple[NodeShare, ...]:
        """The nodes that are live or draining."""
        return tuple(share for share in self.nodes if share.node.state in ("live", "draining"))

    @property
    def lag(self) -> float | None:
        """The longest time since a heartbeat of those nodes, in seconds; None without nodes."""
        return max((share.node.lag for share in self.live if share.node.lag is not None), default=None)

    @property
    def imbalance(self) -> float | None:
        """How far the tokens of a live node are from its share by weight, at most, in percent; None without nodes."""
        sharing = [share for share in self.live if share.node.state == "live" and not share.node.silent]
        weights = [share.node.weight for share in sharing]
        if not any(weights):
            weights = [1.0] * len(sharing)
        total = sum(share.tokens for share in sharing)
        if not total:
            return None
        fair = [total * weight / sum(weights) for weight in weights]
        # Of nodes with weight 0 nothing is expected, and to have something then is no share that could be exceeded.
        far = (abs(share.tokens - part) / part for share, part in zip(sharing, fair, strict=True) if part)
        return 100 * max(far, default=0.0)

    @property
    def state(self) -> str:
        """In one word or two: stable, waiting, rebalancing, degraded, no leader."""
        silent = [share.node.silent for share in self.live]
        if all(silent):
            return "no leader"
        if self.unowned > self.waiting or self.moving:
            return "rebalancing"
        if self.unserved_locks or any(silent) or any(share.node.state == "dead" for share in self.nodes):
            return "degraded"
        return "waiting" if self.waiting else "stable"


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
            " (SELECT count(*) FROM {claim} c WHERE c.incarnation = n.incarnation AND c.finished_on IS NULL) AS running"
            " FROM {node} n"
        )
        self._totals = sql(
            "SELECT clock_timestamp() AS at, count(*) FILTER (WHERE pool = '') AS partitions,"
            " count(*) FILTER (WHERE owner IS NULL) AS unowned,"
            " count(*) FILTER (WHERE owner IS NULL AND target IN"
            " (SELECT n.name FROM {node} n WHERE n.awaited_until > clock_timestamp())) AS waiting,"
            " count(*) FILTER (WHERE owner IS NOT NULL AND target IS DISTINCT FROM owner) AS moving,"
            " (SELECT count(*) FROM {claim} WHERE state = 'running') AS running,"
            " (SELECT count(*) FROM {rebalance} WHERE triggered_at > clock_timestamp() - interval '1 hour')"
            " AS rebalances_last_hour, (SELECT count(*) FROM {lock}) AS locks,"
            " (SELECT count(*) FROM {lock} l JOIN {partition} p USING (partition_id)"
            " WHERE p.caretaker OR p.target IS NULL) AS unserved_locks,"
            " (SELECT count(*) FROM {claim} WHERE state = 'running' AND awaited) AS awaited_keys,"
            " {changes} AS leader_changes_last_hour FROM {partition}",
            changes=_LEADER_CHANGES,
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
                nodes.append(NodeShare(node, row.targets, row.owned, int(row.tokens), row.running))
        totals = tx.execute(self._totals).one()
        return ClusterStatus(leader=self._leaders.current(tx), nodes=tuple(nodes), **totals._mapping)

    def owner(self, tx: Connection, key: str, partition: int) -> str | None:
        """The node that owns a key now; None if its partition is free, or no node matches its lock.

        Arguments:
            partition: the key's, while it is not locked.
        """
        owner: str | None = tx.execute(self._owner, {"key": key, "partition": partition}).scalar_one_or_none()
        return owner
