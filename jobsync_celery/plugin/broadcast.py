"""Facts as Celery events ``jobsync-…``, for ``celery events``, Flower and other receivers."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import Any

from jobsync_celery.plugin.inbox import Inbox
from jobsync_celery.runtime.events import LOG_ONLY, plain

logger = logging.getLogger(__name__)

#: What happens while there is no connection to the broker is sent when there is one; of more than this the latest.
_MOST_WAITING = 100


class Broadcast:
    """Sends what happens to a node, by the worker's own event dispatcher, as that sends ``worker-…`` events.

    Nothing depends on it: what cannot be sent is lost, and whoever emits a fact does not wait for it.

    Arguments:
        node: the node's name, which every event carries.
    """

    def __init__(self, inbox: Inbox, node: str) -> None:
        self._inbox = inbox
        self._node = node
        self._pid = os.getpid()
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_MOST_WAITING)
        self._dispatcher: Any = None

    def connected(self, consumer: Any) -> None:
        """Use the event dispatcher of this consumer, which has another with each broker connection."""
        self._dispatcher = getattr(consumer, "event_dispatcher", None)
        if self._dispatcher is not None:
            _never_retry(self._dispatcher)

    def hear(self, fact: str, fields: dict[str, Any]) -> None:
        """Take in a fact. Any thread; what a pool child emits stays in its log."""
        if fact not in LOG_ONLY and os.getpid() == self._pid:
            self._waiting.append((event_type(fact), {"node": self._node, "timestamp": time.time(), **plain(fields)}))
            self._inbox.post(self.send)

    def send(self) -> None:
        """Send what waits; in the event loop's thread."""
        dispatcher = self._dispatcher
        while self._waiting:
            type_, fields = self._waiting.popleft()
            if dispatcher is None or not dispatcher.enabled:
                continue
            try:
                # Not send(), which without -E leaves out all groups but its own "worker".
                dispatcher.publish(type_, fields, dispatcher.producer)
            except Exception:  # an event is worth no trouble
                logger.debug("jobsync: the event %s could not be sent", type_, exc_info=True)


def _never_retry(dispatcher: Any) -> None:
    """Have the heartbeats that Celery sends every two seconds wait for no broker.

    They are sent with ``retry=True``, from the event loop, for as long as it takes. When the connection has just been
    reset, and a heartbeat is due before the loop has looked at it, the loop would stand still until the broker is back:
    no lease is renewed, and partitions move for nothing. An event that cannot be sent is buffered.
    """
    send = dispatcher.send

    def send_once(type: str, *args: Any, **fields: Any) -> Any:  # noqa: A002 - Celery's name
        return send(type, *args, **{**fields, "retry": False})

    dispatcher.send = send_once


def event_type(fact: str) -> str:
    """The type of the event that tells a fact: ``jobsync-node-evicted``."""
    return f"jobsync-{fact.replace('_', '-')}"
