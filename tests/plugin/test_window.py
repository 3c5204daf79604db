"""The prefetch window follows what passes through the database."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobsync_celery.plugin.lanes import Lanes
from jobsync_celery.plugin.window import Window

CONFIGURED = 8
SLOTS = 2


class Scene:
    def __init__(self) -> None:
        self.now = 0.0
        self.looks: list[Any] = []
        self.value = CONFIGURED
        worker = SimpleNamespace(concurrency=SLOTS, timer=SimpleNamespace(call_repeatedly=self._repeat))
        self.window = Window(worker, Lanes(), lambda: self.now)
        self.connect()

    def connect(self) -> None:
        self.value = CONFIGURED
        qos = SimpleNamespace(increment_eventually=self._change, decrement_eventually=lambda n: self._change(-n))
        self.window.attach(SimpleNamespace(qos=qos))

    def look(self) -> None:
        self.looks[-1]()

    def passes(self, count: int, *, in_sec: float) -> None:
        self.now += in_sec
        self.window.passed(count)

    def _repeat(self, _: float, look: Any) -> Any:
        self.looks.append(look)
        return SimpleNamespace(cancel=lambda: None)

    def _change(self, by: int) -> None:
        self.value += by


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_burst_is_followed_at_once(scene: Scene) -> None:
    scene.passes(1, in_sec=1.0)
    scene.passes(12, in_sec=0.03)  # 400 a second, each 0.1 s on its way
    assert scene.value == CONFIGURED + 40


def test_slow_tasks_widen_nothing(scene: Scene) -> None:
    for _ in range(50):
        scene.passes(1, in_sec=0.1)
    assert scene.value <= CONFIGURED + 2


def test_there_is_a_limit_for_each_slot(scene: Scene) -> None:
    scene.passes(100_000, in_sec=0.03)
    assert scene.value == CONFIGURED + 128 * SLOTS


def test_a_lull_gives_the_window_back_bit_by_bit(scene: Scene) -> None:
    scene.passes(100_000, in_sec=0.03)
    sizes = []
    while scene.value > CONFIGURED:
        scene.look()
        sizes.append(scene.value)
        assert len(sizes) < 200
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 5


def test_a_new_connection_begins_with_the_configured_window(scene: Scene) -> None:
    scene.passes(100_000, in_sec=0.03)
    scene.connect()
    scene.passes(12, in_sec=0.03)
    assert scene.value > CONFIGURED  # what passes is still known …
    scene.window.detach()
    before = scene.value
    scene.passes(100_000, in_sec=0.03)
    assert scene.value == before  # … but between connections there is no window
