"""The history, read: its lines, the executions that they tell of, and what else is known of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.model import Fault, Policy, Published

#: A body that stays leaves a tick every 50 ms; it can have lived this much longer than its last line.
UNSEEN_SEC = 0.15
#: What recovery takes beyond the timeout; and within what an end is recorded when nothing is broken.
SLACK_SEC = 1.0
_OPENING = '{"event":'
#: Last lines: the body returned, was replaced, is retried, failed for good, or wants to be run again.
OVER = ("end", "replaced", "retried", "failed", "requeued")


class RunId(NamedTuple):
    """What a claim is for; many executions can be of one run."""

    task_id: str
    origin: str
    retries: int


@dataclass(slots=True)
class Execution:
    """One time that a body ran. ``lines`` are the times of all its lines.

    ``name`` is for people, and unique: ``17.2`` is the second execution of the published task 17. ``over`` is how its
    last line says that it was over, of :data:`OVER`; None if it was killed. ``looked`` is when its process had last
    looked at the lease, if that is known. ``ended`` is when it came to an end that is to be recorded done. ``guarded``,
    ``completing`` and ``completed``: when its transaction had committed under ``guard``, was about to commit under
    ``complete``, and had; ``fenced``: when it was told that its claim was lost.
    """

    name: str
    run: RunId
    n: int
    key: str
    node: str
    fence: int
    attempt: int
    pid: int
    policy: Policy
    began: float
    lines: list[float]
    looked: float | None = None
    ended: float | None = None
    over: str | None = None
    guarded: float | None = None
    completing: float | None = None
    completed: float | None = None
    fenced: float | None = None

    @property
    def last(self) -> float:
        """The last sign of it."""
        return self.lines[-1]

    @property
    def gone_by(self) -> float:
        """When it was surely over: its end, or a little after the last sign of it."""
        return self.last if self.over is not None else self.last + UNSEEN_SEC

    @property
    def finished(self) -> bool:
        """Whether it came to an end after which its run is not to be run again."""
        return self.over is not None and self.over != "requeued"

    def __str__(self) -> str:
        how = {None: "last seen", "end": "ended"}.get(self.over, self.over)
        times = f"began {self.began:.3f}, {how} {self.last:.3f}"
        return f"{self.name} on {self.node or 'no node'} (fence {self.fence}, attempt {self.attempt}, {times})"


@dataclass(frozen=True, slots=True)
class Row:
    """What the table says of a run in the end."""

    key: str
    node: str
    fence: int
    attempt: int
    state: str
    losses: int
    created: Any
    finished: Any
    reason: object


class Entry(NamedTuple):
    """A row of the ledger: an effect that a body committed under its fence, in transaction ``xid``."""

    run: RunId
    fence: int
    completes: bool
    xid: int


class Loss(NamedTuple):
    """What the database noted when a claim was lost or taken over: which transactions had been committed by then."""

    run: RunId
    fence: int
    committed: str

    def saw(self, xid: int) -> bool:
        """Whether this transaction had been committed by then. The text is as PostgreSQL writes a ``pg_snapshot``."""
        _, limit, running = self.committed.split(":")
        return xid < int(limit) and str(xid) not in running.split(",")


@dataclass(frozen=True)
class Case:
    """All that is known, and what faults can have done; ``runs`` in order of start."""

    runs: Sequence[Execution]
    rows: Mapping[RunId, Row]
    published: Mapping[int, Published]
    faults: Sequence[Fault]
    timeout: float
    may_fail: Collection[int]
    max_lost_runs: int
    ledger: Sequence[Entry] = ()
    losses: Sequence[Loss] = ()

    @cached_property
    def entries(self) -> Mapping[tuple[RunId, int], Sequence[Entry]]:
        """The ledger by run and fence."""
        found: defaultdict[tuple[RunId, int], list[Entry]] = defaultdict(list)
        for entry in self.ledger:
            found[entry.run, entry.fence].append(entry)
        return dict(found)

    def completion(self, run: Execution) -> bool:
        """Whether this execution completed its run: the ledger has what it committed together with that."""
        return any(entry.completes for entry in self.entries.get((run.run, run.fence), ()))

    def held_until(self, run: Execution) -> float:
        """The last sign of this execution at which it had not given its claim up by itself.

        With ``complete`` a body ends its claim, so what it does after that commit is nobody's business.
        """
        return run.completing if run.completing is not None and self.completion(run) else run.last

    @cached_property
    def of_task(self) -> Mapping[str, Sequence[tuple[RunId, Row]]]:
        """The claims by task id."""
        found: defaultdict[str, list[tuple[RunId, Row]]] = defaultdict(list)
        for run, row in self.rows.items():
            found[run.task_id].append((run, row))
        return found

    @cached_property
    def ended(self) -> frozenset[int]:
        """The tasks of which a body said that it finished."""
        return frozenset(run.n for run in self.runs if run.ended is not None)

    @cached_property
    def failovers(self) -> Sequence[Fault]:
        """The faults that lost commits."""
        return [fault for fault in self.faults if fault.loses_commits]

    @cached_property
    def clock_stepped(self) -> bool:
        """Whether times in the table cannot be compared."""
        return any("clock" in fault.nemesis.lower() and "database" in fault.target for fault in self.faults)

    def forgotten(self, run: Execution) -> bool:
        """Whether a failover can have lost what was committed for this execution."""
        return any(
            run.began - SLACK_SEC <= fault.until and run.last + SLACK_SEC >= fault.at for fault in self.failovers
        )

    def disturbed(self, run: Execution) -> bool:
        """Whether a fault can have kept the end of this execution from being recorded."""
        return any(
            fault.at <= run.last + SLACK_SEC
            and fault.until + self.timeout + SLACK_SEC >= run.began
            and fault.touches(run.node)
            for fault in self.faults
        )

    def evictable(self, older: Execution, newer: Execution) -> bool:
        """Whether a fault can have cost the older one's node its lease before the newer one started.

        That takes a timeout without a heartbeat, of which the fault must have made most. One that began while the
        older one ran can have killed its node, and goes on until the newer one.
        """
        return any(
            (newer.began if fault.at >= older.began else min(fault.until, newer.began))
            - max(fault.at, older.began - self.timeout)
            >= self.timeout / 2
            for fault in self.faults
            if fault.touches(older.node)
        )


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a history file.

    A writer that was killed can leave a piece of a line, at the end of the file or before the next whole line.
    """
    return [line for text in path.read_text().split("\n") for line in _whole(text)]


