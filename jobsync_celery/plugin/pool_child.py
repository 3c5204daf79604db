"""The last check before a task body, in the process that starts it.

A granted job may wait in a pipe while its node is stopped, evicted and registered anew, or gives the partition up. So
each job carries the pass and the tenure it was handed over under, and the tracer of every coordinated task is wrapped
to ask the shared lease and the table of tenures first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Task
from celery.exceptions import Reject

from jobsync_celery.plugin.coordinated import Coordination
from jobsync_celery.plugin.tenure_watch import TenureWatch
from jobsync_celery.plugin.terminator import Terminator
from jobsync_celery.runtime.claim import Claim, Ticket, running_under
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.lease import Lease, Pass
from jobsync_celery.runtime.tenures import Tenures
from jobsync_celery.store.guard import Guard

#: Where a request carries its ticket. Not among its headers: ``retry()`` would publish it again.
_TICKET = "jobsync_ticket"

Tracer = Callable[..., Any]


def attach(request: Any, ticket: Ticket) -> None:
    """Put the ticket into a Celery worker request, to travel to the pool."""
    request.request_dict["properties"] = {**(request.request_dict["properties"] or {}), _TICKET: tuple(ticket)}


class Starter:
    """Wraps tracers; made before the pool forks, so that children share its lease."""

    def __init__(self, lease: Lease, guard: Guard, tenures: Tenures, watch: TenureWatch) -> None:
        self._lease = lease
        self._tenures = tenures
        self._watch = watch
        self._guard = guard
        self._terminator = Terminator(lease)

    def wrap(self, tasks: Iterable[tuple[Task, Coordination]]) -> None:
        """Let the tracers of these tasks ask first; wrapping twice is the same as once."""
        for task, coordination in tasks:
            tracer = task.__trace__
            if tracer is not None and not hasattr(tracer, "__jobsync_wrapped__"):
                task.__trace__ = self._wrapped(tracer, coordination.on_lease_lost == "terminate")

    def _wrapped(self, tracer: Tracer, terminates: bool) -> Tracer:
        def trace(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
            packed = ((request or {}).get("properties") or {}).get(_TICKET)
            if packed is None:
                return tracer(uuid, args, kwargs, request)
            ticket = Ticket(*packed)
            given = Pass(*ticket.given)
            self._watch.look()  # before the checks: its receivers may take their time
            looked_at = boot_clock()
            if not (self._lease.permits(given) and self._tenures.stands(ticket.partition, ticket.tenure)):
                return _refusal()
            claim = Claim(ticket, self._lease, self._guard, looked_at)
            with self._terminator.watching(given.incarnation) if terminates else nullcontext():
                return running_under(claim, lambda: tracer(uuid, args, kwargs, request))

        trace.__jobsync_wrapped__ = True  # type: ignore[attr-defined]
        return trace


def _refusal() -> tuple[ExceptionInfo, bool, float, None]:
    """What a tracer returns for a body that raised ``Reject(requeue=True)``: the message goes back."""
    try:
        raise Reject("jobsync: the worker lost the lease or the partition before the task started", requeue=True)
    except Reject:
        return ExceptionInfo(internal=True), True, 0.0, None
