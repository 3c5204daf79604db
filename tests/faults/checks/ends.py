"""S5 and S6: how tasks end, once and for good, and what may run again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from tests.faults.checks import broken
from tests.faults.history import Case, Execution, Row, RunId
from tests.faults.model import Published, Violation


def task(case: Case, sent: Published, runs: Sequence[Execution]) -> Iterator[Violation]:
    """A published task ends, and its end is recorded once, under the fence of a body that ended so."""
    names = tuple(run.name for run in runs)
    for run in runs:
        if (run.run.task_id, run.key) != (sent.task_id, sent.key):
            yield broken("S6", f"{run} is of another task or key than was published as {sent.n}", run)
    rows = case.of_task.get(sent.task_id, ())
    last = [(run, row) for run, row in rows if _is_last(sent, run)]
    done = [row for _, row in last if row.state == "done"]
    if len(done) > _most_ends(sent, runs):
        yield Violation("S6", f"task {sent.n} was recorded done {len(done)} times", names, sent.at)
    if sent.kind == "fail" and done:
        yield Violation("S6", f"task {sent.n} failed, but is recorded done", names, sent.at)
    if not done:
        yield from _undone(case, sent, runs, [row for _, row in last if row.state == "failed"])
    for which, row in rows:
        if row.state == "done":
            yield from _unfinished(case, sent, which, runs)
        yield from _again(which, row, runs)
    yield from _before_the_last(case, sent, runs)


def _is_last(sent: Published, run: RunId) -> bool:
    """Whether the end of this run is the end of the task: not so for a task that is replaced by another."""
    return sent.kind != "replace" or run.origin != sent.origin


def _most_ends(sent: Published, runs: Sequence[Execution]) -> int:
    """How often a task may be done: a body that was run again may have replaced itself again."""
    return 1 if sent.kind != "replace" else sum(run.run.origin == sent.origin for run in runs)


def _unfinished(case: Case, sent: Published, which: RunId, runs: Sequence[Execution]) -> Iterator[Violation]:
    """S5: a run that is recorded done although no body finished it, or completed it."""
    fence = case.rows[which].fence
    bodies = [run for run in runs if run.run == which and run.fence == fence]
    finished = any(run.ended is not None or case.completion(run) for run in bodies)
    if not finished and not any(map(case.forgotten, runs)):
        what = "whose body never finished" if bodies else "under which no body ran"
        names = tuple(run.name for run in runs)
        yield Violation("S5", f"task {sent.n} was recorded done with fence {fence}, {what}", names, sent.at)


def _again(which: RunId, row: Row, runs: Sequence[Execution]) -> Iterator[Violation]:
    """S6: a body that started, of this publish, after the one that its claim says ended it."""
    if row.state not in ("done", "failed"):
        return
    bodies = [run for run in runs if run.run == which and run.fence == row.fence]
    over = min((run.last for run in bodies if run.over in ("end", "replaced", "failed")), default=float("inf"))
    for again in (run for run in runs if run.run.origin == which.origin and run.began > over):
        yield broken("S6", f"{again} started although the task was {row.state} with fence {row.fence}", *bodies, again)


def _undone(case: Case, sent: Published, runs: Sequence[Execution], failed: Sequence[Row]) -> Iterator[Violation]:
    """S6: a task that is not done failed for good, for a reason."""
    names = tuple(run.name for run in runs)
    finished = [run for run in runs if run.over in ("end", "failed") or run.completed is not None]
    if any(map(case.forgotten, finished)):
        return
    if failed:
        if sent.n not in case.may_fail and not all(row.losses >= case.max_lost_runs and row.reason for row in failed):
            yield Violation("S6", f"task {sent.n} failed for good without a reason", names, sent.at)
    elif finished:
        row = case.rows.get(finished[-1].run)
        state = "not at all" if row is None else row.state
        yield Violation("S6", f"task {sent.n} finished as {finished[-1]}, but is recorded {state}", names, sent.at)
    else:
        states = ", ".join(sorted({row.state for _, row in case.of_task.get(sent.task_id, ())})) or "not at all"
        text = f"task {sent.n} of key {sent.key} was lost: it started {len(runs)} times, never finished,"
        text += f" and is recorded {states}"
        yield Violation("S6", text, names, sent.at)


def _before_the_last(case: Case, sent: Published, runs: Sequence[Execution]) -> Iterator[Violation]:
    """S6: runs of a task that are not its last one are recorded as what they were: retried, or done and replaced."""
    for run in runs:
        row = case.rows.get(run.run)
        if row is None or row.fence != run.fence or case.forgotten(run):
            continue
        if run.over == "replaced" and row.state != "done":
            yield broken("S6", f"{run} was replaced by another, but is recorded {row.state}", run)
        # A lost one is never run again once a later try exists.
        elif run.over == "retried" and row.state != "retried" and not (row.state == "lost" and case.disturbed(run)):
            yield broken("S6", f"{run} is retried, but is recorded {row.state}", run)
        elif run.over == "end" and run.run.retries != sent.retries:
            yield broken("S6", f"{run} finished as try {run.run.retries}, but was to at try {sent.retries}", run)


def reruns(case: Case, runs: Sequence[Execution]) -> Iterator[Violation]:
    """S6, for the executions of one run: after its end it runs again only if that end cannot have been recorded."""
    for older, newer in pairwise(runs):
        if not older.finished or newer.began <= older.last or case.forgotten(older):
            continue
        if newer.attempt <= older.attempt:
            yield broken("S6", f"{newer} runs again what {older} finished, in the same attempt", older, newer)
        elif not case.disturbed(older):
            yield broken("S6", f"{newer} runs again what {older} finished, though nothing was broken", older, newer)


def tries(runs: Sequence[Execution]) -> Iterator[Violation]:
    """S6, for the executions of one task: once a retry has started, no earlier try starts."""
    latest: dict[str, Execution] = {}
    for run in runs:
        before = latest.setdefault(run.run.origin, run)
        if run.run.retries < before.run.retries:
            yield broken("S6", f"{run} is an older try than {before}, and started after it", before, run)
        else:
            latest[run.run.origin] = run
