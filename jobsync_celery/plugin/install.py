"""``JobSync(app)``: the plugin, and the questions an application may ask it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import click
from celery import Celery

from jobsync_celery.core.model import Plan
from jobsync_celery.core.plan import plan
from jobsync_celery.core.tokens import TokenSet, key_text
from jobsync_celery.errors import JobsyncError, ObservedOnly, SettingsError
from jobsync_celery.plugin import beat
from jobsync_celery.plugin.bootsteps import NodeStep, QueuesStep
from jobsync_celery.plugin.cluster import Cluster
from jobsync_celery.plugin.observing import Observed, ObserverStep, TracersStep
from jobsync_celery.plugin.probe import ProbeStep
from jobsync_celery.plugin.worker import WorkerNode
from jobsync_celery.runtime.callbacks import Callback
from jobsync_celery.runtime.draining import lift_drain, order_drain
from jobsync_celery.runtime.lock_desk import LockCalls, LockDesk, creator_of
from jobsync_celery.runtime.rebalancing import rebalance
from jobsync_celery.runtime.vitals import FILE_VARIABLE
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.database import set_patience
from jobsync_celery.store.nodes import NodeRow
from jobsync_celery.store.reports import ClusterStatus, Reports

Decorated = TypeVar("Decorated", bound=Callable[..., object])

_UNSET: Any = object()
_NODE_NAME = click.Option(
    ("--node-name",), help="Name of this worker in the jobsync cluster; its Celery node name if not given."
)
_PROBE_FILE = click.Option(
    ("--probe-file",),
    metavar="PATH",
    help=f"Where this worker says how it is, for jobsync probe. Also read from {FILE_VARIABLE}.",
)
_DEFAULT_VISIBILITY_SEC = 3600.0
#: Seconds for a report.
_PATIENCE = 30.0


class JobSync(LockCalls):
    """Coordinates the tasks of ``app`` that are decorated with :func:`coordinated`.

    Create it after ``app.config_from_object``. It is also ``app.jobsync``.

    Arguments:
        config: a :class:`CoordinationConfig`, a mapping or an object with its settings. Left out, the app's own
            ``jobsync`` setting is read (``CELERY_JOBSYNC`` with Django). None, or ``enabled=False``, switches
            coordination off: tasks are ordinary Celery tasks, and nothing is opened or created. With
            ``mode="observe"`` they are ordinary tasks too, and workers note what coordination would prevent.
        lock_provider: called with this object when a worker starts, before it takes part, to set the task locks that
            it knows of. As long as it raises, it is called again, and the worker serves its ordinary queues only.
        clear_existing_locks: whether the locks that this worker had set under its name, and that its provider has
            not set again, are cleared behind it.
        on_rebalance: a first callback for :meth:`on_rebalance`.

    Raises:
        SettingsError: a setting is unknown or impossible, or no database is named.
    """

    def __init__(
        self,
        app: Celery,
        config: CoordinationConfig | Mapping[str, Any] | object | None = _UNSET,
        *,
        lock_provider: Callable[[JobSync], object] | None = None,
        clear_existing_locks: bool = False,
        on_rebalance: Callable[..., object] | None = None,
    ) -> None:
        self.app = app
        self._lock_provider = lock_provider
        self._clear_existing_locks = clear_existing_locks
        #: What :meth:`on_rebalance` was given.
        self.callbacks: list[Callback] = [] if on_rebalance is None else [Callback(on_rebalance)]
        self.config = CoordinationConfig.of(_from_app(app) if config is _UNSET else config)
        observes = self.config is not None and self.config.observes
        #: What is observed, where tasks are only observed; there is no cluster then.
        self.observed = Observed(app, self.config) if self.config is not None and observes else None
        self.cluster = None if self.config is None or observes else Cluster(app, self.config)
        #: This process's node, if it is a worker.
        self.node: WorkerNode | None = None
        app.jobsync = self
        app.user_options["worker"].update((_NODE_NAME, _PROBE_FILE))
        app.steps["worker"].add(ProbeStep)
        if self.observed is not None:
            app.steps["worker"].add(ObserverStep)
            app.steps["consumer"].add(TracersStep)
        if self.cluster is None:
            return
        if (app.conf.broker_url or "").startswith(("redis", "rediss", "sentinel")):
            self.cluster.config.check_visibility(_visibility_timeout(app))
        app.steps["worker"].add(NodeStep)
        app.steps["consumer"].add(QueuesStep)
        beat.register(app, self.cluster)
        app.on_after_configure.connect(self._route, weak=False)
        if app.configured:
            self._route()

    def on_rebalance(self, callback: Decorated) -> Decorated:
        """Call ``callback(event)``, or ``callback()`` if it takes nothing, whenever this worker gains or loses tokens.

        Usable as a decorator. The event is a :class:`RebalanceEvent`. It is called in the worker's main process, after
        the receivers of ``partitions_assigned`` or ``partitions_revoked``, and under the same promises; see
        :mod:`jobsync_celery.signals`.

        Raises:
            SettingsError: it is a coroutine function, or takes neither one argument nor none.
        """
        self.callbacks.append(Callback(callback))
        return callback

    # -- keys ---------------------------------------------------------------------------------------------------

    def token_for(self, key: object) -> int:
        """The token of a key: its hash slot."""
        return self._active.tokens.token(key_text(key))

    def queue_for(self, key: object) -> str:
        """The queue that carries the key's partition."""
        return str(self._active.queues.for_key(key_text(key)).name)

    def owner_of(self, key: object) -> str | None:
        """The node that owns the key now, asked of the database; None if it is being moved, or no node may have it."""
        text = key_text(key)
        with self._reading() as tx:
            return Reports(self._active.store.database).owner(tx, text, self._active.tokens.partition_for(text))

    def owns(self, key: object) -> bool:
        """Whether this worker owns the key now; false from its deadline on. Asks no server.

        Never true on two workers at once. It is true for the receivers of ``partitions_assigned`` already, and for
        those of ``partitions_revoked`` no longer; so it is false here before the next owner's is true. Where a key was
        locked or unlocked, its new owner says yes one lease later. Pool children say no while any key is locked.
        """
        node = self.node
        return node is not None and node.owns(key_text(key))

    @property
    def my_tokens(self) -> frozenset[int]:
        """The tokens this worker owns now; empty from its deadline on. Asks no server."""
        node = self.node
        return frozenset() if node is None else frozenset(TokenSet(self._active.tokens, node.held))

    def provide_locks(self) -> None:
        """Set the locks that the ``lock_provider`` knows of, as a worker does when it starts.

        Raises:
            JobsyncError: the provider raised.
        """
        if self._lock_provider is not None or self._clear_existing_locks:
            provider = None if self._lock_provider is None else partial(self._lock_provider, self)
            self._desk().provide(provider, clear_existing=self._clear_existing_locks)

    # -- the cluster --------------------------------------------------------------------------------------------

    def status(self) -> ClusterStatus:
        """The cluster as it is now, asked of the database."""
        with self._reading() as tx:
            set_patience(tx, _PATIENCE)  # it locks nothing, and a busy process may pause between two questions
            return Reports(self._active.store.database).status(tx)

    def get_active_nodes(self) -> list[NodeRow]:
        """The nodes that are live or draining, oldest first."""
        return [share.node for share in self.status().live]

    def get_dead_nodes(self) -> list[NodeRow]:
        """The nodes that were declared dead and are not cleaned up yet."""
        return [share.node for share in self.status().nodes if share.node.state == "dead"]

    def am_i_leader(self) -> bool:
        """Whether this worker leads, as far as it knows."""
        return self.node is not None and self.node.lease.trusted and self.node.node.leadership.leading

    def am_i_healthy(self) -> bool:
        """Whether this worker holds a lease that it trusts. Asks no server."""
        return self.node is not None and self.node.lease.trusted

    def drain(self, node: str) -> None:
        """Have a node take no more work and hand everything over, until :meth:`undrain` or the end of its worker.

        What runs there finishes. It learns of this within milliseconds, and with its next heartbeat at the latest.

        Raises:
            NodeUnknown: no live node has the name.
        """
        with self._reading() as tx:
            order_drain(tx, self._active.store, node)

    def undrain(self, node: str) -> bool:
        """Let a node take part again; false if nobody had ordered it to drain.

        Raises:
            NodeUnknown: no live node has the name.
        """
        with self._reading() as tx:
            return lift_drain(tx, self._active.store, node)

    def rebalance(self, dry_run: bool = False) -> Plan:
        """Make a plan now, under the leader's rules; with ``dry_run`` only say what would move."""
        cluster = self._active
        with self._reading() as tx:
            if dry_run:
                members, seats = cluster.store.nodes.members(tx), cluster.store.partitions.seats(tx)
                return plan(members, seats, absent=cluster.store.waits.awaited(tx))
            return rebalance(tx, cluster.store, cluster.tokens, "requested")[0]

    def _desk(self) -> LockDesk:
        cluster = self._active
        creator = creator_of(None if self.node is None else self.node.name, cluster.config.node_name)
        return LockDesk(cluster.store, cluster.shape, creator)

    @property
    def _active(self) -> Cluster:
        if self.observed is not None:
            raise ObservedOnly()
        if self.cluster is None:
            raise JobsyncError("coordination is switched off for this app: there is no cluster to ask")
        return self.cluster

    def _reading(self) -> Any:
        return self._active.store.database.transaction("jobsync status")

    def _route(self, **_: Any) -> None:
        """Put our router before the app's own; again whenever the app is configured anew."""
        assert self.cluster is not None
        router = self.cluster.router
        routes = self.app.conf.task_routes or ()
        routes = list(routes) if isinstance(routes, (list, tuple)) else [routes]
        if router not in routes:
            self.app.conf.task_routes = [router, *routes]
            if "amqp" in vars(self.app):
                self.app.amqp.flush_routes()
                self.app.amqp.router = self.app.amqp.Router()


def _from_app(app: Celery) -> Any:
    settings = getattr(app.conf, "jobsync", _UNSET)  # knows namespaces, which `in` does not
    if settings is _UNSET:
        raise SettingsError(
            "no settings for jobsync: give JobSync(app, CoordinationConfig(url=…)), or set"
            ' app.conf.jobsync = {"url": "postgresql+psycopg2://user@host/dbname"} before JobSync(app);'
            " None switches coordination off"
        )
    return settings


def _visibility_timeout(app: Celery) -> float:
    """How long Redis waits before it delivers a message again."""
    options = app.conf.broker_transport_options or {}
    return float(options.get("visibility_timeout") or _DEFAULT_VISIBILITY_SEC)
