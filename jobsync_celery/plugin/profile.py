"""What a worker tells of itself: its broker, and the settings in which it has to agree with others. No secrets."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import celery
import kombu
from celery import Celery
from kombu.utils.url import url_to_parts

from jobsync_celery.errors import JobsyncError
from jobsync_celery.plugin.cluster import Cluster
from jobsync_celery.plugin.coordinated import Coordination
from jobsync_celery.settings import DATABASE_PARTS, CoordinationConfig

_DEFAULT_PATHS = {"redis": "0", "rediss": "0", "amqp": "/", "amqps": "/"}
#: What each process may have for itself, and what leads to the database.
_OWN = {"url", "tasks", "node_name", "weight", "enabled", *DATABASE_PARTS}


def profile_of(app: Celery, cluster: Cluster) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "broker": broker_of(app),
        "celery": celery.__version__,
        "kombu": kombu.__version__,
        "settings": settings_of(cluster.config),
        "tasks": tasks_of(cluster),
    }


def settings_of(config: CoordinationConfig) -> dict[str, Any]:
    """The settings that are to be the same for all of a cluster."""
    return {each.name: getattr(config, each.name) for each in fields(config) if each.name not in _OWN}


def tasks_of(cluster: Cluster) -> dict[str, str]:
    """Coordinated task -> how its key is read, and which nodes may run it."""
    return {
        name: f"key {how.spec}{f', nodes {how.pool}' if how.pool else ''}"
        for name, how in sorted(readable_tasks(cluster).items())
    }


def readable_tasks(cluster: Cluster) -> dict[str, Coordination]:
    """The coordinated tasks but those whose declaration is refused."""
    found = {}
    for name in (*cluster.app.tasks, *cluster.config.tasks):
        try:
            how = cluster.registry.get(name)
        except JobsyncError:
            continue
        if how is not None:
            found[name] = how
    return found


def broker_of(app: Celery) -> str:
    """Where the broker is, without user, password and options."""
    with app.connection_for_read() as connection:
        urls = connection.alt or [connection.as_uri(include_password=False)]
        port = getattr(connection.transport, "default_port", None)
    return ";".join(sorted(_place(url, port) for url in urls))


def _place(url: str, default_port: int | None) -> str:
    parts = url_to_parts(url)
    host = f"{parts.hostname or 'localhost'}:{parts.port or default_port or ''}".rstrip(":")
    return f"{parts.scheme}://{host}/{parts.path or _DEFAULT_PATHS.get(parts.scheme, '')}"
