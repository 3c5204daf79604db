"""Made-up histories, for the tests of the checker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .checker import check
from .model import Fault, Policy, Published, Verdict

TIMEOUT = 2.0
TICK = 0.05


@dataclass
class Body:
    """One execution, made up; it ticks from begin to last."""

    n: int
    key: str
    node: str
    fence: int
    begin: float
    last: float
    ended: bool = True
    attempt: int = 1
    policy: Policy = "finish"
    retries: int = 0
    silent: tuple[float, float] = (0.0, 0.0)

    def lines(self) -> Iterator[dict[str, Any]]:
        ticks = int(round((self.last - self.begin) / TICK, 6))
        moments = [self.begin, *(self.begin + TICK * tick for tick in range(1, ticks + 1)), self.last]
        for number, at in enumerate(moments):
            if self.silent[0] < at < self.silent[1]:
                continue
            end = self.ended and number == len(moments) - 1
            yield self._line("end" if end else "tick" if number else "start", at)

    def _line(self, event: str, at: float) -> dict[str, Any]:
        claim = {"node": self.node, "fence": self.fence, "attempt": self.attempt, "policy": self.policy}
        run = {"id": f"id{self.n}", "origin": "o", "retries": self.retries, "key": self.key, "n": self.n}
        return {"event": event, "at": at, **run, **claim, "pid": self.fence}


@dataclass
class Story:
    """A history with all that belongs to it; a claim for each task, as its last body left it."""

    bodies: list[Body] = field(default_factory=list)
    published: dict[int, Published] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    more_rows: list[dict[str, Any]] = field(default_factory=list)

    def publish(self, n: int, key: str = "k", at: float = 0.0) -> None:
        self.published[n] = Published(n, key, f"id{n}", at)

    def ran(self, n: int, begin: float, last: float, *, key: str = "k", state: str = "done", **more: Any) -> Body:
        body = Body(n, key, more.pop("node", "a"), more.pop("fence", len(self.bodies) + 1), begin, last, **more)
        self.bodies.append(body)
        self.published.setdefault(n, Published(n, key, f"id{n}", 0.0))
        self.rows[n] = row_of(body, state)
        return body

    def fault(self, at: float, until: float, nemesis: str = "kill-main", target: str = "a") -> None:
        self.faults.append(Fault(at, until, nemesis, target, ""))

    def verdict(self, **more: Any) -> Verdict:
        lines = [line for body in self.bodies for line in body.lines()]
        claims = [*self.rows.values(), *self.more_rows]
        return check(lines, self.published, claims, self.faults, timeout=TIMEOUT, **more)

    def broken(self, **more: Any) -> set[str]:
        return {violation.promise for violation in self.verdict(**more).violations}


def row_of(body: Body, state: str) -> dict[str, Any]:
    run = {"task_id": f"id{body.n}", "origin": "o", "retries": body.retries}
    claim = {"node": body.node, "fence": body.fence, "attempt": body.attempt, "task_key": body.key}
    return {**run, **claim, "state": state, "created_on": body.begin - 0.01, "finished_on": body.last + 0.01}
