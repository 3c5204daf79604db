"""The values that store, core and runtime exchange."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

NodeState = Literal["live", "draining", "left", "dead", "admin"]
ClaimState = Literal["running", "done", "failed", "retried", "lost"]


@dataclass(frozen=True, slots=True)
class Member:
    """A registered node as the database shows it.

    `weight` is its share of partitions relative to the others; `renewals` counts its heartbeats; `age`
    is seconds since the last one by the database clock; `timeout` is the length of its lease in seconds
    where the database tells it, None where it is the same as the reader's.
    """

    name: str
    incarnation: int
    state: NodeState = "live"
    weight: float = 1.0
    renewals: int = 0
    age: float = 0.0
    timeout: float | None = None

    @property
    def draining(self) -> bool:
        """True if the node takes no new work and hands over what it has."""
        return self.state == "draining"


@dataclass(frozen=True, slots=True)
class Seat:
    """One row of the partition table: who should have the partition, who has it, who had it before.

    `pool` is the text of a task lock's patterns, "" for what is not locked. `caretaker` is true while the target
    may only forward and hold what lies in the queue, because no live node may run it. `since` is when it got its
    target: what was planned later has a larger number.
    """

    number: int
    target: str | None = None
    owner: str | None = None
    owner_incarnation: int | None = None
    last_owner: str | None = None
    pool: str = ""
    caretaker: bool = False
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Move:
    """A change of one partition's target; None stands for nobody."""

    partition: int
    source: str | None
    destination: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The target of every partition, and the changes of target that lead there, by partition number.

    `caretakers` are the partitions whose target may only forward and hold; `flipped` those whose target stays while
    that changes. So what has to be written is the target and the caretaker of every partition that moves or flips.
    """

    targets: Mapping[int, str | None]
    moves: tuple[Move, ...]
    caretakers: frozenset[int] = frozenset()
    flipped: frozenset[int] = frozenset()


def short(incarnation: int) -> str:
    """An incarnation for people: the database's timeline, and the number on it."""
    return f"{incarnation >> 40}/{incarnation & (1 << 40) - 1}"


def spans(numbers: Iterable[int]) -> str:
    """Numbers in order, with those that follow each other as a span: ``0-3, 7``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ", ".join("-".join(map(str, span)) for span in spans)


@dataclass(frozen=True, slots=True)
class RebalanceEvent:
    """A change of what a worker owns, as ``on_rebalance`` gets it: either something added or something removed.

    `is_initial`: the first that this worker has. `token_version` grows by one with every event of this worker.
    """

    is_initial: bool
    token_version: int
    tokens_added: int
    tokens_removed: int
    partitions_added: frozenset[int] = field(default=frozenset(), repr=False)
    partitions_removed: frozenset[int] = field(default=frozenset(), repr=False)


class Run(NamedTuple):
    """The identity of one execution of a task: redeliveries share it, retries and new publishes do not."""

    task_id: str
    origin: str
    retries: int
