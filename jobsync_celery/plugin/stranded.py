"""Which runs lie in Redis as fetched and not acknowledged."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kombu.utils import json

from jobsync_celery.core.model import Run
from jobsync_celery.plugin.router import ORIGIN

_loads: Any = json.loads


def unacked_runs(channel: Any, queues: Collection[str]) -> dict[str, Run]:
    """The runs of these queues that some worker has fetched, by delivery tag; from a stock kombu channel."""
    runs: dict[str, Run] = {}
    with channel.conn_or_acquire() as client:
        entries = client.hgetall(channel.global_keyprefix + channel.unacked_key)
    for tag, entry in entries.items():
        message, _, routing_key = _loads(entry)
        headers = message.get("headers") or {}
        if routing_key in queues and "id" in headers:
            text = tag.decode() if isinstance(tag, bytes) else str(tag)
            runs[text] = Run(headers["id"], headers.get(ORIGIN) or "", headers.get("retries") or 0)
    return runs
