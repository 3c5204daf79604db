"""Being a node: register, renew, and know until when one may trust oneself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from jobsync_celery.core.lease import DRIFT, margin_for, trusted_until
from jobsync_celery.core.steps import Distance
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.eviction import evict
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.store.database import Connection, Link
from jobsync_celery.store.nodes import Generation, Identity, Incumbent, Renewal
from jobsync_celery.store.store import Store


class Hold(Protocol):
    """Proof of what runs on this machine; see :class:`jobsync_celery.runtime.presence.Presence`."""

    def proves_gone(self, identity: str) -> bool:
        """Whether the process that registered with ``identity`` is gone, with all its children."""
        ...


@dataclass(frozen=True)
class _Wait:
    """Waiting for the lease of another process of the same name: its counter, and since when it stands still."""

    incumbent: Incumbent
    timeline: int
    since: float
    refused: bool = False


class Membership:
    """This node's row and lease. Time comes from ``clock`` only; every method belongs to the node's thread.

    Arguments:
        interval: seconds between heartbeats.
        curious: whether they are to ask for the roster too.
        heard: called with the answer to each, before the lease that it renews is trusted.
    """

    def __init__(
        self,
        store: Store,
        link: Link,
        identity: Identity,
        lease: Lease,
        hold: Hold,
        events: Events,
        *,
        interval: float,
        clock: Callable[[], float] = boot_clock,
        curious: Callable[[], bool] = lambda: False,
        heard: Callable[[Renewal], None] = lambda answer: None,
    ) -> None:
        self._store = store
        self._link = link
        self.identity = identity
        self._lease = lease
        self._hold = hold
        self._events = events
        self._interval = interval
        self._clock = clock
        self._wait: _Wait | None = None
        #: The database's timeline as of the last heartbeat.
        self.timeline: int | None = None
        #: The last failover seen: the timeline it led to, and when that was first seen.
        self._failover: tuple[int, float] | None = None
        self._distance: Distance | None = None
        self.incarnation: int | None = None
        self.draining = False
        #: Somebody else wants this node to drain. It is kept when the node registers anew.
        self.drain_ordered = False
        self.next_due = 0.0
        #: When the last heartbeat that was answered had been sent, on the boot clock.
        self.renewed_at: float | None = None
        #: Called in the transaction that registers; raises if the cluster was reshaped and is not ours any more.
        self.admit: Callable[[Connection], None] = lambda tx: None
        self._curious = curious
        self._heard = heard

    @property
    def name(self) -> str:
        """The node's name."""
        return self.identity.name

    def tick(self) -> Renewal | None:
        """Register if need be, and renew; the answer to the heartbeat, or None if there is no lease."""
        sent_at = self._clock()
        self.next_due = sent_at + self._interval
        if self.incarnation is None and not self._register(sent_at):
            return None
        return self._renew()

    def retry_soon(self) -> None:
        """The heartbeat failed: try again well before the next one is due."""
        self.next_due = self._clock() + min(self._interval, max(0.1, self._interval / 5))

    def drain(self, grace: float = 0.0) -> None:
        """Ask for no more work: the leader plans without this node, or waits so many seconds for its name to return."""
        if self.incarnation is None or self.draining:
            return
        with self._link.transaction() as tx:
            if self._store.nodes.drain(tx, self.name, self.incarnation, grace):
                self._store.notify(tx, "members")
        self.draining = True
        self._events("node_draining", name=self.name)

    def resume(self) -> None:
        """Ask for work again, after :meth:`drain`, or after an order to drain was lifted."""
        if self.incarnation is None or not self.draining or self.drain_ordered:
            return
        with self._link.transaction() as tx:
            if self._store.nodes.undrain(tx, self.name, self.incarnation):
                self._store.notify(tx, "members")
        self.draining = False
        self._events("node_resumed", name=self.name)

    def leave(self, grace: float = 0.0) -> None:
        """Give up everything and remove the row, which is kept while partitions wait for its name.

        Only when nothing of this node runs any more.

        Arguments:
            grace: for how many seconds they wait, if it has not drained; else :meth:`drain` has said so.
        """
        incarnation, self.incarnation = self.incarnation, None
        self._lease.close()
        if incarnation is None:
            return
        with self._link.transaction() as tx:
            self._store.leaders.lock(tx)
            self._store.nodes.drain(tx, self.name, incarnation, grace)
            self._store.nodes.remove(tx, self.name, incarnation)
            self._store.partitions.free_orphans(tx)
            self._store.partitions.forget_plan(tx)
            self._store.claims.lose(tx, incarnation)
            self._store.notify(tx, "members")
            self._store.notify(tx, "freed")
        self._events("node_left", name=self.name)

    def lose(self, reason: str) -> None:
        """Stop trusting this incarnation; register again as a new one."""
        self._lease.close()
        self.incarnation = None
        self.next_due = self._clock()
        self._events("lease_lost", name=self.name, reason=reason)

    def _renew(self) -> Renewal | None:
        assert self.incarnation is not None
        # Trust is counted from before the statement is sent: a slow answer must not stretch the lease.
        sent_at = self._clock()
        answer = self._store.nodes.renew(self._link, self.name, self.incarnation, self._curious())
        if answer is None:
            self.lose("it was declared dead, or its row was removed")
            return None
        if self.timeline is not None and answer.timeline != self.timeline:
            self._failover = (answer.timeline, self._clock())
            self._distance = None
            self.lose("the database failed over")
            return None
        self.timeline = answer.timeline
        self._compare_clocks(Distance.of(sent_at, self._clock(), answer.database_time))
        self._obey(answer)
        self._heard(answer)
        lease = self.identity.lease_sec
        self.renewed_at = sent_at
        self._lease.renew(self.incarnation, trusted_until(sent_at, lease, margin=margin_for(lease)))
        return answer

    def _compare_clocks(self, now: Distance) -> None:
        before, self._distance = self._distance, now
        if before is not None and (step := now.step_since(before)):
            self._events("clock_stepped", seconds=step)

    def _obey(self, answer: Renewal) -> None:
        """Take in what others want of this node. That an order is lifted is acted on by :meth:`resume`."""
        self.drain_ordered = answer.drain_ordered
        if answer.drain_ordered and not self.draining:
            self.draining = True
            self._events("node_draining", name=self.name)

    def _register(self, now: float) -> bool:
        generation = self._store.nodes.generation(self._link)
        if not self._outlived(generation):
            return False
        timeline = generation.current
        incumbent = self._store.nodes.find(self._link, self.name)
        evictable = incumbent is not None and not incumbent.gone
        if incumbent is not None and evictable and not self._may_evict(incumbent, timeline):
            return False
        with self._link.transaction() as tx:
            if incumbent is not None:
                self._store.leaders.lock(tx)
            self._store.nodes.outlive(tx, timeline)
            self.admit(tx)
            if incumbent is not None and not evictable:
                self._store.partitions.forget_plan(tx)  # of those who all left, and did not return in time
            if incumbent is not None and evictable:
                proven = self._hold.proves_gone(incumbent.presence)
                renewals = None if proven else incumbent.renewals
                evict(tx, self._store, self.name, incumbent.incarnation, renewals, timeline)
            incarnation = self._store.nodes.register(tx, self.identity, timeline, drain_ordered=self.drain_ordered)
            self._store.notify(tx, "members")
        self.incarnation = incarnation
        if incarnation is None:
            return False
        self._wait = None
        self.timeline = timeline
        self.draining = self.drain_ordered
        self._events("node_registered", name=self.name, incarnation=incarnation)
        return True

    def _outlived(self, generation: Generation) -> bool:
        """Whether every lease from before the last failover has ended.

        The new primary may have lost renewals, claims and whole registrations, so nobody registers before a lease is
        over since the failover was first seen here; whoever does first records it, and nobody else waits.
        """
        if generation.outlived:
            return True
        now = self._clock()
        if self._failover is None or self._failover[0] != generation.current:
            self._failover = (generation.current, now)
        over = self._failover[1] + self.identity.lease_sec * (1 + DRIFT)
        if now < over:
            self.next_due = min(over, now + self._interval)
        return now >= over

    def _may_evict(self, incumbent: Incumbent, timeline: int) -> bool:
        """Whether the row under our name may be taken: its process is gone for sure, or its lease has ended."""
        if self._hold.proves_gone(incumbent.presence):
            return True
        now = self._clock()
        seen = self._wait
        if seen is None or (seen.incumbent.incarnation, seen.timeline) != (incumbent.incarnation, timeline):
            self._wait = _Wait(incumbent, timeline, now)
            self._report("waiting_for_name", incumbent)
        elif seen.incumbent.renewals != incumbent.renewals:
            self._wait = _Wait(incumbent, timeline, now, refused=True)
            if not seen.refused:
                self._report("name_taken", incumbent)
        elif now - seen.since > max(self.identity.lease_sec, incumbent.lease_sec) * (1 + DRIFT):
            return True
        self.next_due = now + min(self._interval, 1.0)
        return False

    def _report(self, fact: str, incumbent: Incumbent) -> None:
        self._events(fact, name=self.name, holder_host=incumbent.hostname, holder_pid=incumbent.pid)
