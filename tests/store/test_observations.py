"""Observed runs: written once whatever is repeated, and a report that finds every overlap and invents none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobsync_celery.core.observation import Observation, Run
from jobsync_celery.errors import SchemaOutdated
from jobsync_celery.store.database import Database
from jobsync_celery.store.observation_reports import ObservationReports, ObservedTask, Report
from jobsync_celery.store.observations import Observations, ObserverIdentity
from jobsync_celery.store.schema import ClusterShape, ensure_schema, ensure_tables, find_cluster, stored_cluster

HOUR = 3600.0
TASKS, KEYS = ("proj.a", "proj.b"), ("1", "2", None)


class Seen(NamedTuple):
    """A run in tenths of a second, on one of two workers; ``until`` is None while it runs."""

    task: str
    key: str | None
    worker: int
    began: int
    until: int | None
    error: int

    @property
    def surely(self) -> tuple[int, int]:
        """From the latest begin to the earliest end."""
        return self.began + self.error, (self.until or NOW) - self.error


#: When the observers were last heard of, in tenths.
NOW = 40
RUNS = st.lists(
    st.builds(
        lambda task, key, worker, began, took, error: Seen(task, key, worker, began, took and began + took, error),
        st.sampled_from(TASKS), st.sampled_from(KEYS), st.integers(0, 1), st.integers(0, 20),
        st.one_of(st.none(), st.integers(1, 15)), st.integers(0, 2),
    ),
    max_size=12,
)  # fmt: skip


class Stage:
    """Tables, and two workers that observe."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        ensure_tables(self.database)
        self.store = Observations(self.database)
        self.link = self.database.link("test")
        self.workers = [self.store.enrol(self.link, ObserverIdentity(f"w{n}", "host", 7, "prefork")) for n in (0, 1)]
        self.written: set[tuple[int, int]] = set()
        self.zero = self.store.clock(self.link) - NOW / 10

    def write(self, worker: int, *rows: Observation) -> None:
        """Write runs, each as what it is: over and not written before, or not."""
        new = [each for each in rows if each.until is not None and (worker, each.number) not in self.written]
        again = [each for each in rows if each not in new]
        self.written |= {(worker, each.number) for each in rows}
        self.store.write(self.link, self.workers[worker], self.zero + NOW / 10, 0, new, again)

    def put(self, *runs: Seen) -> None:
        self.written.clear()
        for number, run in enumerate(runs):
            self.write(run.worker, self.row(run, number))

    def row(
        self, run: Seen, number: int, task_id: str = "", *, state: str = "", redelivered: bool = False
    ) -> Observation:
        until = None if run.until is None else self.zero + run.until / 10
        state = state or ("running" if until is None else "ended")
        told = Run(run.task, run.key, task_id or f"id-{number}", 0, redelivered)
        return Observation(number, self.zero + run.began / 10, until, run.error / 10, state, told)

    def report(self, since: float = HOUR, task: str | None = None) -> Report:
        with self.database.transaction() as tx:
            return ObservationReports(self.database).report(tx, since, task)

    def execute(self, statement: str) -> None:
        self.link.statement(self.database.sql(statement))


@pytest.fixture
def stage(database_url: str) -> Iterator[Stage]:
    stage = Stage(database_url)
    with closing(stage.link):
        yield stage


def shared(one: Seen, other: Seen) -> int:
    """How long two runs of a key surely ran together, in tenths."""
    if one.key is None or one.key != other.key:
        return 0
    (first, last), (first_, last_) = one.surely, other.surely
    return max(0, min(last, last_) - max(first, first_)) if first < last and first_ < last_ else 0


def expected(runs: list[Seen], task: str) -> dict[str, object]:
    """What a comparison of each run with each other says."""
    met = {i: [shared(a, b) for j, b in enumerate(runs) if j != i] for i, a in enumerate(runs)}
    mine = {i: run for i, run in enumerate(runs) if run.task == task}
    keys = {run.key for run in mine.values()} - {None}
    spread = [key for key in keys if len({run.worker for run in mine.values() if run.key == key}) > 1]
    return {
        "runs": len(mine),
        "keys": len(keys),
        "overlapping": sum(any(met[i]) for i in mine),
        "spread_keys": len(spread),
        "keyless": sum(run.key is None for run in mine.values()),
        "running": sum(run.until is None for run in mine.values()),
    }


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=RUNS)
def test_the_report_says_what_a_comparison_of_all_pairs_says(stage: Stage, runs: list[Seen]) -> None:
    stage.execute("TRUNCATE {observation}")
    stage.put(*runs)
    report = stage.report()
    assert {each.task_name for each in report.tasks} == {run.task for run in runs}
    for each in report.tasks:
        wanted = expected(runs, each.task_name)
        assert {name: getattr(each, name) for name in wanted} == wanted
    overlaps = [shared(a, b) for i, a in enumerate(runs) for b in runs[:i]]
    assert max((each.longest or 0.0 for each in report.tasks), default=0.0) == pytest.approx(
        max(overlaps, default=0) / 10, abs=1e-4
    )
    for key, pair in report.pairs.items():
        assert pair.key == key
        longest = max(shared(a, b) for i, a in enumerate(runs) for b in runs[:i] if a.key == key)
        assert pair.shared == pytest.approx(longest / 10, abs=1e-4)
    assert set(report.pairs) == {a.key for i, a in enumerate(runs) for b in runs[:i] if shared(a, b)}


