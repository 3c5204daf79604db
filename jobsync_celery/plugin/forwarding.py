"""Messages that belong into another queue, on their way there.

The message is published again, confirmed, and only then acknowledged here. Nodes that disagree about where a key
belongs would send it back and forth as fast as they can: as while a deployment changes a task's ``nodes``. So only the
first hops are made at once. From then on a message rests between them, and arrives when the nodes agree again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from kombu.entity import Queue

from jobsync_celery.plugin.courier import Courier
from jobsync_celery.plugin.delivery import Delivery
from jobsync_celery.plugin.gate import Gate
from jobsync_celery.plugin.held import Held
from jobsync_celery.plugin.inbox import Inbox
from jobsync_celery.plugin.router import HOPS, PartitionQueues
from jobsync_celery.runtime.events import Events

#: After so many hops a message goes on slowly, and is reported.
MOST_HOPS = 8
#: How long a message rests that has made them, or that could not be published.
REST_SEC = 5.0


@dataclass(eq=False)
class _Parcel:
    delivery: Delivery
    messages: list[Any]
    target: Queue
    counted: bool


class Forwarding:
    """What this worker sends on; in the event loop's thread.

    The gate has forgotten these deliveries. Those that rest are held, so that they do not narrow the prefetch window.
    """

    def __init__(
        self, inbox: Inbox, gate: Gate, courier: Courier, held: Held, queues: PartitionQueues, events: Events
    ) -> None:
        self._inbox = inbox
        self._gate = gate
        self._courier = courier
        self._held = held
        self._queues = queues
        self._events = events
        #: In the order of arrival.
        self._resting: dict[_Parcel, None] = {}
        self._under_way = 0

    def __len__(self) -> int:
        return self._under_way + len(self._resting)

    def send(self, delivery: Delivery, messages: list[Any], target: Queue, *, counted: bool = True) -> None:
        """Publish a delivery's message into ``target``, then acknowledge it and its copies.

        Arguments:
            counted: false if all nodes must agree that it belongs there, so that it cannot go round.
        """
        parcel = _Parcel(delivery, messages, target, counted)
        hops = int(messages[0].headers.get(HOPS) or 0)
        if counted and hops >= MOST_HOPS:
            self._events("misrouted", task=delivery.run.task_id, hops=hops, rest=REST_SEC)
            self._rest(parcel)
        else:
            self._publish(parcel)

    def give_back(self, partitions: frozenset[int]) -> None:
        """Return what rests of these partitions' queues to the broker."""
        returned = [parcel for parcel in self._resting if self._found_in(parcel) in partitions]
        for parcel in returned:
            del self._resting[parcel]
            self._held.discard(parcel.delivery)
        self._gate.return_messages([message for parcel in returned for message in parcel.messages])

    def disconnected(self) -> None:
        """The broker connection is gone, and with it what rests here: it will be delivered again."""
        self._resting.clear()

    def _publish(self, parcel: _Parcel) -> None:
        self._under_way += 1
        self._courier.forward(
            parcel.messages[0],
            parcel.target,
            lambda: self._inbox.post(self._arrived, parcel),
            lambda error: self._inbox.post(self._failed, parcel, error),
            counted=parcel.counted,
        )

    def _arrived(self, parcel: _Parcel) -> None:
        self._under_way -= 1
        if self._ours(parcel):
            for message in parcel.messages:
                self._gate.broker.acknowledge(message)
            self._gate.broker.flush()
            self._held.discard(parcel.delivery)

    def _failed(self, parcel: _Parcel, error: BaseException) -> None:
        self._under_way -= 1
        task, queue = parcel.delivery.run.task_id, parcel.target.name
        self._events("not_published", task=task, queue=queue, rest=REST_SEC, error=repr(error))
        self._rest(parcel)

    def _rest(self, parcel: _Parcel) -> None:
        if not self._ours(parcel):
            return
        found_in = self._found_in(parcel)
        if found_in is not None and found_in not in self._gate.accepting:  # given up meanwhile
            self._held.discard(parcel.delivery)
            self._gate.return_messages(parcel.messages)
            return
        self._held.add(parcel.delivery)
        self._resting[parcel] = None
        self._inbox.later(REST_SEC, partial(self._go_on, parcel))

    def _go_on(self, parcel: _Parcel) -> None:
        if parcel in self._resting:
            del self._resting[parcel]
            self._publish(parcel)

    def _ours(self, parcel: _Parcel) -> bool:
        """Whether its messages can be settled: with its connection they went back, and are delivered again."""
        return parcel.delivery.connection == self._gate.connection

    def _found_in(self, parcel: _Parcel) -> int | None:
        return self._queues.number(parcel.delivery.request.delivery_info.get("routing_key"))
