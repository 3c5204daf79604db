"""What stands between a simulated broker and a node's pool: the rules of ``plugin.gate``, without Celery."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

from jobsync_celery.runtime.claimer import Answer, Recorded, Reply, Unavailable
from jobsync_celery.runtime.lease import Pass
from jobsync_celery.store.outcomes import Busy, Ending, GivenUp, Granted, Known, Wanted
from jobsync_celery.store.partitions import LockPartition

if TYPE_CHECKING:
    from .sim_node import SimNode


@dataclass(eq=False)
class Message:
    """A message of the broker: it stays until it is acknowledged, and anybody who consumes its queue can get it."""

    wanted: Wanted
    seconds: float = 0.0
    guarded: str = ""

    def __repr__(self) -> str:
        return f"{self.wanted.run.task_id} of {self.wanted.key!r}"


class Stage(Enum):
    """How far a message has come."""

    WAITING = auto()
    CLAIMING = auto()
    PARKED = auto()
    READY = auto()
    BEGINNING = auto()
    STARTED = auto()
    ENDING = auto()


@dataclass(eq=False)
class Delivery:
    """A message in a node's hands."""

    message: Message
    stage: Stage = Stage.WAITING
    incarnation: int = 0
    granted: Granted | None = None
    returning: bool = False
    doubtful: bool = False
    begun: bool = False

    @property
    def wanted(self) -> Wanted:
        """What it asks for."""
        return self.message.wanted


