"""A tenancy between a test that plays the node, and a surface that the test lets report."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from stage import Clock, Facts, RecordingSurface, eventually

from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.listeners import Listeners, Receiver
from jobsync_celery.runtime.tenancy import Tenancy
from jobsync_celery.runtime.tenures import Tenures

LEASE = 10.0
PARTITIONS = 8


def some(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


class Crowd:
    """An audience of functions that a test gives."""

    def __init__(self) -> None:
        self.functions: dict[str, list[Callable[..., object]]] = defaultdict(list)

    def on(self, signal: str, function: Callable[..., object]) -> None:
        self.functions[signal].append(function)

    def hears(self, signal: str) -> bool:
        return bool(self.functions[signal])

    def receivers(self, signal: str, fields: Mapping[str, Any]) -> Iterator[Receiver]:
        for function in self.functions[signal]:
            yield Receiver(getattr(function, "__name__", "a partial"), partial(function, **fields))


class TenancyStage:
    """What the test moves, and what became of it."""

    def __init__(self) -> None:
        self.clock, self.crowd, self.facts = Clock(), Crowd(), Facts()
        self.lease = Lease(self.clock)
        self.surface, self.tenures = RecordingSurface(), Tenures(PARTITIONS)
        self.tenancy = Tenancy(
            self.surface, self.lease, self.tenures, Listeners(self.crowd, self.facts.events, slow=0.1), self.clock
        )
        self.released: set[int] = set()
        self.tenancy.stopped = self.released.update
        self.said: list[tuple[str, frozenset[int]]] = []
        self.renew()

    def renew(self, incarnation: int = 1) -> None:
        self.lease.renew(incarnation, self.clock.now + LEASE)
        self.tenancy.recheck()

    def expire(self) -> None:
        self.clock.pass_by(LEASE)
        self.tenancy.recheck()

    def listen(self, **gates: threading.Event) -> None:
        """Note every call; a gate keeps its signal's receivers from returning until it is open."""

        def receiver(signal: str, partitions: frozenset[int], lost: bool = False) -> None:
            self.said.append((("lost" if lost else signal), partitions))
            if signal in gates:
                assert gates[signal].wait(10)
            self.said.append((f"{signal} returned", partitions))

        self.crowd.on("partitions_assigned", partial(receiver, "assigned"))
        self.crowd.on("partitions_revoked", partial(receiver, "revoked"))

    @property
    def calls(self) -> list[tuple[str, frozenset[int]]]:
        return [(signal, partitions) for signal, partitions in self.said if "returned" not in signal]

    def give(self, *numbers: int) -> None:
        self.tenancy.start(some(*numbers))
        eventually(lambda: self.surface.consumed >= set(numbers))
