"""``python -m jobsync_celery demo``, and every command of ``celery jobsync`` by the URL of a database."""

from __future__ import annotations

import click

from jobsync_celery.cli.main import COMMANDS
from jobsync_celery.demo.command import demo


@click.group()
def main() -> None:
    """Celery tasks coordinated by key: one owner per key."""


main.add_command(demo)
for command in COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m jobsync_celery")
