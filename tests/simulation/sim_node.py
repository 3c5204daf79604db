"""One simulated worker: the product's own node loop and claimer, in threads that take turns on virtual time.

``Node._run`` and ``Claimer._run`` are the real loops, with every statement they send; virtual are the clock they are
given, their sleep, and the broker's and pool's side (:mod:`sim_gate`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from jobsync_celery.errors import Fenced, StoreError
from jobsync_celery.runtime.claimer import Claimer
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.leadership import FirstPlan
from jobsync_celery.runtime.lease import Lease, Pass
from jobsync_celery.runtime.node import Node, NodeSettings
from jobsync_celery.store.guard import Guard
from jobsync_celery.store.nodes import Identity
from jobsync_celery.store.schema import ClusterShape
from jobsync_celery.store.store import Store

from .schedule import Actor, Point, current
from .sim_database import SimLink, effect_statement, identity_of
from .sim_gate import Delivery, SimGate, Stage

if TYPE_CHECKING:
    from .world import World

SHAPE = ClusterShape(40, 4, "double_sha256")
INTERVAL, TIMEOUT = 5.0, 15.0


class SimClaimer(Claimer):
    """The product's claimer, asleep on virtual time."""

    def _await_work(self, pause: float) -> None:
        actor = current.actor
        assert actor is not None
        self._wake.release()
        try:
            if pause:
                actor.sleep(pause, lambda: self._stopping)
            elif not (self._ends or self._claims or self._beginnings or self._stopping):
                again = 0.2 if self._delayed else float("inf")
                actor.sleep(again, lambda: bool(self._ends or self._claims or self._beginnings or self._stopping))
        finally:
            self._wake.acquire()


