"""Group commit: claims and their ends, of all keys of a node, in as few transactions as possible.

One thread, one database connection. Whatever waits when a transaction begins goes into it, ends before claims, so
that a key's next claim can travel with its predecessor's end.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobsync_celery.errors import StoreError, StoreUnavailable
from jobsync_celery.runtime.events import Events
from jobsync_celery.store.claims import Ending, NotOurs, Outcome, Wanted
from jobsync_celery.store.database import Link
from jobsync_celery.store.store import Store

_MOST_IN_BATCH = 256
#: With work enough waiting for the pool, a batch that is smaller than this waits a moment to fill.
_SMALL_BATCH = 48
_PACE_SEC = 0.004


@dataclass(frozen=True)
class Unavailable:
    """The database did not answer: nobody knows whether the claim stands. Ask again later."""

    error: str


@dataclass(frozen=True)
class Recorded:
    """The answer to an end; false if another node took the run over meanwhile."""

    ours: bool


Answer = Outcome | Unavailable | Recorded
Reply = Callable[[Answer], None]


@dataclass(frozen=True)
class _Claim:
    incarnation: int
    wanted: Wanted
    reply: Reply


@dataclass(frozen=True)
class _End:
    ending: Ending
    reply: Reply


@dataclass
class _Answers:
    """Replies to hand out once the transaction has committed."""

    replies: list[tuple[Reply, Answer]] = field(default_factory=list)


class Claimer:
    """The claims of one node, in batches.

    Arguments:
        name: the node's name.
        deliver: called in the claimer's thread with the replies of a batch; it must hand them to the right thread.
        backlog: how many granted runs wait for the pool, per pool slot: with enough of them small batches are paced.
        owned: the partitions this node owns; an end elsewhere is announced, since somebody may wait for its key.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        events: Events,
        *,
        deliver: Callable[[Sequence[tuple[Reply, Answer]]], None],
        backlog: Callable[[], float],
        owned: Callable[[], Collection[int]],
    ) -> None:
        self._store = store
        self._name = name
        self._events = events
        self._deliver = deliver
        self._backlog = backlog
        self._owned = owned
        self._link: Link = store.database.link(f"jobsync {name} claims")
        self._ends: deque[_End] = deque()
        self._claims: deque[_Claim] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._hurry = False
        self._thread = threading.Thread(target=self._run, name="jobsync-claimer", daemon=True)

    def start(self) -> None:
        """Start the thread; only after the pool has forked."""
        self._thread.start()

    def claim(self, incarnation: int, wanted: Wanted, reply: Reply) -> None:
        """Ask for a claim; ``reply`` gets Granted, Known, Busy, NotOurs or Unavailable. Any thread."""
        with self._wake:
            self._claims.append(_Claim(incarnation, wanted, reply))
            self._wake.notify()

    def end(self, ending: Ending, reply: Reply) -> None:
        """Record an end, however long that takes; ``reply`` gets :class:`Recorded`. Any thread."""
        with self._wake:
            self._ends.append(_End(ending, reply))
            self._wake.notify()

    def stop(self, timeout: float) -> bool:
        """Record what waits, grant nothing more, and end the thread; false if that takes over ``timeout`` seconds."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        finished = not self._thread.is_alive()
        if finished:
            self._link.close()
        return finished

    def forget(self) -> None:
        """In a forked child: let go of the connection without a word to the server."""
        self._link.discard_after_fork()

    def _run(self) -> None:
        pause = 0.0
        while True:
            with self._wake:
                while not (self._ends or self._claims or self._stopping):
                    self._wake.wait()
                if pause:
                    self._wake.wait(pause)
                elif len(self._ends) + len(self._claims) < _SMALL_BATCH and self._backlog() >= 2:
                    self._wake.wait(_PACE_SEC)
                if self._stopping and not self._ends:
                    claims, self._claims = list(self._claims), deque()
                    self._answer([(claim.reply, NotOurs()) for claim in claims])
                    return
                ends = [self._ends.popleft() for _ in range(min(len(self._ends), _MOST_IN_BATCH))]
                claims = [self._claims.popleft() for _ in range(min(len(self._claims), _MOST_IN_BATCH))]
            try:
                pause = self._process(ends, claims)
            except Exception as error:  # noqa: BLE001 - a thread that dies silently would hold every key for ever
                self._events("loop_error", error=repr(error))
                pause = self._put_back(ends, claims, repr(error))

    def _process(self, ends: list[_End], claims: list[_Claim]) -> float:
        """Commit one batch; how long to pause before the next."""
        try:
            answers = self._commit(ends, claims)
        except StoreUnavailable as error:
            return self._put_back(ends, claims, str(error))
        except StoreError as error:
            self._split(ends, claims, error)
            return 0.0
        self._answer(answers)
        return 0.0

    def _put_back(self, ends: list[_End], claims: list[_Claim], error: str) -> float:
        with self._wake:
            self._ends.extendleft(reversed(ends))
        self._answer([(claim.reply, Unavailable(error)) for claim in claims])
        return 0.2

    def _split(self, ends: list[_End], claims: list[_Claim], error: StoreError) -> None:
        """A batch failed for a reason of one of its requests: halve it, until that one fails alone."""
        if len(ends) + len(claims) == 1:
            self._events("request_failed", error=str(error))
            self._answer([(end.reply, Recorded(ours=False)) for end in ends])
            self._answer([(claim.reply, Unavailable(str(error))) for claim in claims])
            return
        middle_end, middle_claim = (len(ends) + 1) // 2, len(claims) // 2
        self._process(ends[:middle_end], claims[:middle_claim])
        self._process(ends[middle_end:], claims[middle_claim:])

    def _commit(self, ends: list[_End], claims: list[_Claim]) -> list[tuple[Reply, Answer]]:
        answers: list[tuple[Reply, Answer]] = []
        with self._link.transaction() as tx:
            if ends:
                recorded = self._store.claims.end(tx, [end.ending for end in ends])
                answers += [(end.reply, Recorded(end.ending.run in recorded)) for end in ends]
                owned = self._owned()
                if any(end.ending.partition not in owned for end in ends):
                    self._store.notify(tx, "ended")
            for incarnation in {claim.incarnation for claim in claims}:
                asked = [claim for claim in claims if claim.incarnation == incarnation]
                outcomes = self._store.claims.claim(tx, self._name, incarnation, [one.wanted for one in asked])
                answers += [(one.reply, outcomes.get(one.wanted.run, NotOurs())) for one in asked]
        return answers

    def _answer(self, answers: Sequence[tuple[Reply, Any]]) -> None:
        if answers:
            self._deliver(answers)
