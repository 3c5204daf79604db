"""Partitions in the database: who should have each, who has it, and the three ways in which that changes.

An owner changes only by release (by the owner), by eviction, or by taking a free partition that one is the
target of. Rows are locked in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from jobsync_celery.core.model import Seat
from jobsync_celery.store.database import Database, Link


@dataclass(frozen=True)
class Share:
    """What a node has, and what its target says: ``take`` are free, ``release`` are to be handed over."""

    owned: frozenset[int]
    take: frozenset[int]
    release: frozenset[int]


class Partitions:
    """The rows of ``sync_partition``."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._seats = sql(
            "SELECT partition_id, target, owner, owner_incarnation, last_owner, pool"
            " FROM {partition} ORDER BY partition_id"
        )
        self._share = sql(
            "SELECT partition_id, target = :name AS wanted, owner_incarnation FROM {partition}"
            " WHERE target = :name OR owner_incarnation = :incarnation"
        )
        self._assign = sql(
            "WITH plan AS (SELECT * FROM unnest(CAST(:numbers AS int[]), CAST(:targets AS text[]))"
            " AS t (partition_id, target)),"
            " locked AS (SELECT partition_id FROM {partition} WHERE partition_id = ANY(CAST(:numbers AS int[]))"
            " ORDER BY partition_id FOR UPDATE)"
            " UPDATE {partition} p SET target = plan.target, assigned_at = clock_timestamp(), version = p.version + 1"
            " FROM plan JOIN locked USING (partition_id)"
            " WHERE p.partition_id = plan.partition_id AND p.target IS DISTINCT FROM plan.target"
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
            )
            for row in tx.execute(self._seats)
        ]

    def share(self, link: Link, name: str, incarnation: int) -> Share:
        """What this incarnation owns, may take and has to hand over; one statement."""
        owned: set[int] = set()
        take: set[int] = set()
        release: set[int] = set()
        for number, wanted, owner in link.statement(self._share, {"name": name, "incarnation": incarnation}):
            if owner == incarnation:
                (owned if wanted else release).add(number)
            elif owner is None:
                take.add(number)
        return Share(frozenset(owned | release), frozenset(take), frozenset(release))

    def assign(self, tx: Connection, targets: Mapping[int, str | None]) -> None:
        """Write a plan: the new targets of the partitions that move."""
        if targets:
            tx.execute(self._assign, {"numbers": list(targets), "targets": list(targets.values())})

    def take(self, tx: Connection, numbers: Collection[int], name: str, incarnation: int) -> frozenset[int]:
        """Become the owner of those partitions that are still free and meant for this node, if it is live."""
        params = {"numbers": sorted(numbers), "name": name, "incarnation": incarnation}
        return frozenset(row.partition_id for row in tx.execute(self._take, params))

    def release(self, tx: Connection, numbers: Collection[int], incarnation: int) -> frozenset[int]:
        """Give up partitions that this incarnation owns."""
        params = {"numbers": sorted(numbers), "incarnation": incarnation}
        return frozenset(row.partition_id for row in tx.execute(self._release, params))

    def free_orphans(self, tx: Connection) -> Sequence[int]:
        """Free every partition whose owner is dead or gone."""
        return [row.partition_id for row in tx.execute(self._free_orphans)]
