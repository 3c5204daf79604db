"""Nodes in the database: register, renew, drain, declare dead, leave.

Expiry is compared with the database's clock in one statement only, :meth:`Nodes.renew`, which reports the age
of each watched row; everywhere else a node is gone only because its row says so, or is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from jobsync_celery.core.model import Member
from jobsync_celery.store.database import Database, Link
from jobsync_celery.store.profiles import Profiles

#: How many of the oldest nodes watch the others: one leads, the rest take over from it. Who has been silent for half of
#: its lease does not count, or nobody would watch once all of these had died at once.
WATCHERS = 3


@dataclass(frozen=True)
class Identity:
    """What a node says of itself when it registers.

    Arguments:
        presence: names the lock file that the process and its pool children hold (see ``runtime.presence``).
        lease_sec: after how many seconds without renewal the node may be declared dead.
        profile: its settings and its broker, as far as others have to agree with them; JSON, without secrets.
    """

    name: str
    weight: float
    lease_sec: float
    hostname: str
    presence: str
    pid: int
    version: str
    kind: str = "celery"
    profile: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Incumbent:
    """The row that already stands under a node's name."""

    incarnation: int
    state: str
    renewals: int
    presence: str
    hostname: str
    pid: int
    lease_sec: float

    @property
    def gone(self) -> bool:
        """Whether the row itself says that nobody uses the name."""
        return self.state not in ("live", "draining")


@dataclass(frozen=True)
class Renewal:
    """The answer to a heartbeat.

    ``misplaced``: some partition waits to be taken or released by this node. ``unsettled``: a partition or a
    running claim still belongs to an incarnation that is gone. ``members`` is empty unless this node watches.
    ``locks_version`` counts the changes of task locks; ``lock_due`` is in how many seconds the next one expires.
    ``roster`` is told if it was asked for: a text that changes whenever a node joins, goes or begins to drain.
    ``caretaking`` are the lock pools' partitions of this node whose keys it may not run. ``drain_ordered``: somebody
    wants this node to drain, until the order is lifted. ``wait_until``: when the first name is no longer waited for, as
    ``database_time``; None if none is, or if this node does not watch.
    """

    state: str
    database_time: float
    timeline: int
    misplaced: bool
    unsettled: bool
    members: tuple[Member, ...]
    locks_version: int = 0
    lock_due: float | None = None
    roster: str | None = None
    caretaking: frozenset[int] = frozenset()
    drain_ordered: bool = False
    wait_until: float | None = None

    @property
    def watching(self) -> bool:
        """Whether this node is one of the few that watch the others."""
        return bool(self.members)


@dataclass(frozen=True)
class Generation:
    """The server's timeline, and the last one whose failover the cluster has ``recorded`` as outlived."""

    recorded: int
    current: int

    @property
    def outlived(self) -> bool:
        """Whether every lease from before the last failover has ended."""
        return self.recorded >= self.current


