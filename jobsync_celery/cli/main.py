"""The commands: ``jobsync`` is Celery's plugin command, :func:`status_of_url` needs no app."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from jobsync_celery.cli.status import NO_ANSWER, show_status
from jobsync_celery.errors import JobsyncError
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.database import Database

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_EXIT_CODES = "Exit status: 0 all is well, 1 degraded or rebalancing, 2 no leader or no answer."


@click.group()
def jobsync() -> None:
    """Ask the cluster that runs the app's coordinated tasks."""


@jobsync.command(epilog=_EXIT_CODES)
@_JSON
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show leader, nodes, and what each node has."""
    _answer(lambda: show_status(_database_of(ctx.obj.app), as_json))


@click.command("status", epilog=_EXIT_CODES)
@click.option("--url", required=True, metavar="URL", help="The database: postgresql://user:password@host/dbname")
@click.option("--appname", default="sync_", show_default=True, help="Prefix of the cluster's tables.")
@click.option("--schema", help="Schema of the tables, if not on the search path.")
@_JSON
def status_of_url(url: str, appname: str, schema: str | None, as_json: bool) -> None:
    """Show leader, nodes, and what each node has."""

    def ask() -> int:
        config = CoordinationConfig(url=url, appname=appname, schema=schema)
        return show_status(Database(config.database_url(), prefix=config.appname, schema=config.schema), as_json)

    _answer(ask)


def _answer(ask: Callable[[], int]) -> None:
    """Exit as the answer says; an error is one line, and no answer."""
    try:
        code = ask()
    except JobsyncError as error:
        click.echo(f"Error: {error}", err=True)
        code = NO_ANSWER
    sys.exit(code)


def _database_of(app: Any) -> Database:
    plugin = getattr(app, "jobsync", None)
    if plugin is None:
        raise JobsyncError(f"the app {app.main!r} has no JobSync: write JobSync(app), or name the app with celery -A")
    if plugin.cluster is None:
        raise JobsyncError(f"coordination is switched off for the app {app.main!r}: there is no cluster to ask")
    database: Database = plugin.cluster.store.database
    return database
