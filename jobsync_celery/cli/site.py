"""Where a command looks: the tables of an app's cluster, or of the one that a URL names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.errors import JobsyncError, ObservedOnly
from jobsync_celery.runtime.assembly import shape_of, store_of
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.database import Connection, set_patience
from jobsync_celery.store.schema import ClusterInfo, ClusterShape, find_cluster, has_tables, stored_cluster
from jobsync_celery.store.store import Store

URL_VARIABLE = "JOBSYNC_URL"

#: Seconds for a report over many claims. Reports lock nothing.
_PATIENCE = 30.0


class Site:
    """One cluster, to ask and to change. Opens nothing until it is used.

    Arguments:
        app: the Celery app, if one was named: it knows the queues and the broker.
    """

    def __init__(self, store: Store, config: CoordinationConfig, app: Any = None) -> None:
        self.store = store
        self.database = store.database
        self.config = config
        self.app = app

    @cached_property
    def cluster(self) -> ClusterInfo:
        """What the cluster was created with, whatever the settings say."""
        return stored_cluster(self.database)

    @property
    def tokens(self) -> TokenMap:
        """How keys map to partitions."""
        return self.cluster.shape.tokens

    @property
    def shape(self) -> ClusterShape:
        """The cluster's shape; where there are observations only, that of the settings."""
        if find_cluster(self.database) is None and has_tables(self.database):
            return shape_of(self.config)
        return self.cluster.shape

    @contextmanager
    def reading(self, patience: float = _PATIENCE, *, observed: bool = False) -> Iterator[Connection]:
        """A transaction for questions; nothing is made or locked.

        Arguments:
            observed: whether it will do that there are observations, and no cluster.
        """
        if not (observed and has_tables(self.database)):
            self.cluster  # noqa: B018 - that the tables are there, and of this version, is said first
        with self.database.transaction("jobsync command") as tx:
            set_patience(tx, patience)
            yield tx

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        """A transaction for changes, with the short limits that others need."""
        self.cluster  # noqa: B018 - that the tables are there is said before anything is changed
        with self.database.transaction("jobsync command") as tx:
            yield tx


def site_of(app: Any, url: str | None, appname: str | None, schema: str | None, observing: bool = False) -> Site:
    """The site that a command line names: by URL, by app, or by the environment.

    ``observing``: an app whose tasks are only observed will do.

    Raises JobsyncError, with what to write.
    """
    plugin = getattr(app, "jobsync", None)
    url = url or (os.environ.get(URL_VARIABLE) if plugin is None else None)
    if url:
        config = CoordinationConfig(url=url, appname=appname or "sync_", schema=schema)
        return Site(store_of(config), config)
    if app is None:
        raise JobsyncError(f"no database is named: give --url postgresql://user@host/dbname, or set {URL_VARIABLE}")
    if plugin is None:
        raise JobsyncError(
            f"the app {app.main!r} has no JobSync: write JobSync(app), name the app with celery -A, or give --url"
        )
    if plugin.observed is not None and not observing:
        raise ObservedOnly(f"the app {app.main!r}")
    asked = plugin.observed or plugin.cluster
    if asked is None:
        raise JobsyncError(f"coordination is switched off for the app {app.main!r}: there is no cluster to ask")
    if appname or schema:
        raise JobsyncError("--appname and --schema go with --url: the app's settings name its own tables")
    return Site(asked.store, plugin.config, app)