class Nodes:
    """The rows of ``sync_node``."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._find = sql(
            "SELECT incarnation, state, renewals, coalesce(presence, '') AS presence,"
            " coalesce(hostname, '') AS hostname, coalesce(pid, 0) AS pid, coalesce(lease_sec, 0) AS lease_sec"
            " FROM {node} WHERE name = :name"
        )
        self._register = sql(
            "INSERT INTO {node} AS n (name, incarnation, kind, state, created_on, last_heartbeat, renewals, weight,"
            " lease_sec, drain_ordered, hostname, presence, pid, version)"
            # Sequences may go back at a failover that loses commits: no number is given twice all the same.
            " SELECT :name, (seen.timeline << 40) + nextval('{incarnation_seq}'), :kind,"
            " CASE WHEN :drain_ordered THEN 'draining' ELSE 'live' END, clock_timestamp(), clock_timestamp(), 0,"
            " :weight, :lease_sec, :drain_ordered, :hostname, :presence, :pid, :version"
            " FROM (SELECT {timeline}() AS timeline) AS seen"
            " WHERE CAST(:timeline AS bigint) IS NULL OR seen.timeline = :timeline"
            " ON CONFLICT (name) DO UPDATE SET incarnation = excluded.incarnation, kind = excluded.kind,"
            " state = excluded.state, created_on = excluded.created_on, last_heartbeat = excluded.last_heartbeat,"
            " renewals = 0, weight = excluded.weight, lease_sec = excluded.lease_sec,"
            " drain_ordered = excluded.drain_ordered, awaited_until = NULL, hostname = excluded.hostname,"
            " presence = excluded.presence, pid = excluded.pid, version = excluded.version"
            " WHERE n.state NOT IN ('live', 'draining')"
            " RETURNING incarnation"
        )
        self._profiles = Profiles(database)
        self._generation = sql("SELECT timeline AS recorded, {timeline}() AS current FROM {cluster}")
        self._outlive = sql("UPDATE {cluster} SET timeline = :timeline WHERE timeline < :timeline")
        self._renew = sql(
            "WITH mine AS (UPDATE {node} SET renewals = renewals + 1, last_heartbeat = clock_timestamp()"
            " WHERE name = :name AND incarnation = :incarnation AND state IN ('live', 'draining')"
            " RETURNING state, drain_ordered),"
            " duty AS (SELECT count(*) < :watchers AS watching FROM {node} older"
            " WHERE older.state IN ('live', 'draining') AND older.incarnation < :incarnation"
            " AND older.last_heartbeat > clock_timestamp() - make_interval(secs => older.lease_sec / 2))"
            " SELECT mine.state, mine.drain_ordered, extract(epoch FROM clock_timestamp())::float8 AS database_time,"
            " {timeline}() AS timeline,"
            " EXISTS (SELECT FROM {partition} p WHERE (p.target = :name AND p.owner IS NULL)"
            " OR (p.owner_incarnation = :incarnation AND p.target IS DISTINCT FROM :name)) AS misplaced,"
            " duty.watching AND (EXISTS (SELECT FROM {partition} p WHERE p.owner_incarnation IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM {node} o WHERE o.incarnation = p.owner_incarnation"
            " AND o.state IN ('live', 'draining')))"
            " OR EXISTS (SELECT FROM {claim} c WHERE c.state = 'running' AND NOT EXISTS (SELECT FROM {node} o"
            " WHERE o.incarnation = c.incarnation AND o.state IN ('live', 'draining')))) AS unsettled,"
            " CASE WHEN duty.watching THEN (SELECT json_agg(json_build_array(o.name, o.incarnation, o.state, o.weight,"
            " o.renewals, extract(epoch FROM clock_timestamp() - o.last_heartbeat), o.lease_sec))"
            " FROM {node} o WHERE o.state IN ('live', 'draining')) END AS members,"
            " (SELECT locks_version FROM {cluster}) AS locks_version,"
            " extract(epoch FROM (SELECT min(expires_at) FROM {lock}) - clock_timestamp())::float8 AS lock_due,"
            " CASE WHEN duty.watching THEN (SELECT extract(epoch FROM min(o.awaited_until))::float8"
            " FROM {node} o) END AS wait_until,"
            # Later incarnations are larger numbers, so no two sets that follow each other agree in count and sum.
            " CASE WHEN :curious THEN (SELECT concat_ws(' ', count(*), sum(o.incarnation),"
            " count(*) FILTER (WHERE o.state = 'draining'), sum(o.incarnation) FILTER (WHERE o.state = 'draining'))"
            " FROM {node} o WHERE o.state IN ('live', 'draining')) END AS roster,"
            " (SELECT array_agg(p.partition_id) FROM {partition} p WHERE p.owner_incarnation = :incarnation"
            " AND p.pool <> '' AND (p.caretaker OR p.target IS DISTINCT FROM :name)) AS caretaking"
            " FROM mine, duty",
        )
        self._members = sql(
            "SELECT name, incarnation, state, weight, renewals,"
            " coalesce(extract(epoch FROM clock_timestamp() - last_heartbeat), 0)::float8 AS age,"
            " coalesce(lease_sec, 0) AS lease_sec"
            " FROM {node} WHERE state IN ('live', 'draining') ORDER BY incarnation"
        )
        self._drain = sql(
            "UPDATE {node} SET state = 'draining',"
            " awaited_until = clock_timestamp() + make_interval(secs => CAST(:grace AS float8))"
            " WHERE name = :name AND incarnation = :incarnation AND state = 'live'"
        )
        self._undrain = sql(
            "UPDATE {node} SET state = 'live' WHERE name = :name AND incarnation = :incarnation AND state = 'draining'"
        )
        self._order_drain = sql(
            # Nobody need wait for it any longer, of which the leader learns as of every wait that is over.
            "UPDATE {node} SET state = 'draining', drain_ordered = true,"
            " awaited_until = CASE WHEN awaited_until IS NOT NULL THEN clock_timestamp() END"
            " WHERE name = :name AND state IN ('live', 'draining') RETURNING incarnation"
        )
        # The node itself goes back to live: it may have reasons of its own not to.
        self._lift_drain = sql(
            "UPDATE {node} SET drain_ordered = false"
            " WHERE name = :name AND state IN ('live', 'draining') AND drain_ordered RETURNING incarnation"
        )
        self._declare_dead = sql(
            "WITH victim AS (SELECT incarnation FROM {node} WHERE name = :name AND incarnation = :incarnation"
            " AND state IN ('live', 'draining') AND (CAST(:renewals AS bigint) IS NULL OR renewals = :renewals)"
            " AND (CAST(:timeline AS bigint) IS NULL OR {timeline}() = :timeline)"
            " FOR UPDATE)"
            # One that was stopping has said itself how long it is waited for, and one that drains has nothing to wait.
            " UPDATE {node} n SET state = 'dead', awaited_until = CASE WHEN n.state = 'live'"
            " THEN clock_timestamp() + make_interval(secs => CAST(:grace AS float8)) ELSE n.awaited_until END"
            " FROM victim WHERE n.incarnation = victim.incarnation RETURNING n.incarnation"
        )
        # Without a heartbeat, so that it counts nowhere as one that beats.
        self._leave = sql(
            "UPDATE {node} SET state = 'left', last_heartbeat = NULL WHERE name = :name AND incarnation = :incarnation"
            " AND state <> 'dead' AND awaited_until > clock_timestamp()"
            " AND EXISTS (SELECT FROM {partition} p WHERE p.target = :name)"
        )
        self._remove = sql(
            "DELETE FROM {node} WHERE name = :name AND incarnation = :incarnation AND state NOT IN ('dead', 'left')"
        )
        self._everyone = sql(
            "SELECT name, incarnation, state, created_on, last_heartbeat, hostname, pid, version, weight,"
            " lease_sec, drain_ordered, awaited_until,"
            " extract(epoch FROM awaited_until - clock_timestamp())::float8 AS awaited_sec,"
            " extract(epoch FROM clock_timestamp() - last_heartbeat)::float8 AS lag"
            " FROM {node}"
            " WHERE state <> 'admin' ORDER BY created_on"
        )

    def find(self, link: Link, name: str) -> Incumbent | None:
        """The row under ``name``, or None."""
        rows = link.statement(self._find, {"name": name})
        return Incumbent(**rows[0]._mapping) if rows else None

    def generation(self, link: Link) -> Generation:
        """Which failovers the server knows of, and which of them the cluster has outlived."""
        [row] = link.statement(self._generation)
        return Generation(int(row.recorded), int(row.current))

    def outlive(self, tx: Connection, timeline: int) -> None:
        """Record that every lease from before the failover to this timeline has ended."""
        tx.execute(self._outlive, {"timeline": timeline})

    def register(
        self, tx: Connection, identity: Identity, timeline: int | None = None, *, drain_ordered: bool = False
    ) -> int | None:
        """Insert the node as a new incarnation; None if a node that is not gone holds the name.

        If ``timeline`` is given: None as well if the server is on another one. With ``drain_ordered`` it is draining.
        """
        params = {**vars(identity), "timeline": timeline, "drain_ordered": drain_ordered}
        profile = params.pop("profile")
        row = tx.execute(self._register, params).first()
        if row is None:
            return None
        incarnation = int(row.incarnation)
        self._profiles.write(tx, identity.name, incarnation, profile)
        return incarnation

    def renew(self, link: Link, name: str, incarnation: int, curious: bool = False) -> Renewal | None:
        """One heartbeat, one statement; None if this incarnation is dead or gone.

        There is no expiry test: whoever was not declared dead resumes after an outage. With ``curious`` the answer
        has a ``roster``.
        """
        params = {"name": name, "incarnation": incarnation, "watchers": WATCHERS, "curious": curious}
        rows = link.statement(self._renew, params)
        if not rows:
            return None
        row = rows[0]
        members = tuple(_member(*fields) for fields in row.members or ())
        return Renewal(
            row.state,
            row.database_time,
            int(row.timeline),
            row.misplaced,
            row.unsettled,
            members,
            row.locks_version,
            row.lock_due,
            row.roster,
            frozenset(row.caretaking or ()),
            row.drain_ordered,
            row.wait_until,
        )

    def members(self, tx: Connection) -> tuple[Member, ...]:
        """All nodes that are live or draining, oldest first."""
        return tuple(_member(*row) for row in tx.execute(self._members))

    def drain(self, tx: Connection, name: str, incarnation: int, grace: float = 0) -> bool:
        """Mark the node as draining; false if it was not live.

        Arguments:
            grace: its targets wait for so many seconds, since it leaves and may return under its name.
        """
        params = {"name": name, "incarnation": incarnation, "grace": grace or None}
        return bool(tx.execute(self._drain, params).rowcount)

    def undrain(self, tx: Connection, name: str, incarnation: int) -> bool:
        """Mark a draining node as live again; false if it was not draining."""
        return bool(tx.execute(self._undrain, {"name": name, "incarnation": incarnation}).rowcount)

    def order_drain(self, tx: Connection, name: str) -> int | None:
        """Have the node of this name drain until the order is lifted; its incarnation, None if no such node is live.

        The order is for this life of the worker: whoever starts under the name again is not bound by it.
        """
        incarnation: int | None = tx.execute(self._order_drain, {"name": name}).scalar()
        return incarnation

    def lift_drain(self, tx: Connection, name: str) -> int | None:
        """Lift the order to drain; the node's incarnation, None if there was no order."""
        incarnation: int | None = tx.execute(self._lift_drain, {"name": name}).scalar()
        return incarnation

    def declare_dead(
        self,
        tx: Connection,
        name: str,
        incarnation: int,
        renewals: int | None,
        timeline: int | None = None,
        grace: float = 0,
    ) -> bool:
        """Declare dead by compare-and-set; false if it renewed meanwhile or was gone already.

        ``renewals`` None is for the one case that needs no lease to end: the process is provably gone. On another
        ``timeline`` than the one on which they were counted, renewals may be lost, so nobody is declared dead. The
        targets of one that was live wait for its name for ``grace`` seconds.
        """
        params = {
            "name": name,
            "incarnation": incarnation,
            "renewals": renewals,
            "timeline": timeline,
            "grace": grace or None,
        }
        return tx.execute(self._declare_dead, params).first() is not None

    def remove(self, tx: Connection, name: str, incarnation: int) -> None:
        """Take the node's row away: it left in good order. Where targets wait for its name, it is kept as ``left``."""
        params = {"name": name, "incarnation": incarnation}
        tx.execute(self._leave, params)
        tx.execute(self._remove, params)

    def everyone(self, tx: Connection) -> Sequence[NodeRow]:
        """Every node with a row, dead ones too, in order of registration."""
        return [NodeRow(**row._mapping) for row in tx.execute(self._everyone)]


