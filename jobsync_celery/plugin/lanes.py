"""What is in hand, by run and by key: one run of a key at a time, in the order of arrival."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

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

    def stage(self, *stages: Stage) -> list[Delivery]:
        """The deliveries that have come so far."""
        return [one for one in self._by_run.values() if one.stage in stages]


class Held:
    """Messages that only wait. Each widens the prefetch window by one, so that it starves nobody.

    Celery does the same for messages with an ETA. Beyond ``limit`` held messages the partition that holds most is
    paused, so only its keys wait.

    Arguments:
        pause, resume: called with a partition's number.
    """

    def __init__(self, limit: int, pause: Callable[[int], None], resume: Callable[[int], None]) -> None:
        self._limit = limit
        self._pause = pause
        self._resume = resume
        self._qos: object = None
        self._count: Counter[int] = Counter()
        self._paused: set[int] = set()

    def attach(self, qos: object) -> None:
        """A new connection begins with a window of its own, and nothing held."""
        self._qos = qos
        self._count.clear()
        self._paused.clear()

    @property
    def total(self) -> int:
        """How many messages are held."""
        return self._count.total() if hasattr(self._count, "total") else sum(self._count.values())

    def add(self, delivery: Delivery) -> None:
        """This message waits."""
        if delivery.counted:
            return
        delivery.counted = True
        self._qos.increment_eventually()  # type: ignore[attr-defined]
        self._count[delivery.partition] += 1
        if self.total > self._limit:
            fullest = max(self._count, key=lambda number: self._count[number])
            if fullest not in self._paused:
                self._paused.add(fullest)
                self._pause(fullest)

    def discard(self, delivery: Delivery) -> None:
        """It waits no more."""
        if not delivery.counted:
            return
        delivery.counted = False
        self._qos.decrement_eventually()  # type: ignore[attr-defined]
        number = delivery.partition
        self._count[number] -= 1
        if number in self._paused and self._count[number] <= self._limit // 2:
            self._paused.discard(number)
            self._resume(number)
        if not self._count[number]:
            del self._count[number]
