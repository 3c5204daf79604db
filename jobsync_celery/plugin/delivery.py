"""One coordinated message in a worker's hands, and the two facts that end it.

A run has ended only when it is *settled* (Celery called acknowledge or reject) **and** *out of the pool*: Celery
acknowledges a revoked or timed-out task while its body may still run. The real acknowledgement is kept back until
the end is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Ignore, Reject, Retry, TimeLimitExceeded, WorkerLostError
from kombu.exceptions import OperationalError

from jobsync_celery.core.model import Run
from jobsync_celery.plugin.router import ORIGIN
from jobsync_celery.plugin.terminator import LEASE_LOST_STATUS
from jobsync_celery.runtime.claim import Ticket
from jobsync_celery.store.outcomes import Granted, Wanted


class Stage(Enum):
    """How far a delivery has come."""

    WAITING = "behind another run of its key"
    CLAIMING = "its claim is being asked for"
    PARKED = "its key runs elsewhere, or the database does not answer"
    READY = "granted; waiting for a free pool slot"
    STARTED = "handed to the pool"
    ENDING = "its end is being recorded"
    GONE = "no longer ours to settle"


#: Not handed to the pool yet, so it can be given back.
UNSTARTED = frozenset({Stage.WAITING, Stage.CLAIMING, Stage.PARKED, Stage.READY})


class Delivery:
    """A request from its arrival at the gate to its settlement; belongs to the event loop's thread."""

    __slots__ = (
        "_after_death",
        "_changed",
        "_unsent_retry",
        "acknowledges",
        "beginning",
        "begun",
        "connection",
        "counted",
        "crashed",
        "doubtful",
        "duplicates",
        "finished",
        "granted",
        "home",
        "incarnation",
        "key",
        "outcome",
        "partition",
        "pool",
        "request",
        "returned",
        "returning",
        "run",
        "settlement",
        "stage",
        "token",
    )

    def __init__(
        self,
        request: Any,
        key: str,
        token: int,
        partition: int,
        connection: int,
        *,
        home: int | None = None,
        pool: str = "",
    ) -> None:
        headers = request.request_dict
        self.request = request
        self.run = Run(request.id, headers.get(ORIGIN) or "", headers.get("retries") or 0)
        self.key = key
        self.token = token
        self.partition = partition
        #: Where it belongs while its key is not locked: its task may have a lock pool of its own.
        self.home, self.pool = partition if home is None else home, pool
        #: The broker connection it came on: on another one it cannot be settled any more.
        self.connection = connection
        self.stage = Stage.WAITING
        self.incarnation = 0
        self.granted: Granted | None = None
        #: To be given back as soon as the answer to its claim is here.
        self.returning = False
        #: The database gave no answer to its last claim, which may stand all the same.
        self.doubtful = False
        #: Its claim says that it begins, or is about to say so: see :meth:`Claims.begin`.
        self.begun = self.beginning = False
        self.outcome: str | None = None
        #: Its pool child died under it, and nobody had asked for that.
        self.crashed = False
        self.settlement: Callable[[], None] | None = None
        #: Whether the settlement is Celery's plain acknowledgement.
        self.acknowledges = False
        self.finished = False
        #: Its message went back before its end was recorded.
        self.returned = False
        #: It asked for a retry that the broker did not take.
        self._unsent_retry = False
        #: Further copies of the same run, settled after it.
        self.duplicates: list[Delivery] = []
        #: Whether it raised the prefetch count by one, to be given back once.
        self.counted = False
        self._changed: Callable[[Delivery], None] = _nothing
        self._after_death: Callable[[Delivery], None] = _nothing

    @property
    def wanted(self) -> Wanted:
        """What the database has to know to grant its claim."""
        return Wanted(self.run, self.request.task.name, self.key, self.token, self.partition, self.home)

    @property
    def messages(self) -> list[Any]:
        """Its message, and those of its copies."""
        return [copy.request.message for copy in (self, *self.duplicates)]

    def __repr__(self) -> str:
        return f"<Delivery {self.run} key={self.key!r} {self.stage.name}>"

    def ticket(self, node: str, epoch: int, tenure: int) -> Ticket:
        """What the process that starts it gets of its claim."""
        assert self.granted is not None
        return Ticket(
            key=self.key,
            token=self.token,
            partition=self.partition,
            node=node,
            fence=self.granted.fence,
            attempt=self.granted.attempt,
            run=(self.run.task_id, self.run.origin, self.run.retries),
            given=(self.incarnation, epoch),
            tenure=tenure,
        )

    @property
    def unbegun(self) -> bool:
        """Whether it was handed to the pool, and its body has not begun yet."""
        return self.stage is Stage.STARTED and not self.finished and self.request.time_start is None

    def arm(self, changed: Callable[[Delivery], None], after_death: Callable[[Delivery], None]) -> None:
        """Keep Celery's settlement back, and learn when the pool is done with the request.

        Arguments:
            changed: called, in whatever thread Celery uses, when one of the two facts has become true.
            after_death: called instead when the pool announces the end before it kills the child; it has to call
                :meth:`leave` once the child is gone.
        """
        request = self.request
        self._changed = changed
        self._after_death = after_death
        request._on_ack = partial(self._on_ack, request._on_ack)
        request._on_reject = partial(self._on_reject, request._on_reject)
        request.on_success = partial(self._on_success, request.on_success)
        request.on_failure = partial(self._on_failure, request.on_failure)
        request.cancel = partial(self._on_cancel, request.cancel)

    def _on_ack(self, acknowledge: Callable[..., None], logger: Any, errors: Any) -> None:
        self.acknowledges = self.settlement is None
        self._settle(partial(acknowledge, logger, errors), self.outcome or "failed")
        self._changed(self)

    def _on_reject(self, reject: Callable[..., None], logger: Any, errors: Any, requeue: bool) -> None:
        # Requeued means: to be run again, whatever exception led here. Celery rejects for good what it could not
        # publish again for a retry, as while the broker is away: that would be a loss.
        again = requeue or self._unsent_retry
        self._settle(partial(reject, logger, errors, again), "lost" if again else "failed")
        self._changed(self)

    def _on_success(self, succeeded: Callable[..., None], result: Any, **kwargs: Any) -> None:
        self.outcome = None if result[0] else "done"
        try:
            succeeded(result, **kwargs)
        finally:  # Celery raises MemoryError and SystemExit results out of these callbacks
            self.leave()

    def _on_failure(self, failed: Callable[..., None], info: Any, *args: Any, **kwargs: Any) -> None:
        error = _cause(info)
        self.outcome = _outcome(error)
        self._unsent_retry = isinstance(error, Reject) and isinstance(error.reason, OperationalError)
        self.crashed = _is_crash(error) and not (self.request._already_cancelled or self.request._already_revoked)
        try:
            failed(info, *args, **kwargs)
        finally:
            if isinstance(error, TimeLimitExceeded):
                self._after_death(self)
            else:
                self.leave()

    def _on_cancel(self, cancel: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        # Celery notes this last, after telling the result backend; if that is away too, the killed task would be
        # taken for a revoked one and acknowledged instead of run again.
        self.request._already_cancelled = True
        cancel(*args, **kwargs)

    def disarm(self) -> None:
        """Over: let go of the request, which holds us too. Reference cycles would leave each task to the collector."""
        overrides = vars(self.request)
        for name in ("on_success", "on_failure", "cancel"):
            overrides.pop(name, None)
        self.request._on_ack = self.request._on_reject = _settled
        self.settlement = None
        self._changed = self._after_death = _nothing

    def leave(self) -> None:
        """The request is out of the pool; later calls change nothing."""
        if not self.finished:
            self.finished = True
            self._changed(self)

    def withdraw(self, settlement: Callable[[], None], outcome: str) -> None:
        """Settle a request that never reached the pool."""
        self._settle(settlement, outcome)
        self.finished = True

    def _settle(self, settlement: Callable[[], None], outcome: str) -> None:
        if self.settlement is None:
            self.settlement, self.outcome = settlement, outcome


def _settled(*args: Any) -> None:
    """The message of a request that is over was settled."""


def _nothing(delivery: Delivery) -> None:
    """Before the delivery is armed nobody has to be told."""


def _cause(info: Any) -> BaseException | None:
    error = getattr(info, "exception", None)
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def _is_crash(error: BaseException | None) -> bool:
    return isinstance(error, WorkerLostError) and f"exitcode {LEASE_LOST_STATUS} " not in f"{error} "


def _outcome(error: BaseException | None) -> str:
    if isinstance(error, Retry):
        return "retried"
    # Ignore is also how replace() ends: the replacement is published, this run is over.
    return "done" if isinstance(error, Ignore) else "failed"
