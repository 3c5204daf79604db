"""Owning partitions: take what is free and meant for this node, hand over what is not.

A hand-over does not wait for running tasks: their claims stay, and the next owner holds back just those keys.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from jobsync_celery.runtime.events import Events
from jobsync_celery.store.database import Link
from jobsync_celery.store.partitions import LockPartition
from jobsync_celery.store.store import Store


class Surface(Protocol):
    """Where a node's decisions meet the broker. Every method returns at once; any thread may call it."""

    def learn(self, pools: Mapping[int, LockPartition]) -> None:
        """These partitions carry locked keys; told before they are started."""

    def start(self, partitions: frozenset[int]) -> None:
        """Get back what a dead owner had fetched of these partitions, and consume them."""

    def stop(self, partitions: frozenset[int]) -> None:
        """Stop consuming these partitions, give back what has not started, then report it as stopped."""

    def recover(self) -> None:
        """A node died: get back what it had fetched of the partitions consumed here."""

    def recheck(self) -> None:
        """A claim ended elsewhere: keys that were held back for it may go on."""

    def reconsider(self, locked: Mapping[str, int]) -> None:
        """These keys are locked, to these partitions, and no others: take back what was granted where a key was."""


class Ownership:
    """The partitions of this incarnation; belongs to the node's thread, except :meth:`stopped`.

    Arguments:
        wake: called when partitions have stopped, to wake the node's thread.
    """

    def __init__(
        self, store: Store, link: Link, surface: Surface, events: Events, *, name: str, wake: Callable[[], None]
    ) -> None:
        self._store = store
        self._link = link
        self._surface = surface
        self._events = events
        self._name = name
        self._wake = wake
        self._lock = threading.Lock()
        self._stopping: set[int] = set()
        self._stopped: set[int] = set()
        self._suspended = False
        self.owned: frozenset[int] = frozenset()
        #: Partitions whose keys this node may hold and send on, but not run.
        self.caretaking: frozenset[int] = frozenset()

    @property
    def settled(self) -> bool:
        """Whether no hand-over is under way."""
        with self._lock:
            return not (self._stopping or self._stopped)

    def sync(self, incarnation: int, *, giving_up: bool = False) -> None:
        """Compare what this node has with what it should have, and begin what that takes.

        Arguments:
            giving_up: it should have nothing, whatever the plan says.
        """
        share = self._store.partitions.share(self._link, self._name, incarnation)
        if giving_up:
            share = replace(share, take=frozenset(), release=share.owned)
        if share.pools:
            self._surface.learn(share.pools)
        here = share.owned | share.take
        self.caretaking = frozenset(number for number, each in share.pools.items() if each.caretaker and number in here)
        self._begin_stop(share.release & self.owned)
        # Taken in a transaction whose answer was lost. What is being handed over is let go of first, and taken again.
        strangers = share.owned - self.owned - share.release - self._in_transit()
        taken = strangers
        if share.take:
            with self._link.transaction() as tx:
                taken = strangers | self._store.partitions.take(tx, share.take, self._name, incarnation)
        abandoned = share.release - self.owned - self._in_transit()
        if abandoned:
            self._release(abandoned, incarnation)
        if taken:
            self.owned |= taken
            self._events("partitions_taken", numbers=sorted(taken))
            if not self._suspended:
                self._surface.start(taken)

    def stop_all(self) -> None:
        """Begin to hand everything over: the node drains."""
        self._begin_stop(self.owned)

    def release_stopped(self, incarnation: int) -> None:
        """Give up, in the database, the partitions whose consumption has ended here."""
        with self._lock:
            ready = frozenset(self._stopped)
        if ready:
            self._release(ready, incarnation)
            with self._lock:
                self._stopped -= ready

    def stopped(self, partitions: frozenset[int]) -> None:
        """The surface reports: these are consumed no more, and what had not started is given back. Any thread."""
        with self._lock:
            self._stopped |= partitions & self._stopping
            self._stopping -= partitions
        self._wake()

    def suspend(self) -> None:
        """The deadline has passed: consume nothing, but keep what the database may still say is ours."""
        if not self._suspended:
            self._suspended = True
            self._surface.stop(self.owned)

    def resume(self) -> None:
        """The lease was renewed after all: consume again."""
        if self._suspended:
            self._suspended = False
            self._surface.start(self.owned)

    def forget(self) -> None:
        """The incarnation is gone, and with it all that it owned."""
        self._surface.stop(self.owned)
        self.owned = frozenset()
        self._suspended = False
        with self._lock:
            self._stopping.clear()
            self._stopped.clear()

    def _in_transit(self) -> frozenset[int]:
        with self._lock:
            return frozenset(self._stopping | self._stopped)

    def _begin_stop(self, partitions: frozenset[int]) -> None:
        if not partitions:
            return
        with self._lock:
            self._stopping |= partitions
        self.owned -= partitions
        self._surface.stop(partitions)

    def _release(self, partitions: frozenset[int], incarnation: int) -> None:
        with self._link.transaction() as tx:
            released = self._store.partitions.release(tx, partitions, incarnation)
            if released:
                self._store.notify(tx, "freed")
        if released:
            self._events("partitions_released", numbers=sorted(released))
