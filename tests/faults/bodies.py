"""What the bodies of tasks do beside staying: effects in the ledger, retries, a replacement, a failure."""

from __future__ import annotations

import os
from collections.abc import Callable

import psycopg2
from celery import Task
from celery.exceptions import Ignore, Reject
from kombu.exceptions import OperationalError

from jobsync_celery import current_claim
from jobsync_celery.errors import LeaseLost, StoreError
from tests.faults import ledger
from tests.faults.record import FailedForGood, Recorder

#: Twice this is less than what the database allows a silent transaction: see :mod:`tests.faults.ledger`.
_MOST_DAWDLING_SEC = 0.4
_COUNTDOWN_SEC = 0.2


class Work:
    """One execution of a body.

    Arguments:
        sec: how long it stays in all, about.
        times: how often it is to be retried.
        other: the task that may take its place.
    """

    def __init__(self, task: Task, body: Recorder, key: str, n: int, sec: float, times: int, other: str) -> None:
        self._task = task
        self._body = body
        self._call = (key, n, sec)
        self._sec = sec
        self._times = times
        self._other = other

    def play(self, kind: str) -> None:
        """Do what this kind does."""
        plays: dict[str, Callable[[], None]] = {
            "plain": lambda: self._body.stay(self._sec),
            "guard": lambda: self._enter(completes=False),
            "complete": lambda: self._enter(completes=True),
            "retry": self._retry,
            "replace": self._replace,
            "fail": self._fail,
        }
        plays[kind]()

    def _enter(self, *, completes: bool) -> None:
        """An effect in the middle of the stay. Whatever is in its way, the run is to be run again."""
        self._body.stay(self._sec / 3)
        try:
            ledger.enter(
                self._task.app.conf.faults_ledger,
                self._body.run,
                self._call[1],
                current_claim(),
                completes=completes,
                dawdle=lambda: self._body.stay(min(self._sec / 6, _MOST_DAWDLING_SEC)),
                before_commit=lambda: self._body.note("completing") if completes else None,
            )
        except (psycopg2.Error, StoreError, LeaseLost) as error:
            if isinstance(error, LeaseLost):
                self._body.note("fenced")
            raise Reject(repr(error), requeue=True) from error
        self._body.note("completed" if completes else "guarded")
        self._body.stay(self._sec / 3)

    def _retry(self) -> None:
        self._body.stay(self._sec)
        tried = self._body.run.retries
        if tried >= self._times:
            return
        # A time to wait until is one of the wall clock: by a wrong clock that could be in an hour.
        countdown = 0 if tried or "WALL_CLOCK_FILE" in os.environ else _COUNTDOWN_SEC
        try:
            self._task.retry(countdown=countdown, max_retries=None)
        except Reject as rejected:
            if isinstance(rejected.reason, OperationalError):
                raise  # the broker did not take the retry: the plugin has to know what that means
            # On a connection that broke, kombu raises AttributeError too.
            raise Reject(repr(rejected.reason), requeue=True) from rejected

    def _replace(self) -> None:
        self._body.stay(self._sec)
        try:
            self._task.replace(self._task.app.tasks[self._other].si(*self._call))
        except Ignore:  # replaced
            raise
        # The broker did not take the replacement; on a connection that broke kombu raises AttributeError, too.
        except Exception as error:
            raise Reject(repr(error), requeue=True) from error

    def _fail(self) -> None:
        self._body.stay(self._sec)
        raise FailedForGood
