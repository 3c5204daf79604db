"""The commands, for both ways of calling them: ``celery -A proj jobsync …`` and ``python -m jobsync_celery …``."""

from __future__ import annotations

import click

from jobsync_celery.cli.claims import claims
from jobsync_celery.cli.cleanup import cleanup
from jobsync_celery.cli.doctor import doctor
from jobsync_celery.cli.drain import drain, undrain
from jobsync_celery.cli.flush import flush_back
from jobsync_celery.cli.history import history, tokens
from jobsync_celery.cli.locks import locks
from jobsync_celery.cli.observe import observe
from jobsync_celery.cli.probe import probe
from jobsync_celery.cli.rebalance import rebalance
from jobsync_celery.cli.schema import schema
from jobsync_celery.cli.status import nodes, status
from jobsync_celery.cli.where import where, why

#: All that need the database only, so that a URL will do.
COMMANDS: tuple[click.Command, ...] = (
    status,
    doctor,
    nodes,
    tokens,
    history,
    claims,
    where,
    why,
    locks,
    rebalance,
    drain,
    undrain,
    cleanup,
    observe,
    schema,
    flush_back,
)


@click.group()
def jobsync() -> None:
    """Ask the cluster that runs the app's coordinated tasks, and change it."""


for command in (*COMMANDS, probe):
    jobsync.add_command(command)
