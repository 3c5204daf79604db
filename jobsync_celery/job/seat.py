"""A Job's part in the cluster: a node without a broker, and its right to each task."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from jobsync_celery import __version__
from jobsync_celery.core.plan import plan
from jobsync_celery.core.tokens import TokenMap, TokenSet
from jobsync_celery.errors import JoinTimeout, StoreUnavailable
from jobsync_celery.runtime.assembly import node_settings_of, scope_of
from jobsync_celery.runtime.callbacks import Callback, Rebalances
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.listeners import Listeners, Receiver
from jobsync_celery.runtime.node import Node
from jobsync_celery.runtime.presence import Presence
from jobsync_celery.runtime.tenancy import ASSIGNED, REVOKED, Tenancy
from jobsync_celery.runtime.tenures import Tenures
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.nodes import Identity, NodeRow
from jobsync_celery.store.partitions import LockPartition
from jobsync_celery.store.schema import ClusterShape
from jobsync_celery.store.store import Store

#: How long a node that leaves waits for the database before it leaves its lease to end by itself, in seconds.
_FAREWELL_SEC = 5.0
_LOOK_AGAIN_SEC = 0.25
#: What the log says of facts that mean something else for a worker.
LINES = {
    "name_taken": "{name!r} cannot take part: another live process has this name (host {holder_host}, pid"
    " {holder_pid}). Give each node a name of its own",
    "store_unavailable": "the coordination database does not answer ({error}). When the lease ends no task is this"
    " node's, until the database answers again",
    "schema_refused": "coordination refused: {error}",
}
#: Facts that tell why a node has no share yet.
_OBSTACLES = frozenset((*LINES, "waiting_for_name", "plan_held_back", "loop_error"))


class Seat:
    """One node of a cluster of Jobs, from its start until it leaves.

    Arguments:
        callbacks: called when the node gains or loses tokens.
        events: where its facts go.
    """

    def __init__(
        self,
        store: Store,
        config: CoordinationConfig,
        shape: ClusterShape,
        name: str,
        callbacks: Sequence[Callback],
        events: Events,
    ) -> None:
        self._store = store
        self.name = name
        self.lease = Lease()
        self.tokens = TokenMap(shape.total_tokens, shape.partitions, shape.hash_function)
        self.tenures = Tenures(shape.partitions)
        self._events = events
        #: The nodes that were there, this one too, when it joined.
        self.neighbours: list[NodeRow] = []
        self._obstacle = "no plan has been made yet"
        events.listen(self._note)
        self._presence = Presence(scope_of(store), name)
        self._changed = threading.Event()
        listeners = Listeners(_Audience(callbacks, self.tokens), events)
        self.tenancy = Tenancy(_NoBroker(self._report, self._changed.set), self.lease, self.tenures, listeners)
        identity = Identity(
            name=name,
            weight=config.weight_for(1),
            lease_sec=config.heartbeat_timeout_sec,
            hostname=socket.gethostname(),
            presence=self._presence.identity,
            pid=os.getpid(),
            version=__version__,
            kind=shape.kind,
        )
        settings = node_settings_of(config, identity, shape)
        self.node = Node(store, settings, self.tenancy, self.lease, self._presence, events)
        self.tenancy.stopped = self.node.ownership.stopped
        #: Whether a key is this node's: :meth:`partition_of` as fast as may be, for it is asked of every task there is.
        self.owns = self._question()

    @property
    def held(self) -> frozenset[int]:
        """The partitions that this node has; none from its deadline on."""
        incarnation, held = self.lease.incarnation, self.tenancy.held
        return held if self.lease.holds(incarnation) else frozenset()

    @property
    def leading(self) -> bool:
        """Whether this node leads, as far as it knows."""
        return self.lease.trusted and self.node.leadership.leading

    def partition_of(self, key: str) -> int | None:
        """The partition of a key, if this node has it and may run the key there; None otherwise."""
        partition = self.node.placement.of(key)
        return partition if self.owns(key) else None

    def join(self, limit: float) -> None:
        """Start the node, and return when it has its share.

        Raises:
            JoinTimeout: it has none after ``limit`` seconds; says what it waits for. The node has left then.
        """
        self.node.start()
        end = time.monotonic() + limit
        try:
            while not self._settled():
                left = end - time.monotonic()
                if left <= 0 and self.held:
                    return
                if left <= 0:
                    raise JoinTimeout(f"{self.name} has no share after {limit:.0f} s: {self._obstacle}")
                self._changed.wait(min(left, _LOOK_AGAIN_SEC))
                self._changed.clear()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Hand everything over and leave the cluster; what was claimed and has not ended is given back.

        Where that takes too long, as when a callback does not return, the lease ends by itself: slower, and safe.
        """
        orderly = False
        try:
            self.node.drain()
            self.node.drained.wait(_FAREWELL_SEC)
            orderly = self.tenancy.close(_FAREWELL_SEC)
        finally:
            if orderly and self.node.leave(_FAREWELL_SEC):
                self._presence.remove()
            elif not orderly:
                self._events("not_released", name=self.name, why="it was interrupted, or a callback does not return")
                self.node.abandon(_FAREWELL_SEC)

    def _question(self) -> Callable[[str], bool]:
        lease, tenancy, ownership = self.lease, self.tenancy, self.node.ownership
        partition_of, holds = self.node.placement.of, lease.holds

        def owns(key: str) -> bool:
            incarnation = lease.incarnation
            partition = partition_of(key)
            # The lease last, and for that incarnation: what was true before holds if that one's deadline is ahead.
            return partition in tenancy.held and partition not in ownership.caretaking and holds(incarnation)

        return owns

    def _settled(self) -> bool:
        """Whether a plan is made that counts this node in, what it gives to this node is here, and locks are known."""
        if not (self.lease.trusted and self.node.placement.sure):
            return False
        try:
            with self._store.database.transaction(f"jobsync {self.name} joins") as tx:
                members = self._store.nodes.members(tx)
                seats = self._store.partitions.seats(tx)
                made = plan(members, seats, absent=self._store.waits.awaited(tx))
                self.neighbours = [node for node in self._store.nodes.everyone(tx) if node.present]
        except StoreUnavailable:
            return False
        mine = {seat.number for seat in seats if seat.target == self.name}
        here = any(member.name == self.name for member in members)
        return here and not made.moves and mine <= self.tenancy.held

    def _report(self, partitions: frozenset[int]) -> None:
        self.tenancy.ended(partitions)

    def _note(self, fact: str, fields: dict[str, Any]) -> None:
        if fact in _OBSTACLES:
            self._obstacle = self._events.line(fact, fields)


