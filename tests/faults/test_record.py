"""Bodies leave lines that can be read back whatever happened to their writers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task
from celery.exceptions import Ignore, Reject, Retry

from jobsync_celery import coordinated
from jobsync_celery.plugin.router import ORIGIN
from jobsync_celery.runtime.claim import Claim, Ticket, running_under
from tests.faults import record
from tests.faults.history import executions, read
from tests.faults.record import FailedForGood, Recorder

TICKET = Ticket("k", 5, 1, "worker-01", 41, 2, ("id-1", "o1", 3), (7, 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history"


@pytest.fixture
def task(path: Path) -> Iterator[Task]:
    """A task as a pool child has it while its body runs."""
    app = Celery("record", set_as_current=False)
    app.conf.update(faults_history=str(path))

    @app.task(shared=False, name="step", bind=True)
    @coordinated(key="key", on_lease_lost="terminate")
    def step(self: Task, key: str) -> None:
        """Never called: the test plays its body."""

    step.push_request(id="id-1", retries=3, **{ORIGIN: "o1"})
    yield step
    step.pop_request()


def claimed(body: Any) -> Any:
    return running_under(Claim(TICKET, None, None, 12.5), body)  # type: ignore[arg-type]


def test_a_body_leaves_its_start_its_ticks_and_its_end(task: Task, path: Path) -> None:
    def body() -> None:
        with Recorder(task, "k", 17) as recorder:
            recorder.stay(0.12)

    before = record.now()
    claimed(body)
    lines = read(path)
    events = [line["event"] for line in lines]
    assert (events[0], set(events[1:-1]), events[-1]) == ("start", {"tick"}, "end")
    assert before <= lines[0]["at"] < lines[-1]["at"] <= record.now()
    ((run,), strays) = executions(lines)
    assert run.run == ("id-1", "o1", 3)
    assert (run.name, run.key, run.node, run.fence, run.attempt) == ("17.1", "k", "worker-01", 41, 2)
    assert (run.looked, [line.get("looked") for line in lines[1:]]) == (12.5, [None] * (len(lines) - 1))
    assert (run.pid, run.policy, run.ended, strays) == (os.getpid(), "terminate", lines[-1]["at"], [])


def test_a_body_that_raises_leaves_no_end(task: Task, path: Path) -> None:
    with pytest.raises(KeyError), Recorder(task, "k", 0):
        raise KeyError
    assert [line["event"] for line in read(path)] == ["start"]


@pytest.mark.parametrize(
    ("error", "last"),
    [(Ignore(), "replaced"), (Retry(), "retried"), (Reject(), "requeued"), (FailedForGood(), "failed")],
)
def test_the_last_line_says_how_the_body_was_over(task: Task, path: Path, error: Exception, last: str) -> None:
    def body() -> None:
        with Recorder(task, "k", 0) as recorder:
            recorder.note("completing")
            raise error

    with pytest.raises(type(error)):
        body()
    assert [line["event"] for line in read(path)] == ["start", "completing", last]
    ((run,), _) = executions(read(path))
    assert (run.over, run.ended is not None, run.completing is not None) == (last, last == "replaced", True)
    assert run.finished == (last != "requeued")


def test_a_body_without_a_claim_says_so(task: Task, path: Path) -> None:
    with Recorder(task, "k", 0):
        pass
    assert {(line["node"], line["fence"]) for line in read(path)} == {("", 0)}


def test_the_policy_can_be_given(task: Task, path: Path) -> None:
    with Recorder(task, "k", 0, "finish"):
        pass
    assert {line["policy"] for line in read(path)} == {"finish"}


def test_lines_of_many_writers_do_not_mix(task: Task, path: Path) -> None:
    def body(n: int) -> None:
        with Recorder(task, "k", n) as recorder:
            for _ in range(50):
                recorder.tick()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(body, range(16)))
    assert len(path.read_text().splitlines()) == len(read(path)) == 16 * 52


def test_a_line_that_does_not_fit_is_an_error(task: Task, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record.os, "write", lambda file, line: len(line) - 1)
    with pytest.raises(OSError, match="cut short"):
        Recorder(task, "k", 0).__enter__()


def test_without_a_boot_clock_the_monotonic_one_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_CLOCK", None)
    assert time.monotonic() <= record.now() <= time.monotonic()


def line(event: str, at: float, **more: Any) -> dict[str, Any]:
    run = {"id": "id0", "origin": "o", "retries": 0, "key": "k", "n": 0}
    claim = {"node": "a", "fence": 1, "attempt": 1, "pid": 9, "policy": "finish"}
    return {"event": event, "at": at, **run, **claim, **more}


def written(*lines: dict[str, Any]) -> list[str]:
    return [json.dumps(each, separators=(",", ":")) + "\n" for each in lines]


def test_a_torn_last_line_is_left_out(path: Path) -> None:
    start, tick = written(line("start", 1.0), line("tick", 2.0))
    path.write_text(start + tick[:-9])
    assert read(path) == [line("start", 1.0)]


def test_a_line_after_a_torn_one_is_read(path: Path) -> None:
    start, tick, end = written(line("start", 1.0), line("tick", 2.0), line("end", 3.0))
    path.write_text(start + tick[:40] + end)
    assert [each["event"] for each in read(path)] == ["start", "end"]


def test_every_start_is_an_execution_of_its_own_and_takes_the_lines_that_follow() -> None:
    lines = [line("start", 1.0), line("end", 2.0), line("start", 3.0), line("tick", 4.0)]
    (first, second), strays = executions(lines)
    assert (first.name, first.ended, first.last) == ("0.1", 2.0, 2.0)
    assert (second.name, second.ended, second.last) == ("0.2", None, 4.0)
    assert not strays


def test_a_line_that_belongs_to_no_start_is_a_stray() -> None:
    assert executions([line("start", 1.0), line("tick", 2.0, pid=10)])[1] == [line("tick", 2.0, pid=10)]


def test_lines_are_taken_in_order_of_time_not_of_writing() -> None:
    ((run,), _) = executions([line("end", 3.0), line("start", 1.0), line("tick", 2.0)])
    assert run.lines == [1.0, 2.0, 3.0] and run.ended == 3.0
