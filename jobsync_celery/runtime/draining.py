"""Having another node drain, and letting it take part again: an order in its row, which it obeys by itself.

The leader plans without the node at once. The node learns of the order with its next heartbeat, for which it is woken,
and hands over whatever it has, also where nobody else is live; what runs there finishes.
"""

from __future__ import annotations

from difflib import get_close_matches

from jobsync_celery.errors import NodeUnknown
from jobsync_celery.store.database import Connection
from jobsync_celery.store.store import Store

_GONE = {
    "dead": "it was declared dead",
    "left": "it has left; what waits for its name moves with rebalance --no-wait",
}


def order_drain(tx: Connection, store: Store, name: str) -> int:
    """Have a node drain until the order is lifted, or its worker ends; its incarnation.

    Raises:
        NodeUnknown: no live node has the name.
    """
    incarnation = store.nodes.order_drain(tx, name)
    if incarnation is None:
        raise NodeUnknown(name, _hint(tx, store, name))
    _tell(tx, store)
    return incarnation


def lift_drain(tx: Connection, store: Store, name: str) -> bool:
    """Let a node take part again; false if nobody had ordered it to drain.

    It stays draining if it has reasons of its own: it is stopping, or cannot consume.

    Raises:
        NodeUnknown: no live node has the name.
    """
    if store.nodes.lift_drain(tx, name) is not None:
        _tell(tx, store)
        return True
    if name not in _live(tx, store):
        raise NodeUnknown(name, _hint(tx, store, name))
    return False


def _tell(tx: Connection, store: Store) -> None:
    store.notify(tx, "orders")
    store.notify(tx, "members")


def _live(tx: Connection, store: Store) -> list[str]:
    return [member.name for member in store.nodes.members(tx)]


def _hint(tx: Connection, store: Store, name: str) -> str:
    live = _live(tx, store)
    gone = {row.name: row.state for row in store.nodes.everyone(tx)}
    if gone.get(name) in _GONE:
        return _GONE[gone[name]]
    if close := get_close_matches(name, live, n=1):
        return f"did you mean {close[0]!r}?"
    return f"there are {', '.join(live)}" if live else "there is none at all"
