"""``status`` and ``nodes``: the cluster as its tables show it. Reads only: it creates nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobsync_celery.cli.answer import NO_ANSWER, NOTHING, TROUBLED, WELL, Answer, Grid, counted, duration, moment, text
from jobsync_celery.cli.command import question
from jobsync_celery.cli.site import Site
from jobsync_celery.store.reports import ClusterStatus, NodeShare, Reports

#: How far tokens may be from a node's share by weight, in percent.
BALANCE = 10.0

_HEADINGS = ("node", "state", "lag s", "partitions", "tokens", "share %", "running")
_DETAILS = ("node", "state", "lag s", "lease s", "weight", "tokens", "running", "since", "host", "pid", "version")
_NUMBERS = frozenset(("lag s", "lease s", "weight", "partitions", "tokens", "share %", "running", "pid"))
_WHOLE, _SPARE = frozenset(("node", "state", "since")), ("version", "pid", "lease s", "weight", "since", "host")
#: So many partitions for each node let shares differ by a tenth at most.
_PARTITIONS_PER_NODE = 10


@question("status")
def status(site: Site) -> Answer:
    """Show how the cluster is, and why.

    Its state in a word: stable, waiting, rebalancing, degraded or no leader; who leads, what each node has, how even
    that is, what waits, and what to do if it is not well.
    """
    seen = _status(site)
    grid = Grid(_HEADINGS, [_cells(share, seen) for share in seen.nodes], _NUMBERS, _WHOLE, ("share %", "partitions"))
    notes = list(_notes(seen))
    return Answer({**as_dict(seen), "notes": notes}, _sentences(seen), [grid], notes, exit_code(seen), seen.state)


@question("nodes")
def nodes(site: Site) -> Answer:
    """List the nodes, dead ones too.

    They are in the order of their start: the first that is live leads.
    """
    seen = _status(site)
    listed = [_node(share, seen) for share in seen.nodes]
    rows = [
        (
            each["name"],
            each["state"],
            _lag(each["lag"]),
            f"{each['lease']:g}" if each["lease"] else NOTHING,
            f"{each['weight']:g}",
            str(each["tokens"]),
            str(each["running"]),
            moment(each["since"]),
            text(each["host"]),
            text(each["pid"]),
            text(each["version"]),
        )
        for each in listed
    ]
    lines = [] if rows else ["no node has registered yet"]
    data = {"at": seen.at, "leader": seen.leader.node, "nodes": listed}
    return Answer(data, lines, [Grid(_DETAILS, rows, _NUMBERS, _WHOLE, _SPARE)] if rows else [], code=exit_code(seen))


def exit_code(status: ClusterStatus) -> int:
    """How well the cluster is."""
    return {"stable": WELL, "no leader": NO_ANSWER}.get(status.state, TROUBLED)


def as_dict(status: ClusterStatus) -> dict[str, Any]:
    """The status as JSON knows it."""
    leader = status.leader
    return {
        "state": status.state,
        "at": status.at,
        "leader": {"node": leader.node, "term": leader.term, "since": leader.since},
        "partitions": {
            "total": status.partitions,
            "unowned": status.unowned,
            "waiting": status.waiting,
            "moving": status.moving,
        },
        "balance": {
            "within": status.imbalance is None or status.imbalance <= BALANCE,
            "off_percent": None if status.imbalance is None else round(status.imbalance, 1),
            "limit_percent": BALANCE,
        },
        "lag": None if status.lag is None else round(status.lag, 3),
        "running": status.running,
        "awaited_keys": status.awaited_keys,
        "locks": {"total": status.locks, "unserved": status.unserved_locks},
        "rebalances_last_hour": status.rebalances_last_hour,
        "leader_changes_last_hour": status.leader_changes_last_hour,
        "nodes": [_node(share, status) for share in status.nodes],
    }


def _status(site: Site) -> ClusterStatus:
    with site.reading() as tx:
        return Reports(site.database).status(tx)


def _sentences(status: ClusterStatus) -> list[str]:
    leader = status.leader
    last = "last " if status.state == "no leader" else ""
    led = f"{last}leader {leader.node}, term {leader.term}" if leader.node else "no leader yet"
    first = (
        f"{status.state}; {led}; {status.partitions} partitions, {status.unowned} unowned{_waiting(status)},"
        f" {status.moving} moving; {status.running} running{_locks(status)}"
    )
    if not status.nodes:
        return [first, "no node has registered yet"]
    hour = f"{counted(status.rebalances_last_hour, 'rebalance')}, {_changes(status)} in the last hour"
    return [first, f"{_balance(status)}; heartbeat lag {duration(status.lag)}; {hour}{_awaited(status)}"]


def _waiting(status: ClusterStatus) -> str:
    return f" ({status.waiting} waiting for a node to return)" if status.waiting else ""


def _changes(status: ClusterStatus) -> str:
    return counted(status.leader_changes_last_hour, "leader change")


def _balance(status: ClusterStatus) -> str:
    off = status.imbalance
    if off is None:
        return "no balance to tell"
    return f"balance within ±{BALANCE:.0f} %" if off <= BALANCE else f"balance off by {off:.0f} %"


def _awaited(status: ClusterStatus) -> str:
    keys = status.awaited_keys
    return f"; {counted(keys, 'key')} {'is' if keys == 1 else 'are'} waited for" if keys else ""


def _locks(status: ClusterStatus) -> str:
    if not status.locks:
        return ""
    unserved = f", {status.unserved_locks} of them wait for a node that matches" if status.unserved_locks else ""
    return f"; {counted(status.locks, 'key')} locked{unserved}"


def _notes(status: ClusterStatus) -> Iterator[str]:
    """Why it is not well, and what to do."""
    if status.state == "no leader":
        yield "no node is live, so nothing coordinated runs: start a worker, or look into the log of one that runs"
        return
    for share in status.nodes:
        yield from _node_notes(share)
    if status.unserved_locks:
        keys = counted(status.unserved_locks, "key")
        yield f"{keys} locked to nodes that are not there: see locks list --unserved; start such a node, or unlock"
    if status.state == "rebalancing":
        yield "partitions are on their way; if that takes more than a moment, see tokens for which, and the nodes' logs"
    off, sharing = status.imbalance, sum(share.node.state == "live" for share in status.nodes)
    few = status.partitions < _PARTITIONS_PER_NODE * sharing
    if status.state == "stable" and off is not None and off > BALANCE and few:
        yield (
            f"{status.partitions} partitions are too few for shares of {sharing} nodes within ±{BALANCE:.0f} %:"
            f" that takes {_PARTITIONS_PER_NODE} for each node"
        )


def _node_notes(share: NodeShare) -> Iterator[str]:
    node = share.node
    if node.awaited and share.targets:
        waits = f"{counted(share.targets, 'partition')} {'waits' if share.targets == 1 else 'wait'}"
        until = moment(node.awaited_until)
        yield f"{waits} until {until} for {node.name} to return: rebalance --no-wait ends that"
    ago = f"its last heartbeat was {duration(node.lag)} ago"
    if node.state == "dead":
        yield f"{node.name} was declared dead, {ago}: start it again, or leave its row to maintenance"
    elif node.silent:
        lease = duration(node.lease_sec)
        yield f"{node.name} is silent, {ago}, and its lease takes {lease}: the others evict it, if there are any"
    elif node.state == "draining" and not node.awaited:
        yield f"{node.name} drains" + (": it was ordered to, and undrain takes that back" if node.drain_ordered else "")


def _cells(share: NodeShare, status: ClusterStatus) -> tuple[str, ...]:
    node = _node(share, status)
    numbers = (node["partitions"], node["tokens"], f"{node['share']:.1f}", node["running"])
    return (node["name"], node["state"], _lag(node["lag"]), *map(str, numbers))


def _lag(lag: float | None) -> str:
    return NOTHING if lag is None else f"{lag:.1f}"


def _node(share: NodeShare, status: ClusterStatus) -> dict[str, Any]:
    owned = sum(each.tokens for each in status.nodes)
    node = share.node
    return {
        "name": node.name,
        "state": "silent" if node.silent else node.state,
        "lag": None if node.lag is None else round(node.lag, 3),
        "partitions": share.owned,
        "targets": share.targets,
        "tokens": share.tokens,
        "share": round(100 * share.tokens / owned, 1) if owned else 0.0,
        "running": share.running,
        "weight": node.weight,
        "lease": node.lease_sec,
        "since": node.created_on,
        "drain_ordered": node.drain_ordered,
        "awaited_until": node.awaited_until if node.awaited else None,
        "host": node.hostname,
        "pid": node.pid,
        "version": node.version,
    }
