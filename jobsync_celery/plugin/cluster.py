"""What every process of an app shares: settings, partitions, queues, tables. Opens nothing by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection

from celery import Celery

from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.plugin.backlog import Backlog
from jobsync_celery.plugin.coordinated import Registry
from jobsync_celery.plugin.places import OrdinaryPlaces, PlacesByKey, queues_of
from jobsync_celery.plugin.router import PartitionQueues, TokenRouter
from jobsync_celery.runtime.assembly import node_settings_of, shape_of, store_of
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.node import NodeSettings
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.nodes import Identity
from jobsync_celery.store.schema import ClusterShape


class Cluster:
    """An app's cluster, from the settings."""

    def __init__(self, app: Celery, config: CoordinationConfig) -> None:
        self.app = app
        self.config = config
        self.events = Events()
        self.tokens = TokenMap(config.total_tokens, config.partitions, config.hash_function)
        self.queues = PartitionQueues(config.queue_prefix, self.tokens, config.lock_partitions)
        self.registry = Registry(app, config.tasks)
        self.router = TokenRouter(self.registry, self.queues)
        self.shape = shape_of(config)
        self.store = store_of(config)

    def backlog(self) -> Backlog:
        """The queues of the app's broker, for tools."""
        return Backlog(self.app)

    def places(self, shape: ClusterShape) -> PlacesByKey:
        """Where messages belong if the cluster has this shape, whatever the settings say."""
        return PlacesByKey(self.registry, queues_of(self.config.queue_prefix, shape))

    def ordinary_places(self, queue: str | None, barred: Collection[str]) -> OrdinaryPlaces:
        """Where messages belong without the plugin; see :class:`OrdinaryPlaces`."""
        return OrdinaryPlaces(self.app, self.router, queue, barred)

    def node_settings(self, identity: Identity, before_joining: Callable[[], None]) -> NodeSettings:
        """The settings of a node with this identity."""
        pools = {how.pool for how in self.registry.all().values() if how.pool}
        return node_settings_of(self.config, identity, self.shape, pools=pools, before_joining=before_joining)
