"""``python -m jobsync_celery demo | status``."""

from __future__ import annotations

import click

from jobsync_celery.cli.main import status_of_url
from jobsync_celery.demo.command import demo


@click.group()
def main() -> None:
    """Celery tasks coordinated by key: one owner per key."""


main.add_command(demo)
main.add_command(status_of_url)

if __name__ == "__main__":
    main(prog_name="python -m jobsync_celery")
