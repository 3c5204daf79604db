"""Messages that are moved from queue to queue: what is read of them, and where they go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

from kombu.entity import Queue


class Letter(NamedTuple):
    """What has to be known of a message to find its place; without arguments if they cannot be read."""

    task: str
    args: Any
    kwargs: Any


class Place(NamedTuple):
    """Where a message is published; ``queue`` is declared first, and ``dropped`` are headers that it loses."""

    queue: Queue
    exchange: str
    routing_key: str
    dropped: frozenset[str] = frozenset()


Placing = Callable[[Letter], Place]


class Mover(Protocol):
    """Moves messages as one kind of broker has them."""

    def move(self, name: str, placing: Placing) -> Counter[str]:
        """Move everything out of a queue; how many into which."""

    def restore(self, names: Collection[str]) -> int:
        """Put back what workers that are gone had fetched of these queues; how many messages."""

    def fetched(self, names: Collection[str]) -> int:
        """How many messages of these queues somebody has fetched; 0 where the broker does not tell."""


def declare_once(queue: Queue, channel: Any, declared: set[str]) -> None:
    """Declare a queue unless it was; ``declared`` remembers."""
    if queue.name not in declared:
        queue(channel).declare()
        declared.add(queue.name)


def letter_of(message: Any, accept: Any) -> Letter:
    """What a message of Celery's says, in either of its two protocols."""
    message.accept = accept
    headers = message.headers
    try:
        body = message.decode()
        if "task" in headers:
            args, kwargs, _ = body
            return Letter(headers["task"], args, kwargs)
        return Letter(body["task"], body.get("args"), body.get("kwargs"))
    except Exception:  # noqa: BLE001 - serializers raise what they like; whoever receives the message says so
        return Letter(str(headers.get("task") or ""), None, None)