def test_a_run_that_is_written_again_is_one_run_with_its_end(stage: Stage) -> None:
    run = Seen("proj.a", "1", 0, 1, None, 0)
    stage.write(0, stage.row(run, 1))
    stage.write(0, stage.row(run._replace(until=9), 1), stage.row(run._replace(began=20, until=30), 2))
    stage.write(0, stage.row(run._replace(until=9), 1))
    [task] = stage.report().tasks
    assert (task.runs, task.running, task.overlapping) == (2, 0, 0)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(begins=st.lists(st.floats(0, 1e4), min_size=1, max_size=100, unique=True))
def test_runs_whose_writing_got_no_answer_are_written_again_as_the_same(stage: Stage, begins: list[float]) -> None:
    stage.execute("TRUNCATE {observation}")
    run = Run("proj.a", "ключ", "id\t\\N", 1, True)
    rows = [Observation(n, stage.zero + at, stage.zero + at + 1, 0.1, "ended", run) for n, at in enumerate(begins)]
    for new, again in ((rows, []), ([], rows)):
        assert stage.store.write(stage.link, stage.workers[0], stage.zero, 0, new, again)
    with stage.database.transaction() as tx:
        stored = tx.execute(stage.database.sql("SELECT * FROM {observation} ORDER BY number")).all()
    assert [each.number for each in stored] == list(range(len(begins)))
    assert {(each.task_name, each.task_key, each.task_id, each.retries, each.redelivered) for each in stored} == {run}
    for each, row in zip(stored, rows, strict=True):
        assert each.began_on.timestamp() == pytest.approx(row.began, abs=2e-6)
        assert (each.until - each.began_on).total_seconds() == pytest.approx(1, abs=2e-6)


def one_task(stage: Stage) -> ObservedTask:
    [task] = stage.report().tasks
    return task


def test_what_began_again_is_told_and_what_was_done_twice(stage: Stage) -> None:
    run = Seen("proj.a", "1", 0, 1, 5, 0)
    stage.write(0, stage.row(run, 1, "twice"), stage.row(run._replace(began=10, until=15), 2, "lost", state="lost"))
    stage.write(
        1,
        stage.row(run._replace(began=20, until=25), 1, "twice", redelivered=True),
        stage.row(run._replace(began=30, until=35), 2, "lost", redelivered=True),
    )
    task = one_task(stage)
    assert (task.reruns, task.redelivered_reruns, task.ended_again, task.redelivered) == (2, 2, 1, 2)
    assert (task.example, task.lost, task.overlapping) == ("twice", 1, 0)


def test_runs_of_an_observer_that_is_gone_have_no_end_and_last_no_longer_than_it_was_there(stage: Stage) -> None:
    stage.put(Seen("proj.a", "1", 0, 1, None, 0))
    stage.execute("UPDATE {observer} SET seen_on = seen_on - interval '100 s'")
    stage.put(Seen("proj.a", "1", 1, 30, 35, 0))
    assert stage.report().observers.present == 1
    task = one_task(stage)
    assert (task.runs, task.lost, task.running, task.overlapping) == (2, 1, 0, 0)


def test_one_task_is_reported_with_its_overlaps_with_others(stage: Stage) -> None:
    stage.put(Seen("proj.a", "1", 0, 1, 9, 0), Seen("proj.b", "1", 1, 5, 12, 0))
    report = stage.report(task="proj.b")
    assert [(each.task_name, each.late, each.overlapping) for each in report.tasks] == [("proj.b", 1, 1)]
    assert (report.pairs["1"].first_task, report.pairs["1"].second_task) == ("proj.a", "proj.b")
    assert stage.report(since=1.0).tasks == []


def test_observing_begins_no_cluster_and_the_first_to_coordinate_decides_its_shape(stage: Stage) -> None:
    assert find_cluster(stage.database) is None
    with pytest.raises(SchemaOutdated, match="hold observations only"):
        stored_cluster(stage.database)
    shape = ClusterShape(100, 5, "md5")
    assert ensure_schema(stage.database, shape).shape == shape
    ensure_tables(stage.database)
    assert ensure_schema(stage.database, shape).shape == shape
