"""The commands: ``jobsync`` is Celery's plugin command, those of ``..._of_url`` need no app."""

from __future__ import annotations

import click

from jobsync_celery.cli.asking import answer, as_json_option, by_url, cluster_of
from jobsync_celery.cli.cleanup import cleanup, cleanup_of_url
from jobsync_celery.cli.status import show_status
from jobsync_celery.runtime.assembly import store_of
from jobsync_celery.settings import CoordinationConfig

_EXIT_CODES = "Exit status: 0 all is well, 1 degraded or rebalancing, 2 no leader or no answer."


@click.group()
def jobsync() -> None:
    """Ask the cluster that runs the app's coordinated tasks, and look after it."""


@jobsync.command(epilog=_EXIT_CODES)
@as_json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show leader, nodes, and what each node has."""
    answer(lambda: show_status(cluster_of(ctx.obj.app).store.database, as_json))


@click.command("status", epilog=_EXIT_CODES)
@by_url
@as_json_option
def status_of_url(url: str, appname: str, schema: str | None, as_json: bool) -> None:
    """Show leader, nodes, and what each node has."""

    def ask() -> int:
        return show_status(store_of(CoordinationConfig(url=url, appname=appname, schema=schema)).database, as_json)

    answer(ask)


jobsync.add_command(cleanup)

#: For ``python -m jobsync_celery``.
COMMANDS_OF_URL = (status_of_url, cleanup_of_url)
