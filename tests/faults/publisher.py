"""Work that comes in all the time: many keys and some hot ones, short bodies and some that outlive a lease."""

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
from tests.faults.model import Published
from tests.faults.waiting import Stuck, now

#: Seconds that a body stays, and how many in a hundred do: most are short, a few outlive a lease of 2 s.
_STAYS = ((0.0, 0.0, 50), (0.005, 0.03, 32), (0.05, 0.3, 13), (0.4, 1.5, 4), (2.2, 3.5, 1))
_KEYS, _HOT_KEYS, _HOT_SHARE = 400, 5, 0.15
_STRICT_SHARE = 0.3
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

    def _next(self) -> Message:
        rng = self._rng
        hot = rng.random() < _HOT_SHARE
        key = f"hot{rng.randrange(_HOT_KEYS)}" if hot else f"key{rng.randrange(_KEYS)}"
        low, high, _ = rng.choices(_STAYS, weights=[share for *_, share in _STAYS])[0]
        task = STRICT if CAN_TERMINATE and rng.random() < _STRICT_SHARE else STEP
        return Message(len(self.published), task, key, rng.uniform(low, high), str(uuid.uuid4()), os.urandom(8).hex())

    def _publish(self, message: Message) -> None:
        self.messages[message.n] = message
        at = now()
        # What failed may have arrived all the same: the next try is the same run.
        while not self._sent(message):
            threading.Event().wait(_AGAIN_SEC)
        self.published[message.n] = Published(message.n, message.key, message.task_id, at)

    def _sent(self, message: Message) -> bool:
        with self._sending:
            try:
                self._app.tasks[message.task].apply_async(
                    (message.key, message.n, message.sec),
                    task_id=message.task_id,
                    headers={ORIGIN: message.origin},
                    retry=False,
                )
            except (OperationalError, OSError):
                return False
            return True
