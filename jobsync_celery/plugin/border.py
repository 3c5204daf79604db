"""Where a node's decisions meet the broker: partitions begin and end to be consumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from jobsync_celery.plugin.consumption import Consumption
from jobsync_celery.plugin.courier import Courier
from jobsync_celery.plugin.delivery import Delivery, Stage
from jobsync_celery.plugin.forwarding import Forwarding
from jobsync_celery.plugin.gate import Gate
from jobsync_celery.plugin.held import Held
from jobsync_celery.plugin.inbox import Inbox
from jobsync_celery.plugin.router import PartitionQueues
from jobsync_celery.plugin.scheduled import withdraw_scheduled
from jobsync_celery.runtime.events import Events
from jobsync_celery.store.outcomes import Elsewhere
from jobsync_celery.store.partitions import LockPartition

#: What the pool was given begins within milliseconds, and is waited for, so that it runs here and in order. After so
#: long it is not: whatever has not begun by then is refused by the process that would run it, and runs elsewhere.
_BEGIN_SEC = 0.5
_LOOK_SEC = 0.01


class Border:
    """The worker's side of :class:`jobsync_celery.runtime.ownership.Surface`.

    Its public methods return at once and may be called from any thread; what they ask for happens on the event loop.

    Arguments:
        saw: takes what an operator would want to know of later: a kind, a subject, and details.
    """

    def __init__(
        self,
        inbox: Inbox,
        gate: Gate,
        consumption: Consumption,
        courier: Courier,
        held: Held,
        queues: PartitionQueues,
        events: Events,
        saw: Callable[..., None] = lambda kind, subject, **detail: None,
    ) -> None:
        self._inbox = inbox
        self._gate = gate
        self._consumption = consumption
        self._courier = courier
        self._queues = queues
        self._saw = saw
        self._held = held
        self._forwarding = Forwarding(inbox, gate, courier, held, queues, events)
        self._starting: set[int] = set()
        self._stopping: set[int] = set()
        self._patient_until = 0.0
        self._look_again = inbox.once(_LOOK_SEC, self.look)
        self.consumer: Any = None
        #: There is no connection to the broker, so nothing that was fetched on it is left here.
        self.cut_off = False
        #: Called with partitions that are consumed no more, everything unstarted of them given back.
        self.stopped: Callable[[frozenset[int]], None] = lambda _: None

    def learn(self, pools: Mapping[int, LockPartition]) -> None:
        """These partitions carry locked keys."""
        for number, each in pools.items():
            self._queues.learn(number, each.pool, each.position)

    def start(self, partitions: frozenset[int]) -> None:
        """Get back what a dead owner had fetched of these partitions, and consume them."""
        self._inbox.post(self._start, partitions)

    def stop(self, partitions: frozenset[int]) -> None:
        """Stop consuming these partitions, give back what has not started, then report it as stopped."""
        self._inbox.post(self._stop, partitions)
        if self.cut_off:  # and nobody reads the inbox until there is a connection
            self.stopped(partitions)

    def recover(self) -> None:
        """A node died: get back what it had fetched of the partitions consumed here."""
        self._inbox.post(self._recover)

    def recheck(self) -> None:
        """A claim ended elsewhere: keys that were held back for it may go on."""
        self._inbox.post(self._gate.recheck)

    def disconnected(self) -> None:
        """The broker connection was lost; in the event loop's thread."""
        self.cut_off = True
        self._forwarding.disconnected()

    def reconsider(self, locked: Mapping[str, int]) -> None:
        """Of the keys, these are locked, to these partitions: what was granted elsewhere and has not begun goes."""
        self._inbox.post(self._reconsider, locked)

    # -- on the event loop --------------------------------------------------------------------------------------

    @property
    def forwarding(self) -> int:
        """How many messages are on their way into another queue."""
        return len(self._forwarding)

    @property
    def paused(self) -> list[str]:
        """The queues of which nothing more is fetched for now."""
        return [self._queues.name(number) for number in self._held.paused]

    def unwelcome(self, partition: int) -> None:
        """The database says that the partition is not ours: the node will learn why; until then, hands off."""
        if partition in self._gate.accepting:
            self._halt(frozenset({partition}))

    def misplaced(self, delivery: Delivery) -> None:
        """A message lies in a queue that is not its key's: publish it there, then acknowledge it here."""
        target = self._queues.for_key(delivery.key, delivery.pool)
        request = delivery.request
        queue = str(request.delivery_info.get("routing_key"))
        self._saw(
            "misplaced",
            f"{request.task.name} in {queue}",
            task=request.task.name,
            queue=queue,
            partition=self._queues.number(queue),
            by=str(request.request_dict.get("origin")),
        )
        self._forwarding.send(delivery, delivery.messages, target)

    def relocated(self, delivery: Delivery, place: Elsewhere, messages: list[Any]) -> None:
        """The key belongs elsewhere since it was locked or unlocked: publish its message there, then acknowledge."""
        queues = self._queues
        target = queues.of_pool(place.pool, place.position) if place.pool else queues.queue(place.partition)
        # That a key is locked everybody reads in one table; where it belongs otherwise is told by each node's code.
        self._forwarding.send(delivery, messages, target, counted=not place.locked)

    def _reconsider(self, locked: Mapping[str, int]) -> None:
        for delivery in self._gate.lanes.stage(Stage.READY, Stage.CLAIMING):
            if locked.get(delivery.key, delivery.home) == delivery.partition:
                continue
            if delivery.stage is Stage.READY:
                self._gate.withdraw(delivery)
            else:  # it may be granted still, by what was true when it asked
                delivery.returning = True

    def look(self) -> None:
        """Something was given back: partitions that only waited for that have stopped."""
        done = {number for number in self._stopping if not self._gate.lanes.pending(number)}
        if self._patient_until > time.monotonic():
            soon = {number for number in done if self._gate.lanes.beginning(number)}
            done -= soon
            if soon:
                self._look_again()
        if done:
            self._stopping -= done
            self.stopped(frozenset(done))

    def _start(self, partitions: frozenset[int]) -> None:
        self._stopping -= partitions
        self._starting |= partitions
        self._errand(partitions, lambda: self._inbox.post(self._recovered, partitions))

    def _recovered(self, partitions: frozenset[int]) -> None:
        for number in sorted(partitions & self._starting):
            self._starting.discard(number)
            self._gate.accepting.add(number)
            self._consumption.add(number)

    def _recover(self) -> None:
        if self._gate.accepting:
            self._errand(frozenset(self._gate.accepting), lambda: None)

    def _errand(self, partitions: frozenset[int], then: Callable[[], None]) -> None:
        """Only Redis keeps what a dead worker had fetched; RabbitMQ returns it by itself."""
        if self.consumer.connection and self.consumer.connection.transport.driver_type == "redis":
            names = [self._queues.name(number) for number in partitions]
            self._courier.recover(names, self._gate.broker.in_hand(), then)
        else:
            then()

    def _stop(self, partitions: frozenset[int]) -> None:
        self._stopping |= partitions
        self._patient_until = time.monotonic() + _BEGIN_SEC
        self._halt(partitions)
        self.look()

    def _halt(self, partitions: frozenset[int]) -> None:
        self._starting -= partitions
        self._gate.accepting -= partitions
        # First cancel, then give back: what is returned to a queue that is still consumed comes again at once.
        for number in sorted(partitions):
            self._consumption.cancel(number)
        if self.consumer is not None:
            names = {self._queues.name(number) for number in partitions}
            self._gate.return_messages(withdraw_scheduled(self.consumer, names))
            self._forwarding.give_back(partitions)
            self._gate.give_back(set(partitions))
