"""``cleanup``: what beat's ``jobsync.maintenance`` does, by hand and with a table of what went."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from jobsync_celery.cli.asking import TROUBLED, WELL, answer, as_json_option, by_url, cluster_of
from jobsync_celery.runtime.assembly import store_of
from jobsync_celery.runtime.housekeeping import Cleaned, Housekeeping, Retention, Tidied
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.schema import stored_cluster

_EXIT_CODES = (
    "Exit status: 0 all is well, 1 something was left because somebody holds it just now (run it again), 2 no answer."
)
_NAMES = {
    "dead_nodes": "dead nodes",
    "expired_locks": "expired locks",
    "orphaned_locks": "orphaned locks",
    "lock_creators": "scripts without locks",
    "history": "rebalance history",
    "audit": "audit",
    "claims": "finished claims",
}
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_HEADINGS = ("what", "kept for", "rows")


def _how(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        as_json_option,
        click.option("--no-vacuum", is_flag=True, help="Do not vacuum the tables that lost many rows."),
        click.option("--orphaned-locks", is_flag=True, help="Clear the task locks whose creator is gone, too."),
        click.option("--dry-run", is_flag=True, help="Change nothing; count what would be deleted."),
    ):
        command = option(command)
    return command


def _kept(setting: str, rows: str, default: str | None = None) -> Callable[..., Any]:
    text = f"Delete {rows} older than this" + (f" ({default} if not given)." if default else "; none if not given.")
    return click.option(f"--{setting.replace('_', '-')}", setting, type=float, metavar="SECONDS", help=text)


@click.command(epilog=_EXIT_CODES)
@_how
@click.pass_context
def cleanup(ctx: click.Context, /, orphaned_locks: bool, **how: bool) -> None:
    """Delete what is past its retention, as the app's settings say."""

    def ask() -> int:
        cluster = cluster_of(ctx.obj.app)
        shape = stored_cluster(cluster.store.database).shape
        retention = _asked(Retention.of(cluster.config, shape.kind), orphaned_locks)
        return show_cleanup(Housekeeping(cluster.store, shape, retention), **how)

    answer(ask)


@click.command("cleanup", epilog=_EXIT_CODES)
@by_url
@_kept("claim_retention", "finished claims")
@_kept("audit_retention", "rows of the audit")
@_kept("history_retention", "rebalance history", "30 days")
@_kept("dead_node_retention", "dead nodes", "7 days")
@click.option("--audit", is_flag=True, help="Copy done tasks into the audit when their claims are deleted.")
@_how
def cleanup_of_url(
    url: str, appname: str, schema: str | None, audit: bool, orphaned_locks: bool, **options: Any
) -> None:
    """Delete what is past its retention, where there is no app to ask for its settings.

    Only an app knows how long its runs have to be remembered, so finished claims and the audit are deleted only if a
    retention is given here.
    """
    kept = {name: options.pop(name) for name in list(options) if name.endswith("_retention")}

    def ask() -> int:
        given = {name: seconds for name, seconds in kept.items() if seconds is not None}
        config = CoordinationConfig(url=url, appname=appname, schema=schema, audit=audit, **given)
        store = store_of(config)
        shape = stored_cluster(store.database).shape
        retention = replace(
            Retention.of(config, shape.kind),
            claims=kept["claim_retention"],
            audit=kept["audit_retention"],
        )
        return show_cleanup(Housekeeping(store, shape, _asked(retention, orphaned_locks)), **options)

    answer(ask)


def show_cleanup(housekeeping: Housekeeping, *, dry_run: bool, no_vacuum: bool, as_json: bool) -> int:
    """Clean up, or count, and print what went; the exit code."""
    tidied = housekeeping.count() if dry_run else housekeeping.clean(vacuum=not no_vacuum)
    if as_json:
        click.echo(json.dumps(as_dict(tidied, dry_run), indent=2))
    else:
        for line in plain(tidied, dry_run):
            click.echo(line)
    for remark in tidied.remarks:
        click.echo(f"Warning: {remark}", err=True)
    return WELL if tidied.complete else TROUBLED


def as_dict(tidied: Tidied, dry_run: bool) -> dict[str, Any]:
    """What was done as JSON knows it; a kind that was not to be touched has no ``rows``."""
    return {
        "dry_run": dry_run,
        "cleaned": {
            each.what: {
                "kept_for": each.kept_for,
                "rows": None if each.kept_for is None else each.rows,
                "left": each.left,
            }
            for each in tidied.cleaned
        },
        "audited": sum(each.audited for each in tidied.cleaned),
        "vacuumed": list(tidied.vacuumed),
        "remarks": list(tidied.remarks),
    }


def plain(tidied: Tidied, dry_run: bool) -> list[str]:
    """What was done as lines of columns."""
    rows = [(*_HEADINGS[:2], "rows to delete" if dry_run else "rows deleted"), *map(_cells, tidied.cleaned)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        f"{what.ljust(widths[0])}  {kept.rjust(widths[1])}  {count.rjust(widths[2])}" for what, kept, count in rows
    ]
    if audited := sum(each.audited for each in tidied.cleaned):
        lines.append(f"copied into the audit: {audited:,}")
    if tidied.vacuumed:
        lines.append(f"vacuumed: {', '.join(tidied.vacuumed)}")
    left = [_NAMES[each.what] for each in tidied.cleaned if each.left]
    if left:
        lines.append(f"left for the next time, since somebody holds them just now: {', '.join(left)}")
    return lines


def _cells(each: Cleaned) -> tuple[str, str, str]:
    if each.kept_for is None:
        return _NAMES[each.what], "-", "not asked for"
    return _NAMES[each.what], _duration(each.kept_for), f"{each.rows:,}"


def _duration(seconds: float) -> str:
    if not seconds:
        return "-"
    size, unit = next((each for each in _UNITS if seconds >= each[0] and seconds % each[0] == 0), _UNITS[-1])
    return f"{seconds / size:g} {unit}"


def _asked(retention: Retention, orphaned_locks: bool) -> Retention:
    """By hand orphaned locks go at once; maintenance waits until they are old."""
    return replace(retention, orphaned_locks=0.0) if orphaned_locks else retention
