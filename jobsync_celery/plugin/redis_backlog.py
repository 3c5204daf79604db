"""Moving what lies in the queues of a cluster on Redis. See :mod:`jobsync_celery.plugin.backlog`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from typing import Any

from kombu.serialization import prepare_accept_content
from kombu.utils import json

from jobsync_celery.plugin.letters import Mover, Placing, declare_once, letter_of
from jobsync_celery.plugin.redis_channel import SET_ASIDE, restore_unacked, server_of
from jobsync_celery.plugin.redis_scripts import MOVE
from jobsync_celery.plugin.stranded import unacked_runs

logger = logging.getLogger(__name__)
_loads: Any = json.loads
_dumps: Any = json.dumps

_BATCH = 100


class RedisMover(Mover):
    """Moves messages between lists, each in one step on the server."""

    def __init__(self, channel: Any, accept: Any) -> None:
        self._channel = channel
        self._accept = prepare_accept_content(accept)
        self._declared: set[str] = set()
        self._client, *_ = server_of(channel)
        self._script = self._client.register_script(MOVE)

    def restore(self, names: Collection[str]) -> int:
        return restore_unacked(self._channel, names, ())

    def fetched(self, names: Collection[str]) -> int:
        return len(unacked_runs(self._channel, names))

    def move(self, name: str, placing: Placing) -> Counter[str]:
        moved: Counter[str] = Counter()
        for step in self._channel.priority_steps:
            key = self._key(name, step)
            while batch := self._client.lrange(key, -_BATCH, -1):
                for raw in reversed(batch):
                    queue, keys, changed = self._readdressed(raw, placing)
                    # Nothing, if somebody took it meanwhile.
                    moved[queue] += int(self._script(keys=[key, *keys], args=[raw, changed]))
        return +moved

    def _readdressed(self, raw: bytes, placing: Placing) -> tuple[str, list[str], str | bytes]:
        """Where a message goes, and what it looks like there; as it is, and aside, if it is none."""
        try:
            payload = _loads(raw)
            letter = letter_of(self._channel.Message(payload, channel=self._channel), self._accept)
        except (ValueError, TypeError, KeyError, AttributeError):
            logger.warning("jobsync: an unreadable message is set aside in %s", SET_ASIDE)
            return SET_ASIDE, [self._channel.global_keyprefix + SET_ASIDE], raw
        place = placing(letter)
        declare_once(place.queue, self._channel, self._declared)
        payload["headers"] = {name: each for name, each in payload["headers"].items() if name not in place.dropped}
        payload["properties"]["delivery_info"] = {"exchange": place.exchange, "routing_key": place.routing_key}
        priority = self._channel._get_message_priority(payload, reverse=False)
        queues = self._channel._lookup(place.exchange, place.routing_key)
        return place.queue.name, [self._key(queue, priority) for queue in queues], _dumps(payload)

    def _key(self, queue: str, priority: int) -> str:
        return str(self._channel.global_keyprefix + self._channel._q_for_pri(queue, priority))
