"""Work that comes in all the time: many keys and some hot ones, short bodies and some that outlive a lease.

A share of the bodies has effects in the ledger, is retried, is replaced, or fails.
"""

from __future__ import annotations

import itertools
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from celery import Celery
from kombu.exceptions import OperationalError

from jobsync_celery.plugin.router import ORIGIN
from tests.faults.app import CAN_TERMINATE, STEP, STRICT
from tests.faults.model import Kind, Published
from tests.faults.waiting import Stuck, now

#: Seconds that a body stays, and how many in a hundred do: most are short, a few outlive a lease of 2 s.
_STAYS = ((0.0, 0.0, 50), (0.005, 0.03, 32), (0.05, 0.3, 13), (0.4, 1.5, 4), (2.2, 3.5, 1))
#: Those with an effect stay longer, so that faults meet them on both sides of it.
_EFFECT_STAYS = ((0.0, 0.03, 52), (0.05, 0.3, 38), (0.4, 1.5, 7), (2.2, 3.5, 3))
_KEYS, _HOT_KEYS, _HOT_SHARE = 400, 5, 0.15
_STRICT_SHARE = 0.3
#: What bodies do beside staying, and how many in a hundred do.
_KINDS: dict[Kind, int] = {"plain": 68, "guard": 10, "complete": 10, "retry": 6, "replace": 3, "fail": 3}
_MOST_RETRIES = 2
_AGAIN_SEC = 0.2
_BACKLOG = 400
_LAST_SEC = 60.0
#: Tasks that somebody asked for are numbered from here.
_ASKED_FOR = 10**6


@dataclass(frozen=True)
class Message:
    """Everything about one message, so that it can be sent again as it was."""

    n: int
    task: str
    key: str
    sec: float
    task_id: str
    origin: str
    kind: Kind
    times: int


class Publisher(threading.Thread):
    """Publishes at a steady rate while the workers keep up; each message until the broker has it.

    Arguments:
        done: how many of the published tasks have ended.
    """

    def __init__(self, app: Celery, seed: int, rate: float, done: Callable[[], int]) -> None:
        super().__init__(name="publisher", daemon=True)
        self._app = app
        self._rng = Random(f"{seed}-work")
        self._pause = 1 / rate
        self._done = done
        self._over = threading.Event()
        self._sending = threading.Lock()
        self._numbers = itertools.count(_ASKED_FOR)
        self.published: dict[int, Published] = {}
        self.messages: dict[int, Message] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        """Publish until :meth:`stop`; an error that is not the broker's absence is kept in :attr:`error`."""
        try:
            while not self._over.wait(self._pause):
                if len(self.published) - self._done() < _BACKLOG:
                    self._publish(self._next())
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            self.error = error

    def stop(self) -> None:
        """Publish nothing more; returns when the last message is with the broker, or with :class:`Stuck`."""
        self._over.set()
        if self.is_alive():
            self.join(_LAST_SEC)
            if self.is_alive():
                raise Stuck(f"the broker did not take the last message in {_LAST_SEC:.0f} s")

    def send(self, key: str, sec: float) -> int:
        """Publish a task of this key now, whose body stays so long; its number. Returns when the broker has it."""
        message = Message(next(self._numbers), STEP, key, sec, str(uuid.uuid4()), os.urandom(8).hex())
        self._publish(message)
        return message.n

    def partition_of(self, key: str) -> int:
        """The partition of a key."""
        return int(self._app.jobsync.cluster.tokens.partition_for(key))

    def again(self, n: int) -> bool:
        """Send a copy of a published message; false if the broker did not take it."""
        return self._sent(self.messages[n])

    @property
    def may_fail(self) -> set[int]:
        """The tasks that are meant to fail for good."""
        return {n for n, sent in self.published.items() if sent.kind == "fail"}

    def _next(self) -> Message:
        rng = self._rng
        hot = rng.random() < _HOT_SHARE
        key = f"hot{rng.randrange(_HOT_KEYS)}" if hot else f"key{rng.randrange(_KEYS)}"
        kind = rng.choices(list(_KINDS), weights=list(_KINDS.values()))[0]
        stays = _EFFECT_STAYS if kind in ("guard", "complete") else _STAYS
        low, high, _ = rng.choices(stays, weights=[share for *_, share in stays])[0]
        task = STRICT if CAN_TERMINATE and rng.random() < _STRICT_SHARE else STEP
        return Message(
            n=len(self.published),
            task=task,
            key=key,
            sec=rng.uniform(low, high),
            task_id=str(uuid.uuid4()),
            origin=os.urandom(8).hex(),
            kind=kind,
            times=rng.randint(1, _MOST_RETRIES) if kind == "retry" else 0,
        )

    def _publish(self, message: Message) -> None:
        self.messages[message.n] = message
        at = now()
        # What failed may have arrived all the same: the next try is the same run.
        while not self._sent(message):
            threading.Event().wait(_AGAIN_SEC)
        self.published[message.n] = Published(
            message.n, message.key, message.task_id, at, message.kind, message.times, message.origin
        )

    def _sent(self, message: Message) -> bool:
        with self._sending:
            try:
                self._app.tasks[message.task].apply_async(
                    (message.key, message.n, message.sec, message.kind, message.times),
                    task_id=message.task_id,
                    headers={ORIGIN: message.origin},
                    retry=False,
                )
            except (OperationalError, OSError):
                return False
            return True
