"""The claimer: group commit, its order, and what an outage or a bad request means for the others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy import TextClause, event
from stage import Facts, Outage, eventually, join, rows, store_at, wanted

from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.runtime.claimer import Answer, Claimer, Recorded, Reply, Unavailable
from jobsync_celery.store.database import Row
from jobsync_celery.store.outcomes import Busy, Ending, Granted, NotOurs, Wanted
from jobsync_celery.store.store import Store


class Stage:
    """Node ``a`` owns all of 64 partitions; its claimer answers into ``answers``."""

    def __init__(self, store: Store) -> None:
        self.store, self.facts = store, Facts()
        self.owned = set(range(64))
        self.incarnation = join(store, "a", *self.owned)
        self.batches: list[int] = []
        self.answers: dict[str, list[Answer]] = {}
        self._came = threading.Condition()
        self.claimer = Claimer(
            store, "a", self.facts.events, deliver=self._deliver, backlog=lambda: 0.0, owned=lambda: self.owned
        )

    def _deliver(self, answers: Sequence[tuple[Reply, Answer]]) -> None:
        with self._came:
            self.batches.append(len(answers))
            for reply, answer in answers:
                reply(answer)
            self._came.notify_all()

    def _reply(self, name: str) -> Reply:
        return lambda answer: self.answers.setdefault(name, []).append(answer)

    def claim(self, want: Wanted) -> None:
        self.claimer.claim(self.incarnation, want, self._reply(want.run.task_id))

    def end(self, want: Wanted, fence: int, state: str = "done") -> None:
        self.claimer.end(Ending(want.run, fence, state, want.partition), self._reply(f"end {want.run.task_id}"))

    def answer(self, name: str, number: int = 0) -> Answer:
        with self._came:
            assert self._came.wait_for(lambda: len(self.answers.get(name, ())) > number, 15), f"no answer to {name}"
            return self.answers[name][number]

    def granted(self, want: Wanted) -> int:
        self.claim(want)
        answer = self.answer(want.run.task_id)
        assert isinstance(answer, Granted), answer
        return answer.fence

    def states(self) -> dict[object, object]:
        return dict(rows(self.store, "SELECT task_id, state FROM {claim}"))


@pytest.fixture
def store(database_url: str) -> Store:
    return store_at(database_url, lock=1.0)


@pytest.fixture
def stage(store: Store) -> Iterator[Stage]:
    stage = Stage(store)
    yield stage
    stage.claimer.stop(10)


def test_what_waits_goes_into_one_statement(stage: Stage) -> None:
    commits: list[str] = []

    def count(_: object, __: object, statement: str, *___: object) -> None:
        if "commit_claims" in statement:
            commits.append(statement)

    event.listen(stage.store.database._engine, "before_cursor_execute", count)
    for number in range(100):
        stage.claim(wanted(f"t{number}", f"k{number}", number % 64))
    stage.claimer.start()
    for number in range(100):
        assert isinstance(stage.answer(f"t{number}"), Granted)
    assert len(commits) == 1 and stage.batches == [100]


def test_ends_go_before_claims_so_a_keys_next_run_needs_no_second_transaction(stage: Stage) -> None:
    first, second = wanted("one"), wanted("two")
    with stage.store.database.transaction() as tx:
        granted = stage.store.claims.claim(tx, "a", stage.incarnation, [first])[first.run]
    assert isinstance(granted, Granted)
    stage.claim(second)
    stage.end(first, granted.fence)
    stage.claimer.start()
    assert isinstance(stage.answer("two"), Granted)
    assert stage.answer("end one") == Recorded(ours=True)
    assert stage.batches == [2]


def test_every_answer_is_delivered_once(stage: Stage) -> None:
    stage.claimer.start()
    for number in range(50):
        fence = stage.granted(wanted(f"t{number}"))
        stage.end(wanted(f"t{number}"), fence)
        stage.answer(f"end t{number}")
    assert all(len(answers) == 1 for answers in stage.answers.values()) and len(stage.answers) == 100
    assert set(stage.states().values()) == {"done"}


def test_a_claim_for_another_incarnation_is_answered_for_that_one(stage: Stage) -> None:
    stage.claimer.claim(stage.incarnation + 1, wanted("new", "k"), stage._reply("new"))
    stage.claim(wanted("old", "l", 1))
    stage.claimer.start()
    assert isinstance(stage.answer("old"), Granted)
    assert stage.answer("new") == NotOurs()


def test_in_an_outage_claims_are_unavailable_and_ends_are_kept_until_recorded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.claimer.start()
    fence = stage.granted(wanted("t"))
    with Outage(stage.claimer._link, monkeypatch):
        stage.end(wanted("t"), fence)
        stage.claim(wanted("u", "l", 1))
        assert isinstance(stage.answer("u"), Unavailable)
        assert "end t" not in stage.answers
    assert stage.answer("end t") == Recorded(ours=True)
    assert stage.states() == {"t": "done"}


def test_a_commit_whose_answer_was_lost_is_found_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    link = stage.claimer._link
    statement = link.statement
    lost: list[bool] = []

    def unheard(sql: TextClause, params: Mapping[str, Any] | None = None) -> list[Row]:
        answer = statement(sql, params)
        if not lost:
            lost.append(True)
            link.close()
            raise StoreUnavailable("the connection broke")
        return answer

    monkeypatch.setattr(link, "statement", unheard)
    stage.claim(wanted("t"))
    stage.claimer.start()
    assert isinstance(stage.answer("t"), Unavailable)
    stage.claim(wanted("t"))
    again = stage.answer("t", 1)
    assert isinstance(again, Granted) and again.attempt == 1
    stage.end(wanted("t"), again.fence)
    assert stage.answer("end t") == Recorded(ours=True)


BAD: dict[str, Callable[[Wanted], Wanted]] = {
    "a NUL": lambda want: want._replace(key="bad\0key"),
    "a lone surrogate": lambda want: want._replace(task_name="bad\udc00name"),
    "a number too large": lambda want: want._replace(token=2**40),
    "a key too long for the index": lambda want: want._replace(key=os.urandom(6000).hex()),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_a_bad_request_fails_alone(stage: Stage, kind: str) -> None:
    fence = 0
    with stage.store.database.transaction() as tx:
        granted = stage.store.claims.claim(tx, "a", stage.incarnation, [wanted("running", "r", 60)])
        (outcome,) = granted.values()
        assert isinstance(outcome, Granted)
        fence = outcome.fence
    stage.end(wanted("running", "r", 60), fence)
    for number in range(20):
        want = wanted(f"t{number}", f"k{number}", number)
        stage.claim(BAD[kind](want) if number == 13 else want)
    stage.claimer.start()
    assert isinstance(stage.answer("t13"), Unavailable)
    assert all(isinstance(stage.answer(f"t{number}"), Granted) for number in range(20) if number != 13)
    assert stage.answer("end running") == Recorded(ours=True)
    assert len(stage.facts.of("request_failed")) == 1 and not stage.facts.of("loop_error")


def test_a_bad_end_fails_alone_and_holds_up_nothing(stage: Stage) -> None:
    bad = wanted("bad\0id")
    stage.end(bad, 1)
    stage.claim(wanted("t"))
    stage.claimer.start()
    assert stage.answer("end bad\0id") == Recorded(ours=False)
    assert isinstance(stage.answer("t"), Granted)


def test_an_end_that_a_guard_holds_up_delays_only_its_own_key(stage: Stage) -> None:
    """A task left its session open under guard(): scoped sessions do that."""
    stage.claimer.start()
    fence = stage.granted(wanted("guarded"))
    other = stage.granted(wanted("other", "l", 1))
    with stage.store.database.transaction("user") as tx:
        tx.execute(stage.store.database.sql("SELECT FROM {claim} WHERE task_id = 'guarded' FOR UPDATE"))
        stage.end(wanted("guarded"), fence)
        stage.end(wanted("other", "l", 1), other)
        stage.claim(wanted("next", "l", 1))
        stage.claim(wanted("same", "k"))
        assert isinstance(stage.answer("next"), Granted)
        assert stage.answer("end other") == Recorded(ours=True)
        assert isinstance(stage.answer("same"), Busy)
        assert "end guarded" not in stage.answers
    assert stage.answer("end guarded") == Recorded(ours=True)
    assert stage.states() == {"guarded": "done", "other": "done", "next": "running"}


def test_an_end_in_a_partition_that_moved_is_announced_and_others_are_not(stage: Stage) -> None:
    stage.claimer.start()
    fences = {name: stage.granted(wanted(name, name, number)) for number, name in enumerate(("here", "moved"))}
    stage.owned.discard(1)
    listener = stage.store.database.link("listener")
    listener.listen(stage.store.database.channel)
    stage.end(wanted("here", "here", 0), fences["here"])
    stage.answer("end here")
    assert listener.notifications() == []
    stage.end(wanted("moved", "moved", 1), fences["moved"])
    assert listener.wait(5) == ["ended"]
    listener.close()


def test_stopping_records_the_ends_that_wait_and_grants_nothing_more(stage: Stage) -> None:
    stage.claimer.start()
    fence = stage.granted(wanted("t"))
    with stage.store.database.transaction("blocker") as tx:
        tx.execute(stage.store.database.sql("SELECT FROM {node} FOR UPDATE"))
        stage.claim(wanted("early", "e", 1))
        eventually(lambda: not stage.claimer._claims)  # it is in a transaction that waits
        stage.end(wanted("t"), fence)
        stage.claim(wanted("late", "l", 2))
        stopping = threading.Thread(target=stage.claimer.stop, args=(10,))
        stopping.start()
        eventually(lambda: stage.claimer._stopping)
    stopping.join(10)
    assert stage.answer("end t") == Recorded(ours=True)
    assert stage.answer("late") == NotOurs()
    assert stage.states() == {"t": "done", "early": "running"}


def test_stopping_in_an_outage_gives_up_after_the_time_given(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.claimer.start()
    fence = stage.granted(wanted("t"))
    with Outage(stage.claimer._link, monkeypatch):
        stage.end(wanted("t"), fence)
        assert not stage.claimer.stop(0.3)
    assert stage.claimer.stop(10)
    assert stage.states() == {"t": "done"}


def test_a_claimer_that_was_never_started_stops(store: Store) -> None:
    assert Stage(store).claimer.stop(1)


def test_a_forked_child_that_forgets_leaves_the_parents_connection_alone(stage: Stage) -> None:
    stage.claimer.start()
    stage.granted(wanted("t"))
    child = os.fork()
    if child == 0:
        try:
            stage.store.database.discard_after_fork()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stage.granted(wanted("u", "l", 1))
    assert not stage.facts.of("loop_error")
