"""Where a locked key may run, judged from what was asked, who was there, and what began."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from e2e.history import Run
from jobsync_celery.core.locks import matches

#: What is left of a fence without the database's timeline.
DRAWN = (1 << 40) - 1


@dataclass
class Locked:
    """One key was locked to these patterns.

    Claims with a fence above ``after``, the last that was drawn when the call had returned, and up to ``upto``, the
    last before the next change of the key was asked for, were made while the lock was in force. ``returned`` and
    ``expires`` are by the boot clock; what begins before ``expires`` was claimed before the lock was due.
    """

    key: str
    patterns: tuple[str, ...]
    returned: float
    after: int
    upto: float = float("inf")
    expires: float = float("inf")


@dataclass
class Presence:
    """When nodes were live for sure: from when it was seen, until what was to end it was about to be done."""

    spans: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))

    def came(self, node: str, at: float) -> None:
        self.spans[node].append([at, float("inf")])

    def goes(self, node: str, at: float) -> None:
        self.spans[node][-1][1] = at

    def throughout(self, node: str, since: float, until: float) -> bool:
        return any(came <= since and until < gone for came, gone in self.spans.get(node, ()))


def astray(
    runs: Iterable[Run], locked: Iterable[Locked], presence: Presence, settle: float
) -> tuple[int, list[tuple[Run, Locked]]]:
    """How many runs were judged, and those that a lock in force forbade their node.

    A node is forbidden if it matches no pattern, or only patterns behind one that a node matched that was live for
    sure all the while from ``settle`` seconds before the run began: so long may a change of members take to be known.
    """
    judged, found = 0, []
    by_key: dict[str | None, list[Run]] = defaultdict(list)
    for run in runs:
        by_key[run.key].append(run)
    for each in by_key.values():
        each.sort(key=lambda run: run.fence & DRAWN)
    for lock in locked:
        for run in _under(lock, by_key[lock.key]):
            judged += 1
            if not _allowed(run, lock.patterns, presence, settle):
                found.append((run, lock))
    return judged, found


def _under(lock: Locked, runs: Sequence[Run]) -> list[Run]:
    """The runs that were claimed while the lock was in force."""
    first = bisect_left(runs, lock.after + 1, key=lambda run: run.fence & DRAWN)
    return [run for run in runs[first:] if run.fence & DRAWN <= lock.upto and run.began < lock.expires]


def _allowed(run: Run, patterns: Sequence[str], presence: Presence, settle: float) -> bool:
    for pattern in patterns:
        if run.node is not None and matches(pattern, run.node):
            return True
        if any(
            matches(pattern, node) and presence.throughout(node, run.began - settle, run.began)
            for node in presence.spans
        ):
            return False
    return False
