"""What only the app knows: which queues carry the partitions, and how much the broker keeps in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jobsync_celery.cli.site import Site
from jobsync_celery.store.history import PartitionRow


@dataclass(frozen=True)
class Depth:
    """What the broker says of a queue: how many messages wait in it, and since when the oldest; or why it is silent.

    Messages that a worker has fetched and not acknowledged are not among them.
    """

    waiting: int | None
    unknown: str = ""


def queue_names(site: Site, partitions: Iterable[PartitionRow]) -> dict[int, str]:
    """Partition -> queue; empty if no app is named, or its cluster has no queues."""
    if site.app is None or site.cluster.shape.kind != "celery":
        return {}
    queues = site.app.jobsync.cluster.queues
    count = site.cluster.shape.partitions
    if queues.tokens.partitions != count:  # the app's settings are not this cluster's
        return {}
    return {
        each.number: str(queues.of_pool(each.pool, each.position).name if each.pool else queues.name(each.number))
        for each in partitions
    }


def choosy_tasks(site: Site) -> list[str]:
    """The app's tasks that are declared with node patterns, whose keys lie in those patterns' partitions."""
    if site.app is None:
        return []
    return sorted(name for name, how in site.app.jobsync.cluster.registry.all().items() if how.pool)


def depth_of(site: Site, queue: str) -> Depth:
    """How many messages wait in a queue; asked of the broker, once and briefly."""
    if site.app is None:
        return Depth(None, "the broker is known to the app only: name it with celery -A")
    try:
        with site.app.connection_for_read(connect_timeout=3) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=5)
            return Depth(_size(connection, queue))
    except Exception as error:  # noqa: BLE001 - each transport raises errors of its own, and none of them is ours
        return Depth(None, f"the broker does not answer ({type(error).__name__})")


def _size(connection: Any, queue: str) -> int:
    channel = connection.channel()
    try:
        return int(channel.queue_declare(queue=queue, passive=True).message_count)
    except connection.channel_errors:  # there is no such queue: nobody has ever published to it
        return 0
