"""``python -m jobsync_celery demo``, and every command of ``celery jobsync`` by the URL of a database."""

from __future__ import annotations

import click

from jobsync_celery.cli.lazy import LazyCommands
from jobsync_celery.cli.main import COMMANDS


@click.group(commands=LazyCommands({"demo": "jobsync_celery.demo.command:demo", **COMMANDS}))
def main() -> None:
    """Celery tasks coordinated by key: one owner per key."""


if __name__ == "__main__":
    main(prog_name="python -m jobsync_celery")
