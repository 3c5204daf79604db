"""The roster: what a node learns of the others, whether it is one of the few that watch or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from stage import join, rows, store_at

from jobsync_celery.runtime.roster import Roster
from jobsync_celery.store.nodes import WATCHERS
from jobsync_celery.store.store import Store

EARLY = [f"n{number}" for number in range(WATCHERS)]


class Heralded:
    """A herald that remembers."""

    def __init__(self) -> None:
        self.curious = True
        self.said: list[tuple[object, ...]] = []

    def hear(self, *signals: str) -> bool:
        return self.curious

    def post(self, signal: str, **fields: Any) -> None:
        fields.pop("incarnation")
        self.said.append((signal, *fields.values()))


class Stage:
    """Node ``me`` with its roster; the others are rows."""

    def __init__(self, store: Store, *, watches: bool) -> None:
        self.store, self.herald = store, Heralded()
        self.link = store.database.link("me")
        if not watches:
            for name in EARLY:
                join(store, name)
        self.incarnation = join(store, "me")
        self.roster = Roster(store, self.link, "me", self.herald)

    def beat(self) -> list[tuple[object, ...]]:
        """What one heartbeat makes known."""
        self.herald.said.clear()
        answer = self.store.nodes.renew(self.link, "me", self.incarnation, self.roster.curious())
        assert answer is not None
        self.roster.learn(answer)
        return self.herald.said

    def leave(self, name: str) -> None:
        rows(self.store, "DELETE FROM {node} WHERE name = :name", name=name)

    def state(self, name: str, state: str) -> None:
        rows(self.store, "UPDATE {node} SET state = :state WHERE name = :name", name=name, state=state)


@pytest.fixture(params=[True, False], ids=["watcher", "other"])
def stage(request: pytest.FixtureRequest, database_url: str) -> Iterator[Stage]:
    stage = Stage(store_at(database_url), watches=request.param)
    yield stage
    stage.link.close()


def test_those_who_are_there_already_are_told_and_nothing_is_told_twice(stage: Stage) -> None:
    join(stage.store, "z")
    said = stage.beat()
    assert ("node_joined", "z") in said and ("node_joined", "me") not in said
    assert sum(each[0] == "leader_changed" for each in said) == 1
    assert stage.beat() == []


def test_joins_and_both_ways_of_going_are_told_once(stage: Stage) -> None:
    stage.beat()
    join(stage.store, "y")
    join(stage.store, "z")
    assert stage.beat() == [("node_joined", "y"), ("node_joined", "z")]
    stage.leave("y")
    stage.state("z", "dead")
    assert stage.beat() == [("node_left", "y", "left"), ("node_left", "z", "dead")]
    assert stage.beat() == []


@pytest.mark.parametrize(("state", "reason"), [("draining", "left"), ("live", "dead")])
def test_a_name_that_is_back_before_anybody_looked_left_if_it_was_seen_draining(
    stage: Stage, state: str, reason: str
) -> None:
    join(stage.store, "z")
    stage.state("z", state)
    stage.beat()
    stage.leave("z")
    join(stage.store, "z")
    assert stage.beat() == [("node_left", "z", reason), ("node_joined", "z")]


def test_a_leader_that_drains_or_goes_makes_another_one(stage: Stage) -> None:
    join(stage.store, "z")
    stage.beat()
    oldest, second, *_ = rows(stage.store, "SELECT name FROM {node} ORDER BY incarnation")
    stage.state(oldest[0], "draining")
    assert stage.beat() == [("leader_changed", second[0], oldest[0])]


def test_who_does_not_watch_reads_the_members_only_when_they_have_changed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(store_at(database_url), watches=False)
    reads = 0
    members = stage.store.nodes.members

    def counted(tx: Any) -> Any:
        nonlocal reads
        reads += 1
        return members(tx)

    monkeypatch.setattr(stage.store.nodes, "members", counted)
    for _ in range(3):
        stage.beat()
    assert reads == 1
    stage.state("n0", "draining")
    stage.beat()
    assert reads == 2
    stage.herald.curious = False
    join(stage.store, "z")
    assert stage.beat() == [] and reads == 2
    stage.herald.curious = True
    assert ("node_joined", "z") in stage.beat()
    stage.link.close()
