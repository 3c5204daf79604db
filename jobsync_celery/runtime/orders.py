"""What one node was asked to do, until its own thread does it: who asks may not wait for the database."""

from __future__ import annotations

from collections.abc import Callable

from jobsync_celery.store.database import Link
from jobsync_celery.store.store import Store


class Orders:
    """Orders to one node; the last one counts. Any thread may give them, and :meth:`record` belongs to the node's.

    Arguments:
        wake: called when there is one, to wake the node's thread.
    """

    def __init__(self, store: Store, link: Link, name: str, wake: Callable[[], None]) -> None:
        self._store = store
        self._link = link
        self._name = name
        self._wake = wake
        self._drain: bool | None = None
        self._rebalance = False

    def drain(self) -> None:
        """Take no more work and hand everything over, until :meth:`undrain` or the end of this worker."""
        self._drain = True
        self._wake()

    def undrain(self) -> None:
        """Take part again."""
        self._drain = False
        self._wake()

    def rebalance(self) -> None:
        """Make a plan, if this node leads."""
        self._rebalance = True
        self._wake()

    def record(self, drain_ordered: bool) -> bool:
        """Write into this node's row whether it is to drain, as others would; true if there was something to write.

        It is written again and again until it is; the next heartbeat tells the node of it, as of everybody's orders.

        Arguments:
            drain_ordered: whether the node thinks it is to drain, and would register anew so.
        """
        wanted = self._drain
        if wanted is None:
            return False
        change = self._store.nodes.order_drain if wanted else self._store.nodes.lift_drain
        with self._link.transaction() as tx:
            changed = change(tx, self._name) is not None
            if changed:
                self._store.notify(tx, "members")
        # Nothing was changed where nobody had ordered it, or there is no row: then it registers anew first.
        done = changed or not (wanted or drain_ordered)
        if done and self._drain is wanted:
            self._drain = None
        return True

    def take_rebalance(self) -> bool:
        """Whether a plan was asked for since this was asked last."""
        asked, self._rebalance = self._rebalance, False
        return asked
