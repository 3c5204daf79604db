"""Runs that were lost before begin with a record, and those with no loss left one at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobsync_celery.plugin.delivery import Delivery, Stage
from jobsync_celery.plugin.lanes import Lanes
from jobsync_celery.plugin.suspects import Suspects
from jobsync_celery.runtime.claimer import Answer, Recorded
from jobsync_celery.store.outcomes import Granted


class Scene:
    def __init__(self) -> None:
        self.lanes = Lanes()
        self.asked: list[Any] = []
        scribe: Any = SimpleNamespace(begin=lambda run, fence, reply: self.asked.append(reply))
        self.suspects = Suspects(scribe, self.lanes)
        self.answers: list[tuple[Delivery, Answer]] = []

    def granted(self, key: str, lost_runs: int, *, last_chance: bool = False) -> Delivery:
        request = SimpleNamespace(id=key, request_dict={}, message=key)
        delivery = Delivery(request, key, 0, 0, 0)
        delivery.granted = Granted(7, lost_runs + 1, lost_runs, last_chance)
        delivery.stage = Stage.READY
        self.lanes.add(delivery)
        return delivery

    def begin(self, delivery: Delivery) -> bool:
        return self.suspects.begin(delivery, lambda one, answer: self.answers.append((one, answer)))


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_run_that_was_never_lost_starts_without_more_ado(scene: Scene) -> None:
    fresh = scene.granted("fresh", 0)
    assert not scene.suspects.must_wait(fresh) and not scene.begin(fresh)


def test_a_suspect_is_recorded_once_before_it_starts(scene: Scene) -> None:
    suspect = scene.granted("suspect", 1)
    assert scene.begin(suspect) and suspect.beginning
    scene.asked.pop()(Recorded(ours=True))
    assert scene.answers == [(suspect, Recorded(ours=True))] and not suspect.beginning
    suspect.begun = True
    assert not scene.begin(suspect)


@pytest.mark.parametrize("as_", [Stage.STARTED, "beginning"])
def test_two_with_no_loss_left_never_run_side_by_side(scene: Scene, as_: Any) -> None:
    first, second = (scene.granted(key, 2, last_chance=True) for key in ("first", "second"))
    assert not scene.suspects.must_wait(first)
    if as_ == "beginning":
        scene.begin(first)
    else:
        first.stage = as_
    assert scene.suspects.must_wait(second)
    assert not scene.suspects.must_wait(scene.granted("with losses left", 1))
    first.stage = Stage.ENDING
    first.beginning = False
    assert scene.suspects.released() == [second] and scene.suspects.released() == []
    assert not scene.suspects.must_wait(second)
