"""The commands, for both ways of calling them: ``celery -A proj jobsync …`` and ``python -m jobsync_celery …``."""

from __future__ import annotations

import click

from jobsync_celery.cli.lazy import LazyCommands

#: Where each is defined. All but the probe need the database only, so that a URL will do.
COMMANDS = {
    "status": "jobsync_celery.cli.status:status",
    "doctor": "jobsync_celery.cli.doctor:doctor",
    "nodes": "jobsync_celery.cli.status:nodes",
    "tokens": "jobsync_celery.cli.history:tokens",
    "history": "jobsync_celery.cli.history:history",
    "claims": "jobsync_celery.cli.claims:claims",
    "where": "jobsync_celery.cli.where:where",
    "why": "jobsync_celery.cli.where:why",
    "locks": "jobsync_celery.cli.locks:locks",
    "rebalance": "jobsync_celery.cli.rebalance:rebalance",
    "drain": "jobsync_celery.cli.drain:drain",
    "undrain": "jobsync_celery.cli.drain:undrain",
    "cleanup": "jobsync_celery.cli.cleanup:cleanup",
    "observe": "jobsync_celery.cli.observe:observe",
    "schema": "jobsync_celery.cli.schema:schema",
    "flush-back": "jobsync_celery.cli.flush:flush_back",
    "probe": "jobsync_celery.cli.probe:probe",
}


@click.group(commands=LazyCommands(COMMANDS))
def jobsync() -> None:
    """Ask the cluster that runs the app's coordinated tasks, and change it."""
