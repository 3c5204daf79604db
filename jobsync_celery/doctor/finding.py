"""What a check finds, and how a check is declared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from jobsync_celery.doctor.case import Case

Part = Literal["app", "cluster", "broker"]

#: ``problem``: something is wrong now. ``risk``: something will go wrong, or went wrong lately.
Severity = Literal["problem", "risk"]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or may go wrong.

    Arguments:
        what: in a sentence, with names.
        evidence: what was seen.
        cause: why it is so, as far as that is known.
        fix: what to do.
    """

    severity: Severity
    what: str
    evidence: tuple[str, ...]
    cause: str
    fix: str
    #: The name of the check; set by it.
    check: str = ""


@dataclass(frozen=True)
class Check:
    """One thing that is looked for.

    Arguments:
        parts: what it has to know of the case.
    """

    name: str
    parts: frozenset[Part]
    look: Callable[[Case], Iterable[Finding]]

    @property
    def looks_for(self) -> str:
        """What it finds, in a sentence."""
        return (self.look.__doc__ or "").strip()


class Checks:
    """Checks that belong together, in the order in which they were declared."""

    def __init__(self) -> None:
        self._all: list[Check] = []

    def __iter__(self) -> Iterator[Check]:
        return iter(self._all)

    def __call__(
        self, name: str, *parts: Part
    ) -> Callable[[Callable[[Case], Iterable[Finding]]], Callable[[Case], Iterable[Finding]]]:
        """Declare a check; its docstring says what it looks for."""

        def declare(look: Callable[[Case], Iterable[Finding]]) -> Callable[[Case], Iterable[Finding]]:
            self._all.append(Check(name, frozenset(parts), look))
            return look

        return declare


def problem(what: str, *evidence: str, cause: str, fix: str) -> Finding:
    """Something is wrong now."""
    return Finding("problem", what, evidence, cause, fix)


def risk(what: str, *evidence: str, cause: str, fix: str) -> Finding:
    """Something will go wrong, or went wrong lately."""
    return Finding("risk", what, evidence, cause, fix)
