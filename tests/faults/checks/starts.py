"""S1 and S2: what may start, and beside whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from tests.faults.checks import SILENT_SEC, broken
from tests.faults.history import Case, Execution
from tests.faults.model import Fault, Violation

#: A body that is silent for longer than this was stopped: it ticks every 50 ms.
_AWAKE_SEC = 0.25


def by_look(runs: Iterable[Execution], faults: Iterable[Fault]) -> tuple[list[Execution], int]:
    """The executions in order of start, where those that were stopped before their first line start at the last look.

    Also how many these are. Nothing can keep a process from being stopped between its last look at the lease and the
    body's first instruction. It has been if that took long and a pause of its node lasted from before until it began.
    Under ``"terminate"`` such a body has to be silent soon after it was continued, as any other that lost its lease.
    """
    pauses = [fault for fault in faults if fault.pauses]
    stopped = [run for run in runs if any(_stopped_before_start(run, pause) for pause in pauses)]
    names = {run.name for run in stopped}
    judged = [replace(run, began=run.looked) if run.name in names else run for run in runs]
    return sorted(judged, key=lambda run: run.began), len(stopped)


def _stopped_before_start(run: Execution, pause: Fault) -> bool:
    return (
        run.looked is not None
        and run.began - run.looked > SILENT_SEC
        and pause.touches(run.node)
        and pause.at <= run.looked + SILENT_SEC
        and abs(run.began - pause.until) <= SILENT_SEC
    )


def contradicted(case: Case, run: Execution) -> Iterator[Violation]:
    """S2: every start has a claim of its own in the table, unless that was taken over under a larger fence."""
    row = case.rows.get(run.run)
    if not run.node or not run.fence:
        yield broken("S2", f"{run} started without a claim", run)
    elif case.forgotten(run):
        return
    elif row is None:
        yield broken("S2", f"{run} has no claim in the table", run)
    elif row.fence < run.fence:
        yield broken("S2", f"{run} has a fence that its claim, at {row.fence}, never had", run)
    elif row.fence == run.fence and (row.key, row.node, row.attempt) != (run.key, run.node, run.attempt):
        claim = f"key {row.key} on {row.node}, attempt {row.attempt}"
        yield broken("S2", f"{run} of key {run.key} contradicts its claim: {claim}", run)


def overlaps(case: Case, runs: Sequence[Execution]) -> Iterator[Violation]:
    """S1, for the executions of one key."""
    for older, newer in pairs(case, runs):
        both = f"{older} was running when {newer} started"
        if newer.fence <= older.fence:
            yield broken("S1", f"{both}, with no larger fence", older, newer)
        elif not case.forgotten(older) and not _was_lost(case, older, newer):
            yield broken("S1", f"{both}, and nothing shows that it had lost its claim", older, newer)
        elif older.policy == "terminate" and (late := _awake(case, older, newer)) > SILENT_SEC:
            yield broken("S1", f"{both}, and was not terminated for {late:.3f} s of its own", older, newer)


def pairs(case: Case, runs: Iterable[Execution]) -> Iterator[tuple[Execution, Execution]]:
    """Executions of one key of which the older held its claim, by a sign of life, when the newer had started."""
    running: list[Execution] = []
    for newer in runs:
        running = [older for older in running if case.held_until(older) > newer.began]
        yield from ((older, newer) for older in running)
        running.append(newer)


def _was_lost(case: Case, older: Execution, newer: Execution) -> bool:
    """Whether the older claim had been lost when the newer one, of a larger fence, was made.

    A run goes to its next attempt only after it was lost. One that was lost and became done late keeps attempt and
    fence; it shows by an end later than the newer claim, and by a fault that can have cost its node the lease.
    """
    if older.run == newer.run:
        return newer.attempt > older.attempt
    row, other = case.rows.get(older.run), case.rows.get(newer.run)
    if row is None:
        return False
    if row.attempt > older.attempt or row.state in ("lost", "running"):
        return row.attempt > older.attempt or row.state == "lost"
    if other is None or other.fence != newer.fence or None in (row.finished, other.created) or case.clock_stepped:
        return case.evictable(older, newer)
    return bool(row.finished > other.created) and case.evictable(older, newer)


def _awake(case: Case, older: Execution, newer: Execution) -> float:
    """For how long the older execution went on beside the newer one, without the time for which it was stopped.

    A pause of its node stopped it from its last line before the pause was over; a body that gave signs of life until
    then was not stopped.
    """
    begin, end = newer.began, case.held_until(older)
    awake = end - begin
    for fault in case.faults:
        if fault.pauses and fault.touches(older.node) and fault.at <= end:
            stopped = max((at for at in older.lines if at < fault.until - SILENT_SEC), default=older.began)
            if fault.until - max(stopped, fault.at) > _AWAKE_SEC:
                awake -= max(0.0, min(end, fault.until) - max(begin, stopped, fault.at))
    return awake
