"""Freeing what a dead node held; always inside a transaction that has locked the leader's row."""

from __future__ import annotations

from jobsync_celery.store.database import Connection
from jobsync_celery.store.store import Store


def evict(
    tx: Connection,
    store: Store,
    name: str,
    incarnation: int,
    renewals: int | None,
    timeline: int | None,
    grace: float = 0,
) -> bool:
    """Declare a node dead, free its partitions and mark its running claims lost.

    ``renewals`` is the count its observer saw, on the database's ``timeline``; None if the process is provably gone.
    Its partitions wait for its name for ``grace`` seconds.
    False, and nothing changed, if it renewed meanwhile or was dead already, or the database failed over.
    """
    if not store.nodes.declare_dead(tx, name, incarnation, renewals, timeline, grace):
        return False
    settle(tx, store)
    store.claims.lose(tx, incarnation)
    store.notify(tx, "evicted")
    return True


def settle(tx: Connection, store: Store) -> None:
    """Free partitions and claims that belong to an incarnation whose row is dead or missing."""
    if store.partitions.free_orphans(tx):
        store.notify(tx, "freed")
    store.claims.settle(tx)
