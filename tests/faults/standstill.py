"""Times in which nothing ran though there was work: what was fetched, or its key, has no one who sees to it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .history import SLACK_SEC, Case, Execution


@dataclass(frozen=True)
class Standstill:
    """From ``begin`` to ``end`` no body ran, while the tasks numbered ``waiting`` were published and not finished."""

    begin: float
    end: float
    waiting: Sequence[int]


def allowed(timeout: float) -> float:
    """How long nothing may run: one lease until a node is declared dead, one until a node that cannot consume drains.

    A single fault costs the first only, and a second; but the last faults before the quiet can come together.
    """
    return 2 * timeout + SLACK_SEC


def standstills(case: Case, begin: float, end: float) -> list[Standstill]:
    """All between these two moments, however short, in order."""
    # What failed for good waits for nobody.
    finished = {n: begin for n, sent in case.published.items() if _failed(case, sent.task_id)}
    for run in case.runs:
        if run.ended is not None:
            finished[run.n] = min(run.ended, finished.get(run.n, run.ended))
    found = []
    for since, until in _gaps(case.runs, begin, end):
        waiting = [
            n for n, sent in case.published.items() if sent.at <= since and finished.get(n, float("inf")) > until
        ]
        if waiting:
            found.append(Standstill(since, until, sorted(waiting)))
    return found


def _failed(case: Case, task_id: str) -> bool:
    return any(row.state == "failed" for _, row in case.of_task.get(task_id, ()))


def _gaps(runs: Sequence[Execution], begin: float, end: float) -> Iterator[tuple[float, float]]:
    """The stretches of a time in which no execution was going on; ``runs`` in order of start."""
    free_from = begin
    for run in runs:
        if run.began >= end:
            break
        if run.began > free_from:
            yield free_from, run.began
        free_from = max(free_from, run.gone_by)
    if end > free_from:
        yield free_from, end
