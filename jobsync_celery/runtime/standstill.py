"""Seeing that a cluster is stopped: that no node has a lease which could still be valid, and none can resume.

A node that left has no row. One that was killed has, if nobody was there to evict it; its lease is waited for as the
nodes themselves would: by this observer's clock, and by a counter that stands still.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing

from jobsync_celery.core.lease import DRIFT
from jobsync_celery.core.model import Member
from jobsync_celery.errors import StillRunning
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.eviction import settle
from jobsync_celery.store.database import Connection
from jobsync_celery.store.store import Store

_LOOK_SEC = 0.2


class Standstill:
    """What is known of a cluster that is said to be stopped.

    Arguments:
        lease: seconds; of nodes that a failover of the database may have made forgotten.
        say: told what is waited for, if anything is.
    """

    def __init__(
        self,
        store: Store,
        lease: float,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = boot_clock,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._lease = lease
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._silent: Sequence[Member] = ()
        self._timeline: int | None = None

    def look(self) -> None:
        """Raise :class:`StillRunning` if a node has renewed its lease lately; waits for nothing."""
        self._silent = self._members()
        if fresh := [each.name for each in self._silent if each.age <= (each.timeout or self._lease)]:
            raise StillRunning(*fresh)

    def watch(self) -> None:
        """Return once no lease can be valid any more; at once if every node has left.

        Raises:
            StillRunning: a node has renewed its lease lately, or does so meanwhile.
        """
        with closing(self._store.database.link("jobsync command")) as link:
            generation = self._store.nodes.generation(link)
        self._timeline = generation.current
        self.look()
        since = self._clock()
        leases = [each.timeout or self._lease for each in self._silent]
        longest = max([*leases, *([] if generation.outlived else [self._lease])], default=0.0) * (1 + DRIFT)
        if longest:
            names = ", ".join(each.name for each in self._silent) or "nodes from before the database failed over"
            self._say(f"waiting {longest:.0f} s for the lease of {names}")
            self._outwait(since + longest)

    def enforce(self, tx: Connection) -> None:
        """In the transaction that needs the standstill: bury who was silent, and see that nobody has come.

        The leader's row must be locked; with the cluster's row locked too nobody comes before the commit.

        Raises:
            StillRunning: a node is there.
        """
        self._store.leaders.lock(tx)
        for member in self._silent:
            self._store.nodes.declare_dead(tx, member.name, member.incarnation, member.renewals, self._timeline)
        if members := self._store.nodes.members(tx):
            raise StillRunning(*(each.name for each in members))
        if self._timeline is not None:
            self._store.nodes.outlive(tx, self._timeline)
        settle(tx, self._store)

    def _outwait(self, end: float) -> None:
        while self._clock() <= end:
            self._sleep(_LOOK_SEC)
            self._refuse_renewed(self._members())

    def _members(self) -> Sequence[Member]:
        with self._store.database.transaction("jobsync command") as tx:
            return self._store.nodes.members(tx)

    def _refuse_renewed(self, members: Sequence[Member]) -> None:
        known = {(each.name, each.incarnation): each.renewals for each in self._silent}
        if alive := [each.name for each in members if known.get((each.name, each.incarnation)) != each.renewals]:
            raise StillRunning(*alive)
