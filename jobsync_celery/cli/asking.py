"""What the commands have in common: whose cluster is asked, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from jobsync_celery.errors import JobsyncError
from jobsync_celery.plugin.cluster import Cluster

WELL, TROUBLED, NO_ANSWER = 0, 1, 2

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def by_url(command: Callable[..., None]) -> Callable[..., None]:
    """Options that name a cluster where there is no app: url, appname, schema."""
    for option in (
        click.option("--schema", help="Schema of the tables, if not on the search path."),
        click.option("--appname", default="sync_", show_default=True, help="Prefix of the cluster's tables."),
        click.option(
            "--url", required=True, metavar="URL", help="The database: postgresql://user:password@host/dbname"
        ),
    ):
        command = option(command)
    return command


def cluster_of(app: Any) -> Cluster:
    """The cluster of an app that coordinates its tasks."""
    plugin = getattr(app, "jobsync", None)
    if plugin is None:
        raise JobsyncError(f"the app {app.main!r} has no JobSync: write JobSync(app), or name the app with celery -A")
    if plugin.cluster is None:
        raise JobsyncError(f"coordination is switched off for the app {app.main!r}: there is no cluster to ask")
    cluster: Cluster = plugin.cluster
    return cluster


def answer(ask: Callable[[], int]) -> None:
    """Exit as the answer says; an error is one line, and no answer."""
    try:
        code = ask()
    except JobsyncError as error:
        click.echo(f"Error: {error}", err=True)
        code = NO_ANSWER
    sys.exit(code)
