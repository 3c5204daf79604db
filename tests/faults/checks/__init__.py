"""The promises, one file for each subject; each check is a generator of violations. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tests.faults.history import Execution
from tests.faults.model import Violation

#: Within this an older body is silent after its successor's start; also how exactly the times of a fault are known.
SILENT_SEC = 0.1


def broken(promise: str, text: str, *runs: Execution) -> Violation:
    """A violation, at the start of the last of these executions."""
    return Violation(promise, text, tuple(run.name for run in runs), runs[-1].began)


def grouped(runs: Iterable[Execution], field: str) -> dict[Any, list[Execution]]:
    """The executions by a field, each group in order of start."""
    groups: defaultdict[Any, list[Execution]] = defaultdict(list)
    for run in runs:
        groups[getattr(run, field)].append(run)
    return groups
