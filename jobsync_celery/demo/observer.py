"""A look at the cluster from outside: the same tables that an operator asks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from jobsync_celery.store.database import Database
from jobsync_celery.store.reports import ClusterStatus, NodeShare, Reports


@dataclass(frozen=True)
class Seat:
    """A partition's owner, and since when by the database's clock."""

    owner: str | None
    since: float


@dataclass(frozen=True)
class Look:
    """The cluster at one moment; ``clock`` is the database's, in seconds."""

    status: ClusterStatus
    seats: dict[int, Seat]
    clock: float

    def owned_by(self, name: str) -> tuple[int, ...]:
        """The partitions that a node owns."""
        return tuple(number for number, seat in self.seats.items() if seat.owner == name)

    def node(self, name: str) -> NodeShare | None:
        """What is known of a node; None without a row."""
        return next((share for share in self.status.nodes if share.node.name == name), None)

    def shared_by(self, names: Collection[str]) -> bool:
        """Whether exactly these nodes are live and each partition is where the plan wants it."""
        live = {share.node.name for share in self.status.nodes if share.node.state == "live"}
        settled = not self.status.unowned and not self.status.moving
        return live == set(names) and settled and all(share.owned for share in self.status.live)

    def moved_since(self, start: float, partitions: Collection[int], away_from: str) -> float | None:
        """Seconds from ``start`` until the last of these partitions had another owner; None if one has not."""
        seats = [self.seats[number] for number in partitions]
        if any(seat.owner in (None, away_from) for seat in seats):
            return None
        return max((seat.since - start for seat in seats), default=0.0)


class Observer:
    """Asks the database over a connection of its own."""

    def __init__(self, database: Database) -> None:
        self._link = database.link("jobsync demo")
        self._reports = Reports(database)
        self._seats = database.sql(
            "SELECT partition_id, owner, extract(epoch FROM coalesce(claimed_at, 'epoch'))::float8 AS since,"
            " extract(epoch FROM clock_timestamp())::float8 AS clock FROM {partition} ORDER BY partition_id"
        )

    def look(self) -> Look:
        """The cluster now."""
        with self._link.transaction() as tx:
            status = self._reports.status(tx)
            rows = tx.execute(self._seats).all()
        seats = {row.partition_id: Seat(row.owner, row.since) for row in rows}
        return Look(status, seats, max((row.clock for row in rows), default=0.0))

    def close(self) -> None:
        """Close the connection."""
        self._link.close()
