"""What a nemesis is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from tests.faults.tail import Body
from tests.faults.workers import Worker

if TYPE_CHECKING:
    from tests.faults.publisher import Publisher
    from tests.faults.stage import Stage

#: ``Strike.target`` of what every worker feels.
DATABASE, BROKER, ALL = "database", "broker", "all"


@dataclass(frozen=True)
class Strike:
    """What a nemesis did: to whom, how, how many bodies ran there, and when it began if not at once."""

    target: str
    detail: str
    hit: int
    began: float | None = None


@dataclass(frozen=True)
class Surroundings:
    """All that a nemesis may touch."""

    stage: Stage
    publisher: Publisher
    rng: Random


class Nemesis(ABC):
    """One way to break things. ``run`` breaks, lets it last, and undoes it whatever happens in between."""

    name: str

    def left_out(self, stage: Stage) -> str | None:
        """Why this cannot be done here; None if it can."""
        return None

    @abstractmethod
    def run(self, at: Surroundings) -> Strike:
        """Break and undo; processes that were killed are running again, but need not be ready."""


def strike(workers: Worker | Collection[Worker], detail: str, bodies: Collection[Body]) -> Strike:
    """A strike against workers."""
    each = [workers] if isinstance(workers, Worker) else workers
    return Strike(",".join(worker.name for worker in each), detail, len(bodies))
