"""Group commit: claims and their ends, of all keys of a node, in as few transactions as possible.

One thread, one database connection. Whatever waits when a transaction begins goes into it, ends before claims, so
that a key's next claim can travel with its predecessor's end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobsync_celery.core.model import Run
from jobsync_celery.errors import StoreError, StoreUnavailable
from jobsync_celery.runtime.events import Events
from jobsync_celery.store.database import Link
from jobsync_celery.store.outcomes import Ending, NotOurs, Outcome, Wanted
from jobsync_celery.store.store import Store

_MOST_IN_BATCH = 256
#: While the pool has work enough, so many granted runs for each of its slots, a batch waits to be as large as this,
#: or as old: a commit costs the same for one run as for many.
_BUSY_POOL = 12
_FULL_BATCH = 128
_OLDEST_SEC = 0.025
#: An end that waits for a lock on its claim is tried again with every batch, at least so often.
_AGAIN_SEC = 0.2


@dataclass(frozen=True)
class Unavailable:
    """The database did not answer: nobody knows whether the claim stands. Ask again later."""

    error: str


@dataclass(frozen=True)
class Refused(Unavailable):
    """The database cannot take these values, now or later: the request can never be granted."""


@dataclass(frozen=True)
class Recorded:
    """The answer to an end; false if another node took the run over meanwhile."""

    ours: bool


Answer = Outcome | Unavailable | Recorded
Reply = Callable[[Answer], None]


class _Claim(NamedTuple):
    incarnation: int
    wanted: Wanted
    reply: Reply


class _End(NamedTuple):
    ending: Ending
    reply: Reply


class _Beginning(NamedTuple):
    run: Run
    fence: int
    reply: Reply


class Claimer:
    """The claims of one node, in batches.

    Arguments:
        name: the node's name.
        deliver: called in the claimer's thread with the replies of a batch; it must hand them to the right thread.
        backlog: how many granted runs wait for the pool, per pool slot: with enough of them small batches are paced.
        owned: the partitions this node owns; an end elsewhere is announced, since somebody may wait for its key.
        timeline: the database's timeline as of the last heartbeat: nothing is claimed on another one.
        max_lost_runs: after so many lost runs a run is recorded as failed.
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
        timeline: Callable[[], int | None] = lambda: None,
        max_lost_runs: int = 3,
    ) -> None:
        self._store = store
        self._name = name
        self._events = events
        self._deliver = deliver
        self._backlog = backlog
        self._owned = owned
        self._timeline = timeline
        self._max_lost_runs = max_lost_runs
        self._link: Link = store.database.link(f"jobsync {name} claims")
        self._ends: deque[_End] = deque()
        self._delayed: list[_End] = []
        self._claims: deque[_Claim] = deque()
        self._beginnings: deque[_Beginning] = deque()
        self._wake = threading.Condition()
        self._asleep = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="jobsync-claimer", daemon=True)

    def start(self) -> None:
        """Start the thread; only after the pool has forked."""
        self._thread.start()

    def claim(self, incarnation: int, wanted: Wanted, reply: Reply) -> None:
        """Ask for a claim; ``reply`` gets Granted, Known, Busy, NotOurs or Unavailable. Any thread."""
        self._claims.append(_Claim(incarnation, wanted, reply))
        if self._asleep:
            self._nudge()

    def end(self, ending: Ending, reply: Reply) -> None:
        """Record an end, however long that takes; ``reply`` gets :class:`Recorded`. Any thread."""
        self._ends.append(_End(ending, reply))
        if self._asleep:
            self._nudge()

    def begin(self, run: Run, fence: int, reply: Reply) -> None:
        """Record that a run begins, before it does; ``reply`` gets :class:`Recorded` or Unavailable. Any thread."""
        self._beginnings.append(_Beginning(run, fence, reply))
        self._nudge()

    def flush(self) -> None:
        """Commit what waits, unless the pool has work enough meanwhile. Called at each turn of the event loop."""
        waiting = len(self._claims) + len(self._ends)
        if waiting and (waiting >= _FULL_BATCH or self._backlog() < _BUSY_POOL):
            self._nudge()

    def _nudge(self) -> None:
        with self._wake:
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

    def _run(self) -> None:
        pause = 0.0
        while (batch := self._next_batch(pause)) is not None:
            ends, claims = batch
            try:
                self._record_beginnings()
                pause = self._process(ends, claims) if ends or claims else 0.0
            except Exception as error:  # noqa: BLE001 - a thread that dies silently would hold every key for ever
                self._events("loop_error", error=repr(error))
                pause = self._put_back(ends, claims, repr(error))

    def _next_batch(self, pause: float) -> tuple[list[_End], list[_Claim]] | None:
        """Wait for work; None when stopping and all is recorded."""
        with self._wake:
            self._await_work(pause)
            claims = [self._claims.popleft() for _ in range(min(len(self._claims), _MOST_IN_BATCH))]
            if self._stopping:
                self._answer([(claim.reply, NotOurs()) for claim in claims])
                claims = []
                if not (self._ends or self._claims or self._delayed):
                    return None
            delayed, self._delayed = self._delayed, []
            return delayed + [self._ends.popleft() for _ in range(min(len(self._ends), _MOST_IN_BATCH))], claims

    def _await_work(self, pause: float) -> None:
        """Sleep until there is a batch to commit; under the lock."""
        if pause:  # the database is away: a wake-up does not bring it back
            end = time.monotonic() + pause
            while (remaining := end - time.monotonic()) > 0 and not self._stopping:
                self._wake.wait(remaining)
            return
        self._asleep = True  # before looking: whoever adds after the look has to wake us
        try:
            while not (self._ends or self._claims or self._beginnings or self._stopping):
                if not self._wake.wait(_AGAIN_SEC if self._delayed else None) and self._delayed:
                    return
        finally:
            self._asleep = False
        if self._stopping:
            if self._delayed and not self._ends:
                self._wake.wait(_AGAIN_SEC)
        elif (
            len(self._ends) + len(self._claims) < _FULL_BATCH and not self._beginnings and self._backlog() >= _BUSY_POOL
        ):
            self._wake.wait(_OLDEST_SEC)

    def _record_beginnings(self) -> None:
        """One statement each: they are as rare as lost runs, and a pool slot waits for each."""
        while self._beginnings:
            one = self._beginnings.popleft()
            answer: Answer
            try:
                answer = Recorded(self._store.claims.begin(self._link, one.run, one.fence))
            except StoreError as error:
                answer = Unavailable(str(error))
            self._answer([(one.reply, answer)])

    def _process(self, ends: list[_End], claims: list[_Claim]) -> float:
        """Commit one batch; how long to pause before the next."""
        try:
            answers, delayed = self._commit(ends, claims)
        except StoreUnavailable as error:
            return self._put_back(ends, claims, str(error))
        except (StoreError, ValueError) as error:  # the driver itself refuses a NUL or a lone surrogate
            self._split(ends, claims, error)
            return 0.0
        self._delayed += delayed
        self._answer(answers)
        return 0.0

    def _put_back(self, ends: list[_End], claims: list[_Claim], error: str) -> float:
        with self._wake:
            self._ends.extendleft(reversed(ends))
        self._answer([(claim.reply, Unavailable(error)) for claim in claims])
        return 0.2

    def _split(self, ends: list[_End], claims: list[_Claim], error: Exception) -> None:
        """A batch failed for a reason of one of its requests: halve it, until that one fails alone."""
        if len(ends) + len(claims) == 1:
            self._events("request_failed", error=str(error))
            if _is_bad_data(error):
                self._answer([(end.reply, Recorded(ours=False)) for end in ends])
                self._answer([(claim.reply, Refused(str(error))) for claim in claims])
            else:  # for no fault of its own: it is tried again
                self._delayed += ends
                self._answer([(claim.reply, Unavailable(str(error))) for claim in claims])
            return
        middle_end, middle_claim = (len(ends) + 1) // 2, len(claims) // 2
        self._process(ends[:middle_end], claims[:middle_claim])
        self._process(ends[middle_end:], claims[middle_claim:])

    def _commit(self, ends: list[_End], claims: list[_Claim]) -> tuple[list[tuple[Reply, Answer]], list[_End]]:
        """Answers, and the ends that wait for a lock on their claim."""
        answers: list[tuple[Reply, Answer]] = []
        delayed: list[_End] = []
        # A run asked for twice, across a lost connection, is granted to the later asker: one fence, one holder.
        latest = {claim.wanted.run: claim for claim in claims}
        answers += [(one.reply, Unavailable("asked again")) for one in claims if latest[one.wanted.run] is not one]
        for incarnation in sorted({claim.incarnation for claim in latest.values()}) or [0]:
            asked = [claim for claim in latest.values() if claim.incarnation == incarnation]
            committed = self._store.claims.commit(
                self._link,
                self._name,
                incarnation,
                [end.ending for end in ends],
                [one.wanted for one in asked],
                self._timeline(),
                self._max_lost_runs,
            )
            for end in ends:
                if end.ending.run in committed.delayed:
                    delayed.append(end)
                else:
                    answers.append((end.reply, Recorded(end.ending.run in committed.recorded)))
            open_: Answer = Unavailable("the database fell silent") if committed.unsure else NotOurs()
            answers += [(one.reply, committed.outcomes.get(one.wanted.run, open_)) for one in asked]
            self._announce(ends, committed.awaited)
            ends = []
        return answers, delayed

    def _announce(self, ends: list[_End], awaited: bool) -> None:
        """Somebody waits for one of these ends; or it is of a partition whose new owner may hold the key back."""
        owned = self._owned()
        if awaited or any(end.ending.partition not in owned for end in ends):
            try:
                with self._link.transaction() as tx:
                    self._store.notify(tx, "ended")
            except StoreError:
                pass  # only a wake-up: whoever waits looks again at its next heartbeat

    def _answer(self, answers: Sequence[tuple[Reply, Any]]) -> None:
        if answers:
            self._deliver(answers)


def _is_bad_data(error: Exception) -> bool:
    """Whether the driver (a ValueError) or the server (SQLSTATE class 22) cannot take these values, now or later."""
    return not isinstance(error, StoreError) or (getattr(error, "sqlstate", None) or "").startswith("22")
