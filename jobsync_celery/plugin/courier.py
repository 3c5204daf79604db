"""Broker errands that must not hold up the event loop, on a thread and a connection of their own.

Two of them: publishing a message again that lies in the wrong queue, and on Redis getting back what a dead worker
had fetched.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from jobsync_celery.core.model import Run
from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.plugin.router import HOPS
from jobsync_celery.plugin.stranded import unacked_runs
from jobsync_celery.runtime.events import Events

logger = logging.getLogger(__name__)

_KEPT_PROPERTIES = (
    "correlation_id",
    "reply_to",
    "priority",
    "delivery_mode",
    "message_id",
    "timestamp",
    "type",
    "app_id",
)
_RETRY_SEC = 1.0

#: An errand, and what to call if it has failed for a reason that lies in itself.
_Errand = tuple[Callable[[], None], Callable[[BaseException], None] | None]


class Courier:
    """Errands, one after the other.

    Arguments:
        running: of the given runs, those that are running at a live node; may ask the database.
    """

    def __init__(self, app: Celery, running: Callable[[Sequence[Run]], Collection[Run]], events: Events) -> None:
        self._app = app
        self._running = running
        self._events = events
        self._errands: queue.SimpleQueue[_Errand | None] = queue.SimpleQueue()
        self._connection: Any = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobsync-courier", daemon=True)

    def start(self) -> None:
        """Start the thread; only after the pool has forked."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Finish the errand at hand and end the thread; at most ``timeout`` seconds."""
        self._stopping.set()
        self._errands.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def forward(
        self,
        message: Any,
        target: Queue,
        then: Callable[[], None],
        failed: Callable[[BaseException], None],
        *,
        counted: bool = True,
    ) -> None:
        """Publish a message again, with the same run identity; ``then`` is called once the broker has it.

        Arguments:
            failed: called instead, with the error, if it is this message that cannot be published.
            counted: whether to count it in the message's :data:`HOPS`.
        """
        self._errands.put((partial(self._forward, message, target, then, int(counted)), failed))

    def recover(self, queues: Collection[str], in_hand: Collection[str], then: Callable[[], None]) -> None:
        """Get back what dead workers had fetched of these queues, then call ``then``.

        Arguments:
            in_hand: delivery tags that this worker itself holds.
        """
        self._errands.put((partial(self._recover, frozenset(queues), frozenset(in_hand), then), None))

    def _run(self) -> None:
        while (errand := self._errands.get()) is not None:
            suspected = False
            while not self._stopping.is_set():
                error = self._try(errand[0])
                if error is None:
                    break
                away = self._is_away(error)
                self._disconnect()
                if not away and suspected:
                    self._set_aside(errand, error)
                    break
                # Clients of brokers do not name every loss of a connection as one: a new connection tells.
                suspected = not away
                self._events("errand_failed", error=repr(error))
                if away:
                    self._stopping.wait(_RETRY_SEC)
        self._disconnect()

    def _try(self, errand: Callable[[], None]) -> Exception | None:
        try:
            errand()
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the thread
            return error
        return None

    def _is_away(self, error: Exception) -> bool:
        """Whether the broker or the database is away, so that no errand can be done.

        An errand connects before anything else, so what fails without a connection failed to connect.
        """
        if self._connection is None or isinstance(error, (StoreUnavailable, OSError, OperationalError)):
            return True
        # kombu takes a KeyError for a lost connection to Redis, for the sake of its poller: nothing polls here.
        return isinstance(error, self._connection.recoverable_connection_errors) and not isinstance(error, KeyError)

    def _set_aside(self, errand: _Errand, error: Exception) -> None:
        """Let the others pass: what failed is told so, or has its next turn behind them."""
        failed = errand[1]
        if failed is not None:
            failed(error)
        else:
            self._errands.put(errand)
            self._stopping.wait(_RETRY_SEC)

    def _forward(self, message: Any, target: Queue, then: Callable[[], None], hops: int) -> None:
        connection = self._connected()
        headers = {**message.headers, HOPS: int(message.headers.get(HOPS) or 0) + hops}
        properties = {
            name: message.properties[name] for name in _KEPT_PROPERTIES if message.properties.get(name) is not None
        }
        if message.properties.get("expiration") is not None:  # comes in milliseconds as text, is given in seconds
            properties["expiration"] = int(message.properties["expiration"]) / 1000
        with self._app.amqp.Producer(connection, auto_declare=False) as producer:
            producer.publish(
                message.body,
                exchange="",
                routing_key=target.name,
                headers=headers,
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                compression=headers.pop("compression", None),  # its body was unpacked when it was received
                declare=[target],
                **properties,
            )
        then()

    def _recover(self, queues: frozenset[str], in_hand: frozenset[str], then: Callable[[], None]) -> None:
        from jobsync_celery.plugin.redis_channel import restore_unacked  # needs the client library of Redis

        channel = self._connected().default_channel
        runs = {tag: run for tag, run in unacked_runs(channel, queues).items() if tag not in in_hand}
        if runs:
            alive = self._running(list(runs.values()))
            keep = {tag for tag, run in runs.items() if run in alive} | in_hand
            restored = restore_unacked(channel, queues, keep)
            if restored:
                self._events("messages_restored", count=restored)
        then()

    def _connected(self) -> Any:
        if self._connection is None:
            options = {**self._app.conf.broker_transport_options, "confirm_publish": True}
            connection = self._app.connection_for_write(transport_options=options)
            try:
                connection.ensure_connection(max_retries=1)
            except BaseException:
                connection.release()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.release()
            except Exception:  # it is of no more use either way
                logger.debug("jobsync: closing the courier's connection failed", exc_info=True)
