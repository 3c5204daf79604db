"""Partitions in the database: who should have each, who has it, and the three ways in which that changes.

An owner changes only by release (by the owner), by eviction, or by taking a free partition that one is the
target of. Rows are locked in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy.engine import Connection

from jobsync_celery.core.model import Seat
from jobsync_celery.store.database import Database, Link


class LockPartition(NamedTuple):
    """A partition that carries locked keys: which of its pool's partitions it is.

    A caretaker is its owner only because no live node matches, or until one that does has it: it holds and sends on,
    and runs nothing.
    """

    pool: str
    position: int
    caretaker: bool = False


@dataclass(frozen=True)
class Share:
    """What a node has, and what its target says: ``take`` are free, ``release`` are to be handed over.

    ``pools`` are those of them that carry locked keys.
    """

    owned: frozenset[int]
    take: frozenset[int]
    release: frozenset[int]
    pools: Mapping[int, LockPartition] = field(default_factory=dict)


class Partitions:
    """The rows of ``sync_partition``."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._seats = sql(
            "SELECT partition_id, target, owner, owner_incarnation, last_owner, pool, caretaker,"
            " coalesce(extract(epoch FROM assigned_at), 0)::float8 AS since"
            " FROM {partition} ORDER BY partition_id"
        )
        self._share = sql(
            "SELECT p.partition_id, p.target = :name AS wanted, p.owner_incarnation, p.pool,"
            " p.caretaker OR p.target IS DISTINCT FROM :name AS caretaker,"
            " CASE WHEN p.pool <> '' THEN (SELECT count(*) FROM {partition} q"
            " WHERE q.pool = p.pool AND q.first_token < p.first_token) END AS position"
            " FROM {partition} p WHERE p.target = :name OR p.owner_incarnation = :incarnation"
        )
        self._assign = sql(
            "WITH plan AS (SELECT * FROM unnest(CAST(:numbers AS int[]), CAST(:targets AS text[]),"
            " CAST(:caretakers AS boolean[])) AS t (partition_id, target, caretaker)),"
            " locked AS (SELECT partition_id FROM {partition} WHERE partition_id = ANY(CAST(:numbers AS int[]))"
            " ORDER BY partition_id FOR UPDATE)"
            " UPDATE {partition} p SET target = plan.target, caretaker = plan.caretaker,"
            " assigned_at = statement_timestamp(), version = p.version + 1"
            " FROM plan JOIN locked USING (partition_id) WHERE p.partition_id = plan.partition_id"
            " AND (p.target, p.caretaker) IS DISTINCT FROM (plan.target, plan.caretaker)"
        )
        self._take = sql(
            "WITH me AS (SELECT incarnation FROM {node} WHERE name = :name AND incarnation = :incarnation"
            " AND state = 'live' FOR KEY SHARE),"
            " free AS (SELECT p.partition_id FROM {partition} p, me WHERE p.partition_id = ANY(CAST(:numbers AS int[]))"
            " AND p.owner IS NULL AND p.target = :name ORDER BY p.partition_id FOR UPDATE OF p)"
            " UPDATE {partition} p SET owner = :name, owner_incarnation = :incarnation,"
            " claimed_at = clock_timestamp(), version = p.version + 1"
            " FROM free WHERE p.partition_id = free.partition_id RETURNING p.partition_id"
        )
        self._release = sql(
            "WITH mine AS (SELECT partition_id FROM {partition} WHERE owner_incarnation = :incarnation"
            " AND partition_id = ANY(CAST(:numbers AS int[])) ORDER BY partition_id FOR UPDATE)"
            " UPDATE {partition} p SET owner = NULL, owner_incarnation = NULL, last_owner = p.owner,"
            " claimed_at = NULL, version = p.version + 1"
            " FROM mine WHERE p.partition_id = mine.partition_id RETURNING p.partition_id"
        )
        # Claims hold these rows with a share lock.
        self._hold_still = sql(
            "SELECT FROM {partition} WHERE CAST(:numbers AS int[]) IS NULL OR pool <> ''"
            " OR partition_id = ANY(CAST(:numbers AS int[])) ORDER BY partition_id FOR NO KEY UPDATE"
        )
        self._pools = sql("SELECT pool, partition_id FROM {partition} WHERE pool <> '' ORDER BY pool, first_token")
        self._add_pool = sql(
            "INSERT INTO {partition} (partition_id, pool, first_token, last_token)"
            " SELECT (SELECT max(partition_id) FROM {partition}) + t.index, :pool, t.first, t.last"
            " FROM unnest(CAST(:firsts AS int[]), CAST(:lasts AS int[])) WITH ORDINALITY AS t (first, last, index)"
            " RETURNING partition_id"
        )
        self._forget_plan = sql(
            "WITH planned AS (SELECT partition_id FROM {partition} WHERE target IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM {node}"
            " WHERE state IN ('live', 'draining') OR awaited_until > clock_timestamp())"
            " ORDER BY partition_id FOR UPDATE)"
            " UPDATE {partition} p SET target = NULL, caretaker = false, version = p.version + 1"
            " FROM planned WHERE p.partition_id = planned.partition_id"
        )
        self._free_orphans = sql(
            "WITH orphans AS (SELECT p.partition_id FROM {partition} p WHERE p.owner_incarnation IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM {node} n WHERE n.incarnation = p.owner_incarnation"
            " AND n.state IN ('live', 'draining')) ORDER BY p.partition_id FOR UPDATE OF p)"
            " UPDATE {partition} p SET owner = NULL, owner_incarnation = NULL, last_owner = p.owner,"
            " claimed_at = NULL, version = p.version + 1"
            " FROM orphans WHERE p.partition_id = orphans.partition_id RETURNING p.partition_id"
        )

    def seats(self, tx: Connection) -> list[Seat]:
        """Every partition, by number."""
        return [
            Seat(
                number=row.partition_id,
                target=row.target,
                owner=row.owner,
                owner_incarnation=row.owner_incarnation,
                last_owner=row.last_owner,
                pool=row.pool,
                caretaker=row.caretaker,
                since=row.since,
            )
            for row in tx.execute(self._seats)
        ]

    def share(self, link: Link, name: str, incarnation: int) -> Share:
        """What this incarnation owns, may take and has to hand over; one statement."""
        owned: set[int] = set()
        take: set[int] = set()
        release: set[int] = set()
        pools: dict[int, LockPartition] = {}
        params = {"name": name, "incarnation": incarnation}
        for number, wanted, owner, pool, caretaker, position in link.statement(self._share, params):
            if pool:
                pools[number] = LockPartition(pool, position, caretaker)
            if owner == incarnation:
                (owned if wanted else release).add(number)
            elif owner is None:
                take.add(number)
        return Share(frozenset(owned | release), frozenset(take), frozenset(release), pools)

    def assign(
        self, tx: Connection, targets: Mapping[int, str | None], caretakers: Collection[int] = frozenset()
    ) -> None:
        """Write a plan: the new targets of the partitions that change, and which of these are caretakers only."""
        if targets:
            flags = [number in caretakers for number in targets]
            params = {"numbers": list(targets), "targets": list(targets.values()), "caretakers": flags}
            tx.execute(self._assign, params)

    def take(self, tx: Connection, numbers: Collection[int], name: str, incarnation: int) -> frozenset[int]:
        """Become the owner of those partitions that are still free and meant for this node, if it is live."""
        params = {"numbers": sorted(numbers), "name": name, "incarnation": incarnation}
        return frozenset(row.partition_id for row in tx.execute(self._take, params))

    def release(self, tx: Connection, numbers: Collection[int], incarnation: int) -> frozenset[int]:
        """Give up partitions that this incarnation owns."""
        params = {"numbers": sorted(numbers), "incarnation": incarnation}
        return frozenset(row.partition_id for row in tx.execute(self._release, params))

    def hold_still(self, tx: Connection, numbers: Collection[int] | None = None) -> None:
        """Let no claim be made in these partitions and those of lock pools, or in any, until the transaction ends."""
        params = {"numbers": None if numbers is None else sorted(numbers)}
        tx.execute(self._hold_still, params)
        # A pool that was added while this waited is not in its snapshot. From here on none can be added, nor a key of
        # these partitions moved, and the numbers of new ones are larger: the order of locks is kept.
        tx.execute(self._hold_still, params)

    def pools(self, tx: Connection) -> dict[str, tuple[int, ...]]:
        """The partitions that carry locked keys, by pool, in the order of their positions."""
        pools: dict[str, tuple[int, ...]] = {}
        for pool, number in tx.execute(self._pools):
            pools[pool] = (*pools.get(pool, ()), number)
        return pools

    def add_pool(self, tx: Connection, pool: str, ranges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Add the partitions of a pool, which carry these tokens; the leader's row must be locked."""
        firsts, lasts = zip(*ranges, strict=True)
        rows = tx.execute(self._add_pool, {"pool": pool, "firsts": list(firsts), "lasts": list(lasts)})
        return tuple(sorted(row.partition_id for row in rows))

    def forget_plan(self, tx: Connection) -> None:
        """If there is no node any more, nor one to wait for, take back the plan: the next one is a first plan again.

        The leader's row must be locked, or two that leave at once each see the other.
        """
        tx.execute(self._forget_plan)

    def free_orphans(self, tx: Connection) -> Sequence[int]:
        """Free every partition whose owner is dead or gone."""
        return [row.partition_id for row in tx.execute(self._free_orphans)]
