"""Settling messages on Redis, where all copies of a message have one delivery tag."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from jobsync_celery.plugin.brokers import Broker
from jobsync_celery.plugin.redis_channel import give_back

logger = logging.getLogger(__name__)


class RedisBroker(Broker):
    """Redis: a redelivered copy has the delivery tag of the first, so settling one settles both."""

    def __init__(self, channel: Any, errors: tuple[type[BaseException], ...]) -> None:
        self._channel = channel
        self._errors = errors
        self._done: list[Any] = []

    def acknowledge(self, message: Any) -> None:
        self._done.append(message)

    def flush(self) -> None:
        done, self._done = self._done, []
        for message in done:
            message.ack_log_error(logger, self._errors)

    def give_back(self, messages: Sequence[Any]) -> None:
        tags = list(dict.fromkeys(message.delivery_tag for message in messages))
        if tags:
            give_back(self._channel, tags)

    def drop(self, messages: Sequence[Any]) -> None:
        # The tag may protect the other node's copy: only this process's own reference goes.
        for message in messages:
            self._channel.qos._delivered.pop(message.delivery_tag, None)

    def return_copies(self, first: Any, copies: Sequence[Any]) -> None:
        self.give_back([copy for copy in copies if copy.delivery_tag != first.delivery_tag])

    def settle_stale(self, message: Any, *, again: bool) -> None:
        # Tags outlive the connection, and Redis delivers nothing again before the visibility timeout.
        if again:
            give_back(self._channel, [message.delivery_tag])
        else:
            self._channel.qos._remove_from_indices(message.delivery_tag).execute()

    def in_hand(self) -> set[str]:
        return set(self._channel.qos._delivered)
