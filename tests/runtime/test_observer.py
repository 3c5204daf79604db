"""The observer: what it writes, what it keeps while it cannot, and what it does when a process dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from jobsync_celery.core.observation import Notebook
from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.runtime import observer as module
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.observer import Observer
from jobsync_celery.runtime.recorder import Recorder
from jobsync_celery.store.database import Database, Timeouts
from jobsync_celery.store.observations import ObserverIdentity
from jobsync_celery.store.schema import ensure_tables

ME = ObserverIdentity("w1", "host", 7, "prefork")


class Stage:
    """An observer whose turns a test takes."""

    def __init__(self, url: str) -> None:
        self.database = Database(url, timeouts=Timeouts(statement=1.0, lock=0.2))
        ensure_tables(self.database)
        self.facts: list[tuple[str, dict[str, Any]]] = []
        events = Events()
        events.listen(lambda fact, fields: self.facts.append((fact, fields)))
        self.recorder = Recorder(slots=1)
        self.observer = Observer(self.database, self.recorder, ME, events, retention=3600.0)

    def begin(self, task_id: str = "id") -> int:
        number = self.recorder.begin("proj.settle", "42", task_id, 0, False)
        assert number is not None
        return number

    def run(self, *ids: str) -> None:
        for task_id in ids:
            self.recorder.end(self.begin(task_id))

    def write(self) -> bool:
        self.observer.read()
        return self.observer.write(everything=True)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(self.database.link("test")) as link:
            return [tuple(row) for row in link.statement(self.database.sql(query))]

    def states(self) -> dict[str, str]:
        return dict(self.rows("SELECT task_id, state FROM {observation}"))

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody can write."""
        with self.database.transaction("operator") as tx:
            tx.execute(self.database.sql("LOCK TABLE {observation} IN SHARE MODE"))
            yield


@pytest.fixture
def stage(database_url: str) -> Iterator[Stage]:
    stage = Stage(database_url)
    yield stage
    stage.recorder.close()


def test_times_are_the_database_s(stage: Stage) -> None:
    [before] = stage.rows("SELECT clock_timestamp()")
    stage.run("id")
    [after] = stage.rows("SELECT clock_timestamp()")
    assert stage.write()
    [(began, until, error)] = stage.rows("SELECT began_on, until, error_sec FROM {observation}")
    assert (began - before[0]).total_seconds() > -error and (after[0] - until).total_seconds() > -error
    assert began <= until and 0 < error < 1


def test_while_the_database_is_away_runs_are_kept_and_then_written(stage: Stage) -> None:
    stage.run("before")
    assert stage.write()
    with stage.away():
        stage.run("during")
        open_run = stage.begin("long")
        assert not stage.write() and not stage.write()
    stage.recorder.end(open_run)
    assert stage.write()
    assert stage.states() == {"before": "ended", "during": "ended", "long": "ended"}
    assert [fact for fact, _ in stage.facts] == ["observing_interrupted", "observing_resumed"]
    assert stage.rows("SELECT dropped FROM {observer}") == [(0,)]


def test_a_commit_without_an_answer_leaves_each_run_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    write = stage.observer._store.write

    def unanswered(*told: Any) -> bool:
        write(*told)
        raise StoreUnavailable("the connection is lost")

    stage.run("ended")
    open_run = stage.begin("long")
    with monkeypatch.context() as patched:
        patched.setattr(stage.observer._store, "write", unanswered)
        assert not stage.write()
    assert stage.states() == {"ended": "ended", "long": "running"}
    stage.recorder.end(open_run)
    assert stage.write()
    assert stage.states() == {"ended": "ended", "long": "ended"}
    assert stage.rows("SELECT count(*) FROM {observation}") == [(2,)]


def test_a_refusal_is_counted_once_and_its_observer_stays_the_same(stage: Stage) -> None:
    open_run = stage.begin("long")
    assert stage.write()
    stage.rows("ALTER TABLE {observation} ADD CONSTRAINT none CHECK (task_id <> 'refused')")
    stage.run("refused")
    assert not stage.write()
    stage.recorder.end(open_run)
    assert stage.write()
    assert stage.states() == {"long": "ended"}
    assert stage.rows("SELECT dropped FROM {observer}") == [(1,)]


def test_what_does_not_fit_into_memory_meanwhile_is_left_out_and_counted(stage: Stage) -> None:
    stage.observer.notebook = Notebook(3)
    with stage.away():
        stage.run(*map(str, range(5)))
        assert not stage.write()
    assert stage.write() and stage.observer.write()
    assert len(stage.states()) == 3
    assert stage.rows("SELECT dropped FROM {observer}") == [(2,)]


def test_a_run_whose_process_was_killed_is_lost(stage: Stage) -> None:
    ready, told = os.pipe()
    if not (pid := os.fork()):
        stage.recorder.enter(0)
        stage.begin("killed")
        os.write(told, b".")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    stage.begin("here")
    assert stage.write()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # and nobody has waited for it otherwise
    assert stage.write()
    assert stage.states() == {"killed": "lost", "here": "running"}
    os.waitpid(pid, 0)


def test_old_observations_go_by_themselves(stage: Stage) -> None:
    stage.run("old")
    assert stage.write()
    stage.rows("UPDATE {observation} SET began_on = began_on - interval '2 hours'")
    stage.observer._next_cleaning = 0.0
    stage.run("new")
    assert stage.write()
    assert set(stage.states()) == {"new"}


def test_observers_of_which_nothing_is_left_go_with_what_is_old(stage: Stage) -> None:
    stage.run("new")
    stage.rows("INSERT INTO {observer} (node, seen_on) VALUES ('gone', '2000-01-01')")
    assert stage.write()
    assert stage.rows("SELECT node FROM {observer}") == [(ME.node,)]


def test_tables_that_were_dropped_are_made_anew(stage: Stage) -> None:
    stage.run("before")
    assert stage.write()
    stage.rows("DROP SCHEMA public CASCADE")
    stage.rows("CREATE SCHEMA public")
    stage.run("lost with them")
    assert not stage.write()
    stage.run("after")
    assert stage.write()
    assert set(stage.states()) == {"after"}


def test_an_observer_whose_row_was_deleted_meanwhile_takes_a_new_one(stage: Stage) -> None:
    stage.run("before")
    assert stage.write()
    stage.rows("DELETE FROM {observer}")
    stage.run("after")
    assert stage.write()
    ours = "SELECT task_id, node FROM {observation} JOIN {observer} USING (observer_id)"
    assert stage.rows(ours) == [("after", "w1")]


def test_its_thread_writes_and_leaves_when_it_is_stopped(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READ_SEC", 0.001)
    stage.observer.start()
    stage.run("ended")
    stage.begin("killed with the pool")
    stage.observer.stop(30.0)
    assert stage.states() == {"ended": "ended", "killed with the pool": "lost"}
    assert stage.rows("SELECT left_on IS NOT NULL, node FROM {observer}") == [(True, "w1")]