class SimGate:
    """The deliveries of one node, and the surface that its services see."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self.accepting: set[int] = set()
        self._stopping: set[int] = set()
        self.deliveries: list[Delivery] = []

    # -- what the node's services say -------------------------------------------------------------------------------

    def learn(self, pools: Mapping[int, LockPartition]) -> None:
        """As in ``runtime.ownership.Surface``; no key is locked here."""

    def start(self, partitions: frozenset[int]) -> None:
        """As in ``runtime.ownership.Surface``."""
        self.accepting |= partitions
        self._stopping -= partitions

    def stop(self, partitions: frozenset[int]) -> None:
        """As in ``runtime.ownership.Surface``."""
        self.accepting -= partitions
        self._stopping |= partitions
        for delivery in self._of(partitions, Stage.WAITING, Stage.PARKED, Stage.CLAIMING, Stage.READY, Stage.BEGINNING):
            if delivery.stage is Stage.CLAIMING:
                delivery.returning = True
            elif delivery.doubtful:
                delivery.returning = True
                self._claim(delivery)
            elif delivery.stage in (Stage.READY, Stage.BEGINNING):
                self._withdraw(delivery)
            else:
                self._forget(delivery)
        self._report()

    def recover(self) -> None:
        """As in ``runtime.ownership.Surface``; this broker has nothing to recover."""

    def reconsider(self, locked: Mapping[str, int]) -> None:
        """As in ``runtime.ownership.Surface``; no key is locked here."""

    def recheck(self) -> None:
        """As in ``runtime.ownership.Surface``."""
        for delivery in self._of(self.accepting, Stage.PARKED):
            self._claim(delivery)

    # -- what the broker and the pool say ---------------------------------------------------------------------------

    def wants(self, message: Message) -> bool:
        """Whether this node consumes the message's queue and does not have it yet."""
        here = message.wanted.partition in self.accepting
        return here and all(each.message is not message for each in self.deliveries)

    def deliver(self, message: Message) -> None:
        """The broker delivers: only the first message of a key asks for a claim."""
        delivery = Delivery(message)
        self.deliveries.append(delivery)
        self._advance(message.wanted.key)

    @property
    def ready(self) -> list[Delivery]:
        """What may go to the pool."""
        return [one for one in self.deliveries if one.stage is Stage.READY] if self._node.lease.trusted else []

    def begin(self, delivery: Delivery) -> bool:
        """Whether a delivery can go to the pool now: of a run that was lost before, its beginning is recorded first."""
        granted = delivery.granted
        assert granted is not None
        if granted.lost_runs and not delivery.begun:
            delivery.stage = Stage.BEGINNING
            self._node.claimer.begin(delivery.wanted.run, granted.fence, partial(self._on_begun, delivery))
            return False
        return True

    def _on_begun(self, delivery: Delivery, answer: Answer) -> None:
        if delivery.stage is not Stage.BEGINNING:
            return
        delivery.stage = Stage.READY
        delivery.begun = isinstance(answer, Recorded) and answer.ours
        if isinstance(answer, Recorded) and not answer.ours:
            self._claim(delivery)  # lost meanwhile

    def hand_over(self, delivery: Delivery) -> Pass:
        """Give a delivery to the pool: from here on only the child's own look at the lease can stop it."""
        delivery.stage = Stage.STARTED
        return Pass(delivery.incarnation, self._node.lease.current.epoch)

    def finish(self, delivery: Delivery, state: str) -> None:
        """The pool is done with it: its end is recorded, and only then its message acknowledged."""
        delivery.stage = Stage.ENDING
        self._record(delivery, state, partial(self._on_end, delivery, acknowledge=state == "done"))
        self._advance(delivery.wanted.key)

    def answered(self, answers: Sequence[tuple[Reply, Answer]]) -> None:
        """The claimer's replies to one batch."""
        for reply, answer in answers:
            reply(answer)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _of(self, partitions: Collection[int], *stages: Stage) -> list[Delivery]:
        return [one for one in self.deliveries if one.stage in stages and one.wanted.partition in partitions]

    def _advance(self, key: str) -> None:
        lane = [one for one in self.deliveries if one.wanted.key == key and one.stage is not Stage.ENDING]
        if lane and lane[0].stage is Stage.WAITING:
            self._claim(lane[0])

    def _claim(self, delivery: Delivery) -> None:
        delivery.stage = Stage.CLAIMING
        delivery.doubtful = delivery.begun = False
        delivery.incarnation = self._node.lease.incarnation
        self._node.claimer.claim(delivery.incarnation, delivery.wanted, partial(self._on_claim, delivery))

    def _on_claim(self, delivery: Delivery, answer: Answer) -> None:
        if isinstance(answer, Granted):
            delivery.granted = answer
        if delivery.returning and isinstance(answer, Unavailable):
            self._node.claimer.claim(delivery.incarnation, delivery.wanted, partial(self._on_claim, delivery))
        elif isinstance(answer, Known | GivenUp):
            self._node.world.acknowledge(delivery.message)
            self._forget(delivery)
        elif delivery.returning:
            self._withdraw(delivery)
        elif isinstance(answer, Granted):
            delivery.stage = Stage.READY
        else:
            delivery.stage = Stage.PARKED
            delivery.doubtful = isinstance(answer, Unavailable)
            assert isinstance(answer, Busy | Unavailable) or delivery.granted is None

    def _withdraw(self, delivery: Delivery) -> None:
        if delivery.granted is None:
            self._forget(delivery)
        else:
            delivery.stage, delivery.returning = Stage.ENDING, True
            self._record(delivery, "lost", partial(self._on_end, delivery, acknowledge=False))

    def _record(self, delivery: Delivery, state: str, reply: Callable[[Answer], None]) -> None:
        assert delivery.granted is not None
        ending = Ending(delivery.wanted.run, delivery.granted.fence, state, delivery.wanted.partition)
        self._node.claimer.end(ending, reply)

    def _on_end(self, delivery: Delivery, answer: Answer, *, acknowledge: bool) -> None:
        if acknowledge and isinstance(answer, Recorded) and answer.ours:
            self._node.world.acknowledge(delivery.message)
        self._forget(delivery)

    def _forget(self, delivery: Delivery) -> None:
        self.deliveries.remove(delivery)
        self._advance(delivery.wanted.key)
        self._report()

    def _report(self) -> None:
        """Tell the node what it consumes no more, when nothing of it is still to be given back."""
        pending = {
            one.wanted.partition
            for one in self.deliveries
            if one.returning or one.stage in (Stage.WAITING, Stage.CLAIMING, Stage.PARKED, Stage.READY, Stage.BEGINNING)
        }
        done = frozenset(self._stopping - pending)
        self._stopping -= done
        if done:
            self._node.node.ownership.stopped(done)
