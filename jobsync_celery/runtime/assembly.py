"""What follows from the settings alone, for workers and for programs of other kinds."""

from __future__ import annotations

from collections.abc import Callable, Collection

from jobsync_celery.runtime.leadership import FirstPlan
from jobsync_celery.runtime.node import NodeSettings
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.database import Database, Timeouts
from jobsync_celery.store.nodes import Identity
from jobsync_celery.store.schema import ClusterShape
from jobsync_celery.store.store import Store


def store_of(config: CoordinationConfig) -> Store:
    """The tables that the settings name; opens nothing."""
    limits = Timeouts(
        connect=config.connect_timeout,
        statement=config.statement_timeout,
        lock=config.lock_timeout,
        idle_in_transaction=config.statement_timeout,
        tcp_user=config.connect_timeout,
    )
    return Store(Database(config.database_url(), prefix=config.appname, schema=config.schema, timeouts=limits))


def shape_of(config: CoordinationConfig) -> ClusterShape:
    """The shape of a cluster of workers."""
    return ClusterShape(
        config.total_tokens, config.partitions, config.hash_function, lock_partitions=config.lock_partitions
    )


def node_settings_of(
    config: CoordinationConfig,
    identity: Identity,
    shape: ClusterShape,
    *,
    pools: Collection[str] = (),
    before_joining: Callable[[], None] = lambda: None,
) -> NodeSettings:
    """The settings of a node with this identity, in a cluster of this shape."""
    return NodeSettings(
        identity=identity,
        shape=shape,
        interval=config.heartbeat_interval_sec,
        timeout=config.heartbeat_timeout_sec,
        first_plan=FirstPlan(config.minimum_nodes, config.wait_on_enter),
        rejoin_grace=config.rejoin_grace_sec,
        pools=frozenset(pools),
        before_joining=before_joining,
    )


def scope_of(store: Store) -> str:
    """What keeps clusters apart on one machine."""
    database = store.database
    return f"{database.where} {database.schema} {database.prefix}"