def _whole(text: str) -> Iterator[dict[str, Any]]:
    try:
        yield json.loads(text)
    except ValueError:
        begin = text.rfind(_OPENING)
        if begin > 0:
            yield from _whole(text[begin:])


def executions(lines: Iterable[Mapping[str, Any]]) -> tuple[list[Execution], list[Mapping[str, Any]]]:
    """One execution for each start line, in order of start; and the lines that belong to none."""
    found: list[Execution] = []
    strays: list[Mapping[str, Any]] = []
    current: dict[tuple[object, ...], Execution] = {}
    count: Counter[int] = Counter()
    for line in sorted(lines, key=lambda line: line["at"]):
        mark = (line["pid"], line["id"], line["origin"], line["retries"], line["fence"])
        if line["event"] == "start":
            count[line["n"]] += 1
            current[mark] = _begun(line, count[line["n"]])
            found.append(current[mark])
        elif mark in current:
            _note(current[mark], line["event"], line["at"])
        else:
            strays.append(line)
    return found, strays


def _note(run: Execution, event: str, at: float) -> None:
    run.lines.append(at)
    if event in OVER:
        run.over = event
        run.ended = at if event in ("end", "replaced") else None
    elif event != "tick":
        setattr(run, event, at)


def _begun(line: Mapping[str, Any], nth: int) -> Execution:
    return Execution(
        name=f"{line['n']}.{nth}",
        run=RunId(line["id"], line["origin"], line["retries"]),
        n=line["n"],
        key=line["key"],
        node=line["node"],
        fence=line["fence"],
        attempt=line["attempt"],
        pid=line["pid"],
        policy=line["policy"],
        began=line["at"],
        lines=[line["at"]],
        looked=line.get("looked"),
    )


def rows_of(claims: Iterable[Mapping[str, Any]]) -> dict[RunId, Row]:
    """The rows of ``sync_claim``, by run."""
    return {_run_of(row): _row(row) for row in claims}


def entries_of(ledger: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """The rows of the ledger."""
    return [Entry(_run_of(row), row["fence"], row["completes"], int(row["xid"])) for row in ledger]


def losses_of(losses: Iterable[Mapping[str, Any]]) -> list[Loss]:
    """What was noted when claims were lost."""
    return [Loss(_run_of(row), row["fence"], row["committed"]) for row in losses]


def _run_of(row: Mapping[str, Any]) -> RunId:
    return RunId(row["task_id"], row["origin"], row["retries"])


def _row(row: Mapping[str, Any]) -> Row:
    return Row(
        key=row["task_key"],
        node=row["node"],
        fence=row["fence"] or 0,
        attempt=row["attempt"],
        state=row["state"],
        losses=row.get("lost_runs", row["attempt"]),
        created=row.get("created_on"),
        finished=row.get("finished_on"),
        reason=row.get("reason", "not kept"),
    )
