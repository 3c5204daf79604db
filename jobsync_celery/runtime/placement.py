"""Where keys belong, as one node may say without asking the database.

Claims do not rely on it: the database decides there. This is for code that asks whether a key is this node's while no
task runs. Two nodes must never both say yes, though they learn of a task lock at different times. Everybody who may
say yes has renewed its lease within one lease, and has learnt of every change before that. So whoever loses a key by
a change says no at once, and whoever gains it says yes one lease later. Who learns of several changes at once cannot
know which keys they moved, and says yes to none for a lease.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Mapping
from functools import partial

from jobsync_celery.core.lease import DRIFT
from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.store.locks import Placements

_NANO = 1_000_000_000


class Placement:
    """The partition of each key. The node's thread writes; any thread may ask.

    Pool children may ask too, but know only whether any key is locked: while one is, nothing is sure there. Create it
    before the pool forks.

    Arguments:
        lease_sec: this node's own lease, in seconds; what is learnt tells of longer ones.
        clock: the boot clock.
    """

    def __init__(self, tokens: TokenMap, lease_sec: float, clock: Callable[[], float]) -> None:
        self._tokens = tokens
        self._lease_sec = lease_sec
        self._clock = clock
        self._locked: Mapping[str, int] = {}
        self._settling: dict[str, float] = {}
        self._sure_from = 0.0
        self._learnt: int | None = None
        #: The locked keys, while nothing is unsure: most answers need no more.
        self._calm: Mapping[str, int] | None = None
        self._in_child = False
        os.register_at_fork(after_in_child=partial(_enter_child, weakref.ref(self)))
        #: Since when no key is locked and everybody knows it, in nanoseconds; 0 otherwise.
        self._unlocked = memoryview(mmap.mmap(-1, 8)).cast("q")
        #: The version of the task locks that this is of; None before the first, and while a newer one is read.
        self.version: int | None = None

    def of(self, key: str) -> int | None:
        """The partition that the key belongs to; None while that is not sure."""
        calm = self._calm
        if calm is not None:
            return calm[key] if key in calm else self._tokens.partition_for(key)
        # First: of what is learnt meanwhile the newer doubts may be heeded with the older place, not the reverse.
        locked = self._locked
        now = self._clock()
        if self._in_child:
            return self._tokens.partition_for(key) if 0 < self._unlocked[0] <= now * _NANO else None
        if self.version is None or now < self._sure_from:
            return None
        if now < self._settling.get(key, now):
            return None
        return locked.get(key, self._tokens.partition_for(key))

    @property
    def sure(self) -> bool:
        """Whether the partition of every key is sure."""
        return self._calm is not None or (self.version is not None and self._clock() >= self._unsure_until())

    def doubt(self) -> None:
        """There is a newer version: say nothing until it is learnt."""
        self._calm = self.version = None
        self._unlocked[0] = 0

    def forget(self) -> None:
        """The incarnation is gone, perhaps in a failover that lost versions: begin anew."""
        self.doubt()
        self._learnt = None

    def learn(self, placements: Placements) -> None:
        """Take in a version, read from the database just now."""
        self._calm = None
        now = self._clock()
        settles_in = max(self._lease_sec, placements.lease) * (1 + DRIFT)
        before, after = self._locked, dict(placements.locked)
        if self._learnt is None:
            self._sure_from = now + max(0.0, settles_in - max(0.0, placements.age))
        elif placements.version > self._learnt + 1:  # a key may have been locked and unlocked in between
            self._sure_from = now + settles_in
        else:
            changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
            waiting = {key: until for key, until in self._settling.items() if until > now}
            self._settling = {**waiting, **dict.fromkeys(changed, now + settles_in)}
        self._locked = after
        self.version = self._learnt = placements.version
        self._unlocked[0] = 0 if after else max(1, round(self._unsure_until() * _NANO))

    def settle(self) -> None:
        """See whether something is unsure still; to be called now and then."""
        if self._calm is None and self.sure:
            self._settling = {}
            self._calm = self._locked

    def _unsure_until(self) -> float:
        return max([self._sure_from, *self._settling.values()])


def _enter_child(reference: weakref.ref[Placement]) -> None:
    """In a forked child nothing is learnt any more."""
    placement = reference()
    if placement is not None:
        placement._in_child, placement._calm = True, None
