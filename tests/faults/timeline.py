"""A verdict as text that a person can read: each violation with its executions and faults on a line of time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.faults.history import UNSEEN_SEC, Execution, executions
from tests.faults.model import Fault, Verdict, Violation

#: How much is drawn; the verdict itself has everything.
MOST_VIOLATIONS, MOST_ROWS = 12, 16
_AROUND_SEC = 5.0
_LEGEND = "v violation   [ start   = alive   . silent   ] end   x last sign, no end   < > goes on   # fault"


def render(verdict: Verdict, history: Iterable[Mapping[str, Any]], faults: Sequence[Fault], width: int = 80) -> str:
    """The violations, the earliest first, each above its time line; no line is longer than ``width``."""
    if verdict.ok:
        return "No promise was broken."
    runs, _ = executions(history)
    lines = [_count(verdict), *textwrap.wrap(_LEGEND, width)]
    for violation in verdict.violations[:MOST_VIOLATIONS]:
        lines += ["", *textwrap.wrap(str(violation), width, break_on_hyphens=False)]
        lines += _drawn(violation, runs, faults, width)
    if (more := len(verdict.violations) - MOST_VIOLATIONS) > 0:
        lines += ["", f"... and {more} more violations"]
    return "\n".join(lines)


@dataclass(frozen=True)
class Scale:
    """A stretch of time on so many columns, to the right of labels of a fixed width."""

    begin: float
    end: float
    label: int
    columns: int

    def column(self, at: float) -> int:
        """Where a moment is drawn; what lies outside, at the margin."""
        share = (at - self.begin) / (self.end - self.begin)
        return min(self.columns - 1, max(0, round(share * (self.columns - 1))))

    def shows(self, begin: float, end: float) -> bool:
        """Whether any of this is inside."""
        return begin <= self.end and end >= self.begin

    def row(self, label: str, marks: Iterable[tuple[float, float, str]]) -> str:
        """A line with a label, and each mark from one moment to another; later marks cover earlier ones."""
        cells = [" "] * self.columns
        for begin, end, mark in marks:
            first, last = self.column(begin), self.column(end)
            cells[first : last + 1] = mark * (last - first + 1)
        short = label if len(label) <= self.label else label[: self.label - 2] + ".."
        return f"{short:<{self.label}} {''.join(cells)}".rstrip()

    def ruler(self) -> str:
        """Times since the begin, at round steps."""
        cells = [" "] * self.columns
        step = _round_step((self.end - self.begin) / self.columns * 12)
        for number in range(int((self.end - self.begin) / step) + 1):
            text = f"|{number * step:g}"
            column = self.column(self.begin + number * step)
            if column + len(text) <= self.columns:
                cells[column : column + len(text)] = text
        return f"{f'from {self.begin:.3f} s':<{self.label}} {''.join(cells)}".rstrip()


def _count(verdict: Verdict) -> str:
    counts: dict[str, int] = {}
    for violation in verdict.violations:
        counts[violation.promise] = counts.get(violation.promise, 0) + 1
    total = len(verdict.violations)
    each = ", ".join(f"{promise}: {count}" for promise, count in sorted(counts.items()))
    return f"{total} violation{'s' if total > 1 else ''} ({each})"


def _drawn(violation: Violation, runs: Sequence[Execution], faults: Sequence[Fault], width: int) -> Iterator[str]:
    named = [run for run in runs if run.name in violation.runs]
    scale = _scale(violation, named, width)
    keys = {run.key for run in named}
    rows = [run for run in runs if run.key in keys and scale.shows(run.began, run.last)]
    yield scale.ruler()
    yield scale.row(violation.promise, [(violation.at, violation.at, "v")])
    # Those that are named first, then the nearest; drawn in order of start.
    rows.sort(key=lambda run: (run.name not in violation.runs, abs(run.began - violation.at)))
    for run in sorted(rows[:MOST_ROWS], key=lambda run: run.began):
        sign = "*" if run.name in violation.runs else " "
        yield scale.row(f"{sign}{run.name} {run.node or 'no node'} f{run.fence}", _marks(run, scale))
    around = [fault for fault in faults if scale.shows(fault.at, fault.until)]
    for fault in around[:MOST_ROWS]:
        yield scale.row(f" {fault.nemesis} {fault.target}", [(fault.at, fault.until, "#")])
    if (more := len(rows) + len(around) - len(rows[:MOST_ROWS]) - len(around[:MOST_ROWS])) > 0:
        yield f"... and {more} more rows"


def _marks(run: Execution, scale: Scale) -> Iterator[tuple[float, float, str]]:
    yield run.began, run.last, "="
    for before, after in pairwise(run.lines):
        if after - before > UNSEEN_SEC:
            yield before, after, "."
    over = "x" if run.ended is None else "]"
    yield run.last, run.last, over if run.last <= scale.end else ">"
    yield run.began, run.began, "[" if run.began >= scale.begin else "<"


def _scale(violation: Violation, named: Sequence[Execution], width: int) -> Scale:
    begin = min((run.began for run in named), default=violation.at - _AROUND_SEC)
    end = max((run.last for run in named), default=violation.at + _AROUND_SEC)
    begin, end = min(begin, violation.at), max(end, violation.at)
    margin = max((end - begin) * 0.08, 0.05)
    label = min(34, max(16, width // 3))
    return Scale(begin - margin, end + margin, label, max(16, width - label - 1))


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not less."""
    power = 1e-6
    while power * 10 <= least:
        power *= 10
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least), 10 * power)