class _Hold:
    """Proof that other processes are gone, where the world has it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def proves_gone(self, identity: str) -> bool:
        return identity in self._world.provably_gone


class SimNode:
    """A worker's process, its pool included."""

    def __init__(self, world: World, number: int, name: str, *, rate: float, offset: float) -> None:
        self.world = world
        self.number = number
        self.name = name
        self.rate = rate
        self._offset = offset
        self.links: list[SimLink] = []
        self.alive, self.cut_off_until = True, 0.0
        self.wall_clock_offset = 0.0
        self.paused_until = self.children_paused_until = 0.0
        self.incarnations: set[int] = set()
        self.answers: list[float] = []
        self.beats_since_step = 0
        #: When the transaction began that declares somebody dead: what happens to it later is the server's affair.
        self._begun_at = self.decided_at = 0.0
        self.bodies: list[Body] = []
        self.lease = Lease(self.clock)
        events = Events()
        events.listen(self._heard)
        database = world.database.of(self)
        self.store = Store(database)
        database.know(self.store)
        self.gate = SimGate(self)
        identity = Identity(name, 1.0, world.timeout, "host", f"presence of {number}", number, "0")
        settings = NodeSettings(identity, SHAPE, world.interval, world.timeout, FirstPlan())
        self.node = Node(self.store, settings, self.gate, self.lease, _Hold(world), events, clock=self.clock)
        self.claimer = SimClaimer(
            self.store,
            name,
            events,
            deliver=self.gate.answered,
            backlog=lambda: 0.0,
            owned=lambda: self.node.ownership.owned,
            timeline=lambda: self.node.membership.timeline,
        )
        self.loop = world.start(f"{self}'s loop", "loop", self, self.node._run)
        self.scribe = world.start(f"{self}'s claimer", "claimer", self, self.claimer._run)

    def __str__(self) -> str:
        return f"{self.name}#{self.number}"

    def clock(self) -> float:
        """The process's boot clock: it drifts, and never steps."""
        return self._offset + self.world.now * self.rate

    # -- as the schedule's host -------------------------------------------------------------------------------------

    def stops(self, actor: Actor) -> bool:
        """Whether the process is stopped by a signal."""
        parent = actor in (self.loop, self.scribe)
        return (self.paused_until if parent else self.children_paused_until) > self.world.now

    def reached(self, actor: Actor, point: Point) -> bool:
        """Take note of a point; true if it is an ambush."""
        if point == Point("BEGIN ISOLATION", executed=False):
            self._begun_at = self.clock()
        if point == Point("declare_dead", executed=False):
            self.decided_at = self._begun_at
        if point == Point("renew", executed=True):
            self.beats_since_step += 1
        return self.world.reached(self, actor, point)

    def passed(self, point: Point) -> None:
        """Take note of the answer to a heartbeat."""
        if point == Point("renew", executed=True):
            self.answers.append(self.clock())

    @property
    def cut_off(self) -> bool:
        """Whether the database cannot be reached from here."""
        return self.cut_off_until > self.world.now

    @property
    def paused(self) -> bool:
        """Whether the main process is stopped by a signal."""
        return self.paused_until > self.world.now

    # -- the pool ---------------------------------------------------------------------------------------------------

    def turn(self) -> bool:
        """The event loop's turn: take messages, fill the pool, and look whether a stop is complete."""
        if not self.alive or self.paused:
            return False
        busy = False
        for message in [message for message in self.world.messages if self.gate.wants(message)]:
            self.gate.deliver(message)
            busy = True
        for delivery in self.gate.ready:
            if self.gate.begin(delivery):
                self._begin(delivery)
            busy = True
        if self.node._draining and self.node.drained.is_set() and not self.gate.deliveries:
            busy = not self.node._leaving
            self.node.leave(0)
        return busy

    def _begin(self, delivery: Delivery) -> None:
        given = self.gate.hand_over(delivery)
        body = Body(self, delivery, given)
        self.bodies.append(body)
        body.actor = self.world.start(f"{self}'s {delivery.wanted.run.task_id}", "body", self, body.run)

    def _heard(self, fact: str, fields: dict[str, Any]) -> None:
        if fact == "node_registered" and fields["incarnation"] is not None:
            self.incarnations.add(fields["incarnation"])
        if fact in ("loop_error", "request_failed"):
            self.world.complaints.append(f"{self}: {fact} {fields}")
        told = {name: value for name, value in fields.items() if name != "error"}
        self.world.note(f"{self}: {fact} {told}")


class Body:
    """A task in a pool child: it looks at the lease itself, works, and may write under ``guard``."""

    actor: Actor

    def __init__(self, node: SimNode, delivery: Delivery, given: Pass) -> None:
        self.node = node
        self.delivery = delivery
        self.given = given
        self.started = False
        granted = delivery.granted
        assert granted is not None
        self.fence = granted.fence

    def run(self) -> None:
        """The child's way with a job."""
        actor = self.node.world.current_actor
        assert actor is not None
        actor.reach(Point("start", executed=False))
        if not self.node.lease.permits(self.given):
            self._leave("lost")
            return
        self.started = True
        self.node.world.ledger.started(self)
        message = self.delivery.message
        if message.seconds:
            actor.sleep(message.seconds)
        self._leave(self._write(message.guarded) if message.guarded else "done")

    def _write(self, how: str) -> str:
        """Write to the user's table under guard; a body that is fenced or cut off fails as any would."""
        guard = Guard(self.node.store.database.tables.claim)
        hold: Callable[..., None] = guard.complete if how == "complete" else guard.hold
        link = self.node.store.database.link("body")
        run = self.delivery.wanted.run
        try:
            with link.transaction() as tx:
                tx.execute(text(effect_statement()), identity_of(run, self.fence))
                hold(tx, run, self.fence)
        except Fenced:
            return "done"  # the end will find that the claim is not ours
        except StoreError:
            return "failed"
        finally:
            link.close()
        return "done"

    def _leave(self, state: str) -> None:
        self.node.bodies.remove(self)
        if self.delivery.stage is Stage.STARTED:
            self.node.gate.finish(self.delivery, state)
