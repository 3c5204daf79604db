"""Celery's remote control: ``inspect jobsync``, ``control jobsync_drain | jobsync_undrain | jobsync_rebalance``.

The commands are answered on the event loop, so they only look at what the worker knows, and leave orders for the node's
own thread. Nothing depends on them: they reach who listens to the broker just then, and the tables say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker.control import control_command, inspect_command
from kombu import pidbox

from jobsync_celery.plugin.own_view import outsider_view, own_view
from jobsync_celery.plugin.worker import WorkerNode
from jobsync_celery.runtime.vitals import FORWARDS, OFF

Reply = dict[str, Any]

_ALL = "all"


class Mailbox(pidbox.Node):
    """Celery's mailbox, which notes for the commands whether the worker was named: they are not told otherwise."""

    def handle_message(self, body: Any, message: Any = None) -> Any:
        """Carry out a command, if it is meant for this worker."""
        if self.state is not None:
            self.state.jobsync_named = bool(body.get("destination") or body.get("pattern"))
        return super().handle_message(body, message)

    dispatch_from_message = handle_message


def listen(worker: Any) -> None:
    """Have a worker's remote control use our mailbox; before its consumer is made."""
    worker.app.control.mailbox.node_cls = Mailbox


@inspect_command()
def jobsync(state: Any) -> Reply:
    """What this worker knows of itself as a node: lease, leader, partitions, claims."""
    if _jobsync(state) is None:
        return _refused("the app of this worker has no JobSync")
    node = _node(state)
    return outsider_view(state.hostname) if node is None else own_view(node, _jobsync(state).cluster.tokens)


@control_command(args=[("whom", str)], signature="[all]")
def jobsync_drain(state: Any, whom: str | None = None) -> Reply:
    """Take no more keys and hand them over; with -d NODE, or "all"."""
    return _ordered(
        state,
        whom,
        lambda node: node.node.orders.drain(),
        "drains until jobsync_undrain, or its end",
    )


@control_command(args=[("whom", str)], signature="[all]")
def jobsync_undrain(state: Any, whom: str | None = None) -> Reply:
    """Take part again after jobsync_drain; with -d NODE, or "all"."""
    return _ordered(
        state,
        whom,
        lambda node: node.node.orders.undrain(),
        "takes part again, unless it cannot consume",
    )


@control_command()
def jobsync_rebalance(state: Any) -> Reply:
    """Have the leader make a plan now."""
    refusal = _refusal(state)
    if refusal is not None:
        return refusal if _named(state) else _done(refusal["error"])
    node = _node(state)
    leadership = node.node.leadership
    if not leadership.leading:
        leader = leadership.leader
        who = "who does, it does not know: jobsync status tells" if leader is None else f"{leader.name} does"
        told = f"{node.name} does not lead; {who}"
        return _refused(told) if _named(state) else _done(told)
    node.node.orders.rebalance()
    return _done(f"{node.name} leads, and makes a plan{_when(node)}; jobsync history tells what moved")


def _ordered(state: Any, whom: str | None, give: Callable[[WorkerNode], None], what: str) -> Reply:
    """Give an order to this worker, if it was meant and can obey."""
    if whom not in (None, _ALL):
        return _refused(f"{whom!r} is not understood: name workers by -d, as in -d {state.hostname}, or say {_ALL}")
    refusal = _refusal(state)
    if refusal is not None:
        return refusal
    if whom is None and not _named(state):
        return _refused(f"no worker was named: give -d {state.hostname}, or say {_ALL} for every worker")
    node = _node(state)
    give(node)
    return _done(f"{node.name} {what}: ordered{_when(node)}")


def _refusal(state: Any) -> Reply | None:
    """Why a worker can obey no order."""
    if _jobsync(state) is None:
        return _refused("the app of this worker has no JobSync")
    node = _node(state)
    if node is None:
        return _refused(f"{OFF} in this worker")
    if not node.participates:
        return _refused(f"{node.name} is no node: {FORWARDS}, as its -Q leaves jobsync out")
    return _refused(f"{node.name} is stopping") if node.stopping else None


def _when(node: WorkerNode) -> str:
    """When an order is carried out, if that is not at once."""
    if node.node.down_since is not None:
        return ", and recorded as soon as the database answers"
    if node.node.membership.incarnation is None:
        return ", and recorded as soon as it has registered"
    return ""


def _named(state: Any) -> bool:
    return bool(state.get("jobsync_named"))


def _jobsync(state: Any) -> Any:
    return getattr(state.app, "jobsync", None)


def _node(state: Any) -> Any:
    return getattr(state.consumer.controller, "jobsync", None)


def _done(what: str) -> Reply:
    return {"ok": what}


def _refused(why: str) -> Reply:
    return {"error": why}
