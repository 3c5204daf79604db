"""Hypothesis plays the cluster's enemy: it chooses who goes on, who stands still, what breaks, and when.

A schedule is a list of rules. ``time_passes`` lets everybody do what is due, each as far as it comes; the others bend
that: an *ambush* holds up whoever next comes to a certain statement (before it is sent, or executed but not answered),
alone or with its whole process; ``one_goes_on_alone`` moves one actor statement by statement, so that transactions
interleave.
Everything else in here is deterministic, so a failing schedule shrinks, and is the same each time it is run.
"""

from __future__ import annotations

import sys
from typing import ClassVar, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from .schedule import Point, Status
from .sim_node import SimNode
from .world import Ambush, Playground, World

KEYS = ("k", "l")
NAMES = ("a", "b", "c")
MOST_PROCESSES = 4
AFTERMATH = 40.0


def _traps(role: str, *places: str) -> st.SearchStrategy[Ambush]:
    """Ambushes at ``before X`` or ``after X``, X being what the product calls a statement. ``COMMIT`` ends a
    transaction.

    One draw each, and most of them outlast a lease with the whole process: others would hardly ever come together.
    """
    points = [Point(place.partition(" ")[2], place.startswith("after")) for place in places]
    spans = [(16.0, True), (21.0, True), (34.0, True), (21.0, False), (1.0, True)]
    return st.sampled_from([Ambush(role, point, *span) for point in points for span in spans])


HEARTBEAT = _traps("loop", "after renew", "before renew")
EVICTION = _traps("loop", "before lock", "before declare_dead", "after declare_dead", "before COMMIT", "after COMMIT")
HAND_OVER = _traps("loop", "after share", "before take", "after take", "before release", "after find", "after register")
CLAIM = _traps("claimer", "after owned", "before take_over", "before commit", "after commit", "before COMMIT")
#: ``start`` is where a pool child has its job and has not looked at the lease.
BODY = _traps("body", "before start", "before INSERT INTO", "before hold", "after hold", "after complete")
#: Seconds: moments, an interval, just under and just over a lease, more than a lease and the watch after a gap.
SPANS = (0.0, 0.4, 5.0, 13.6, 16.0, 21.0, 34.0)
SPAN = st.sampled_from(SPANS)
PICK = st.integers(0, 11)
Task = tuple[str, float, str]
#: (key, seconds, how it writes to the database)
TASK = st.tuples(st.sampled_from(KEYS), st.sampled_from((0.0, 3.0, 20.0)), st.sampled_from(("", "hold", "complete")))


class Then(NamedTuple):
    """What follows a rule: these tasks are sent, and so much time passes."""

    seconds: float
    sent: list[Task]


THEN = st.builds(Then, SPAN, st.lists(TASK, max_size=2))


