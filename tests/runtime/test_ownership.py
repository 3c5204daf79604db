"""Ownership: what is taken, stopped and released, with a surface that only records."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stage import Facts, Outage, RecordingSurface, counts, join, rows, store_at

from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.runtime.ownership import Ownership
from jobsync_celery.store.store import Store


class Stage:
    """Node ``a`` with its ownership; ``b`` is a row."""

    def __init__(self, store: Store) -> None:
        self.store, self.surface, self.facts = store, RecordingSurface(), Facts()
        self.link = store.database.link("owner")
        self.woken = 0
        self.incarnation = join(store, "a")
        join(store, "b")
        self.ownership = Ownership(store, self.link, self.surface, self.facts.events, name="a", wake=self._woken)

    def _woken(self) -> None:
        self.woken += 1

    def target(self, name: str, *numbers: int) -> None:
        with self.store.database.transaction() as tx:
            self.store.partitions.assign(tx, dict.fromkeys(numbers, name))

    def sync(self) -> None:
        self.ownership.sync(self.incarnation)

    def stopped(self, *numbers: int) -> None:
        """The surface reports, and the node's loop comes by."""
        self.ownership.stopped(frozenset(numbers))
        self.ownership.release_stopped(self.incarnation)

    def owned(self) -> set[object]:
        """By the database."""
        found = rows(
            self.store,
            "SELECT partition_id FROM {partition} WHERE owner_incarnation = :incarnation",
            incarnation=self.incarnation,
        )
        return {row[0] for row in found}


@pytest.fixture
def stage(database_url: str) -> Iterator[Stage]:
    stage = Stage(store_at(database_url))
    yield stage
    stage.link.close()


def test_what_is_free_and_meant_for_us_is_taken_and_then_consumed(stage: Stage) -> None:
    stage.target("a", 0, 1)
    stage.target("b", 2)
    stage.sync()
    assert stage.owned() == {0, 1} == stage.ownership.owned == stage.surface.consumed
    assert stage.facts.of("partitions_taken") == [{"numbers": [0, 1]}]
    stage.sync()
    assert stage.surface.calls == [("start", frozenset({0, 1}))]


def test_what_is_meant_for_another_is_stopped_first_and_released_when_that_is_done(stage: Stage) -> None:
    stage.target("a", 0, 1)
    stage.sync()
    stage.target("b", 0)
    stage.sync()
    assert stage.surface.consumed == {1} and stage.ownership.owned == {1}
    assert not stage.ownership.settled
    stage.ownership.release_stopped(stage.incarnation)
    assert stage.owned() == {0, 1}  # not before the surface has confirmed
    stage.sync()
    assert stage.owned() == {0, 1}
    stage.stopped(0)
    assert stage.woken == 1
    assert stage.owned() == {1} and stage.ownership.settled
    assert stage.facts.of("partitions_released") == [{"numbers": [0]}]


def test_a_release_wakes_the_others(stage: Stage) -> None:
    stage.target("a", 0)
    stage.sync()
    stage.target("b", 0)
    stage.sync()
    listener = stage.store.database.link("listener")
    listener.listen(stage.store.database.channel)
    stage.stopped(0)
    assert listener.wait(5) == ["freed"]
    listener.close()


def test_a_stop_that_nobody_asked_for_releases_nothing(stage: Stage) -> None:
    stage.target("a", 0)
    stage.sync()
    stage.stopped(0)
    assert stage.owned() == {0}


def test_a_partition_that_comes_back_while_it_is_handed_over_is_released_and_taken_again(stage: Stage) -> None:
    stage.target("a", 0)
    stage.sync()
    stage.target("b", 0)
    stage.sync()
    stage.target("a", 0)
    stage.sync()
    assert stage.surface.calls == [("start", frozenset({0})), ("stop", frozenset({0}))]
    assert stage.ownership.owned == frozenset()  # it is not ours to consume before its stop has ended
    stage.stopped(0)
    stage.sync()
    assert stage.owned() == {0} == stage.ownership.owned == stage.surface.consumed


def test_draining_stops_everything_and_gives_it_up(stage: Stage) -> None:
    stage.target("a", 0, 1)
    stage.sync()
    stage.ownership.stop_all()
    assert not stage.ownership.owned and not stage.ownership.settled
    stage.stopped(0)
    assert not stage.ownership.settled
    stage.stopped(1)
    assert stage.ownership.settled and stage.owned() == set()


def test_a_suspended_node_consumes_nothing_keeps_what_it_owns_and_resumes(stage: Stage) -> None:
    stage.target("a", 0, 1)
    stage.sync()
    stage.ownership.suspend()
    stage.ownership.suspend()
    stage.stopped(0, 1)  # as every surface reports
    assert stage.owned() == {0, 1} == stage.ownership.owned
    assert stage.surface.consumed == set()
    stage.target("a", 2)
    stage.sync()
    assert stage.surface.consumed == set()
    stage.ownership.resume()
    stage.ownership.resume()
    assert stage.surface.consumed == {0, 1, 2}
    assert [name for name, _ in stage.surface.calls] == ["start", "stop", "start"]


def test_a_lost_incarnation_forgets_everything_and_releases_nothing_later(stage: Stage) -> None:
    stage.target("a", 0, 1)
    stage.sync()
    stage.target("b", 1)
    stage.sync()
    stage.ownership.forget()
    assert stage.surface.consumed == set() and not stage.ownership.owned and stage.ownership.settled
    stage.stopped(0, 1)
    assert stage.owned() == {0, 1}  # by eviction only
    stage.ownership.resume()
    assert stage.surface.consumed == set()


def test_what_was_taken_in_a_transaction_whose_answer_was_lost_is_found(stage: Stage) -> None:
    stage.target("a", 0, 1)
    with stage.store.database.transaction() as tx:
        stage.store.partitions.take(tx, [0, 1], "a", stage.incarnation)
    stage.sync()
    assert stage.ownership.owned == stage.surface.consumed == {0, 1}


def test_what_was_taken_unheard_and_is_meant_for_another_by_now_is_released(stage: Stage) -> None:
    stage.target("a", 0)
    with stage.store.database.transaction() as tx:
        stage.store.partitions.take(tx, [0], "a", stage.incarnation)
    stage.target("b", 0)
    stage.sync()
    assert stage.owned() == set() and stage.surface.calls == []
    assert counts(stage.store, "last_owner") == {"a": 1, None: 63}


def test_a_release_that_the_database_did_not_hear_is_made_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.target("a", 0)
    stage.sync()
    stage.target("b", 0)
    stage.sync()
    with Outage(stage.link, monkeypatch), pytest.raises(StoreUnavailable):
        stage.stopped(0)
    assert not stage.ownership.settled
    stage.ownership.release_stopped(stage.incarnation)
    assert stage.owned() == set() and stage.ownership.settled


def test_a_draining_node_takes_nothing_more(stage: Stage) -> None:
    with stage.store.database.transaction() as tx:
        stage.store.nodes.drain(tx, "a", stage.incarnation)
    stage.target("a", 0)
    stage.sync()
    assert stage.owned() == set() and not stage.surface.calls
