"""A node that gains, loses, expires, resumes and is evicted at random, with receivers that take their time."""

from __future__ import annotations

import random
import threading
from itertools import pairwise

import pytest
from stage import eventually
from tenancy_stage import PARTITIONS, TenancyStage

ALL = frozenset(range(PARTITIONS))


class DrawnNode:
    """The orders that an ownership may give, in an order that chance gives."""

    def __init__(self, stage: TenancyStage, chance: random.Random) -> None:
        self.stage, self.chance = stage, chance
        self.owned: set[int] = set()
        self.leaving: set[int] = set()
        self.incarnation = 1
        stage.tenancy.stopped = self.leaving.difference_update
        self.steps = [self.gain, self.release, self.report, self.expire, self.renew, self.evicted]
        self.weights = [3, 2, 1, 1, 1, 1]

    def some(self) -> set[int]:
        return set(self.chance.sample(range(PARTITIONS), self.chance.randint(1, 4)))

    def gain(self) -> None:
        new = self.some() - self.owned - self.leaving
        self.owned |= new
        self.stage.tenancy.start(frozenset(new))

    def release(self, numbers: set[int] | None = None) -> None:
        gone = (numbers or self.some()) & self.owned
        self.owned -= gone
        self.leaving |= gone
        self.stage.tenancy.stop(frozenset(gone))

    def report(self) -> None:
        self.stage.tenancy.ended(ALL)

    def expire(self) -> None:
        self.stage.expire()
        if self.chance.random() < 0.5:  # else the node's loop stands still
            self.stage.tenancy.stop(frozenset(self.owned))
            self.stage.renew(self.incarnation)
            self.stage.tenancy.start(frozenset(self.owned))

    def renew(self) -> None:
        self.incarnation += self.chance.randrange(2)
        self.stage.renew(self.incarnation)

    def evicted(self) -> None:
        """Lost with all that was being handed over; some of it comes back at once, to another incarnation."""
        had = self.owned | self.leaving
        self.stage.lease.close()
        self.stage.tenancy.stop(frozenset(self.owned))
        self.owned = set(self.chance.sample(sorted(had), len(had) // 2))
        self.leaving.clear()
        self.incarnation += 1
        self.stage.renew(self.incarnation)
        self.stage.tenancy.start(frozenset(self.owned))

    def live(self, steps: int) -> None:
        for _ in range(steps):
            self.chance.choices(self.steps, self.weights)[0]()
            if self.chance.random() < 0.3:
                threading.Event().wait(0.002)

    def end(self) -> None:
        self.renew()
        self.release(set(self.owned))
        self.report()
        eventually(lambda: not self.leaving)
        assert self.stage.tenancy.close(5)


@pytest.mark.parametrize("seed", range(20))
def test_assigned_and_revoked_alternate_per_partition_and_nothing_starts_in_between(seed: int) -> None:
    stage, chance = TenancyStage(), random.Random(seed)
    stage.listen()
    for signal in ("partitions_assigned", "partitions_revoked"):
        stage.crowd.on(signal, lambda **_: threading.Event().wait(chance.random() / 500))
    stage.surface.start = lambda numbers: stage.said.append(("start", numbers))  # type: ignore[method-assign] # in order
    node = DrawnNode(stage, chance)
    node.live(120)
    node.end()
    for number in range(PARTITIONS):
        story = [what for what, numbers in stage.said if number in numbers]
        told = [what for what in story if what in ("assigned", "revoked", "lost")]
        assert told[::2] == ["assigned"] * len(told[1::2]) and "assigned" not in told[1::2], story
        assert not [pair for pair in pairwise(story) if pair[1] == "start" and pair[0] != "assigned returned"], story
