"""What a worker knows of itself, told at once: for who asks it through remote control. No server is asked."""

from __future__ import annotations

from typing import Any

from jobsync_celery import __version__
from jobsync_celery.core.model import short, spans
from jobsync_celery.core.tokens import TokenMap, TokenSet
from jobsync_celery.plugin.delivery import Stage
from jobsync_celery.plugin.standing import standing
from jobsync_celery.plugin.worker import WorkerNode
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.vitals import OFF

#: What a delivery of each stage counts as.
_COUNTED_AS = {
    Stage.STARTED: "running",
    Stage.ENDING: "ending",
    Stage.READY: "ready",
    Stage.CLAIMING: "claiming",
    Stage.WAITING: "held_back",
    Stage.PARKED: "held_back",
}


def own_view(node: WorkerNode, tokens: TokenMap) -> dict[str, Any]:
    """The view of a worker, of plain values; in the event loop's thread."""
    view: dict[str, Any] = {"node": node.name, "state": standing(node)}
    if node.participates:
        view |= _membership(node) | {"partitions": _partitions(node, tokens), "database": _database(node)}
    return view | {"claims": _claims(node), "paused_queues": node.border.paused, "version": __version__}


def outsider_view(hostname: str) -> dict[str, Any]:
    """The view of a worker whose coordination is off."""
    return {"node": hostname, "state": OFF, "version": __version__}


def _membership(node: WorkerNode) -> dict[str, Any]:
    now, membership, leadership = boot_clock(), node.node.membership, node.node.leadership
    leader, incarnation = leadership.leader, membership.incarnation
    beat = membership.renewed_at
    return {
        "incarnation": None if incarnation is None else short(incarnation),
        "lease": {"trusted": node.lease.trusted, "left_sec": _rounded(max(0.0, node.lease.deadline - now))},
        "heartbeat_sec_ago": None if beat is None else _rounded(now - beat),
        "drain_ordered": membership.drain_ordered,
        "leads": leadership.leading and node.lease.trusted,
        "term": leadership.term,
        "leader": None if leader is None else leader.name,
    }


def _partitions(node: WorkerNode, tokens: TokenMap) -> dict[str, Any]:
    held = sorted(node.held)
    return {
        "count": len(held),
        "numbers": spans(held),
        "tokens": len(TokenSet(tokens, held)),
    }


def _database(node: WorkerNode) -> dict[str, Any]:
    since = node.node.down_since
    return {"reachable": since is None, "away_sec": None if since is None else _rounded(boot_clock() - since)}


def _claims(node: WorkerNode) -> dict[str, int]:
    counts = dict.fromkeys((*_COUNTED_AS.values(), "forwarding"), 0)
    for delivery in node.gate.lanes:
        counts[_COUNTED_AS[delivery.stage]] += 1
    return counts | {"forwarding": node.border.forwarding}


def _rounded(seconds: float) -> float:
    return round(seconds, 3)
