"""A Job without a cluster: it may claim everything, and each task once."""

from __future__ import annotations

from collections.abc import Iterable

from jobsync_celery.job.task import Task
from jobsync_celery.runtime.claim import NullClaim


class Alone:
    """What a program that is alone has claimed and added."""

    def __init__(self) -> None:
        self._claimed: set[str] = set()
        self._added: set[str] = set()

    def claim(self, tasks: Iterable[Task]) -> list[NullClaim]:
        """Claims of those that were not claimed before."""
        return [NullClaim(task.key) for task in tasks if _first_time(task.key, self._claimed)]

    def add(self, task: Task) -> NullClaim | None:
        """The claim of a task that was not added before."""
        self._claimed.add(task.key)
        return NullClaim(task.key) if _first_time(task.key, self._added) else None

    def give_back(self, task: Task) -> bool:
        """Forget a task; false if it was not claimed."""
        self._added.discard(task.key)
        claimed = task.key in self._claimed
        self._claimed.discard(task.key)
        return claimed


def _first_time(key: str, known: set[str]) -> bool:
    first = key not in known
    known.add(key)
    return first