class ClusterMachine(RuleBasedStateMachine):
    """Several workers on one database; :meth:`on` binds it to a server."""

    playground: ClassVar[Playground]
    #: Added up over all examples: what the schedules really brought about.
    tally: ClassVar[dict[str, int]]

    @classmethod
    def on(cls, playground: Playground) -> type[ClusterMachine]:
        """The machine on this database, with a tally of its own."""
        return type(cls.__name__, (cls,), {"playground": playground, "tally": {}})

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.playground)
        self._stepped: list[SimNode] = []

    # -- who there is -----------------------------------------------------------------------------------------------

    @property
    def living(self) -> list[SimNode]:
        """The processes that run or are stopped."""
        return [node for node in self.world.nodes if node.alive and not node.node.left.is_set()]

    def _pick(self, number: int) -> SimNode | None:
        return self.living[number % len(self.living)] if self.living else None

    def _live(self, then: Then) -> None:
        for task in then.sent:
            self.world.publish(*task)
        self.world.live(then.seconds)

    @initialize(
        workers=st.sampled_from((3, 3, 2)),
        fast=st.integers(0, 2),
        settled=st.sampled_from((9.0, 9.0, 3.0, 0.0)),
        traps=st.lists(st.one_of(HEARTBEAT, EVICTION, HAND_OVER, CLAIM, BODY), max_size=6),
        then=THEN,
        more=st.lists(TASK, max_size=8),
    )
    def a_cluster_starts(
        self, workers: int, fast: int, settled: float, traps: list[Ambush], then: Then, more: list[Task]
    ) -> None:
        """The first workers, with work; their boot clocks drift apart as far as NTP lets them."""
        for place, name in enumerate(NAMES[:workers]):
            self.world.join(name, rate=1.0005 if place == fast else 0.9995, offset=place * 100.0)
        self.world.live(settled)
        self.world.ambushes += traps
        self._live(Then(then.seconds, then.sent + more))

    # -- time and turns ---------------------------------------------------------------------------------------------

    @rule(then=THEN)
    def time_passes(self, then: Then) -> None:
        """Everybody does what is due."""
        self._live(then)

    @rule(number=PICK, statements=st.integers(1, 6))
    def one_goes_on_alone(self, number: int, statements: int) -> None:
        """One actor, statement by statement."""
        for _ in range(statements):
            able = [actor for actor in self.world.actors if actor.runnable]
            if able:
                self.world.step(able[number % len(able)])

    # -- ambushes: whoever comes there next is held up --------------------------------------------------------------

    def _ambush(self, trap: Ambush, then: Then) -> None:
        self.world.ambushes.append(trap)
        self._live(then)

    @rule(trap=HEARTBEAT, then=THEN)
    def a_heartbeat_is_held_up(self, trap: Ambush, then: Then) -> None:
        """Before it arrives, or its answer."""
        self._ambush(trap, then)

    @rule(trap=EVICTION, then=THEN)
    def an_eviction_is_held_up(self, trap: Ambush, then: Then) -> None:
        """Or a plan, or another transaction of a node's loop."""
        self._ambush(trap, then)

    @rule(trap=HAND_OVER, then=THEN)
    def a_hand_over_is_held_up(self, trap: Ambush, then: Then) -> None:
        """Or a registration."""
        self._ambush(trap, then)

    @rule(trap=CLAIM, then=THEN)
    def a_claim_is_held_up(self, trap: Ambush, then: Then) -> None:
        """Or an end."""
        self._ambush(trap, then)

    @rule(trap=BODY, then=THEN)
    def a_body_is_held_up(self, trap: Ambush, then: Then) -> None:
        """At its start, or while it writes under guard."""
        self._ambush(trap, then)

    # -- faults -----------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((5.0, 13.6, 21.0, 34.0)), then=THEN)
    def everything_stands_still(self, seconds: float, then: Then) -> None:
        """The machine that runs all workers is suspended, or the database answers nobody for so long."""
        self.world.stall(seconds)
        self._live(then)

    @rule(number=PICK, seconds=SPAN, children=st.booleans(), then=THEN)
    def a_process_is_stopped(self, number: int, seconds: float, children: bool, then: Then) -> None:
        """By SIGSTOP, alone or with its pool, and goes on by SIGCONT."""
        if node := self._pick(number):
            self.world.pause(node, seconds, children=children)
        self._live(then)

    @rule(number=PICK, provably=st.booleans(), gone=st.booleans(), then=THEN)
    def a_process_is_killed(self, number: int, provably: bool, gone: bool, then: Then) -> None:
        """By SIGKILL; on its own machine others can prove it, from elsewhere they cannot."""
        if node := self._pick(number):
            self.world.crash(node, provably=provably)
            self.world.look()
            if not gone:
                self.world.join(node.name, offset=3.0)
        self._live(then)

    @rule(trap=CLAIM, then=THEN)
    def an_heir_is_held_up(self, trap: Ambush, then: Then) -> None:
        """A worker is killed at work, and whoever takes its work over is stopped in the middle of that."""
        for node in [node for node in self.living if node.bodies][:1]:
            self.world.crash(node, provably=False)
            self.world.look()
        self._ambush(trap, then)

    @rule(name=st.sampled_from(NAMES), then=THEN)
    def a_process_starts(self, name: str, then: Then) -> None:
        """Maybe under a name that another process has, or had."""
        if len(self.living) < MOST_PROCESSES:
            self.world.join(name, offset=7.0)
        self._live(then)

    @rule(number=PICK, then=THEN)
    def a_worker_is_told_to_leave(self, number: int, then: Then) -> None:
        """By SIGTERM; the last one stays."""
        if len(self.living) > 2 and (node := self._pick(number)):
            node.node.drain()
        self._live(then)

    @rule(number=PICK, then=THEN)
    def a_connection_breaks(self, number: int, then: Then) -> None:
        """In the middle of a transaction, or with the answer to its commit."""
        held = [actor for actor in self.world.actors if actor.status in (Status.PARKED, Status.BLOCKED)]
        if held:
            self.world.cut(held[number % len(held)])
            self.world.look()
        self._live(then)

    @rule(number=PICK, seconds=SPAN, then=THEN)
    def a_worker_is_cut_off(self, number: int, seconds: float, then: Then) -> None:
        """From the database, for so long."""
        if node := self._pick(number):
            self.world.cut_off(node, seconds)
            self.world.look()
        self._live(then)

    @rule(seconds=st.sampled_from((-3600.0, -14.0, -5.0, -0.7, 0.7, 5.0, 14.0, 3600.0)), then=THEN)
    def the_databases_clock_steps(self, seconds: float, then: Then) -> None:
        """At most once between two answers to the same node: forth and back again there is not promised."""
        if all(node.beats_since_step > 0 for node in self._stepped if node.alive):
            self.world.database_offset += seconds
            self._stepped = [node for node in self.living if node.node.membership.incarnation is not None]
            for node in self._stepped:
                node.beats_since_step = 0
        self._live(then)

    @rule(number=PICK, seconds=st.sampled_from((-3600.0, 3600.0)), then=THEN)
    def a_workers_wall_clock_steps(self, number: int, seconds: float, then: Then) -> None:
        """Which nobody asks."""
        if node := self._pick(number):
            node.wall_clock_offset += seconds
        self._live(then)

    # -- the end ----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Let what was begun come to its end, count what happened, and end all threads."""
        try:
            if sys.exc_info()[0] is None:
                self.world.live(AFTERMATH)
        finally:
            self._count()
            self.world.close()

    def _count(self) -> None:
        ledger = self.world.ledger
        for fact in ("grants", "starts", "guarded", "evictions", "moves", "takeovers"):
            self.tally[fact] = self.tally.get(fact, 0) + getattr(ledger, fact)
        self.tally["schedules"] = self.tally.get("schedules", 0) + 1
