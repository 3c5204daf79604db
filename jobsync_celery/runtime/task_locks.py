"""Locking keys to nodes, and unlocking them: what anybody may do, on a node or from a script.

Keys with the same patterns share a *pool* of partitions of their own, owned only by nodes that match. A key belongs
to one partition at a time; its messages follow it, since the owner of each partition sends on what belongs elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from jobsync_celery.core.locks import pool_of
from jobsync_celery.errors import TooManyPools
from jobsync_celery.runtime.rebalancing import rebalance
from jobsync_celery.store.database import Connection
from jobsync_celery.store.locks import NewLock
from jobsync_celery.store.schema import ClusterShape, locked_cluster
from jobsync_celery.store.store import Store

#: Each pool costs a queue, and a look at the patterns in every plan.
MOST_POOLS = 64


@dataclass(frozen=True)
class LockRequest:
    """A key that is to be locked; ``expires_in`` is in seconds, None for never."""

    key: str
    patterns: tuple[str, ...]
    reason: str | None = None
    expires_in: float | None = None


class TaskLocks:
    """The task locks of one cluster. Every method works inside a transaction of the caller's."""

    def __init__(self, store: Store, shape: ClusterShape) -> None:
        self._store = store
        self._shape = shape
        self._tokens = shape.tokens
        self._pool_tokens = shape.pool_tokens

    def set(self, tx: Connection, requests: Iterable[LockRequest], created_by: str) -> None:
        """Lock keys, in place of the locks that they had; in force when the transaction commits.

        From then on no claim of these keys is granted but to a node that matches. Of two requests for one key the
        last counts. Raises :class:`TooManyPools`.
        """
        wanted = {request.key: request for request in requests}
        if not wanted:
            return
        pools = {key: pool_of(request.patterns) for key, request in wanted.items()}
        if not self._store.partitions.pools(tx).keys() >= set(pools.values()):
            self._store.leaders.lock(tx)
        self._store.locks.take_turns(tx)
        self._store.locks.introduce(tx, created_by, self._shape.kind)
        numbers = self.ensure_pools(tx, pools.values())
        self._hold_still(tx, wanted)
        locks = [
            NewLock(
                key,
                pools[key],
                numbers[pools[key]][self._pool_tokens.partition_for(key)],
                request.reason,
                request.expires_in,
            )
            for key, request in wanted.items()
        ]
        self._store.locks.set(tx, locks, created_by)

    def clear(self, tx: Connection, keys: Collection[str]) -> int:
        """Unlock these keys; how many were locked."""
        self._store.locks.take_turns(tx)
        return self._clear(tx, self._store.locks.locked(tx, keys))

    def clear_by_creator(self, tx: Connection, created_by: str, before: datetime | None = None) -> int:
        """Unlock what one creator had locked, before a time if one is given; how many keys that were."""
        self._store.locks.take_turns(tx)
        keys = self._store.locks.created(tx, created_by, before)
        if not keys:  # a statement that clears nothing counts as a change too
            return 0
        self._hold_still(tx, keys)
        return self._store.locks.clear_created(tx, keys, created_by, before)

    def clear_all(self, tx: Connection) -> int:
        """Unlock everything; how many keys that were."""
        self._store.locks.take_turns(tx)
        return self._clear(tx, self._store.locks.keys(tx))

    def expire(self, tx: Connection, limit: int | None = None) -> int:
        """Unlock the keys whose locks have expired, by the database's clock; how many that were.

        None at once if somebody changes locks just now: an operator's open transaction must not hold up the leader.
        """
        if not self._store.locks.take_turns(tx, wait=False):
            return 0
        keys = self._store.locks.due(tx, limit)
        if not keys:
            return 0
        self._hold_still(tx, keys)
        return self._store.locks.clear_due(tx, keys)

    def clear_orphaned(self, tx: Connection, before: datetime, limit: int | None = None) -> int:
        """Unlock keys that were locked before a time by who has no row any more; how many that were.

        None at once if somebody changes locks just now, as :meth:`expire`.
        """
        if not self._store.locks.take_turns(tx, wait=False):
            return 0
        return self._clear(tx, self._store.locks.orphaned(tx, before, limit))

    def ensure_pools(self, tx: Connection, pools: Collection[str]) -> Mapping[str, tuple[int, ...]]:
        """Add the pools that do not exist yet, and plan for them; the partitions of all pools.

        Raises :class:`TooManyPools`.
        """
        partitions = self._store.partitions
        known = partitions.pools(tx)
        if known.keys() >= set(pools):
            return known
        self._store.leaders.lock(tx)
        known = partitions.pools(tx)  # somebody else may have added them meanwhile
        missing = sorted(set(pools) - known.keys())
        if len(known) + len(missing) > MOST_POOLS:
            raise TooManyPools(
                f"there are {len(known)} different lists of node patterns already, and may be {MOST_POOLS}:"
                f" lock by one of them, such as {', '.join(sorted(known)[:3])}"
            )
        # With the first pool, claims begin to draw their fences in another way: none may be under way.
        partitions.hold_still(tx)
        ranges = [self._pool_tokens.range(number) for number in range(self._pool_tokens.partitions)]
        added = {pool: partitions.add_pool(tx, pool, ranges) for pool in missing}
        if any(seat.target is not None for seat in partitions.seats(tx)):  # the first plan is the leader's own
            rebalance(tx, self._store, self._tokens, "task locks")
        return {**known, **added}

    def _clear(self, tx: Connection, keys: Collection[str]) -> int:
        if not keys:  # a statement that clears nothing counts as a change too
            return 0
        self._hold_still(tx, keys)
        return self._store.locks.clear(tx, keys)

    def _hold_still(self, tx: Connection, keys: Iterable[str]) -> None:
        """Let no claim of these keys be made, wherever they are, until the transaction ends."""
        locked_cluster(self._store.database, tx, self._shape)
        if numbers := {self._tokens.partition_for(key) for key in keys}:
            self._store.partitions.hold_still(tx, numbers)
