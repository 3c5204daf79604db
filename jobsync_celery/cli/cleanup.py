"""``cleanup``: what beat's ``jobsync.maintenance`` does, by hand and with a table of what went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from jobsync_celery.cli.answer import TROUBLED, WELL, Answer, Grid
from jobsync_celery.cli.command import order
from jobsync_celery.cli.site import Site
from jobsync_celery.runtime.housekeeping import Cleaned, Housekeeping, Retention, Tidied

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
    "sightings": "sightings",
    "claims": "finished claims",
    "observations": "observations",
    "observers": "observers",
}
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def _kept(setting: str, rows: str) -> Callable[..., Any]:
    text = f"Delete {rows} older than this, whatever the settings say."
    return click.option(f"--{setting.replace('_', '-')}", setting, type=float, metavar="SECONDS", help=text)


@order("cleanup", observing=True, epilog=_EXIT_CODES)
@click.option("--dry-run", is_flag=True, help="Change nothing; count what would be deleted.")
@click.option("--orphaned-locks", is_flag=True, help="Clear the task locks whose creator is gone, too.")
@click.option("--no-vacuum", is_flag=True, help="Do not vacuum the tables that lost many rows.")
@_kept("claim_retention", "finished claims")
@_kept("audit_retention", "rows of the audit")
@_kept("history_retention", "rebalance history")
@_kept("dead_node_retention", "dead nodes")
@_kept("observation_retention", "observations")
@click.option("--audit", is_flag=True, help="Copy done tasks into the audit when their claims are deleted.")
def cleanup(
    site: Site, dry_run: bool, orphaned_locks: bool, no_vacuum: bool, audit: bool, **kept: float | None
) -> Answer:
    """Delete what is past its retention.

    That is what beat's task jobsync.maintenance does, by the app's settings. Only an app knows how long its runs have
    to be remembered: without one, finished claims, the audit and observations are deleted only if their retention is
    given here.
    """
    given: dict[str, Any] = {name: seconds for name, seconds in kept.items() if seconds is not None}
    config = replace(site.config, audit=audit or site.config.audit, **given)
    shape = site.shape
    retention = Retention.of(config, shape.kind)
    if site.app is None:
        retention = replace(
            retention,
            claims=kept["claim_retention"],
            audit=kept["audit_retention"],
            observations=kept["observation_retention"],
        )
    if orphaned_locks:  # by hand they go at once; maintenance waits until they are old
        retention = replace(retention, orphaned_locks=0.0)
    housekeeping = Housekeeping(site.store, shape, retention)
    tidied = housekeeping.count() if dry_run else housekeeping.clean(vacuum=not no_vacuum)
    headings = ("what", "kept for", "rows to delete" if dry_run else "rows deleted")
    grid = Grid(headings, [_cells(each) for each in tidied.cleaned], frozenset(headings[1:]))
    code = WELL if tidied.complete else TROUBLED
    return Answer(as_dict(tidied, dry_run), grids=[grid], notes=_notes(tidied), code=code)


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


def _notes(tidied: Tidied) -> list[str]:
    notes = []
    if audited := sum(each.audited for each in tidied.cleaned):
        notes.append(f"copied into the audit: {audited:,}")
    if tidied.vacuumed:
        notes.append(f"vacuumed: {', '.join(tidied.vacuumed)}")
    if left := [_NAMES[each.what] for each in tidied.cleaned if each.left]:
        notes.append(f"left for the next time, since somebody holds them just now: {', '.join(left)}")
    return [*notes, *(f"Warning: {remark}" for remark in tidied.remarks)]


def _cells(each: Cleaned) -> tuple[str, str, str]:
    if each.kept_for is None:
        return _NAMES[each.what], "-", "not asked for"
    return _NAMES[each.what], _duration(each.kept_for), f"{each.rows:,}"


def _duration(seconds: float) -> str:
    if not seconds:
        return "-"
    size, unit = next((each for each in _UNITS if seconds >= each[0] and seconds % each[0] == 0), _UNITS[-1])
    return f"{seconds / size:g} {unit}"
