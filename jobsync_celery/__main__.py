"""``python -m jobsync_celery demo``, and every command of ``celery jobsync`` by the URL of a database."""

from __future__ import annotations

import click

from jobsync_celery.cli.probe import probe


class _Commands(click.Group):
    """Loads what only other commands than ``probe`` need when one of them is asked for: a probe has to be quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._load()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            self._load()
        return super().get_command(ctx, cmd_name)

    def _load(self) -> None:
        from jobsync_celery.cli.main import COMMANDS
        from jobsync_celery.demo.command import demo

        for command in (demo, *COMMANDS):
            self.add_command(command)


@click.group(cls=_Commands)
def main() -> None:
    """Celery tasks coordinated by key: one owner per key."""


main.add_command(probe)

if __name__ == "__main__":
    main(prog_name="python -m jobsync_celery")
