"""Times in which nothing ran though there was work: what was fetched, or its key, has no one who sees to it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.faults.history import SLACK_SEC, Case, Execution
from tests.faults.model import Published


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
    # What failed for good waits for nobody, nor does what completed and was killed before it could say so.
    finished = {n: begin for n, sent in case.published.items() if _is_over(case, sent)}
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


def _is_over(case: Case, sent: Published) -> bool:
    states = {row.state for _, row in case.of_task.get(sent.task_id, ())}
    return "failed" in states or ("done" in states and sent.n not in case.ended)


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
