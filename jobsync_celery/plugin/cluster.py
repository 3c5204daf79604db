"""What every process of an app shares: settings, partitions, queues, tables. Opens nothing by itself."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.plugin.coordinated import Registry
from jobsync_celery.plugin.router import PartitionQueues, TokenRouter
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.leadership import FirstPlan
from jobsync_celery.runtime.node import NodeSettings
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.database import Database, Timeouts
from jobsync_celery.store.nodes import Identity
from jobsync_celery.store.schema import ClusterShape
from jobsync_celery.store.store import Store


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
        self.shape = ClusterShape(
            config.total_tokens, config.partitions, config.hash_function, lock_partitions=config.lock_partitions
        )
        database = Database(
            config.database_url(), prefix=config.appname, schema=config.schema, timeouts=_timeouts(config)
        )
        self.store = Store(database)

    def node_settings(self, identity: Identity, before_joining: Callable[[], None]) -> NodeSettings:
        """The settings of a node with this identity."""
        config = self.config
        return NodeSettings(
            identity=identity,
            shape=self.shape,
            interval=config.heartbeat_interval_sec,
            timeout=config.heartbeat_timeout_sec,
            first_plan=FirstPlan(config.minimum_nodes, config.wait_on_enter),
            rejoin_grace=config.rejoin_grace_sec,
            pools=frozenset(how.pool for how in self.registry.all().values() if how.pool),
            before_joining=before_joining,
        )


def _timeouts(config: CoordinationConfig) -> Timeouts:
    return Timeouts(
        connect=config.connect_timeout,
        statement=config.statement_timeout,
        lock=config.lock_timeout,
        idle_in_transaction=config.statement_timeout,
        tcp_user=config.connect_timeout,
    )
