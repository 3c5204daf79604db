"""Made-up histories, for the tests of the checker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.faults.checker import check
from tests.faults.model import Fault, Kind, Policy, Published, Verdict

TIMEOUT = 2.0
TICK = 0.05


@dataclass
class Body:
    """One execution, made up; it ticks from begin to last. ``over``: its last line; ``notes``: lines in between."""

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
    over: str = "end"
    origin: str = "o"
    notes: tuple[tuple[str, float], ...] = ()
    looked: float | None = None

    def lines(self) -> Iterator[dict[str, Any]]:
        ticks = int(round((self.last - self.begin) / TICK, 6))
        moments = [self.begin, *(self.begin + TICK * tick for tick in range(1, ticks + 1)), self.last]
        for number, at in enumerate(moments):
            if self.silent[0] < at < self.silent[1]:
                continue
            end = self.ended and number == len(moments) - 1
            yield self._line(self.over if end else "tick" if number else "start", at)
        yield from (self._line(event, at) for event, at in self.notes)

    def _line(self, event: str, at: float) -> dict[str, Any]:
        claim = {"node": self.node, "fence": self.fence, "attempt": self.attempt, "policy": self.policy}
        run = {"id": f"id{self.n}", "origin": self.origin, "retries": self.retries, "key": self.key, "n": self.n}
        more = {"looked": self.looked} if event == "start" else {}
        return {"event": event, "at": at, **run, **claim, "pid": self.fence, **more}


@dataclass
class Story:
    """A history with all that belongs to it; a claim for each task, as its last body left it."""

    bodies: list[Body] = field(default_factory=list)
    published: dict[int, Published] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    more_rows: list[dict[str, Any]] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)

    def publish(self, n: int, key: str = "k", at: float = 0.0, kind: Kind = "plain", retries: int = 0) -> None:
        self.published[n] = Published(n, key, f"id{n}", at, kind, retries, "o")

    def ran(self, n: int, begin: float, last: float, *, key: str = "k", state: str = "done", **more: Any) -> Body:
        body = Body(n, key, more.pop("node", "a"), more.pop("fence", len(self.bodies) + 1), begin, last, **more)
        self.bodies.append(body)
        if n not in self.published:
            self.publish(n, key)
        if n in self.rows and not self.rows[n].items() >= run_of(body).items():
            self.more_rows.append(self.rows[n])  # of an earlier try, or of what this one replaces
        self.rows[n] = row_of(body, state)
        return body

    def entered(self, body: Body, *, completes: bool = False, xid: int = 10, at: float | None = None) -> None:
        """The body commits an effect, at its middle if nothing else is said."""
        at = (body.begin + body.last) / 2 if at is None else at
        notes = (("completing", at - 0.002), ("completed", at)) if completes else (("guarded", at),)
        body.notes += notes
        self.ledger.append({**run_of(body), "fence": body.fence, "completes": completes, "xid": str(xid)})

    def lost(self, body: Body, committed: str = "20:20:") -> None:
        """The database notes that the claim of the body is lost, and what was committed by then."""
        self.losses.append({**run_of(body), "fence": body.fence, "committed": committed})

    def without(self, n: int) -> None:
        """Nothing is left of a published task."""
        self.bodies = [body for body in self.bodies if body.n != n]
        del self.rows[n]
        for rows in (self.more_rows, self.ledger, self.losses):
            rows[:] = [row for row in rows if row["task_id"] != f"id{n}"]

    def fault(self, at: float, until: float, nemesis: str = "kill-main", target: str = "a") -> None:
        self.faults.append(Fault(at, until, nemesis, target, ""))

    def verdict(self, **more: Any) -> Verdict:
        lines = [line for body in self.bodies for line in body.lines()]
        claims = [*self.more_rows, *self.rows.values()]
        known = {"ledger": self.ledger, "losses": self.losses}
        return check(lines, self.published, claims, self.faults, timeout=TIMEOUT, **known, **more)

    def broken(self, **more: Any) -> set[str]:
        return {violation.promise for violation in self.verdict(**more).violations}


def run_of(body: Body) -> dict[str, Any]:
    return {"task_id": f"id{body.n}", "origin": body.origin, "retries": body.retries}


def row_of(body: Body, state: str) -> dict[str, Any]:
    run = run_of(body)
    claim = {"node": body.node, "fence": body.fence, "attempt": body.attempt, "task_key": body.key}
    return {**run, **claim, "state": state, "created_on": body.begin - 0.01, "finished_on": body.last + 0.01}
