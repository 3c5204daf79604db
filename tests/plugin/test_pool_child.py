"""The process that starts a body looks at the lease first, and the claim knows when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobsync_celery import current_claim
from jobsync_celery.plugin.coordinated import Coordination
from jobsync_celery.plugin.pool_child import Starter, attach
from jobsync_celery.plugin.tenure_watch import TenureWatch
from jobsync_celery.runtime.claim import Ticket
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.listeners import Listeners, Nobody
from jobsync_celery.runtime.tenures import Tenures

INCARNATION = 3


@pytest.fixture
def lease() -> Lease:
    lease = Lease()
    lease.renew(INCARNATION, boot_clock() + 60)
    return lease


def started(lease: Lease, given: tuple[int, int]) -> tuple[list[Any], Any]:
    """The claims of the bodies that a job with this pass starts, and what its tracer returns."""
    claims: list[Any] = []
    task: Any = SimpleNamespace(__trace__=lambda *_: claims.append(current_claim()))
    tenures = Tenures(8)
    tenures.begin([1])
    starter = Starter(lease, None, tenures, TenureWatch(tenures, Listeners(Nobody(), Events())))  # type: ignore[arg-type]
    starter.wrap([(task, Coordination("t", 0, lambda *_: "k"))])
    request: Any = SimpleNamespace(request_dict={"properties": None})
    attach(request, Ticket("k", 5, 1, "worker-01", 41, 2, ("id-1", "o1", 0), given, tenures.of(1)))
    return claims, task.__trace__("id-1", (), {}, request.request_dict)


def test_the_claim_knows_when_its_process_looked(lease: Lease) -> None:
    before = boot_clock()
    (claim,), _ = started(lease, lease.current)
    assert before <= claim._looked_at <= boot_clock()


@pytest.mark.parametrize("given", [(INCARNATION - 1, 0), (INCARNATION, 1)], ids=["incarnation", "epoch"])
def test_a_job_of_another_incarnation_or_epoch_is_refused(lease: Lease, given: tuple[int, int]) -> None:
    claims, (_, rejected, *_) = started(lease, given)
    assert (claims, rejected) == ([], True)