class _NoBroker:
    """The surface of a node that consumes nothing: what is to stop has stopped."""

    def __init__(self, stopped: Callable[[frozenset[int]], None], changed: Callable[[], None]) -> None:
        self._stopped = stopped
        self._changed = changed

    def learn(self, pools: Mapping[int, LockPartition]) -> None:
        """There are no queues to be named."""

    def start(self, partitions: frozenset[int]) -> None:
        """They are here."""
        self._changed()

    def stop(self, partitions: frozenset[int]) -> None:
        """Nothing of them was fetched."""
        self._stopped(partitions)

    def recover(self) -> None:
        """A dead node had fetched nothing."""

    def recheck(self) -> None:
        """No message is held back."""
        self._changed()

    def reconsider(self, locked: Mapping[str, int]) -> None:
        """Nothing waits for a slot."""


class _Audience:
    """The callbacks of ``on_rebalance``, as those who listen."""

    def __init__(self, callbacks: Sequence[Callback], tokens: TokenMap) -> None:
        self._callbacks = callbacks
        self._tokens = tokens
        self._rebalances = Rebalances()

    def hears(self, signal: str) -> bool:
        """Whether somebody listens to a signal now."""
        return signal in (ASSIGNED, REVOKED) and bool(self._callbacks)

    def receivers(self, signal: str, fields: Mapping[str, Any]) -> Iterator[Receiver]:
        """Who is to be called, in order, for a signal with these fields."""
        partitions = fields["partitions"]
        tokens = TokenSet(self._tokens, partitions)
        event = self._rebalances.event(partitions, tokens, gained=signal == ASSIGNED)
        for callback in self._callbacks:
            yield Receiver(callback.name, partial(callback, event))


class Diary:
    """The last facts of a node, for its status."""

    def __init__(self, size: int = 20) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=size)

    def note(self, fact: str, fields: dict[str, Any]) -> None:
        """Keep a fact, with the seconds of the boot clock at which it happened."""
        self._entries.append({"event": fact, "at": boot_clock(), **fields})

    def entries(self) -> list[dict[str, Any]]:
        """What is kept, the oldest first."""
        return list(self._entries)
