"""``drain NODE`` and ``undrain NODE``: emptying a worker before it is stopped, and taking that back."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from jobsync_celery.cli.answer import TROUBLED, WELL, Answer, counted
from jobsync_celery.cli.command import complain, order
from jobsync_celery.cli.completion import live_nodes
from jobsync_celery.cli.numbers import FiniteRange
from jobsync_celery.cli.site import Site
from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.runtime.draining import lift_drain, order_drain
from jobsync_celery.store.claim_reports import ClaimReports

_LOOK_SEC = 0.3


@dataclass(frozen=True)
class _Left:
    """What a node still has: ``state`` is its row's, "left" if there is none of that life any more."""

    state: str
    partitions: int
    running: int

    @property
    def over(self) -> bool:
        return self.state in ("left", "dead") or not (self.partitions or self.running)


@order(
    "drain",
    epilog="Exit status: 0 ordered, or with --wait empty; 1 not empty in time, or it died meanwhile; 2 no such node.",
)
@click.argument("node", shell_complete=live_nodes)
@click.option("--wait", is_flag=True, help="Wait until the node has nothing any more.")
@click.option("--timeout", metavar="SECONDS", type=FiniteRange(min=0), help="With --wait: at most so long.")
def drain(site: Site, node: str, wait: bool, timeout: float | None) -> Answer:
    """Empty NODE, before it is stopped.

    It takes no more work and hands everything over at once; what runs there finishes. The worker goes on running,
    empty, until it is stopped or the order is lifted with undrain. It is bound by the order for its life: started
    again, it takes part.
    """
    with site.changing() as tx:
        incarnation = order_drain(tx, site.store, node)
        rows = site.store.nodes.everyone(tx)
    others = [each for each in rows if each.name != node and each.state == "live" and not each.silent]
    silent = any(each.name == node and each.silent for each in rows)
    left = _look(site, node, incarnation)
    if wait:
        left = _wait(site, node, incarnation, left, timeout)
    notes = [] if others else [f"no other node is live: the keys of {node} wait until one is, or until undrain {node}"]
    if silent:
        notes.append(f"{node} is silent, and cannot obey before it hears from the database again")
    data = {
        "node": node,
        "state": left.state,
        "empty": left.over and left.state != "dead",
        "partitions": left.partitions,
        "running": left.running,
        "others": len(others),
    }
    failed = left.state == "dead" or (wait and not left.over)
    return Answer(data, [_sentence(node, left)], notes=notes, code=TROUBLED if failed else WELL)


@order("undrain", epilog="Exit status: 0 lifted, 1 nobody had ordered it to drain, 2 no such node.")
@click.argument("node", shell_complete=live_nodes)
def undrain(site: Site, node: str) -> Answer:
    """Let NODE take part again.

    That lifts the order to drain, of which it learns with its next heartbeat.
    """
    with site.changing() as tx:
        lifted = lift_drain(tx, site.store, node)
        state = next((each.state for each in site.store.nodes.everyone(tx) if each.name == node), "left")
    if lifted:
        return Answer({"node": node, "lifted": True, "state": state}, [f"{node} takes part again"])
    alone = ": it stops, or cannot consume" if state == "draining" else ""
    line = f"nobody had ordered {node} to drain; it is {state}{alone}"
    return Answer({"node": node, "lifted": False, "state": state}, [line], code=TROUBLED)


def _look(site: Site, node: str, incarnation: int) -> _Left:
    with site.reading() as tx:
        rows = site.store.nodes.everyone(tx)
        state = next((each.state for each in rows if (each.name, each.incarnation) == (node, incarnation)), "left")
        return _Left(state, *ClaimReports(site.database).left(tx, incarnation))


def _wait(site: Site, node: str, incarnation: int, left: _Left, timeout: float | None) -> _Left:
    """Look until the node is empty, or the time is over; each change is said on stderr."""
    end = None if timeout is None else time.monotonic() + timeout
    if not left.over:
        click.echo(_sentence(node, left), err=True)
    while not left.over and (end is None or time.monotonic() < end):
        time.sleep(_LOOK_SEC)
        try:
            before, left = left, _look(site, node, incarnation)
        except StoreUnavailable as error:
            complain(error)
            continue
        if left != before and not left.over:
            click.echo(_sentence(node, left), err=True)
    return left


def _sentence(node: str, left: _Left) -> str:
    if left.state == "left":
        return f"{node} has left"
    if left.state == "dead":
        return f"{node} was declared dead: what it ran is run again elsewhere"
    if left.over:
        return f"{node} is empty: it can be stopped, or taken back with undrain"
    has = f"{counted(left.partitions, 'partition')} and {counted(left.running, 'running task')}"
    return f"{node} drains: {has} are left"
