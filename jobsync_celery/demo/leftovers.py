"""On servers that are not the demo's own: seeing that they answer, and taking away what it made there."""

from __future__ import annotations

from typing import Any

from celery import Celery

from jobsync_celery.demo.stage import Stage
from jobsync_celery.errors import JobsyncError
from jobsync_celery.store.schema import drop_schema


class BrokerMissing(JobsyncError):
    """Raised when the broker given cannot be used; the message holds no password."""


def check_broker(app: Celery) -> None:
    """Raise :class:`BrokerMissing` unless the broker is one that jobsync serves, and answers."""
    with app.connection_for_write(connect_timeout=3) as connection:
        if connection.transport.driver_type not in ("redis", "amqp"):
            raise BrokerMissing(f"the broker must be Redis or RabbitMQ, not {connection.transport.driver_type}")
        try:
            connection.connect()
            connection.default_channel  # noqa: B018 - Redis connects with the first channel
        except (*connection.connection_errors, *connection.channel_errors) as error:
            raise BrokerMissing(f"the broker {connection.as_uri()} does not answer: {error}") from error


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
