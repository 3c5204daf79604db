"""``history`` and ``tokens``: what plans there were, and who has which tokens now."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from jobsync_celery.cli.answer import TROUBLED, WELL, Answer, Grid, counted, moment, nearest, text
from jobsync_celery.cli.command import question
from jobsync_celery.cli.completion import all_nodes
from jobsync_celery.cli.queues import queue_names
from jobsync_celery.cli.site import Site
from jobsync_celery.core.locks import patterns_in
from jobsync_celery.errors import JobsyncError
from jobsync_celery.store.history import History, PartitionRow, PastPlan

_PLANS = ("when", "reason", "leader", "term", "nodes", "tokens moved", "ms")
_PARTITIONS = ("partition", "tokens", "state", "owner", "target", "since", "queue")


@question("history")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="How many.")
def history(site: Site, limit: int) -> Answer:
    """List what moved, when and why.

    Shown are the latest plans that moved something, the latest first.
    """
    with site.reading() as tx:
        plans = History(site.database).plans(tx, limit)
    lines = [] if plans else ["nothing has moved yet"]
    numbers, whole = frozenset(("term", "tokens moved", "ms")), frozenset(("when", "nodes"))
    grid = Grid(_PLANS, [_plan(each) for each in plans], numbers, whole, ("ms", "term"))
    return Answer({"rebalances": [_plan_data(each) for each in plans]}, lines, [grid] if plans else [])


@question("tokens")
@click.option("--node", shell_complete=all_nodes, help="Only what this node has, or should have.")
def tokens(site: Site, node: str | None) -> Answer:
    """List who has which partitions.

    Shown are each partition's tokens, its owner, and its target, which is to have it.
    """
    with site.reading() as tx:
        every = History(site.database).partitions(tx)
        known = {each.name for each in site.store.nodes.everyone(tx)}
    names = known | {name for each in every for name in (each.owner, each.target) if name}
    if node is not None and node not in names:
        raise JobsyncError(f"no such node: {node!r}{nearest(node, names)}")
    shown = [each for each in every if node in (None, each.owner, each.target)]
    queues = queue_names(site, shown)
    rows = [_partition(each, queues.get(each.number)) for each in shown]
    settled = all(each.state in ("owned", "caretaker") for each in every)
    data = {
        "total_tokens": site.cluster.shape.total_tokens,
        "partitions": [_partition_data(each, queues.get(each.number)) for each in shown],
    }
    headings = _PARTITIONS if queues else _PARTITIONS[:-1]
    spare = ("since", "queue") if queues else ("since",)
    grid = Grid(headings, rows, frozenset(("partition",)), frozenset(("tokens", "state")), spare)
    return Answer(data, [_summary(shown)], [grid] if rows else [], code=WELL if settled else TROUBLED)


def _summary(partitions: list[PartitionRow]) -> str:
    ordinary = [each for each in partitions if not each.pool]
    states = Counter(each.state for each in partitions)
    total = sum(each.last_token - each.first_token + 1 for each in ordinary)
    told = ", ".join(f"{states[state]} {state}" for state in ("owned", "free", "moving", "caretaker") if states[state])
    told = f": {told}" if told else ""
    locked = len(partitions) - len(ordinary)
    pools = f", and {locked} of locked keys" if locked else ""
    return f"{counted(total, 'token')} in {counted(len(ordinary), 'partition')}{pools}{told}"


def _partition(row: PartitionRow, queue: str | None) -> tuple[str, ...]:
    what = ", ".join(patterns_in(row.pool)) if row.pool else f"{row.first_token}-{row.last_token}"
    since = row.claimed_at if row.owner else row.assigned_at
    cells = (str(row.number), what, row.state, text(row.owner), text(row.target), moment(since))
    return cells if queue is None else (*cells, queue)


def _partition_data(row: PartitionRow, queue: str | None) -> dict[str, Any]:
    return {
        "partition": row.number,
        "first_token": row.first_token,
        "last_token": row.last_token,
        "patterns": list(patterns_in(row.pool)),
        "state": row.state,
        "owner": row.owner,
        "target": row.target,
        "last_owner": row.last_owner,
        "assigned_at": row.assigned_at,
        "claimed_at": row.claimed_at,
        "queue": queue,
    }


def _plan(row: PastPlan) -> tuple[str, ...]:
    took = "" if row.duration_ms is None else f"{row.duration_ms:.0f}"
    nodes = f"{text(row.nodes_before)} > {text(row.nodes_after)}"
    texts = (moment(row.triggered_at), text(row.reason), text(row.leader), text(row.term), nodes)
    return (*texts, text(row.tokens_moved), text(took))


def _plan_data(row: PastPlan) -> dict[str, Any]:
    return {
        "at": row.triggered_at,
        "reason": row.reason,
        "leader": row.leader,
        "term": row.term,
        "nodes_before": row.nodes_before,
        "nodes_after": row.nodes_after,
        "tokens_moved": row.tokens_moved,
        "duration_ms": row.duration_ms,
    }
