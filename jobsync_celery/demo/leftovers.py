"""Taking away what the demo made on servers that are not its own."""

from __future__ import annotations

from typing import Any

from celery import Celery

from jobsync_celery.demo.stage import Stage
from jobsync_celery.store.schema import drop_schema


def remove_tables(app: Celery) -> None:
    """Drop the cluster's tables and the ledger."""
    app.ledger.drop()
    drop_schema(app.jobsync.cluster.store.database)


def remove_queues(app: Celery, stage: Stage) -> None:
    """Delete the demo's queues and exchanges, with what is still in them."""
    queues = [queue.name for queue in app.jobsync.cluster.queues.queues] + [f"{stage.prefix}ordinary"]
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
        channel = connection.default_channel
        if stage.on_redis:
            _remove_keys(channel, stage.prefix)
        else:
            for name in queues:
                channel.queue_delete(name)
                channel.exchange_delete(name)


def _remove_keys(channel: Any, prefix: str) -> None:
    """All keys with the demo's prefix; by a plain client, since kombu's adds the prefix to some commands."""
    from redis import Redis

    client = Redis(connection_pool=channel.client.connection_pool)
    for key in list(client.scan_iter(f"{prefix}*", count=1000)):
        client.delete(key)
