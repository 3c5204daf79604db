"""The judge: from records and effects alone, what was lost, doubled, overlapped or out of order. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jobsync_celery.demo.records import Record


@dataclass(frozen=True, slots=True)
class Body:
    """One time that a task's body ran. ``how`` it ended: done, fenced, killed, or unknown (it never ended)."""

    n: int
    key: str
    node: str
    pid: int
    fence: int
    partition: int
    start: float
    end: float
    how: str

    def __str__(self) -> str:
        return (
            f"task {self.n} of {self.key} on {self.node} (pid {self.pid}, fence {self.fence}):"
            f" {self.start:.4f} to {self.end:.4f}, {self.how}"
        )


@dataclass(frozen=True)
class FailOver:
    """Seconds from a SIGKILL to the first start elsewhere of a task that waited in one of its partitions.

    ``first`` and ``last`` are over the partitions in which a task waited, ``waited`` of the ``owned`` ones.
    """

    node: str
    first: float
    last: float
    waited: int
    owned: int


@dataclass(frozen=True)
class Findings:
    """Everything the records say.

    ``rerun_killed`` and ``rerun_fenced`` count tries without effect that were followed by another, which is allowed.
    ``survived`` counts tasks killed after their commit, before they could record it: done, and not run again.
    """

    published: int
    starts: int
    done: int
    lost: tuple[int, ...]
    doubled: tuple[int, ...]
    strangers: tuple[int, ...]
    overlaps: tuple[tuple[Body, Body], ...]
    disorder: tuple[tuple[Body, Body], ...]
    again: tuple[tuple[Body, ...], ...]
    survived: int
    rerun_killed: int
    rerun_fenced: int
    failovers: tuple[FailOver, ...]

    @property
    def clean(self) -> bool:
        """Nothing was lost, doubled, overlapped, out of order, or run again without a reason."""
        return not any((self.lost, self.doubled, self.strangers, self.overlaps, self.disorder, self.again))

    def offences(self) -> Iterator[str]:
        """Each finding that must not be, as a line."""
        yield from (f"lost: task {n} was published and has no effect" for n in self.lost)
        yield from (f"doubled: the effect of task {n} is there more than once" for n in self.doubled)
        yield from (f"stranger: there is an effect of task {n}, which was not published" for n in self.strangers)
        yield from (f"overlap: {one} | {other}" for one, other in self.overlaps)
        yield from (f"fence not grown: {one} | {other}" for one, other in self.disorder)
        yield from (f"run again without a reason: {' | '.join(map(str, bodies))}" for bodies in self.again)


def check(records: Iterable[Record], effects: Iterable[int], lease: float) -> Findings:
    """Judge a finished history.

    Arguments:
        effects: the number of each task whose effect is in the database, once per effect.
        lease: seconds for which nobody may take over from a killed node.
    """
    history = sorted(records, key=lambda record: record.at)
    published = {record.n for record in history if record.what == "published"}
    counted = Counter(effects)
    ran = bodies(history)
    by_task, by_key = _grouped(ran, "n"), _grouped(ran, "key").values()
    reruns = [tries for tries in by_task.values() if len(tries) > 1]
    earlier = [body for tries in reruns for body in tries[:-1]]
    return Findings(
        published=len(published),
        starts=len(ran),
        done=len(published & counted.keys()),
        lost=tuple(sorted(published - counted.keys())),
        doubled=tuple(sorted(n for n, times in counted.items() if times > 1)),
        strangers=tuple(sorted(counted.keys() - published)),
        overlaps=tuple(pair for runs in by_key for pair in _overlapping(runs)),
        disorder=tuple((one, other) for runs in by_key for one, other in pairwise(runs) if other.fence <= one.fence),
        again=tuple(tuple(tries) for tries in reruns if any(body.how in ("done", "unknown") for body in tries[:-1])),
        survived=sum(tries[-1].how == "killed" and n in counted for n, tries in by_task.items()),
        rerun_killed=sum(body.how == "killed" for body in earlier),
        rerun_fenced=sum(body.how == "fenced" for body in earlier),
        failovers=tuple(_failovers(history, ran, lease)),
    )


def bodies(history: Iterable[Record]) -> list[Body]:
    """Every body that was started, in order of start. A killed one may have run until its node was gone."""
    starts: list[Record] = []
    ends: dict[tuple[int, int, int], Record] = {}
    gone: dict[str, float] = {}
    for record in history:
        if record.what == "start":
            starts.append(record)
        elif record.what in ("done", "fenced"):
            ends[record.n, record.fence, record.pid] = record
        elif record.what == "gone":
            gone[record.node] = record.at
    return sorted((_body(start, ends, gone) for start in starts), key=lambda body: body.start)


def _body(start: Record, ends: dict[tuple[int, int, int], Record], gone: dict[str, float]) -> Body:
    end = ends.get((start.n, start.fence, start.pid))
    if end is not None:
        until, how = end.at, str(end.what)
    elif start.at <= gone.get(start.node, -math.inf):
        until, how = gone[start.node], "killed"
    else:
        until, how = math.inf, "unknown"
    return Body(start.n, start.key, start.node, start.pid, start.fence, start.partition, start.at, until, how)


def _grouped(ran: Iterable[Body], field: str) -> dict[Any, list[Body]]:
    groups: defaultdict[Any, list[Body]] = defaultdict(list)
    for body in ran:
        groups[getattr(body, field)].append(body)
    return groups


def _overlapping(runs: Sequence[Body]) -> Iterator[tuple[Body, Body]]:
    """Each run with the longest one before it, if that had not ended."""
    longest: Body | None = None
    for body in runs:
        if longest is not None and body.start < longest.end:
            yield longest, body
        if longest is None or body.end > longest.end:
            longest = body


def _failovers(history: Sequence[Record], ran: Sequence[Body], lease: float) -> Iterator[FailOver]:
    published = {record.n: record.at for record in history if record.what == "published"}
    for kill in history:
        if kill.what != "kill":
            continue
        first: dict[int, Body] = {}
        for body in ran:
            if body.partition in kill.partitions and body.start > kill.at and body.node != kill.node:
                first.setdefault(body.partition, body)
        # A partition whose next task came when it had a new owner says nothing about the fail-over.
        waits = [body.start - kill.at for body in first.values() if published.get(body.n, 0.0) <= kill.at + lease]
        if waits:
            yield FailOver(kill.node, min(waits), max(waits), len(waits), len(kill.partitions))
