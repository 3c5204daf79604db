"""What the doctor knows when it judges: the app, what the tables say, and what the broker says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from celery import Celery

from jobsync_celery.plugin.cluster import Cluster
from jobsync_celery.store.examination import Examination
from jobsync_celery.store.history import PartitionRow
from jobsync_celery.store.nodes import NodeRow
from jobsync_celery.store.reports import ClusterStatus
from jobsync_celery.store.schema import ClusterInfo
from jobsync_celery.store.sightings import Sighting


@dataclass(frozen=True)
class QueueSeen:
    """A queue: its messages that wait, and whether any worker consumes it. None: the broker does not tell."""

    name: str
    waiting: int | None
    consumed: bool | None


@dataclass(frozen=True)
class BrokerSeen:
    """What the broker and the workers that answer through it say.

    Arguments:
        kind: ``redis`` or ``amqp``, else the transport's name.
        coordinated: ordinary queue -> coordinated tasks found in its first messages.
        eviction: Redis' policy where memory is short.
    """

    kind: str
    where: str
    queues: Sequence[QueueSeen] = ()
    coordinated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    eviction: str | None = None


@dataclass(frozen=True)
class TablesSeen:
    """What the tables and their server say.

    Arguments:
        partitions: those of lock pools too.
        waited: for how long it was waited for what was on the move, in seconds.
        pooled: whether two connections share a session, as behind a pooler in transaction mode.
    """

    info: ClusterInfo
    status: ClusterStatus
    examination: Examination
    partitions: Sequence[PartitionRow]
    profiles: Mapping[str, Mapping[str, Any]]
    sightings: Sequence[Sighting]
    pooled: bool = False
    waited: float = 0.0

    @cached_property
    def present(self) -> list[NodeRow]:
        """The nodes that are live or draining, oldest first."""
        return [share.node for share in self.status.live]

    def node(self, name: str | None) -> NodeRow | None:
        """The node of a name, dead ones too."""
        return next((share.node for share in self.status.nodes if share.node.name == name), None)

    def seen(self, kind: str, within: float = 3600.0) -> list[Sighting]:
        """What nodes saw of this kind in the last so many seconds, the latest first."""
        return [each for each in self.sightings if each.kind == kind and each.age <= within]


@dataclass(frozen=True)
class Case:
    """All that is known. What is None was not asked: no app is named, or there is no answer.

    Arguments:
        app, cluster: the app of the command line, which stands for its producers; cluster is None where it has no
            coordination.
    """

    app: Celery | None = None
    cluster: Cluster | None = None
    tables: TablesSeen | None = None
    broker: BrokerSeen | None = None

    def has(self, part: str) -> bool:
        """Whether a part is known: app, cluster or broker."""
        return {"app": self.app, "cluster": self.tables, "broker": self.broker}[part] is not None

    @property
    def seen(self) -> TablesSeen:
        """The tables, for checks that need them."""
        assert self.tables is not None
        return self.tables

    @property
    def the_app(self) -> Celery:
        """The app, for checks that need it."""
        assert self.app is not None
        return self.app

    @property
    def the_broker(self) -> BrokerSeen:
        """The broker, for checks that need it."""
        assert self.broker is not None
        return self.broker
