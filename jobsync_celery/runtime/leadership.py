"""Leading: the oldest live node shares the partitions out and declares the dead dead.

Safety does not depend on there being one leader only: every transaction here locks the leader's row, reads the
members afresh, and asks itself whether the caller still leads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobsync_celery.core.lease import Watch
from jobsync_celery.core.model import Member, Plan
from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.eviction import evict
from jobsync_celery.runtime.rebalancing import leads, rebalance
from jobsync_celery.runtime.task_locks import TaskLocks
from jobsync_celery.store.claims import LOST_AT_ONCE
from jobsync_celery.store.database import Connection, Link
from jobsync_celery.store.leader import Leader
from jobsync_celery.store.nodes import Renewal
from jobsync_celery.store.schema import ClusterShape
from jobsync_celery.store.store import Store

#: Joins within this many seconds are one plan.
_GATHER_SEC = 0.5
#: When a plan is held back, in part or as a whole, or the database did not let us plan, the next try is so much later.
_LATER_SEC = 0.5


@dataclass(frozen=True)
class FirstPlan:
    """What holds back the first plan of a cluster, that is, while no partition has a target."""

    minimum_nodes: int = 1
    wait_on_enter: float = 0.0


class Leadership:
    """What a watching node does with the answers to its heartbeats; belongs to the node's thread.

    Arguments:
        interval, timeout: this node's heartbeat settings, in seconds.
        rejoin_grace: how long the partitions of a node that is gone wait for its name to return, in seconds.
    """

    def __init__(
        self,
        store: Store,
        link: Link,
        shape: ClusterShape,
        events: Events,
        *,
        name: str,
        interval: float,
        timeout: float,
        first_plan: FirstPlan,
        rejoin_grace: float = 0.0,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._store = store
        self._link = link
        self._tokens = TokenMap(shape.total_tokens, shape.partitions, shape.hash_function)
        self._task_locks = TaskLocks(store, shape)
        self._events = events
        self._name = name
        self._interval = interval
        self._timeout = timeout
        self._first_plan = first_plan
        self._rejoin_grace = rejoin_grace
        self._clock = clock
        self.reset(None)

    def reset(self, incarnation: int | None) -> None:
        """Begin anew as another incarnation, or as none."""
        self._incarnation = incarnation
        self._watch = Watch(incarnation or 0, self._interval, self._timeout)
        self._members: dict[int, Member] = {}
        self._timeline: int | None = None
        self._planned: frozenset[tuple[int, bool, float]] | None = None
        self._plan_at: float | None = None
        self._kept_since: float | None = None
        self._reason = "initial"
        self._first_seen: float | None = None
        self._wait_due: float | None = None
        #: Until when the first name is waited for, by the database's clock, and when that is over by this node's.
        self._wait: tuple[float, float] | None = None
        self._term: int | None = None
        self._held_back_with: int | None = None
        self._lock_due: float | None = None
        #: Whether claims of the dead are still to be marked lost: many take several transactions.
        self._unsettled = False

    @property
    def leader(self) -> Member | None:
        """Who leads, as far as this node knows; None if it does not watch. Any thread."""
        return leads(tuple(self._members.values()))

    @property
    def leading(self) -> bool:
        """Whether this node leads, as far as it knows."""
        leader = self.leader
        return leader is not None and leader.incarnation == self._incarnation

    @property
    def term(self) -> int | None:
        """The term in which this node leads, as far as it has planned in it. Any thread."""
        return self._term if self.leading else None

    @property
    def watching(self) -> bool:
        """Whether this node is one of the few that watch the others."""
        return bool(self._members)

    def next_due(self, now: float) -> float | None:
        """When to tick next, on the boot clock; None if nothing is expected."""
        dues = (self._plan_at, self._watch.next_check(now), self._lock_due, self._wait_due)
        times = [time for time in dues if time is not None]
        return now if self._unsettled else min(times, default=None)

    def observe(self, answer: Renewal, sent_at: float, received_at: float) -> None:
        """Take in the answer to a heartbeat."""
        before = set(self._members)
        self._members = {member.incarnation: member for member in answer.members}
        self._timeline = answer.timeline
        if not answer.members:
            self._plan_at = self._lock_due = self._wait_due = None
            return
        self._watch = self._watch.observe(sent_at, received_at, answer.database_time, answer.members)
        if self._first_seen is None:
            self._first_seen = received_at
        self._see_wait(answer, received_at)
        if not self.leading:
            self._planned = self._plan_at = self._lock_due = self._wait_due = None
            self._unsettled = False
            return
        self._unsettled = answer.unsettled
        self._lock_due = _later(received_at, answer.lock_due)
        if self._wait is not None:
            until, over = self._wait
            self._wait_due = min(over, received_at + max(0.0, until - answer.database_time))
        else:
            self._wait_due = None
        if self._composition() != self._planned or answer.unsettled:
            gone = bool(before - set(self._members)) or any(member.draining for member in answer.members)
            self._want_plan(received_at, at_once=gone or answer.unsettled)

    def _see_wait(self, answer: Renewal, received_at: float) -> None:
        """Note how long the first name is waited for when this is first told: later the clock may be set back."""
        if (until := answer.wait_until) is None:
            self._wait = None
        elif self._wait is None or until != self._wait[0]:
            told = max(0.0, until - answer.database_time)
            self._wait = until, received_at + min(told, self._rejoin_grace or told)

    def want_plan(self, now: float) -> None:
        """Plan at the next tick though nothing has changed, if this node leads: somebody asked for it."""
        if self.leading:
            self._reason = "requested"
            self._want_plan(now, at_once=True)

    def tick(self, now: float, *, shaken: bool = False) -> None:
        """Evict who may be evicted, and plan when a plan is due.

        Arguments:
            shaken: the broker is away, or just back. Whoever drains may do so for that, and this node have noticed it
                last: what moved to it would move for nothing. So draining nodes keep what they have, for a lease at
                most, lest a connection that is lost again and again keeps them waiting for ever.
        """
        keep = self._may_keep(now, shaken)
        suspects = [suspect for suspect in self._watch.suspects(now) if suspect[1] in self._members]
        if suspects and self._leads_without({incarnation for _, incarnation, _ in suspects}):
            self._evict(suspects, now, keep)
        if self._wait_due is not None and now >= self._wait_due:
            self._wait_due, self._plan_at = None, now
        if self._plan_at is not None and now >= self._plan_at:
            self._plan(now, keep)
        if self._lock_due is not None and now >= self._lock_due:
            self._expire_locks(now)
        if self._unsettled:
            self._settle()

    def _may_keep(self, now: float, shaken: bool) -> bool:
        """Whether draining nodes keep what they have for now; where all drain, all do anyway."""
        drain = [member.draining for member in self._members.values()]
        if not shaken or all(drain) or not any(drain):
            self._kept_since = None
            return False
        self._kept_since = now if self._kept_since is None else self._kept_since
        return now - self._kept_since < self._timeout

    def _settle(self) -> None:
        """Mark a batch of claims of the dead lost; between two batches the node renews its lease."""
        self._unsettled = False
        with self._link.transaction() as tx:
            self._unsettled = self._store.claims.settle(tx) >= LOST_AT_ONCE

    def _expire_locks(self, now: float) -> None:
        """Clear the task locks that are due; the next heartbeat tells when the next ones are."""
        self._lock_due = now + _LATER_SEC
        with self._link.transaction() as tx:
            expired = self._task_locks.expire(tx)
        if expired:
            self._lock_due = None
            self._events("locks_expired", count=expired)

    def _composition(self) -> frozenset[tuple[int, bool, float]]:
        return frozenset((m.incarnation, m.draining, m.weight) for m in self._members.values())

    def _want_plan(self, now: float, *, at_once: bool) -> None:
        due = now if at_once else now + _GATHER_SEC
        self._plan_at = due if self._plan_at is None else min(self._plan_at, due)

    def _leads_without(self, suspects: set[int]) -> bool:
        leader = leads([m for m in self._members.values() if m.incarnation not in suspects])
        return leader is not None and leader.incarnation == self._incarnation

    def _evict(self, suspects: list[tuple[str, int, int]], now: float, keep_draining: bool) -> None:
        """Declare the suspects dead, and plan without them in the same transaction."""
        evicted = []
        with self._link.transaction() as tx:
            self._store.leaders.lock(tx)
            for name, incarnation, renewals in suspects:
                if evict(tx, self._store, name, incarnation, renewals, self._timeline, self._rejoin_grace):
                    evicted.append((name, incarnation))
            if evicted:
                made, leader = rebalance(tx, self._store, self._tokens, "node dead", keep_draining=keep_draining)
        for name, incarnation in evicted:
            self._members.pop(incarnation, None)
            self._events("node_evicted", victim=name, incarnation=incarnation, by=self._name)
        if evicted:
            if self._rejoin_grace:
                self._wait_due = min(self._wait_due or float("inf"), now + self._rejoin_grace)
            self._planned_now(made, leader, "node dead")
            if keep_draining:
                self._want_plan(now + _LATER_SEC, at_once=True)

    def _plan(self, now: float, keep_draining: bool) -> None:
        self._plan_at = now + _LATER_SEC
        with self._link.transaction() as tx:
            if self._held_back(tx, now):
                return
            over = self._wait[0] if self._wait is not None and now >= self._wait[1] else None
            made, leader = rebalance(tx, self._store, self._tokens, self._reason, over, keep_draining=keep_draining)
        self._plan_at = now + _LATER_SEC if keep_draining else None
        self._planned_now(made, leader, self._reason)
        self._reason = "membership"

    def _planned_now(self, made: Plan, leader: Leader, reason: str) -> None:
        self._planned = self._composition()
        if leader.term != self._term:
            self._term = leader.term
            self._events("leader_changed", name=leader.node, term=leader.term)
        if made.moves:
            self._events("rebalanced", reason=reason, moved=len(made.moves), nodes=len(self._members), term=leader.term)

    def _held_back(self, tx: Connection, now: float) -> bool:
        """Whether this would be the first plan, and the nodes or the time it waits for are not there yet."""
        first = self._first_plan
        waited = now - (self._first_seen if self._first_seen is not None else now)
        nodes = sum(not member.draining for member in self._members.values())
        if nodes >= first.minimum_nodes and waited >= first.wait_on_enter:
            return False
        if any(seat.target is not None for seat in self._store.partitions.seats(tx)):
            return False
        if nodes != self._held_back_with:
            self._held_back_with = nodes
            self._events(
                "plan_held_back",
                nodes=nodes,
                minimum_nodes=first.minimum_nodes,
                waited=waited,
                wait_on_enter=first.wait_on_enter,
            )
        return True


def _later(now: float, seconds: float | None) -> float | None:
    """The time in so many seconds; what is overdue is due now."""
    return None if seconds is None else now + max(0.0, seconds)
