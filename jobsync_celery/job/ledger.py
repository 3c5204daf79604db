"""What a Job has claimed: one winner for each task and day, and what becomes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from datetime import date

from jobsync_celery.core.model import Run
from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.job.seat import Seat
from jobsync_celery.job.task import Task
from jobsync_celery.runtime.claim import Claim, Ticket
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.lease import Pass
from jobsync_celery.store.guard import Guard
from jobsync_celery.store.outcomes import Ending, Granted, Wanted
from jobsync_celery.store.store import Store

_BATCH = 500
_AGAIN_SEC = 0.2


class Ledger:
    """The claims of one Job for one day. Any thread may call any method; they take turns.

    A task's claim is of its run on that day: once that is recorded as done, nobody claims it for the day again. What
    is claimed and never recorded is given back when the node leaves, or when it is declared dead. All this holds for as
    long as ended claims are kept.
    """

    def __init__(self, store: Store, seat: Seat, day: date, events: Events) -> None:
        self._store = store
        self._seat = seat
        self._day = day
        self._events = events
        tables = store.database.tables
        self._guard = Guard(tables.claim, tables.timeline, store.database)
        self._link = store.database.link(f"jobsync {seat.name} claims")
        self._turn = threading.RLock()
        self._in_hand: dict[str, Claim] = {}
        #: What is to be recorded as done, by key: its claim, and the thread that claimed it by adding it, and so may
        #: be at it still.
        self._added: dict[str, tuple[int | None, Claim]] = {}

    def claim(self, tasks: Iterable[Task]) -> list[Claim]:
        """Claim those of these tasks that are this node's, and that nobody has claimed; the claims that were won.

        Raises StoreUnavailable if the database does not answer, or has not for a whole lease, so that nothing may be
        claimed. What was won then is this node's, and is claimed again here.
        """
        wanted = list({task.key: task for task in tasks}.values())
        won: list[Claim] = []
        try:
            for start in range(0, len(wanted), _BATCH):
                with self._turn:
                    won += self._claim_batch(wanted[start : start + _BATCH])
        except BaseException:
            with self._turn:  # the caller never sees these: they have to be there for whoever claims them next
                self._let_go(won)
            raise
        return won

    def add(self, task: Task) -> Claim | None:
        """Put a task on the list of what is done, and claim it before if that was not done here.

        None if it cannot be claimed, or is on the list already.
        """
        with self._turn:
            claim, thread = self._in_hand.get(task.key), None
            if claim is None or not claim.held:  # another node may have it by now, and nobody may begin it here
                claim, thread = next(iter(self._claim_batch([task])), None), threading.get_ident()
            elif task.key in self._added:
                return None
            if claim is not None:
                self._added.pop(task.key, None)
                self._added[task.key] = (thread, claim)
            return claim

    def give_back(self, task: Task) -> bool:
        """Let others claim a task that was claimed here, and is not done; false if it was not."""
        with self._turn:
            claim = self._in_hand.get(task.key)
            if claim is None:
                return False
            self._store.claims.commit(self._link, self._seat.name, 0, [self._ending(claim, "lost")], [])
            del self._in_hand[task.key]
            self._added.pop(task.key, None)
            return True

    def write(self, *, finished: bool = False, failed: bool = False) -> int:
        """Record what was added as done; how many tasks that were.

        A task that was claimed by adding it may not be done yet: of such the last of each other thread is left out.

        Arguments:
            finished: what all threads have added is done.
            failed: nor may the last of this thread be done.
        """
        with self._turn:
            me = threading.get_ident()
            last = {thread: key for key, (thread, _) in self._added.items() if thread is not None}
            open_ = {} if finished else {thread: key for thread, key in last.items() if failed or thread != me}
            claims = [claim for key, (_, claim) in self._added.items() if key not in open_.values()]
            batches = [claims[start : start + _BATCH] for start in range(0, len(claims), _BATCH)]
            return sum(map(self._write_batch, batches))

    def write_at_last(self, *, failed: bool, patience: float) -> None:
        """Record what was added as done, and try again for ``patience`` seconds while the database does not let us.

        Raises StoreUnavailable if it does not; with ``failed`` that is logged only.
        """
        until = time.monotonic() + patience
        while True:
            try:
                self.write(finished=not failed, failed=failed)
                self._require_all(failed)
            except StoreUnavailable:
                if time.monotonic() < until:
                    threading.Event().wait(_AGAIN_SEC)
                    continue
                self._events("tasks_not_recorded", name=self._seat.name, count=len(self._added))
                if not failed:
                    raise
            return

    def _require_all(self, failed: bool) -> None:
        """What is locked, by a transaction under guard say, was left on the list."""
        if self._added and not failed:
            raise StoreUnavailable(f"{len(self._added)} claims are locked by somebody, and cannot be ended")

    def close(self) -> None:
        """Close the connection."""
        with self._turn:
            self._link.close()

    def _claim_batch(self, tasks: Sequence[Task]) -> list[Claim]:
        seat, tokens = self._seat, self._seat.tokens
        given = seat.lease.current
        if not seat.lease.trusted:
            raise StoreUnavailable(
                "the database has not answered for a whole lease: no task is this node's until it does"
            )
        wanted: dict[Run, Wanted] = {}
        for task in tasks:
            known = self._in_hand.get(task.key)
            partition = None if known is not None and known.held else seat.partition_of(task.key)
            if partition is not None:
                run = Run(task.key, self._day.isoformat(), 0)
                home = tokens.partition_for(task.key)
                wanted[run] = Wanted(run, task.name, task.key, tokens.token(task.key), partition, home)
        if not wanted:
            return []
        timeline = seat.node.membership.timeline
        listed = list(wanted.values())
        committed = self._store.claims.commit(self._link, seat.name, given.incarnation, [], listed, timeline)
        if committed.unsure:
            # What was granted is granted again, to this node only, when it is asked for again.
            raise StoreUnavailable("the database fell silent while tasks were claimed: claim them again")
        claims = [
            self._made(wanted[run], outcome, given)
            for run, outcome in committed.outcomes.items()
            if isinstance(outcome, Granted)
        ]
        if claims and not seat.lease.permits(given):  # granted, but too late to begin
            self._give_back(claims, given.incarnation)
            return []
        self._in_hand.update((claim.key, claim) for claim in claims)
        return claims

    def _made(self, want: Wanted, granted: Granted, given: Pass) -> Claim:
        ticket = Ticket(
            key=want.key,
            token=want.token,
            partition=want.partition,
            node=self._seat.name,
            fence=granted.fence,
            attempt=granted.attempt,
            run=want.run,
            given=given,
            tenure=self._seat.tenures.of(want.partition),
        )
        return Claim(ticket, self._seat.lease, self._guard)

    def _give_back(self, claims: Sequence[Claim], incarnation: int) -> None:
        endings = [self._ending(claim, "lost") for claim in claims]
        self._store.claims.commit(self._link, self._seat.name, incarnation, endings, [])

    def _write_batch(self, claims: Sequence[Claim]) -> int:
        endings = [self._ending(claim, "done") for claim in claims]
        with self._link.transaction() as tx:
            recorded = self._store.audit.record(tx, self._day, self._seat.name, endings)
            missed = [ending for ending in endings if ending.run.task_id not in recorded]
            locked = {run.task_id for run in self._store.claims.missed(tx, missed)[1]}
        overtaken = [ending.run.task_id for ending in missed if ending.run.task_id not in locked]
        if overtaken:
            self._events("tasks_overtaken", name=self._seat.name, count=len(overtaken), first=overtaken[0])
        settled = [claim for claim in claims if claim.key not in locked]
        for claim in settled:
            self._added.pop(claim.key, None)
        self._let_go(settled)
        return len(recorded)

    def _let_go(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            if self._in_hand.get(claim.key) is claim:
                del self._in_hand[claim.key]

    def _ending(self, claim: Claim, state: str) -> Ending:
        return Ending(Run(claim.key, self._day.isoformat(), 0), claim.fence, state, claim.partition)
