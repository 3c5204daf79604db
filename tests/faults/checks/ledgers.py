"""S5: what bodies committed under ``guard`` and ``complete``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tests.faults.checks import broken, grouped
from tests.faults.history import Case, Entry, Execution, Loss, RunId
from tests.faults.model import Violation


def effects(case: Case) -> Iterator[Violation]:
    """Every effect was committed while its claim stood; none is missing; a run is completed once, and then over."""
    bodies = {(run.run, run.fence): run for run in case.runs}
    losses, by_run = _by_claim(case), grouped(case.runs, "run")
    for entry in case.ledger:
        body = bodies.get((entry.run, entry.fence))
        if body is None:
            yield Violation(
                "S5", f"an effect with fence {entry.fence} of {entry.run}, under which no body ran", (), 0.0
            )
            continue
        yield from _late(case, entry, body, losses.get((entry.run, entry.fence), []))
        if entry.completes:
            yield from _completed(case, entry, body, by_run[entry.run])
    yield from _twice(case, by_run)
    for run in case.runs:
        yield from _missing(case, run)
        if run.fenced is not None and (run.run, run.fence) not in losses and not case.forgotten(run):
            yield broken("S5", f"{run} was told that its claim was lost, which it was not", run)


def _by_claim(case: Case) -> dict[tuple[RunId, int], list[Loss]]:
    """The losses by run and fence."""
    found: dict[tuple[RunId, int], list[Loss]] = {}
    for loss in case.losses:
        found.setdefault((loss.run, loss.fence), []).append(loss)
    return found


def _late(case: Case, entry: Entry, body: Execution, losses: list[Loss]) -> Iterator[Violation]:
    """No failover excuses this: what it leaves was committed in the order that the database tells."""
    row = case.rows.get(entry.run)
    if any(not loss.saw(entry.xid) for loss in losses):
        yield broken("S5", f"{body} committed an effect after its claim was lost", body)
    if row is None or row.fence < entry.fence:
        held = "no claim" if row is None else f"fence {row.fence} at most"
        yield broken("S5", f"{body} committed an effect with fence {entry.fence}, but its run had {held}", body)
    elif row.fence > entry.fence and not losses:
        yield broken("S5", f"{body} committed an effect, and how its claim was lost was not noted", body)


def _completed(case: Case, entry: Entry, body: Execution, runs: Sequence[Execution]) -> Iterator[Violation]:
    """The end and the effect are of one transaction: where one is, the other is too, whatever was broken."""
    row = case.rows.get(entry.run)
    if row is None or (row.state, row.fence) != ("done", entry.fence):
        recorded = "not at all" if row is None else f"{row.state} with fence {row.fence}"
        yield broken("S5", f"{body} completed its run, which is recorded {recorded}", body)
    for again in runs:
        if again.began > body.began:
            yield broken("S6", f"{again} started although {body} had completed the run", body, again)


def _twice(case: Case, by_run: Mapping[RunId, Sequence[Execution]]) -> Iterator[Violation]:
    times = Counter(entry.run for entry in case.ledger if entry.completes)
    for run in (run for run, count in times.items() if count > 1):
        at = by_run[run][-1].began if run in by_run else 0.0
        text = f"the run {run} was completed {times[run]} times"
        yield Violation("S5", text, tuple(body.name for body in by_run.get(run, ())), at)


def _missing(case: Case, run: Execution) -> Iterator[Violation]:
    """What a body saw committed is there, and a run that it finished has its effect, unless a failover lost them."""
    if case.forgotten(run):
        return
    entries = case.entries.get((run.run, run.fence), ())
    if (run.guarded is not None or run.completed is not None) and not entries:
        yield broken("S5", f"{run} committed an effect, and it is not there", run)
    sent = case.published.get(run.n)
    if sent is not None and run.ended is not None and sent.kind in ("guard", "complete") and not entries:
        yield broken("S5", f"{run} ended as if it had done its work, without an effect", run)
