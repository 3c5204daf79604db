"""The claim under which a task body runs, as the body sees it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from jobsync_celery.core.model import Run
from jobsync_celery.errors import LeaseLost
from jobsync_celery.runtime.lease import Lease, Pass
from jobsync_celery.store.guard import Guard


class Ticket(NamedTuple):
    """What a job carries into the pool: the claim, and the pass it may start under. Plain values only."""

    key: str
    token: int
    partition: int
    node: str
    fence: int
    attempt: int
    run: tuple[str, str, int]
    given: tuple[int, int]
    tenure: int = 0


class Claim:
    """The right to run one task of one key, with a fencing number that grows from claim to claim of the key."""

    def __init__(self, ticket: Ticket, lease: Lease, guard: Guard, looked_at: float = 0.0) -> None:
        self.key = ticket.key
        self.token = ticket.token
        self.partition = ticket.partition
        self.node = ticket.node
        self.fence = ticket.fence
        self.attempt = ticket.attempt
        #: Which of its times with the partition this worker is in: good as part of a cache's key, see Tenures.
        self.tenure = ticket.tenure
        self._run = Run(*ticket.run)
        self._pass = Pass(*ticket.given)
        self._lease = lease
        self._guard = guard
        # When its process last looked at the lease before the body, by the boot clock: a start is judged by that.
        self._looked_at = looked_at

    def __repr__(self) -> str:
        return f"<Claim key={self.key!r} fence={self.fence} attempt={self.attempt} node={self.node!r}>"

    @property
    def held(self) -> bool:
        """Whether the node still trusts its lease; asks no server."""
        return self._lease.holds(self._pass.incarnation)

    def check(self) -> None:
        """Raise :class:`LeaseLost` if the node no longer trusts its lease; asks no server."""
        if not self.held:
            raise LeaseLost(f"the lease under which key {self.key!r} runs has ended: another node may run it")

    def guard(self, session: Any) -> None:
        """Let the user's transaction commit only while this claim is ours.

        The claim's row stays locked until the transaction ends, so call it just before the commit, and not inside a
        savepoint: rolled back, that would unlock the row.

        Arguments:
            session: a SQLAlchemy Session or Connection, a Django connection, or a connection of psycopg2 or psycopg 3;
                to the coordination database, with a transaction open. At any isolation level.

        Raises:
            Fenced: the claim was lost to an eviction; let the exception roll the transaction back.
            StoreError: this can guard nothing: another database, no transaction, ... Nothing was changed.
        """
        self._guard.hold(session, self._run, self.fence)

    def complete(self, session: Any) -> None:
        """Like :meth:`guard`, and record the run as done in the same transaction: effects that happen once.

        After that commit the run is never run again, even if its worker dies before it acknowledges.
        """
        self._guard.complete(session, self._run, self.fence)


class NullClaim:
    """The claim of what runs without coordination: eager, called directly, switched off, or by a Job that is alone."""

    token: int | None = None
    partition: int | None = None
    node: str | None = None
    fence = 0
    attempt = 1
    tenure = 0
    held = True

    def __init__(self, key: str | None = None) -> None:
        self.key = key

    def check(self) -> None:
        """Nothing to check."""

    def guard(self, session: Any) -> None:
        """Nothing to guard."""

    def complete(self, session: Any) -> None:
        """Nothing to record."""


_current: ContextVar[Claim | NullClaim] = ContextVar("jobsync_claim", default=NullClaim())  # noqa: B039 - immutable


def current_claim() -> Claim | NullClaim:
    """The claim of the task that runs here; a :class:`NullClaim` outside of coordination."""
    return _current.get()


def running_under(claim: Claim, body: Callable[[], Any]) -> Any:
    """Call ``body`` with ``claim`` as the current one."""
    token = _current.set(claim)
    try:
        return body()
    finally:
        _current.reset(token)
