"""``python -m jobsync_celery demo | status | cleanup``."""

from __future__ import annotations

import click

from jobsync_celery.cli.main import COMMANDS_OF_URL
from jobsync_celery.demo.command import demo


@click.group()
def main() -> None:
    """Celery tasks coordinated by key: one owner per key."""


main.add_command(demo)
for command in COMMANDS_OF_URL:
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m jobsync_celery")
