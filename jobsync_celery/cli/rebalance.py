"""``rebalance``: what would move, from where to where and why; and having it moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from jobsync_celery.cli.answer import Answer, Grid, counted, moment, nearest, text
from jobsync_celery.cli.command import order
from jobsync_celery.cli.completion import live_nodes
from jobsync_celery.cli.site import Site
from jobsync_celery.core.model import Member, Move, Plan, Seat, spans
from jobsync_celery.core.plan import plan
from jobsync_celery.core.reasons import reasons, without
from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.errors import JobsyncError
from jobsync_celery.runtime.rebalancing import rebalance as write_plan
from jobsync_celery.store.database import Connection
from jobsync_celery.store.nodes import NodeRow

_HEADINGS = ("partitions", "tokens", "from", "to", "why")


@order("rebalance")
@click.option("--dry-run", is_flag=True, help="Only say what would move.")
@click.option("--no-wait", is_flag=True, help="Wait for no name to return any longer (rejoin_grace_sec).")
@click.option(
    "--without", "leaving", metavar="NODE", shell_complete=live_nodes, help="With --dry-run: as if it drained."
)
def rebalance(site: Site, dry_run: bool, no_wait: bool, leaving: str | None) -> Answer:
    """Make a plan now, or show what would move.

    Shown is what moves from where to where, and why. The plan is made under the leader's rules; the leader plans by
    itself whenever nodes come or go, so as a rule nothing moves. What waits for a node to return under its name goes on
    waiting, without --no-wait.
    """
    if leaving is not None and not dry_run:
        raise JobsyncError(
            f"--without goes with --dry-run; to have {leaving} give up what it has: jobsync drain {leaving}"
        )
    tokens = site.tokens
    with site.changing() as tx:
        if not dry_run:
            site.store.leaders.lock(tx)  # so that the plan is made of what is read here
        members, seats = _standing(site, tx)
        awaited = [] if no_wait else [node for node in site.store.nodes.everyone(tx) if node.awaited]
        if leaving is not None:
            _check_known(leaving, members)
            members = without(members, leaving)
        planned = plan(members, seats, absent=[node.name for node in awaited])
        made = planned if dry_run else _written(site, tx, no_wait)
    why = reasons(made, members, seats, leaving)
    rows = _grouped(made, why, tokens)
    grid = Grid(_HEADINGS, rows, frozenset(("tokens",)), frozenset(("partitions", "why")), ("tokens",))
    waiting = [_wait(node, seats) for node in awaited]
    data = {**_data(made, why, tokens, dry_run), "waiting": waiting}
    headline = _headline(made, tokens, dry_run)
    return Answer(data, [headline], [grid] if rows else [], [_awaited(each) for each in waiting])


def _written(site: Site, tx: Connection, no_wait: bool) -> Plan:
    if no_wait:
        site.store.waits.end_all(tx)
    made, _ = write_plan(tx, site.store, site.tokens, "requested")
    return made


def _headline(made: Plan, tokens: TokenMap, dry_run: bool) -> str:
    would = "would move" if dry_run else "moved" if not made.moves else "move"
    if not made.moves:
        return f"nothing {would}: every partition has the target that it should have"
    moved = sum(_size(tokens, move.partition) for move in made.moves)
    partitions = f"{counted(len(made.moves), 'partition')} of {len(made.targets)}"
    return f"{partitions} {would}, with {moved} of {tokens.total_tokens} tokens"


def _standing(site: Site, tx: Connection) -> tuple[list[Member], list[Seat]]:
    seats = site.store.partitions.seats(tx)
    if all(seat.target is None for seat in seats):
        raise JobsyncError("there is no plan yet: the first one is made by the leader, when the first nodes are there")
    return list(site.store.nodes.members(tx)), seats


def _check_known(name: str, members: list[Member]) -> None:
    names = [member.name for member in members]
    if name not in names:
        raise JobsyncError(f"no live node is called {name!r}{nearest(name, names)}")


def _data(made: Plan, why: Mapping[int, str], tokens: TokenMap, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "tokens_moved": sum(_size(tokens, move.partition) for move in made.moves),
        "moves": [_move(move, why[move.partition]) for move in made.moves],
    }


def _wait(node: NodeRow, seats: list[Seat]) -> dict[str, Any]:
    return {
        "node": node.name,
        "partitions": sum(seat.target == node.name for seat in seats),
        "until": node.awaited_until,
    }


def _awaited(wait: Mapping[str, Any]) -> str:
    number = wait["partitions"]
    waits = f"{counted(number, 'partition')} {'waits' if number == 1 else 'wait'}"
    return f"{waits} until {moment(wait['until'])} for {wait['node']} to return: --no-wait ends that"


def _move(move: Move, why: str) -> dict[str, object]:
    return {"partition": move.partition, "from": move.source, "to": move.destination, "why": why}


def _size(tokens: TokenMap, partition: int) -> int:
    """Those of lock pools carry each token once more, and do not count."""
    if partition >= tokens.partitions:
        return 0
    first, last = tokens.range(partition)
    return last - first + 1


def _grouped(made: Plan, why: Mapping[int, str], tokens: TokenMap) -> list[tuple[str, ...]]:
    """What moves from one node to another for one reason is one row."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for move in made.moves:
        groups.setdefault((text(move.source), text(move.destination), why[move.partition]), []).append(move.partition)
    return [
        (f"{len(numbers)} ({spans(numbers)})", str(sum(_size(tokens, number) for number in numbers)), *ends)
        for ends, numbers in groups.items()
    ]
