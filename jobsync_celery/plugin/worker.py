"""One worker's part in the cluster, put together: what is made before the pool forks, what starts after it."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from celery import signals
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker import state as worker_state

from jobsync_celery import __version__
from jobsync_celery.core.model import Run
from jobsync_celery.plugin.arrivals import Arrivals
from jobsync_celery.plugin.audience import Audience
from jobsync_celery.plugin.border import Border
from jobsync_celery.plugin.broadcast import Broadcast
from jobsync_celery.plugin.brokers import broker_for
from jobsync_celery.plugin.cluster import Cluster
from jobsync_celery.plugin.consumption import Consumption
from jobsync_celery.plugin.coordinated import Coordination
from jobsync_celery.plugin.courier import Courier
from jobsync_celery.plugin.delivery import Delivery
from jobsync_celery.plugin.gate import Gate
from jobsync_celery.plugin.held import Held
from jobsync_celery.plugin.inbox import Inbox
from jobsync_celery.plugin.lookout import Lookout
from jobsync_celery.plugin.pool_child import Starter
from jobsync_celery.plugin.pool_results import PoolResults
from jobsync_celery.plugin.profile import profile_of
from jobsync_celery.plugin.slots import slots_for
from jobsync_celery.plugin.tenure_watch import TenureWatch
from jobsync_celery.plugin.window import Window
from jobsync_celery.runtime.assembly import scope_of
from jobsync_celery.runtime.claimer import Answer, Claimer, Reply
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.listeners import Listeners
from jobsync_celery.runtime.node import Node
from jobsync_celery.runtime.presence import Presence
from jobsync_celery.runtime.pulse import Pulse
from jobsync_celery.runtime.tenancy import Tenancy
from jobsync_celery.runtime.tenures import Tenures
from jobsync_celery.store.guard import Guard
from jobsync_celery.store.nodes import Identity

#: How long a worker that stops waits for the database before it leaves its lease to end by itself.
_FAREWELL_SEC = 5.0
_DEATH_LOOK_SEC = 0.05
#: An end that was being recorded while another node asked for its key is recorded by then.
_SOON_SEC = 0.2
#: What a receiver in a pool child does not have to answer for.
_ENDS_OF_CHILD = (SoftTimeLimitExceeded, SystemExit, KeyboardInterrupt)
#: The objects of a few hundred messages.
_YOUNG_OBJECTS = 10_000


class WorkerNode:
    """A Celery worker as a node of the cluster; every worker has one, also those that only forward.

    Arguments:
        worker: Celery's WorkController.
        participates: false for a worker that consumes other queues only.
    """

    _results: PoolResults | None = None

    def __init__(self, worker: Any, cluster: Cluster, name: str, *, participates: bool) -> None:
        config = cluster.config
        self._worker, self._cluster = worker, cluster
        self.name = name
        self.participates = participates
        self.stopping = self._started = False
        self.lease = Lease()
        self._tenures = Tenures(config.partitions)
        self._audience = Audience(cluster.app.jobsync, name, cluster.tokens)
        self._presence = Presence(scope_of(cluster.store), name)
        self._starter = self._make_starter()
        self._inbox = Inbox(worker.hub)
        self._claimer = Claimer(
            cluster.store,
            name,
            cluster.events,
            deliver=self._deliver,
            backlog=lambda: self.gate.backlog / max(1, worker.concurrency),
            owned=lambda: self.node.ownership.owned,
            timeline=lambda: self.node.membership.timeline,
            max_lost_runs=config.max_lost_runs,
        )
        self._consumption = Consumption(cluster.app, cluster.queues)
        self._courier = Courier(cluster.app, self._running, cluster.events)
        self._lookout = Lookout(cluster, name, leads=lambda: self.lease.trusted and self.node.leadership.leading)
        self._held = Held(config.hold_limit, self._consumption.pause, self._consumption.resume)
        self.gate = Gate(
            node=name,
            arrivals=Arrivals(cluster.registry, cluster.queues),
            lease=self.lease,
            scribe=self._claimer,
            held=self._held,
            ordinary=worker.process_task,
            misplaced=lambda delivery: self.border.misplaced(delivery),
            relocated=lambda *relocated: self.border.relocated(*relocated),
            unwelcome=self._unwelcome,
            gone=lambda: self.border.look(),
        )
        self.border = Border(
            self._inbox, self.gate, self._consumption, self._courier, self._held, cluster.queues, cluster.events,
            self._lookout.saw,
        )  # fmt: skip
        self._pulse = Pulse(turns=worker.pool_cls.__module__.rpartition(".")[2] != "solo")
        self._tenancy = self._make_tenancy()
        self.node = Node(
            cluster.store, cluster.node_settings(self._identity(), worker.app.jobsync.provide_locks), self._tenancy,
            self.lease, self._presence, cluster.events, pulse=self._pulse, herald=self._tenancy,
        )  # fmt: skip
        self._tenancy.stopped = self.node.ownership.stopped
        self._window = self.gate.window = Window(worker, self.gate.lanes)
        self._prepare_tasks()
        self._hook_in(worker.hub)

    @property
    def held(self) -> frozenset[int]:
        """The partitions that this worker has; none from its deadline on. Any thread, and pool children too."""
        incarnation = self.lease.incarnation
        held = self._tenancy.held if os.getpid() == self._pid else frozenset(self._tenures.all())
        # Asked last, and for that incarnation: a process that was stopped in between may have another one by now.
        return held if self.lease.holds(incarnation) else frozenset()

    def has(self, partition: int) -> bool:
        """Whether a partition is among :attr:`held`."""
        incarnation = self.lease.incarnation
        has = partition in self._tenancy.held if os.getpid() == self._pid else self._tenures.of(partition) != 0
        return has and self.lease.holds(incarnation)

    def owns(self, key: str) -> bool:
        """Whether a key is in a partition that this worker has, and may run there. Any thread, and pool children."""
        partition = self.node.placement.of(key)
        return partition is not None and self.has(partition) and partition not in self.node.ownership.caretaking

    # -- the consumer's life ------------------------------------------------------------------------------------

    def connected(self, consumer: Any) -> None:
        """The consumer has a broker connection, and its task consumer is made but does not consume yet."""
        self._starter.wrap(self._tasks())
        self.border.consumer = consumer
        self._broadcast.connected(consumer)
        self._consumption.attach(consumer)
        self._held.attach(consumer.qos)
        self._window.attach(consumer)
        gate = self.gate
        gate.broker = broker_for(consumer)
        gate.pool = self._worker.pool
        gate.changed = self._changed
        gate.after_death = self._after_death
        self._pulse.connected()
        self.border.cut_off = False
        self._inbox.drain()  # what was asked of the border meanwhile, before anything is fetched
        if self._started:
            self.border.recover()  # what was fetched on the lost connection
            self.node.wake()  # it may have drained for want of one
        else:
            self._start()

    def turning(self) -> None:
        """The event loop is about to turn on a new connection, with the pool in it."""
        self._consumption.turn()
        if self._results is not None:
            self._results.resume()

    def disconnected(self) -> None:
        """The broker connection was lost; Celery makes another."""
        self._consumption.detach()
        self._window.detach()
        self.gate.connection_lost()
        self._pulse.disconnected()
        self.border.disconnected()

    def drain(self, consumer: Any) -> None:
        """Warm shutdown: hand over at once, let what runs finish, and acknowledge it while there is a connection.

        Celery has left its event loop for good, so this runs the loop until nothing coordinated is left.
        """
        self.stopping = True
        if not self._started:
            return
        consumer.task_consumer.on_message = _ignore  # what still comes goes back when the channel closes
        consumer.task_consumer.cancel()
        self._consumption.detach()
        self._window.detach()
        if self.participates:
            self.node.drain()
        quiet_since: float | None = None
        while not self._drained():
            if worker_state.should_terminate:
                return
            # A receiver that cleans up is waited for like a body that runs.
            quiet_since = None if self.gate.running or self._tenancy.busy else quiet_since or time.monotonic()
            if quiet_since is not None and time.monotonic() > quiet_since + _FAREWELL_SEC:
                self._cluster.events("not_released", name=self.name, why="the database or the broker did not answer")
                break
            self._worker.hub.run_once()
            if self._results is not None and not self._results.bury():
                self.gate.flushed()  # what no child had begun
        self._leave()

    def _drained(self) -> bool:
        """Nothing of ours is in hand, and every partition is handed over."""
        handed_over = not self.participates or (self.node.drained.is_set() and not self._tenancy.busy)
        return self.gate.idle and handed_over

    # -- starting and stopping ----------------------------------------------------------------------------------

    def _start(self) -> None:
        self._started = True
        self.gate.slots = slots_for(self._worker, self.gate.start_next)
        self._guard_flush()
        self._courier.start()
        self._lookout.start()
        if self.participates:
            self._claimer.start()
            self.node.start()
            _spare_the_collector()

    def _on_hub_close(self, hub: Any) -> None:
        """The pool is gone, warm or cold. (The hub is also reset when a connection is lost.)"""
        if self.stopping:
            self._inbox.drain()
            self._leave()

    def _leave(self) -> None:
        if not self._started:
            return
        self._started = False
        self._courier.stop(1.0)
        self._lookout.stop()
        if self.participates:
            if self._claimer.stop(_FAREWELL_SEC):
                self._inbox.drain()
            # To leave is to release: without it the lease ends by itself, which is slower, and safe.
            if self._tenancy.close(_FAREWELL_SEC):
                self.node.leave(_FAREWELL_SEC)
                self._broadcast.send()
            else:
                why = "a receiver of partitions_revoked does not return"
                self._cluster.events("not_released", name=self.name, why=why)

    def _in_child(self, **_: Any) -> None:
        """In a pool child, and in the worker itself where the pool has no children."""
        self._starter.wrap(self._tasks())
        if os.getpid() != self._pid:
            self._cluster.store.database.discard_after_fork()

    def _unwelcome(self, partition: int) -> None:
        if partition in self.gate.accepting:
            self.border.unwelcome(partition)
            self._tenancy.disown(frozenset({partition}))

    def _heard(self, fact: str, fields: dict[str, Any]) -> None:
        if fact == "lease_lost":
            self._tenancy.post("lease_lost", reason=fields["reason"], final=True)
        elif fact == "lease_expired":
            self._tenancy.post("lease_lost", reason="it was not renewed in time", final=False)

    # -- from other threads to the loop -------------------------------------------------------------------------

    def _deliver(self, answers: Sequence[tuple[Reply, Answer]]) -> None:
        self._inbox.post(self.gate.answered, answers)

    def _changed(self, delivery: Delivery) -> None:
        """A fact about a started request; the threads pool tells it in a thread of its own."""
        if threading.get_ident() == self._loop_thread:
            self.gate.maybe_end(delivery)
        else:
            self._inbox.post(self.gate.maybe_end, delivery)

    def _after_death(self, delivery: Delivery) -> None:
        """Celery has settled a task over its time limit, but its child is still to be killed."""
        self._inbox.post(self._look_for_death, delivery)

    def _look_for_death(self, delivery: Delivery) -> None:
        pool = getattr(self._worker.pool, "_pool", None)
        children = [child for child in getattr(pool, "_pool", ()) if child.pid == delivery.request.worker_pid]
        if any(child.exitcode is None for child in children):
            self._worker.hub.call_later(_DEATH_LOOK_SEC, self._look_for_death, delivery)
        else:
            delivery.leave()

    def _running(self, runs: Sequence[Run]) -> Collection[Run]:
        with self._cluster.store.database.transaction(f"jobsync {self.name} recovery") as tx:
            running = self._cluster.store.claims.running(tx, runs)
        # A run of our own that is no longer in hand was given up with its connection: it is ours to get back.
        return [run for run, node in running.items() if node != self.name or self.gate.lanes.has(run)]

    # -- details ------------------------------------------------------------------------------------------------

    def _guard_flush(self) -> None:
        """Fence jobs that the pool forgets: on connection loss Celery drops what no child has accepted.

        A child may hold such a job in its pipe. A new epoch makes it refuse; a child that began before that has
        said so in its result pipe first, which is read here, so what is unaccepted then will never run.
        """
        self._pid = os.getpid()
        pool = self._worker.pool
        flush: Callable[[], None] = pool.flush
        inner = getattr(pool, "_pool", None)
        if inner is None or not hasattr(inner, "handle_result_event"):
            return

        results = self._results = PoolResults(inner, self._worker.hub)

        def fenced_flush() -> None:
            self.lease.advance()
            results.read()
            flush()
            self.gate.flushed()

        pool.flush = fenced_flush

    def _hook_in(self, hub: Any) -> None:
        self.gate.recheck_soon = self._inbox.once(_SOON_SEC, self.gate.recheck)
        signals.worker_process_init.connect(self._in_child, weak=False)
        hub.on_tick.update((self._claimer.flush, self._pulse.turned, self._consumption.raise_failure))
        hub.on_close.add(self._on_hub_close)
        self._broadcast = Broadcast(self._inbox, self.name)
        self._cluster.events.listen(self._broadcast.hear)

    def _make_starter(self) -> Starter:
        listeners = Listeners(self._audience, self._cluster.events, let_pass=_ENDS_OF_CHILD)
        database = self._cluster.store.database
        guard = Guard(database.tables.claim, database.tables.timeline, database)
        return Starter(self.lease, guard, self._tenures, TenureWatch(self._tenures, listeners))

    def _make_tenancy(self) -> Tenancy:
        """Between the node and the border, so that receivers hear of partitions in time."""
        events = self._cluster.events
        tenancy = Tenancy(self.border, self.lease, self._tenures, Listeners(self._audience, events))
        self.border.stopped = tenancy.ended
        self.gate.tenures = self._tenures
        events.listen(self._heard)
        return tenancy

    def _prepare_tasks(self) -> None:
        self._pid = os.getpid()
        self._loop_thread = threading.get_ident()
        # After a reconnect Celery would set the window to a number of its own, without what is held and passing.
        self._cluster.app.conf.worker_enable_prefetch_count_reduction = False
        for task, _ in self._tasks():
            task.acks_late = True
            task.reject_on_worker_lost = True

    def _tasks(self) -> list[tuple[Any, Coordination]]:
        tasks = self._cluster.app.tasks
        return [(tasks[name], how) for name, how in self._cluster.registry.all().items() if name in tasks]

    def _identity(self) -> Identity:
        config = self._cluster.config
        return Identity(
            name=self.name,
            weight=config.weight_for(self._worker.concurrency),
            lease_sec=config.heartbeat_timeout_sec,
            hostname=socket.gethostname(),
            presence=self._presence.identity,
            pid=os.getpid(),
            version=__version__,
            profile=profile_of(self._cluster.app, self._cluster),
        )


def _spare_the_collector() -> None:
    """Exempt what is loaded by now from garbage collection, and have the young looked through less often.

    A message in hand is dozens of objects that live until its end is recorded. At Python's default threshold the
    collector would run all the time, and find nothing.
    """
    gc.collect()
    gc.freeze()
    young, *older = gc.get_threshold()
    if young:  # zero switches it off
        gc.set_threshold(max(young, _YOUNG_OBJECTS), *older)


def _ignore(message: Any) -> None:
    """A message that arrives after the consumer was cancelled."""
