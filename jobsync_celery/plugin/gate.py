"""The gate: between Celery's consumer and its pool.

It lets a coordinated request through only when the node trusts its lease, accepts the partition, runs no other
task of the key, and holds a committed claim; and it acknowledges a message only when its end is recorded.
Everything here runs in the event loop's thread; no database or broker is waited for.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state

from jobsync_celery.errors import GaveUp, StoreError
from jobsync_celery.plugin.arrivals import NOWHERE, Arrivals
from jobsync_celery.plugin.brokers import Broker
from jobsync_celery.plugin.delivery import Delivery, Stage
from jobsync_celery.plugin.held import Held
from jobsync_celery.plugin.lanes import Lanes
from jobsync_celery.plugin.pool_child import attach
from jobsync_celery.plugin.settlement import fail, return_messages, settle
from jobsync_celery.plugin.slots import Slots
from jobsync_celery.plugin.surrender import return_ended, surrendered
from jobsync_celery.plugin.suspects import Suspects
from jobsync_celery.plugin.window import Window
from jobsync_celery.runtime.claimer import Answer, Claimer, Recorded, Refused, Reply, Unavailable
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.tenures import Tenures
from jobsync_celery.store.outcomes import Busy, Elsewhere, Ending, GivenUp, Granted, Known, Unserved

logger = logging.getLogger(__name__)

#: An end that was being recorded while another node asked for its key is recorded by then.
_SOON_SEC = 0.2


class Gate:
    """The coordinated requests of one worker.

    Arguments:
        ordinary: Celery's own handler, for tasks that are not coordinated.
        misplaced: called with a delivery that came on a queue where its key cannot belong, and is forgotten here.
        relocated: called with a delivery whose key was locked or unlocked and belongs elsewhere, and is forgotten here;
            with where that is, and with its message and those of its copies.
        unwelcome: called with a partition whose claims the database refuses.
        gone: called when deliveries have left unstarted, so that whoever waits for that may look.
    """

    def __init__(
        self,
        *,
        node: str,
        arrivals: Arrivals,
        lease: Lease,
        scribe: Claimer,
        held: Held,
        ordinary: Callable[[Any], None],
        misplaced: Callable[[Delivery], None],
        relocated: Callable[[Delivery, Elsewhere, list[Any]], None],
        unwelcome: Callable[[int], None],
        gone: Callable[[], None],
    ) -> None:
        self._node = node
        self._arrivals = arrivals
        self._lease = lease
        self._scribe = scribe
        self._held = held
        self._ordinary = ordinary
        self._misplaced = misplaced
        self._relocated = relocated
        self._unwelcome = unwelcome
        self._gone = gone
        self._looks_soon = False
        self._ready: deque[Delivery] = deque()
        #: Counts broker connections: a message can be settled on its own only.
        self.connection = 0
        self.lanes = Lanes()
        self._suspects = Suspects(scribe, self.lanes)
        self.accepting: set[int] = set()
        self.tenures: Tenures
        self.broker: Broker
        self.window: Window
        self.pool: Any
        self.slots: Slots
        self.later: Callable[[float, Callable[[], None]], None]
        self.after_death: Callable[[Delivery], None]
        self.changed: Callable[[Delivery], None]

    # -- arrival ------------------------------------------------------------------------------------------------

    def on_request(self, request: Any) -> None:
        """Take a request from Celery; ordinary ones pass through."""
        coordination = self._arrivals.coordination(request)
        if coordination is None:
            self._ordinary(request)
            return
        delivery = self._arrivals.delivery(coordination, request, self.connection)
        if delivery is None:
            return
        if delivery.partition == NOWHERE:
            self.forget(delivery)
            self._misplaced(delivery)
        elif delivery.partition not in self.accepting:
            self.return_messages([request.message])
            self.forget(delivery)
        else:
            self._admit(delivery)

    def _fail(self, delivery: Delivery, answer: Refused | GivenUp) -> None:
        error = GaveUp(answer.reason) if isinstance(answer, GivenUp) else StoreError(answer.error)
        fail(delivery.request, error, *(copy.request for copy in delivery.duplicates))
        self._advance(self.forget(delivery))
        self._gone()

    def _admit(self, delivery: Delivery) -> None:
        first = self.lanes.same_run(delivery)
        if first is not None:
            first.duplicates.append(delivery)
            self._held.add(delivery)
        elif self.lanes.add(delivery):
            self._claim(delivery)
        else:
            self._held.add(delivery)

    # -- claims -------------------------------------------------------------------------------------------------

    def _claim(self, delivery: Delivery) -> None:
        self._held.discard(delivery)
        delivery.stage = Stage.CLAIMING
        delivery.doubtful = delivery.begun = False
        delivery.incarnation = self._lease.incarnation
        self._ask(delivery)

    def _ask(self, delivery: Delivery) -> None:
        self._scribe.claim(delivery.incarnation, delivery.wanted, partial(self._on_claim, delivery))

    def answered(self, answers: Sequence[tuple[Reply, Answer]]) -> None:
        """The claimer's replies to one batch."""
        self.window.passed(sum(isinstance(answer, Recorded) for _, answer in answers))
        for reply, answer in answers:
            try:
                reply(answer)
            except Exception:  # one bad call must not lose the others, nor end the worker's loop
                logger.exception("jobsync: a step of the gate failed")
        self.broker.flush()

    def _on_claim(self, delivery: Delivery, answer: Answer) -> None:
        if delivery.stage is Stage.GONE or delivery.returning:
            self._on_late_claim(delivery, answer)
        elif isinstance(answer, Granted):
            delivery.granted = answer
            delivery.stage = Stage.READY
            self._ready.append(delivery)
            self.pump()
        elif isinstance(answer, Known):
            self._drop_known(delivery)
        elif isinstance(answer, (Refused, GivenUp)):
            self._fail(delivery, answer)
        elif isinstance(answer, Elsewhere):
            self._relocate(delivery, answer)
        elif isinstance(answer, (Busy, Unserved, Unavailable)):
            delivery.stage = Stage.PARKED
            delivery.doubtful = isinstance(answer, Unavailable)
            self._held.add(delivery)
            if isinstance(answer, Busy) and not answer.told:
                self._look_soon()
        else:
            delivery.stage = Stage.PARKED
            self._unwelcome(delivery.partition)

    def _look_soon(self) -> None:
        """A key is free in a moment, and nobody will say so."""
        if not self._looks_soon:
            self._looks_soon = True
            self.later(_SOON_SEC, self._look_again)

    def _look_again(self) -> None:
        self._looks_soon = False
        self.recheck()

    def _on_late_claim(self, delivery: Delivery, answer: Answer) -> None:
        """The claim of a delivery that went, or is going back: whatever was granted has to be ended."""
        if isinstance(answer, Granted):
            delivery.granted = answer
        gone = delivery.stage is Stage.GONE  # with its connection
        if isinstance(answer, Unavailable) and not isinstance(answer, Refused):
            # It may stand after all: ask until that is known, unless the same run has come again and asks itself.
            if self._nobody_else_asks(delivery):
                self._ask(delivery)
        elif not gone:
            if isinstance(answer, Known):
                self._drop_known(delivery)
            elif isinstance(answer, (Refused, GivenUp)):
                self._fail(delivery, answer)
            else:
                self.withdraw(delivery)
        elif delivery.granted is not None and self._nobody_else_asks(delivery):
            self._record(delivery, "lost", lambda _: self.recheck())

    def _nobody_else_asks(self, delivery: Delivery) -> bool:
        """Whether a claim that may stand is this delivery's affair: not if it is gone, and its run has come again."""
        again = self.lanes.same_run(delivery) if delivery.stage is Stage.GONE else None
        return again is None or again.stage is Stage.WAITING

    def _drop_known(self, delivery: Delivery) -> None:
        """The run ended before: acknowledge this copy, and forget it."""
        logger.info("jobsync: task %s is known to have ended: this copy is dropped", delivery.run.task_id)
        for message in delivery.messages:
            self.broker.acknowledge(message)
        self._advance(self.forget(delivery))
        self._gone()

    def _relocate(self, delivery: Delivery, place: Elsewhere) -> None:
        """Send on what waits of the key, in order; what comes later asks for itself, and follows."""
        heads: list[Delivery | None] = [None]
        for one in self.lanes.alike(delivery):
            messages = one.messages
            heads.append(self.forget(one) or heads[-1])
            self._relocated(one, place, messages)
        self._advance(heads[-1])  # what came by another queue stands in the same lane, and may belong here
        self._gone()

    def recheck(self) -> None:
        """Ask again for claims that could not be granted, and look for free slots."""
        for delivery in self.lanes.stage(Stage.PARKED):
            if delivery.partition in self.accepting:
                self._claim(delivery)
        self._ready.extend(self._suspects.released())
        self.pump()

    def _advance(self, following: Delivery | None) -> None:
        if following is not None and following.stage is Stage.WAITING:
            self._claim(following)

    # -- the pool -----------------------------------------------------------------------------------------------

    @property
    def backlog(self) -> int:
        """How many granted requests wait for a pool slot. Any thread."""
        return len(self._ready)

    def pump(self) -> None:
        """Ask for slots for what is ready."""
        if self._ready:
            self.slots.want(len(self._ready))

    def start_next(self) -> bool:
        """A slot is free: start a request in it; false if none may start."""
        while self._ready:
            # A pool that is closing takes a job without a word and forgets it.
            if not self._lease.trusted or self.pool._state != self.pool.RUN:
                return False
            delivery = self._ready.popleft()
            if delivery.stage is Stage.READY and not self._suspects.must_wait(delivery):
                return self._start(delivery)
        return False

    def _on_begun(self, delivery: Delivery, answer: Answer) -> None:
        ready = delivery.stage is Stage.READY
        delivery.begun = isinstance(answer, Recorded) and answer.ours
        if ready and delivery.begun and self._lease.trusted and self.pool._state == self.pool.RUN:
            self._start(delivery)
            return
        self.slots.finished()
        self.slots.release()
        if ready and isinstance(answer, Recorded) and not answer.ours:
            self._claim(delivery)  # lost meanwhile
        elif ready:
            self._ready.append(delivery)

    def _start(self, delivery: Delivery) -> bool:
        if self._suspects.begin(delivery, self._on_begun):  # it keeps its slot meanwhile
            return True
        delivery.stage = Stage.STARTED
        tenure = self.tenures.of(delivery.partition)
        attach(delivery.request, delivery.ticket(self._node, self._lease.current.epoch, tenure))
        delivery.arm(self.changed, self.after_death)
        try:
            delivery.request.execute_using_pool(self.pool)
        except TaskRevokedError:  # revoked or expired: Celery has settled it
            delivery.leave()
            self.slots.release()
            return True
        return True

    # -- ends ---------------------------------------------------------------------------------------------------

    def maybe_end(self, delivery: Delivery) -> None:
        """One of the facts that end a run has become true: if both are, record the end."""
        if delivery.stage is not Stage.STARTED or not delivery.finished:
            return
        if delivery.settlement is None:
            # Celery left it to the broker, as after a cancel on connection loss: it is to be run again.
            delivery.withdraw(partial(self.return_messages, [delivery.request.message]), "lost")
        self.slots.finished()
        delivery.stage = Stage.ENDING
        assert delivery.outcome is not None
        self._record(delivery, delivery.outcome, partial(self._on_end, delivery))
        if not self._lease.trusted:
            return_ended(delivery)
        # Behind the end in the claimer's queue, so at the earliest in the same transaction.
        self._advance(self.lanes.step_aside(delivery))
        self._ready.extend(self._suspects.released())
        self.pump()

    def _record(self, delivery: Delivery, outcome: str, reply: Reply) -> None:
        assert delivery.granted is not None
        crashed = outcome == "lost" and delivery.crashed
        self._scribe.end(Ending(delivery.run, delivery.granted.fence, outcome, delivery.partition, crashed), reply)

    def _on_end(self, delivery: Delivery, answer: Answer) -> None:
        try:
            settle(delivery, self.broker, self.connection, ours=isinstance(answer, Recorded) and answer.ours)
        except Exception:
            logger.warning("jobsync: task %s could not be settled", delivery.run.task_id, exc_info=True)
        self._advance(self.forget(delivery))
        self._gone()

    # -- giving back --------------------------------------------------------------------------------------------

    def give_back(self, partitions: set[int]) -> None:
        """Return what has not started of these partitions to the broker, in order."""
        if not self._lease.trusted:
            self.return_messages(surrendered(self.lanes, partitions, self._abandon, self._forget_copies))
            self._gone()
            return
        returned = []
        for delivery in self.lanes.unstarted(partitions):
            if delivery.stage is Stage.CLAIMING:
                delivery.returning = True
            elif delivery.doubtful:
                delivery.returning = True
                self._claim(delivery)
            elif delivery.stage is Stage.READY:
                self.withdraw(delivery)
            else:
                returned += delivery.messages
                self.forget(delivery)
        self.return_messages(returned)

    def _abandon(self, delivery: Delivery) -> None:
        """Forget a delivery whose message is not ours any more, and end the claim that it has, or may have."""
        ready = delivery.stage is Stage.READY
        self.forget(delivery)
        if ready:
            self._record(delivery, "lost", lambda _: self.recheck())
        elif delivery.doubtful:
            self._ask(delivery)

    def return_messages(self, messages: list[Any]) -> None:
        """Give messages back to the broker, in the order of arrival."""
        return_messages(self.broker, messages)

    def withdraw(self, delivery: Delivery) -> None:
        """Return one delivery, ending the claim it may have before its message goes back."""
        if delivery.granted is None:
            self.return_messages(delivery.messages)
            self._advance(self.forget(delivery))
            self._gone()
            return
        delivery.stage = Stage.ENDING
        delivery.returning = True
        worker_state.task_ready(delivery.request)
        delivery.withdraw(partial(self.return_messages, [delivery.request.message]), "lost")
        self._record(delivery, "lost", partial(self._on_end, delivery))

    def forget(self, delivery: Delivery) -> Delivery | None:
        """Let go of a settled delivery; the next of its key, if it was the head."""
        if not delivery.finished:  # Celery has done so for what left the pool
            worker_state.task_ready(delivery.request)
        delivery.stage = Stage.GONE
        self._held.discard(delivery)
        self._forget_copies(delivery)
        if delivery.finished:
            delivery.disarm()
        return self.lanes.remove(delivery)

    def _forget_copies(self, delivery: Delivery) -> None:
        for copy in delivery.duplicates:
            self._held.discard(copy)
            worker_state.task_ready(copy.request)
        delivery.duplicates = []

    def flushed(self) -> None:
        """The pool forgot the jobs that no child had begun, and Celery whoever waited for a slot."""
        self.slots.reset()
        for delivery in self.lanes.stage(Stage.STARTED):
            if delivery.request.time_start is None:
                self.slots.release()
                self.withdraw(delivery)

    def connection_lost(self) -> None:
        """The broker connection is gone, and with it every message in hand: they will be delivered again."""
        self.connection += 1
        self._ready.clear()
        for delivery in self.lanes:
            delivery.duplicates.clear()
            delivery.counted = False
            if delivery.stage not in (Stage.STARTED, Stage.ENDING):
                self._abandon(delivery)
        self._gone()

    @property
    def running(self) -> bool:
        """Whether the pool has something of ours."""
        return bool(self.lanes.stage(Stage.STARTED))

    @property
    def idle(self) -> bool:
        """Whether nothing coordinated is in hand."""
        return not len(self.lanes)