@dataclass(frozen=True)
class NodeRow:
    """A node as reports show it; ``lag`` is seconds since its last heartbeat by the database's clock.

    ``awaited_until``: how long partitions wait for its name, since it went or is about to; ``awaited_sec`` are the
    seconds until then.
    """

    name: str
    incarnation: int
    state: str
    created_on: datetime
    last_heartbeat: datetime | None
    hostname: str | None
    pid: int | None
    version: str | None
    weight: float
    lease_sec: float | None
    lag: float | None
    drain_ordered: bool = False
    awaited_until: datetime | None = None
    awaited_sec: float | None = None

    @property
    def present(self) -> bool:
        """Whether it is live or draining."""
        return self.state in ("live", "draining")

    @property
    def awaited(self) -> bool:
        """Whether its name is waited for."""
        return self.awaited_sec is not None and self.awaited_sec > 0

    @property
    def silent(self) -> bool:
        """Whether its lease has ended without a renewal, though nobody has declared it dead yet."""
        return self.state in ("live", "draining") and self.lag is not None and self.lag > (self.lease_sec or self.lag)


def _member(
    name: str, incarnation: int, state: Any, weight: float, renewals: int, age: float, lease_sec: float
) -> Member:
    return Member(
        name=name,
        incarnation=incarnation,
        state=state,
        weight=weight,
        renewals=renewals,
        age=float(age),
        timeout=lease_sec or None,
    )
