"""What the story is told with: it acts on the cluster, looks at it, and shows it, all in one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jobsync_celery.demo.cluster import Workers
from jobsync_celery.demo.observer import Look, Observer
from jobsync_celery.demo.publisher import Publisher
from jobsync_celery.demo.records import History, Record
from jobsync_celery.demo.script import Script
from jobsync_celery.demo.tally import Picture, Tally
from jobsync_celery.demo.view import View
from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.runtime.clock import boot_clock

_TICK_SEC = 0.1
_STOP_SEC = 8.0
_LATE_LOOKS = 20


class SceneError(Exception):
    """The story could not go on: a worker ended by itself, or something took far too long."""


@dataclass(frozen=True)
class Crew:
    """Those who work behind the scene."""

    workers: Workers
    publisher: Publisher
    observer: Observer
    history: History
    effects: Callable[[], int]


class Scene:
    """Acts, looks and shows.

    Arguments:
        check: called often; raises when the demo is to end.
    """

    def __init__(self, script: Script, crew: Crew, view: View, check: Callable[[], None]) -> None:
        self.script = script
        self.look = crew.observer.look()
        self.up: list[str] = []
        self._workers = crew.workers
        self._publisher = crew.publisher
        self._observer = crew.observer
        self._history = crew.history
        self._effects = crew.effects
        self._view = view
        self._check = check
        self._ending: set[str] = set()
        self._began = boot_clock()
        self._missed = 0
        self._tally = Tally(script.names)

    # -- acting -------------------------------------------------------------------------------------------------

    def say(self, what: str, alarm: bool = False) -> None:
        """Tell the audience what just happened."""
        self._view.happened(boot_clock() - self._began, what, alarm)

    def start(self, name: str) -> None:
        """Start a worker."""
        self._workers.start(name)
        self.up.append(name)

    def kill(self, name: str) -> tuple[int, ...]:
        """SIGKILL a worker; the partitions that it owned."""
        partitions = self.look_now().owned_by(name)
        self._leave(name)
        self._history.append(Record("kill", boot_clock(), node=name, partitions=partitions))
        self._workers.kill(name)
        self._history.append(Record("gone", boot_clock(), node=name))
        return partitions

    def stop(self, name: str) -> None:
        """Send SIGTERM to a worker."""
        self._leave(name)
        self._workers.stop(name)

    def stop_all(self) -> None:
        """Stop all workers in good order."""
        self._ending.update(self.up)
        for name in self._workers.stop_all(_STOP_SEC):
            self.say(f"{name} did not stop in {_STOP_SEC:.0f} s and was killed", alarm=True)
        self._look_patiently()
        self._show()

    def publish(self) -> None:
        """Begin the stream of tasks."""
        self.say(f"a stream of {len(self.script.jobs)} tasks begins")
        self._publisher.start()

    def step(self, seconds: float, after: float) -> None:
        """A step of the story begins: pace the stream."""
        self._publisher.pace(seconds, after)

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def published(self) -> bool:
        """Whether every task is with the broker."""
        return self._publisher.finished

    def ended(self, name: str) -> bool:
        """Whether the worker's process has ended."""
        return self._workers.exit_code(name) is not None

    def look_now(self) -> Look:
        """A fresh look at the cluster."""
        self.look = self._observer.look()
        return self.look

    def watch(self, seconds: float) -> None:
        """Show the cluster for a while."""
        until = boot_clock() + seconds
        while boot_clock() < until:
            self._tick()

    def wait_until(self, condition: Callable[[], bool], seconds: float, otherwise: str | None = None) -> None:
        """Show the cluster until the condition holds; after ``seconds`` raise ``otherwise``, or go on without it."""
        until = boot_clock() + seconds
        while not condition():
            if boot_clock() > until:
                if otherwise is None:
                    return
                raise SceneError(f"{otherwise} within {seconds:.0f} s")
            self._tick()

    def wait_while_progress(self, seconds: float) -> None:
        """Until every task has its effect, or there was no new one for ``seconds``."""
        before, since = -1, boot_clock()
        while (effects := self._effects()) < len(self.script.jobs) and boot_clock() < since + seconds:
            if effects != before:
                before, since = effects, boot_clock()
            self._tick()

    def _tick(self) -> None:
        began = boot_clock()
        self._check()
        if self._publisher.error is not None:
            raise SceneError(f"publishing failed: {self._publisher.error!r}") from self._publisher.error
        self._watch_workers(self.up)
        self._look_patiently()
        self._show()
        time.sleep(max(0.0, began + _TICK_SEC - boot_clock()))

    def _watch_workers(self, names: Iterable[str]) -> None:
        for name in names:
            code = self._workers.exit_code(name)
            if code is not None:
                raise SceneError(f"{name} ended by itself, exit code {code}")

    def _look_patiently(self) -> None:
        """A busy machine may make the database late: that is no reason to stop, if it does not last."""
        try:
            self.look_now()
            self._missed = 0
        except StoreUnavailable:
            self._missed += 1
            if self._missed >= _LATE_LOOKS:
                raise

    def _show(self) -> None:
        self._tally.add(self._history.follow(), boot_clock())
        picture = Picture(
            seconds=boot_clock() - self._began,
            published=self._publisher.published,
            total=len(self.script.jobs),
            done=self._tally.done,
            rate=self._tally.rate(),
            status=self.look.status,
            nodes=[
                self._tally.line(name, self._workers.pid(name), self.look.node(name), name in self._ending)
                for name in self.script.names
                if self._workers.pid(name) is not None
            ],
        )
        self._view.show(picture)

    def _leave(self, name: str) -> None:
        self.up.remove(name)
        self._ending.add(name)
