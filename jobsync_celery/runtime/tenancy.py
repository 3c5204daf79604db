"""Between a node's decisions and the broker: whoever listens is told of a partition before it is consumed here, and
before another node may have it.

A partition is consumed only when the receivers of ``partitions_assigned`` have returned, and reported as stopped, which
is what its release waits for, only when it is consumed no more and the receivers of ``partitions_revoked`` have
returned. When the lease ends there is nobody to wait for: they are called at once. All receivers are called in one
thread, in order; the node's loop, the event loop and evictions never wait for it. While nobody has ever listened there
is no such thread, and every order is passed on at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import Any

from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.listeners import Listeners
from jobsync_celery.runtime.ownership import Surface
from jobsync_celery.runtime.tenures import Tenures
from jobsync_celery.store.partitions import LockPartition

ASSIGNED, REVOKED = "partitions_assigned", "partitions_revoked"
#: A wait for the deadline is cut into pieces: a condition's clock stands still while the machine sleeps.
_LONGEST_WAIT_SEC = 1.0


class Tenancy:
    """A :class:`Surface` before another one. Any thread may call any method; none of them waits for a receiver.

    Arguments:
        inner: the surface that consumes; it reports to :meth:`ended` what it has stopped.
        stopped: called with partitions that may be released, as :meth:`Ownership.stopped`.
    """

    def __init__(
        self,
        inner: Surface,
        lease: Lease,
        tenures: Tenures,
        listeners: Listeners,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._inner = inner
        self._lease = lease
        self._tenures = tenures
        self._listeners = listeners
        self._clock = clock
        # Reentrant: a surface that is cut off from its broker reports a stop while it is told to.
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self._closed = False
        self._news: deque[Callable[[], None]] = deque()
        #: What is to be consumed here, as far as the lease allows.
        self._wanted: set[int] = set()
        #: What the inner surface was last told to consume.
        self._open: set[int] = set()
        #: What was stopped, and the inner surface has not reported yet.
        self._stopping: set[int] = set()
        #: What the receivers believe to be here: from before the assigned call until after the revoked call.
        self._told: set[int] = set()
        #: Of that, what is to be revoked now: partition -> whether it is lost already.
        self._due: dict[int, bool] = {}
        #: What a revoked call is under way for.
        self._revoking: frozenset[int] = frozenset()
        #: What is released when its revoked call has returned.
        self._leaving: set[int] = set()
        self._calling = False
        self.stopped: Callable[[frozenset[int]], None] = lambda _: None
        #: The partitions that this node has; they count only while its lease is trusted.
        self.held: frozenset[int] = frozenset()

    @property
    def busy(self) -> bool:
        """Whether a receiver is being called, or about to be."""
        with self._changed:
            return self._calling or bool(self._due)

    # -- as a surface -------------------------------------------------------------------------------------------

    def learn(self, pools: Mapping[int, LockPartition]) -> None:
        """These partitions carry locked keys."""
        self._inner.learn(pools)

    def start(self, partitions: frozenset[int]) -> None:
        """Have the receivers prepare for these partitions, then consume them."""
        with self._changed:
            if self._closed:
                return
            self._stopping -= partitions
            self._leaving -= partitions
            # Lost and gained again before the receivers heard of the loss: they must, for another may have had it.
            self._owe(partitions, lost=True)
            self._wanted |= partitions
            if self._threaded(ASSIGNED, REVOKED):
                self._changed.notify_all()
            else:
                self._consume(partitions)

    def stop(self, partitions: frozenset[int]) -> None:
        """Stop consuming these partitions, have the receivers clean up after them, then report it as stopped."""
        with self._changed:
            self._wanted -= partitions
            self._stopping |= partitions
            self._shut(partitions)
            if not self._lease.trusted:
                self._tenures.end(partitions)
                self._lose(self._told)  # all of it, also what is being handed over
            self._inner.stop(partitions)
            self._changed.notify_all()

    def recover(self) -> None:
        """A node died: get back what it had fetched of the partitions consumed here."""
        self._inner.recover()

    def recheck(self) -> None:
        """A heartbeat was answered: what waited for the lease, or for claims elsewhere, may go on."""
        with self._changed:
            self._changed.notify_all()
        self._inner.recheck()

    def reconsider(self, locked: Mapping[str, int]) -> None:
        """These keys are locked, and no others: take back what was granted where a key was."""
        self._inner.reconsider(locked)

    # -- what the others report ---------------------------------------------------------------------------------

    def ended(self, partitions: frozenset[int]) -> None:
        """The inner surface reports: these are consumed no more, and what had not started is given back."""
        with self._changed:
            over = partitions & self._stopping
            self._stopping -= over
            self._tenures.end(over)
            self._owe(over, lost=False)
            self._leaving |= over & self._told
            free = over - self._told
            self._changed.notify_all()
        if free:
            self.stopped(free)

    def disown(self, partitions: frozenset[int]) -> None:
        """The database says that these are not ours; the node will learn why."""
        with self._changed:
            self._wanted -= partitions
            self._shut(partitions)
            self._tenures.end(partitions)
            self._owe(partitions, lost=True)
            self._changed.notify_all()

    def hear(self, *signals: str) -> bool:
        """Whether somebody listens to one of these signals now."""
        return self._listeners.hear(*signals)

    def post(self, signal: str, **fields: Any) -> None:
        """Call the receivers of another signal, after what is to be called for partitions."""
        with self._changed:
            if not self._closed and self._listeners.hear(signal) and self._threaded(signal):
                self._news.append(partial(self._listeners.call, signal, fields))
                self._changed.notify_all()

    def close(self, timeout: float) -> bool:
        """Revoke whatever is left, and end the thread; false if the receivers took more than ``timeout`` seconds."""
        with self._changed:
            self._closed = True
            self._wanted.clear()
            self._news.clear()
            self._tenures.end(self._tenures.all())
            self._owe(frozenset(self._told), lost=not self._lease.trusted)
            self.held = frozenset()
            self._open.clear()
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._told, timeout)

    # -- under the lock -----------------------------------------------------------------------------------------

    def _threaded(self, *signals: str) -> bool:
        """Whether there is a thread that calls receivers; there is from the first receiver on."""
        if self._thread is None and self._listeners.hear(*signals):
            self._thread = threading.Thread(target=self._run, name="jobsync-listeners", daemon=True)
            self._thread.start()
        return self._thread is not None

    def _consume(self, partitions: frozenset[int]) -> None:
        if not partitions:
            return
        self.held |= partitions
        self._open |= partitions
        self._tenures.begin(partitions)
        self._inner.start(partitions)

    def _shut(self, partitions: frozenset[int]) -> None:
        self.held -= partitions
        self._open -= partitions

    def _owe(self, partitions: frozenset[int], *, lost: bool) -> None:
        """The receivers are to hear that these, as far as they know of them, are gone."""
        for number in (partitions & self._told) - self._revoking:
            self._due[number] = self._due.get(number, False) or lost

    def _watch_deadline(self) -> float:
        """If it has passed, take away what the receivers have; how long to wait otherwise, in seconds.

        The node's own thread may be waiting for the database all that while.
        """
        had = self._told - self._due.keys() - self._revoking
        if not had:
            return _LONGEST_WAIT_SEC
        deadline = self._lease.deadline
        left = deadline - self._clock()
        if left > 0 or self._lease.deadline != deadline:  # renewed between the two looks
            return min(max(left, 0.0), _LONGEST_WAIT_SEC)
        self._lose(had)
        return 0.0

    def _lose(self, had: Set[int]) -> None:
        """The lease is over, and with it all that the receivers have; what the node wants may come back."""
        had = frozenset(had)
        consumed = had & self._open
        self._shut(had)
        self._tenures.end(had)
        self._owe(had, lost=True)
        if consumed:
            self._inner.stop(consumed)

    # -- in the thread of the receivers -------------------------------------------------------------------------

    def _run(self) -> None:
        while (step := self._next()) is not None:
            step()
            with self._changed:
                self._calling = False
                self._changed.notify_all()

    def _next(self) -> Callable[[], None] | None:
        """Wait for something to call; None when closed."""
        with self._changed:
            while True:
                patience = self._watch_deadline()
                step = self._revocation() or self._assignment()
                if step is None and self._news:
                    step = self._news.popleft()
                if step is not None or (self._closed and not self._told):
                    self._calling = step is not None
                    return step
                self._changed.wait(patience)

    def _revocation(self) -> Callable[[], None] | None:
        if not self._due:
            return None
        trusted = self._lease.trusted
        # What is lost is urgent, and told apart from what is handed over in order.
        lost = frozenset(number for number, lost in self._due.items() if lost or not trusted)
        self._revoking = lost or frozenset(self._due)
        for number in self._revoking:
            del self._due[number]
        self._tenures.end(self._revoking)
        return partial(self._revoke, self._revoking, lost=bool(lost))

    def _assignment(self) -> Callable[[], None] | None:
        new = frozenset(self._wanted - self._told - self._open)
        if not new or not self._lease.trusted:
            return None
        self._told |= new
        self.held |= new
        return partial(self._assign, new)

    def _revoke(self, partitions: frozenset[int], *, lost: bool) -> None:
        self._listeners.call(REVOKED, {"partitions": partitions, "lost": lost})
        with self._changed:
            self._told -= partitions
            self._revoking = frozenset()
            free = partitions & self._leaving
            self._leaving -= free
        if free:
            self.stopped(free)

    def _assign(self, partitions: frozenset[int]) -> None:
        self._listeners.call(ASSIGNED, {"partitions": partitions})
        with self._changed:
            here = (partitions & self._wanted) - self._due.keys()
            if self._lease.trusted:
                self._consume(frozenset(here))
            else:
                self._shut(frozenset(here))
                self._owe(frozenset(here), lost=True)
