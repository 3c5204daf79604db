"""What is in hand, by run and by key: one run of a key at a time, in the order of arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from jobsync_celery.core.model import Run
from jobsync_celery.plugin.delivery import UNSTARTED, Delivery, Stage


class Lanes:
    """Every delivery of this worker. The head of a key's lane is the only one that may be claimed or run."""

    def __init__(self) -> None:
        self._by_run: dict[Run, Delivery] = {}
        self._by_key: dict[str, deque[Delivery]] = {}

    def __len__(self) -> int:
        return len(self._by_run)

    def __iter__(self) -> Iterator[Delivery]:
        return iter(list(self._by_run.values()))

    def has(self, run: Run) -> bool:
        """Whether a run is in hand. Any thread."""
        return run in self._by_run

    def same_run(self, delivery: Delivery) -> Delivery | None:
        """A delivery of the same run that is in hand already."""
        return self._by_run.get(delivery.run)

    def add(self, delivery: Delivery) -> bool:
        """Queue up behind the key's other runs; true if it is the head."""
        self._by_run[delivery.run] = delivery
        lane = self._by_key.setdefault(delivery.key, deque())
        lane.append(delivery)
        return len(lane) == 1

    def alike(self, delivery: Delivery) -> list[Delivery]:
        """The head of a lane, and what waits behind it and belongs in the same partition, in order."""
        waiting = [one for one in self._by_key.get(delivery.key, ()) if one.stage is Stage.WAITING]
        here = delivery.partition, delivery.home
        return [delivery, *(one for one in waiting if (one.partition, one.home) == here)]

    def step_aside(self, delivery: Delivery) -> Delivery | None:
        """Let the next run of the key come forward, if ``delivery`` is the head; it stays in hand."""
        lane = self._by_key.get(delivery.key)
        if lane is None or delivery not in lane:
            return None
        was_head = lane[0] is delivery
        lane.remove(delivery)
        if not lane:
            del self._by_key[delivery.key]
            return None
        return lane[0] if was_head else None

    def remove(self, delivery: Delivery) -> Delivery | None:
        """Forget a delivery; the next of its key, if it was the head."""
        if self._by_run.get(delivery.run) is delivery:
            del self._by_run[delivery.run]
        return self.step_aside(delivery)

    def unstarted(self, partitions: Iterable[int] | None = None) -> list[Delivery]:
        """What was not handed to the pool yet, in the order of arrival; of these partitions only, if given."""
        wanted = None if partitions is None else frozenset(partitions)
        return [
            one
            for one in self._by_run.values()
            if one.stage in UNSTARTED and (wanted is None or one.partition in wanted)
        ]

    def pending(self, partition: int) -> bool:
        """Whether something of this partition is still to be given back."""
        return any(one.partition == partition and (one.stage in UNSTARTED or one.returning) for one in self)

    def beginning(self, partition: int) -> bool:
        """Whether the pool has something of this partition that has not begun yet."""
        return any(one.partition == partition and one.unbegun for one in self)

    def stage(self, *stages: Stage) -> list[Delivery]:
        """The deliveries that have come so far."""
        return [one for one in self._by_run.values() if one.stage in stages]
