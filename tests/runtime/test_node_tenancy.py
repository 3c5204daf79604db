"""Two nodes on one real database, with receivers that sleep: what the one hears comes before what the other does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from stage import counts, eventually
from tenancy_stage import Crowd
from test_node import TIMEOUT, Worker

from jobsync_celery.core.lease import margin_for
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.listeners import Listeners
from jobsync_celery.runtime.tenancy import Tenancy
from jobsync_celery.runtime.tenures import Tenures

SLEEP = 0.15


class Listening(Worker):
    """A node with a tenancy before its surface."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url, name)
        self.calls: list[tuple[str, float, float, frozenset[int]]] = []
        self.crowd = Crowd()
        self.crowd.on("partitions_assigned", lambda partitions: self._called("assigned", partitions))
        self.crowd.on("partitions_revoked", lambda partitions, lost: self._called("revoked", partitions, lost))
        self.tenancy = Tenancy(self.surface, self.lease, Tenures(64), Listeners(self.crowd, self.facts.events))
        self.node._surface = self.node.ownership._surface = self.tenancy
        self.surface.stopped = self.tenancy.ended
        self.tenancy.stopped = self.node.ownership.stopped

    def _called(self, what: str, partitions: frozenset[int], lost: bool = False) -> None:
        begun = boot_clock()
        threading.Event().wait(SLEEP)
        self.calls.append(("lost" if lost else what, begun, boot_clock(), partitions))

    def said(self, what: str) -> list[tuple[float, float, frozenset[int]]]:
        return [tuple(rest) for each, *rest in self.calls if each == what]  # type: ignore[misc] # of that length


@pytest.fixture
def pair(database_url: str) -> Iterator[tuple[Any, Any]]:
    workers = Listening(database_url, "a").start(), Listening(database_url, "b").start()
    eventually(lambda: [len(worker.surface.consumed) for worker in workers] == [32, 32])
    yield workers
    for worker in workers:
        worker.close()


def test_a_hand_over_waits_for_the_former_owner_s_receivers(pair: tuple[Listening, Listening]) -> None:
    leaver, stayer = pair
    had = frozenset(leaver.surface.consumed)
    leaver.node.drain()
    assert leaver.node.drained.wait(10)
    eventually(lambda: len(stayer.surface.consumed) == 64)
    returned = {number: end for _, end, numbers in leaver.said("revoked") for number in numbers}
    gained = {number: begun for begun, _, numbers in stayer.said("assigned") for number in numbers if number in had}
    assert set(returned) == set(gained) == had
    assert all(returned[number] <= gained[number] for number in had)


def test_a_node_whose_loop_stands_still_revokes_at_its_deadline_and_before_it_can_be_evicted(
    pair: tuple[Listening, Listening],
) -> None:
    frozen, stayer = pair
    had = frozenset(frozen.surface.consumed)
    go = frozen.freeze()
    eventually(lambda: frozen.tenancy.busy)
    deadline = frozen.lease.deadline
    assert not frozen.lease.trusted and not frozen.tenancy.held and counts(frozen.node._store) == {"a": 32, "b": 32}
    eventually(lambda: len(stayer.surface.consumed) == 64)
    [(begun, _, numbers)] = frozen.said("lost")
    assert numbers == had and 0 <= begun - deadline < margin_for(TIMEOUT)
    assert begun < min(begun for begun, _, numbers in stayer.said("assigned") if numbers & had)
    go.set()
    eventually(lambda: counts(frozen.node._store) == {"a": 32, "b": 32})
    eventually(lambda: len(frozen.surface.consumed) == 32)
