"""``claims``: what runs, and what ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from jobsync_celery.cli.answer import Answer, Grid, duration, moment, nearest, text
from jobsync_celery.cli.command import question
from jobsync_celery.cli.completion import all_nodes
from jobsync_celery.cli.numbers import FiniteRange
from jobsync_celery.cli.site import Site
from jobsync_celery.core.tokens import key_text
from jobsync_celery.errors import JobsyncError
from jobsync_celery.store.claim_reports import ClaimReports, ClaimRow

_STATES = ("running", "done", "failed", "retried", "lost")
_HEADINGS = ("state", "key", "task", "node", "att", "began", "took", "task id")
_WHOLE, _SPARE = frozenset(("state", "task id")), ("att", "began", "task")


@question("claims")
@click.option("--running", "asked", flag_value="running", help="Only what runs now.")
@click.option("--failed", "asked", flag_value="failed", help="Only what failed for good.")
@click.option("--lost", "asked", flag_value="lost", help="Only what is to be run again: its worker or child died.")
@click.option("--node", shell_complete=all_nodes, help="Only of this node.")
@click.option("--key", help="Only of this key.")
@click.option("--since", "hours", metavar="HOURS", type=FiniteRange(min=0, min_open=True), help="How far back.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="How many.")
def claims(site: Site, asked: str | None, node: str | None, key: str | None, hours: float | None, limit: int) -> Answer:
    """List what runs, and what ran.

    The latest claims are listed, those that run first. Ended claims are kept for claim_retention. Where there are
    very many, only the last hour is looked through, unless --since says otherwise.
    """
    key = None if key is None else key_text(key)
    reports = ClaimReports(site.database)
    with site.reading() as tx:
        since = hours * 3600 if hours is not None else reports.window(tx)
        found = reports.latest(tx, [asked] if asked else _STATES, node=node, key=key, since=since, limit=limit)
        known = {each.name for each in site.store.nodes.everyone(tx)}
    if not found:
        _refuse_unknown(node, known, key, asked, since)
    told = f" in the last {duration(since)}" if since and asked != "running" else ""
    kind = f" {asked}" if asked else ""
    lines = [] if found else [f"no{kind} claims{told}"]
    data = {"claims": [claim_data(each) for each in found], "searched_sec": since}
    return Answer(data, lines, [claim_grid(found)] if found else [])


def claim_grid(claims: Sequence[ClaimRow], title: str = "") -> Grid:
    """Claims in a table."""
    rows = [
        (
            each.state,
            each.key,
            text(each.task_name),
            each.node,
            str(each.attempt),
            moment(each.created_on),
            duration(each.seconds),
            each.task_id,
        )
        for each in claims
    ]
    return Grid(_HEADINGS, rows, frozenset(("att", "took")), _WHOLE, _SPARE, title)


def claim_data(claim: ClaimRow) -> dict[str, Any]:
    """A claim as JSON has it."""
    return {
        "state": claim.state,
        "key": claim.key,
        "task": claim.task_name,
        "task_id": claim.task_id,
        "origin": claim.origin,
        "retries": claim.retries,
        "node": claim.node,
        "node_gone": claim.lone,
        "token": claim.token,
        "partition": claim.partition,
        "attempt": claim.attempt,
        "fence": claim.fence,
        "awaited": claim.awaited,
        "began": claim.created_on,
        "ended": claim.finished_on,
        "seconds": round(claim.seconds, 3),
        "reason": claim.reason,
    }


def _refuse_unknown(node: str | None, known: set[str], key: str | None, asked: str | None, since: float | None) -> None:
    """Nothing was found: say so as an error if that is because of a name that nobody has."""
    if node is not None and node not in known:
        raise JobsyncError(f"no such node, and no claims of one: {node!r}{nearest(node, known)}")
    if key is not None and asked is None:
        told = f" in the last {duration(since)} (see --since)" if since else ""
        raise JobsyncError(
            f"no claims of the key {key!r}{told}: it has not run, or its claims are past their retention"
        )
