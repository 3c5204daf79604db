"""What really ran: lines that task bodies append to a file, and the questions to ask of them."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from celery import Task

from jobsync_celery import current_claim

TICK_SEC = 0.05
#: The main process of the worker that this is, or is a pool child of.
WORKER = os.getpid()


def now() -> float:
    """Seconds since boot, the same clock in every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Writer:
    """Appends the lines of one body; every line is one write, so that bodies do not mix."""

    def __init__(self, task: Task, key: object, n: int) -> None:
        claim = current_claim()
        request = task.request
        self._path = task.app.conf.e2e_history
        self._fields = {
            "task": task.name,
            "key": None if key is None else str(key),
            "n": n,
            "id": request.id,
            "retries": request.retries or 0,
            "host": request.hostname,
            "node": claim.node,
            "fence": claim.fence,
            "attempt": claim.attempt,
            "pid": os.getpid(),
            "worker": WORKER,
            "partition": claim.partition,
            "tenure": claim.tenure,
        }

    def line(self, event: str, **more: Any) -> None:
        """Append one line."""
        text = json.dumps({"event": event, "at": now(), **self._fields, **more}) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)

    def stay(self, seconds: float) -> None:
        """Run for so long, and leave a trace of it, should the body be killed."""
        end = now() + seconds
        while (left := end - now()) > 0:
            time.sleep(min(TICK_SEC, left))
            self.line("tick")


@contextmanager
def running(task: Task, key: object, n: int = 0) -> Iterator[Writer]:
    """Record that a body runs, and how it ended."""
    writer = Writer(task, key, n)
    writer.line("start")
    how = "returned"
    try:
        yield writer
    except BaseException as error:
        how = type(error).__name__
        raise
    finally:
        writer.line("end", how=how)


@dataclass(frozen=True)
class Run:
    """One run of a body; without ``ended`` it was killed, and ``last`` is the last sign of it."""

    task: str
    key: str | None
    n: int
    id: str
    retries: int
    attempt: int
    node: str | None
    host: str | None
    fence: int
    pid: int
    began: float
    last: float
    ended: float | None
    how: str | None


class History:
    """The file, read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines so far."""
        whole = self.path.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.split("\n") if line]

    def runs(self, *ids: str) -> list[Run]:
        """The runs in the order in which they began; of these task ids only, if given."""
        opened: dict[tuple[int, str, int], dict[str, Any]] = {}
        runs = []
        for line in self.lines():
            mark = (line["pid"], line["id"], line["retries"])
            if line["event"] == "start":
                opened[mark] = {**line, "began": line["at"], "last": line["at"], "ended": None, "how": None}
                runs.append(opened[mark])
            else:
                opened[mark]["last"] = line["at"]
            if line["event"] == "end":
                opened[mark].update(ended=line["at"], how=line["how"])
        fields = Run.__dataclass_fields__
        return [Run(**{name: run[name] for name in fields}) for run in runs if not ids or run["id"] in ids]

    def ended(self, task: str | None = None) -> set[str]:
        """Ids of what returned."""
        return {run.id for run in self.runs() if run.how == "returned" and task in (None, run.task)}


def overlaps(runs: list[Run]) -> list[tuple[Run, Run]]:
    """Pairs of runs of one key of which the second began before the first was over."""
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.key is not None:
            by_key[run.key].append(run)
    found = []
    for each in by_key.values():
        each.sort(key=lambda run: run.began)
        found += [(first, second) for first, second in pairwise(each) if second.began < first.last]
    return found


def doubled(runs: list[Run]) -> list[str]:
    """Ids of runs that began more than once, retries counted apart."""
    return [run[0] for run, count in Counter((run.id, run.retries) for run in runs).items() if count > 1]


def revived(runs: list[Run]) -> list[Run]:
    """Runs that began although they had returned before."""
    over: dict[tuple[str, int], float] = {}
    found = []
    for run in sorted(runs, key=lambda run: run.began):
        if run.began > over.get((run.id, run.retries), float("inf")):
            found.append(run)
        if run.how == "returned":
            over[(run.id, run.retries)] = run.ended or run.last
    return found


def out_of_fence(runs: list[Run]) -> list[tuple[Run, Run]]:
    """Pairs of runs of one key of which the later has no larger fence."""
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.began):
        if run.node is not None and run.key is not None:
            by_key[run.key].append(run)
    pairs = [pair for each in by_key.values() for pair in pairwise(each)]
    return [(first, second) for first, second in pairs if second.fence <= first.fence]
