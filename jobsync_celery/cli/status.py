"""``status``: the cluster as its tables show it. Reads only: it creates nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from jobsync_celery.cli.asking import NO_ANSWER, TROUBLED, WELL
from jobsync_celery.errors import SchemaOutdated
from jobsync_celery.store.database import Database
from jobsync_celery.store.reports import ClusterStatus, NodeShare, Reports

_HEADINGS = ("node", "state", "lag s", "partitions", "tokens", "share %", "running")
_TEXTS = 2  # headings whose columns are texts; the others are numbers
_STYLES = {"stable": "green", "live": "green", "draining": "yellow", "rebalancing": "yellow"}


def show_status(database: Database, as_json: bool) -> int:
    """Print the status; the exit code that says how the cluster is."""
    status = _ask(database)
    if as_json:
        click.echo(json.dumps(as_dict(status), indent=2))
    elif (console := Console()).is_terminal:
        _paint(console, status)
    else:
        for line in plain(status):
            click.echo(line)
    return exit_code(status)


def exit_code(status: ClusterStatus) -> int:
    """How well the cluster is."""
    return {"stable": WELL, "no leader": NO_ANSWER}.get(status.state, TROUBLED)


def as_dict(status: ClusterStatus) -> dict[str, Any]:
    """The status as JSON knows it."""
    leader = status.leader
    return {
        "state": status.state,
        "at": status.at.isoformat(),
        "leader": {
            "node": leader.node,
            "term": leader.term,
            "since": leader.since.isoformat() if leader.since else None,
        },
        "partitions": {"total": status.partitions, "unowned": status.unowned, "moving": status.moving},
        "running": status.running,
        "locks": {"total": status.locks, "unserved": status.unserved_locks},
        "rebalances_last_hour": status.rebalances_last_hour,
        "nodes": [_node(share, status) for share in status.nodes],
    }


def plain(status: ClusterStatus) -> list[str]:
    """The status as lines of columns, for pipes."""
    rows = [_HEADINGS, *(_cells(share, status) for share in status.nodes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return [_summary(status), *("  ".join(_aligned(row, widths)).rstrip() for row in rows)]


def _ask(database: Database) -> ClusterStatus:
    try:
        with database.transaction("jobsync status") as tx:
            return Reports(database).status(tx)
    except SchemaOutdated as error:
        raise SchemaOutdated(
            f"no {database.prefix!r} tables of this version in {database.where}: no worker has started there yet, or"
            f" with another appname ({error})"
        ) from error


def _paint(console: Console, status: ClusterStatus) -> None:
    state, _, rest = _summary(status).partition(";")
    console.print(f"[{_STYLES.get(status.state, 'red')}]{state}[/];{rest}", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if number < _TEXTS else "right", overflow="fold")
    for share in status.nodes:
        name, state, *numbers = _cells(share, status)
        table.add_row(name, f"[{_STYLES.get(state, 'red')}]{state}[/]", *numbers)
    console.print(table)


def _summary(status: ClusterStatus) -> str:
    leader = status.leader
    last = "last " if status.state == "no leader" else ""
    led = f"{last}leader {leader.node}, term {leader.term}" if leader.node else "no leader yet"
    return (
        f"{status.state}; {led}; {status.partitions} partitions, {status.unowned} unowned, {status.moving} moving;"
        f" {status.running} running{_locks(status)}"
    )


def _locks(status: ClusterStatus) -> str:
    if not status.locks:
        return ""
    unserved = f", {status.unserved_locks} of them wait for a node that matches" if status.unserved_locks else ""
    return f"; {status.locks} keys locked{unserved}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    texts = [cell.ljust(width) for cell, width in zip(row[:_TEXTS], widths, strict=False)]
    return texts + [cell.rjust(width) for cell, width in zip(row[_TEXTS:], widths[_TEXTS:], strict=True)]


def _cells(share: NodeShare, status: ClusterStatus) -> tuple[str, ...]:
    node = _node(share, status)
    lag = "-" if node["lag"] is None else f"{node['lag']:.1f}"
    numbers = (node["partitions"], node["tokens"], f"{node['share']:.1f}", node["running"])
    return (node["name"], node["state"], lag, *map(str, numbers))


def _node(share: NodeShare, status: ClusterStatus) -> dict[str, Any]:
    owned = sum(each.tokens for each in status.nodes)
    return {
        "name": share.node.name,
        "state": "silent" if share.node.silent else share.node.state,
        "lag": None if share.node.lag is None else round(share.node.lag, 3),
        "partitions": share.owned,
        "targets": share.targets,
        "tokens": share.tokens,
        "share": round(100 * share.tokens / owned, 1) if owned else 0.0,
        "running": share.running,
        "host": share.node.hostname,
        "pid": share.node.pid,
        "version": share.node.version,
    }
