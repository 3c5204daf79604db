"""The live node: one thread that beats, leads, owns, and wakes up when told to.

Services do the work in their ``tick()``; this loop decides when, and what a lost lease or a silent database means.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.errors import ClusterMismatch, SchemaOutdated, StoreError, StoreUnavailable
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.leadership import FirstPlan, Leadership
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.membership import Hold, Membership
from jobsync_celery.runtime.orders import Orders
from jobsync_celery.runtime.ownership import Ownership, Surface
from jobsync_celery.runtime.placement import Placement
from jobsync_celery.runtime.pulse import Pulse
from jobsync_celery.runtime.roster import Herald, Roster, Silence
from jobsync_celery.runtime.task_locks import TaskLocks
from jobsync_celery.store.nodes import Identity, Renewal
from jobsync_celery.store.partitions import LockPartition
from jobsync_celery.store.schema import ClusterShape, ensure_schema, locked_cluster
from jobsync_celery.store.store import Store

#: The longest sleep: a lost wake-up costs no more than this.
_LONGEST_SLEEP_SEC = 1.0


@dataclass(frozen=True)
class NodeSettings:
    """What a node needs to know; times in seconds."""

    identity: Identity
    shape: ClusterShape
    interval: float
    timeout: float
    first_plan: FirstPlan
    rejoin_grace: float = 0.0
    #: The lock pools of tasks that only certain nodes may run.
    pools: frozenset[str] = frozenset()
    #: Called once the tables are there, before the node registers; may take its time, and is called until it succeeds.
    before_joining: Callable[[], None] = lambda: None


class Node:
    """A registered, running worker, from the cluster's side.

    Arguments:
        herald: tells the user's receivers of other nodes that come and go.
    """

    def __init__(
        self,
        store: Store,
        settings: NodeSettings,
        surface: Surface,
        lease: Lease,
        hold: Hold,
        events: Events,
        clock: Callable[[], float] = boot_clock,
        pulse: Pulse | None = None,
        herald: Herald | None = None,
    ) -> None:
        name, shape = settings.identity.name, settings.shape
        self._store = store
        self._settings, self._surface = settings, surface
        self._lease, self._events = lease, events
        self._clock = clock
        self._pulse = pulse or Pulse(clock=clock)
        self._link = store.database.link(f"jobsync {name}")
        self._roster = Roster(store, self._link, name, herald or Silence())
        self.membership = Membership(
            store,
            self._link,
            settings.identity,
            lease,
            hold,
            events,
            interval=settings.interval,
            clock=clock,
            curious=self._roster.curious,
            heard=self._heard,
        )
        self.leadership = Leadership(
            store,
            self._link,
            shape,
            events,
            name=name,
            interval=settings.interval,
            timeout=settings.timeout,
            first_plan=settings.first_plan,
            rejoin_grace=settings.rejoin_grace,
            clock=clock,
        )
        self.placement = Placement(
            TokenMap(shape.total_tokens, shape.partitions, shape.hash_function), settings.timeout, clock
        )
        self.ownership = Ownership(store, self._link, surface, events, name=name, wake=self.wake)
        self.orders = Orders(store, self._link, name, self.wake)
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._run, name="jobsync-node", daemon=True)
        self._ready = False
        #: Since when the database does not answer, on the boot clock; None while it does.
        self.down_since: float | None = None
        #: The incarnation as leadership and ownership know it. The heartbeat after a registration may fail.
        self._known: int | None = None
        self._sync = self._trusted = self._hangs = False
        self._draining = self._handing_over = self._leaving = self._silently = False
        self.drained = threading.Event()
        self.left = threading.Event()

    @property
    def name(self) -> str:
        """The node's name."""
        return self._settings.identity.name

    def start(self) -> None:
        """Start the thread; only after the pool has forked."""
        self._thread.start()

    def wake(self) -> None:
        """Make the loop look around now. Any thread."""
        try:
            os.write(self._writer, b"\0")
        except (BlockingIOError, OSError):
            pass  # full: it will wake up anyway; closed: it has ended

    def drain(self) -> None:
        """Take no more work and hand everything over; ``drained`` is set when that is done. Any thread."""
        self._draining = True
        self.wake()

    def leave(self, timeout: float) -> bool:
        """Leave the cluster and end the thread; only when no task of this node runs any more.

        False if the database did not let us say so within ``timeout`` seconds: the lease then ends by itself.
        """
        self._leaving = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return self.left.is_set()

    def abandon(self, timeout: float) -> None:
        """End the thread without a word to the cluster, so that the lease ends by itself: others hold what is ours."""
        self._silently = True
        self.leave(timeout)

    def _run(self) -> None:
        while not self._leaving:
            try:
                self._tick()
            except StoreUnavailable as error:
                self._unavailable(error)
            except (SchemaOutdated, ClusterMismatch) as error:
                self._events("schema_refused", error=str(error))
                self._pause(max(self._settings.interval, 5.0))
            except StoreError as error:
                self._events("loop_error", error=str(error))
                self.membership.retry_soon()
            except Exception as error:  # noqa: BLE001 - a loop that dies silently would leave its partitions to nobody
                self._events("loop_error", error=repr(error))
                self.membership.retry_soon()
            self._sleep()
        self._farewell()

    def _tick(self) -> None:
        self._watch_deadline()
        if not self._draining:
            self._feel_pulse()
        elif not (self._handing_over and self.membership.draining):
            self._begin_drain()
        if self._clock() >= self.membership.next_due:
            self._pause(self._settings.interval) if self._hangs else self._contact()
        incarnation = self.membership.incarnation
        if incarnation is None:
            if self._draining:
                self.drained.set()
            return
        self._take_orders()
        self.ownership.release_stopped(incarnation)
        if self._sync and not self._draining:
            self.ownership.sync(incarnation, giving_up=self.membership.drain_ordered)
            self._sync = False
        self.leadership.tick(self._clock(), shaken=self._pulse.shaken())
        if self._draining and self.ownership.settled and not self.ownership.owned:
            self.drained.set()

    def _take_orders(self) -> None:
        if self.orders.record(self.membership.drain_ordered):
            self.membership.next_due = self._clock()
        if self.orders.take_rebalance():
            self.leadership.want_plan(self._clock())

    def _feel_pulse(self) -> None:
        """A node that cannot consume gives its partitions up, and one whose loop hangs even its lease.

        A hanging loop cannot give back what it has fetched; the eviction sees to that.
        """
        limit = self._settings.timeout
        if self._pulse.hangs(limit) != self._hangs:
            self._hangs = not self._hangs
            if self._hangs:
                self._events("loop_hangs", name=self.name, limit=limit, where=self._pulse.whereabouts())
            else:
                self._events("loop_turns", name=self.name, limit=limit)
        cut_off = self._pulse.cut_off(limit)
        if cut_off and self.membership.incarnation is not None and not self.membership.draining:
            self._events("cannot_consume", name=self.name, limit=limit)
            self.membership.drain()
        elif not cut_off:
            self.membership.resume()

    def _contact(self) -> None:
        if not self._ready:
            self._prepare()
        self._beat()

    def _prepare(self) -> None:
        """First contact: tables, lock pools of our tasks, and the channel on which the others wake us."""
        database, shape = self._store.database, self._settings.shape
        ensure_schema(database, shape)
        self.membership.admit = lambda tx: locked_cluster(database, tx, shape)
        with self._link.transaction() as tx:
            if self._settings.pools:
                self._store.leaders.lock(tx)
                locked_cluster(database, tx, shape)
            locks = TaskLocks(self._store, shape)
            pools = locks.ensure_pools(tx, self._settings.pools)
        self._surface.learn(
            {number: LockPartition(pool, at) for pool, each in pools.items() for at, number in enumerate(each)}
        )
        self._settings.before_joining()
        self._link.listen(self._store.database.channel)
        self._ready = True

    def _beat(self) -> None:
        sent_at = self._clock()
        answer = self.membership.tick()
        now = self._clock()
        if self.down_since is not None:
            self.down_since = None
            self._events("store_available")
        incarnation = self.membership.incarnation
        if incarnation != self._known:
            self.leadership.reset(incarnation)
            if self._known is not None:
                self.ownership.forget()
                self.placement.forget()
                self._trusted = False
            self._known = incarnation
            self._sync = True
        if answer is None:
            return
        if not self._trusted and self._lease.trusted:
            self._trusted = True
            self._resume()
        self.leadership.observe(answer, sent_at, now)
        self._sync = self._sync or self._differs(answer)
        self._surface.recheck()
        self._roster.learn(answer)
        self._learn_locks(answer.locks_version)

    def _differs(self, answer: Renewal) -> bool:
        """Whether the database says something else of our partitions than we know, or than is wanted."""
        if answer.drain_ordered and self.ownership.owned:
            return True
        return answer.misplaced or answer.caretaking != self.ownership.caretaking

    def _learn_locks(self, version: int) -> None:
        if version != self.placement.version:
            placements = self._store.locks.placements(self._link)
            self.placement.learn(placements)
            self._surface.reconsider(placements.locked)
        self.placement.settle()

    def _heard(self, answer: Renewal) -> None:
        if answer.locks_version != self.placement.version:
            self.placement.doubt()

    def _watch_deadline(self) -> None:
        if self._trusted and not self._lease.trusted:
            self._trusted = False
            self._events("lease_expired", name=self.name)
            self.ownership.suspend()

    def _resume(self) -> None:
        if self.ownership.owned:
            self._events("lease_resumed", name=self.name)
        self.ownership.resume()

    def _begin_drain(self) -> None:
        self._handing_over = True
        self.ownership.stop_all()
        self.membership.drain(self._settings.rejoin_grace)

    def _unavailable(self, error: StoreUnavailable) -> None:
        if self.down_since is None:
            self.down_since = self._clock()
            self._events("store_unavailable", error=str(error))
        self.membership.retry_soon()
        if self._draining:
            self.drained.set()  # nobody to hand over to: the messages are back with the broker

    def _pause(self, seconds: float) -> None:
        self.membership.next_due = self._clock() + seconds

    def _sleep(self) -> None:
        if self._leaving:
            return
        now = self._clock()
        times = [self.membership.next_due, now + _LONGEST_SLEEP_SEC]
        if self._trusted:
            times.append(self._lease.deadline)
        due = self.leadership.next_due(now) if self.membership.incarnation is not None else None
        if due is not None:
            times.append(due)
        received = self._link.wait(max(0.0, min(times) - now), self._reader)
        try:
            os.read(self._reader, 4096)
        except BlockingIOError:
            pass
        self._heed(set(received))

    def _heed(self, notices: set[str]) -> None:
        if notices & {"plan", "freed", "evicted"}:
            self._sync = True
        if "members" in notices and self.leadership.watching:
            self.membership.next_due = self._clock()
        if notices & {"members", "evicted"} and self._roster.curious():
            self.membership.next_due = self._clock()
        if "evicted" in notices:
            self._surface.recover()
        if notices & {"locks", "orders"}:
            self.membership.next_due = self._clock()
        if notices & {"ended", "evicted", "plan", "locks"}:
            self._surface.recheck()

    def _farewell(self) -> None:
        try:
            if not self._silently:
                self.membership.leave(self._settings.rejoin_grace)
                self.left.set()
        except StoreError as error:
            self._events("store_unavailable", error=str(error))
        finally:
            self._link.close()
            writer, self._writer = self._writer, -1  # a late wake() must not write into a file that gets this number
            os.close(writer)
            os.close(self._reader)
