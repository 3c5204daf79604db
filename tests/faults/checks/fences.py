"""S7: fences grow, and none is given twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.faults.checks import broken
from tests.faults.history import Case, Execution
from tests.faults.model import Violation


def growing(case: Case, runs: Sequence[Execution]) -> Iterator[Violation]:
    """For the executions of one key."""
    highest: Execution | None = None
    for run in runs:
        if highest is not None and run.fence <= highest.fence:
            text = f"{run} started after {highest}, with no larger fence"
            yield broken("S7", text, highest, run)
        if highest is None or run.fence > highest.fence:
            highest = run


def shared(case: Case) -> Iterator[Violation]:
    """No fence is given twice, to whichever key."""
    first: dict[int, Execution] = {}
    for run in case.runs:
        other = first.setdefault(run.fence, run)
        if run.fence and other.key != run.key:
            yield broken("S7", f"{run} of key {run.key} has the fence of {other} of key {other.key}", other, run)
    times = Counter(row.fence for row in case.rows.values() if row.fence)
    for fence in (fence for fence, count in times.items() if count > 1):
        at = first[fence].began if fence in first else 0.0
        yield Violation("S7", f"{times[fence]} claims have fence {fence}", (), at)
