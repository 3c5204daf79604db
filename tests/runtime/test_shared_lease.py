"""The lease in shared memory: who may start a job, seen from the worker and from its pool children."""

from __future__ import annotations

import os

import pytest
from stage import Clock

from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.lease import Lease, Pass


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(clock: Clock) -> Lease:
    return Lease(clock)


def test_a_fresh_lease_permits_nothing(lease: Lease) -> None:
    assert not lease.trusted and lease.deadline == 0.0
    assert not lease.permits(lease.current)


def test_a_job_may_start_until_the_deadline(lease: Lease, clock: Clock) -> None:
    lease.renew(7, clock.now + 5)
    given = lease.current
    assert given == Pass(7, 0) and lease.permits(given) and lease.trusted
    clock.pass_by(4.999)
    assert lease.permits(given)
    clock.pass_by(0.001)
    assert not lease.permits(given) and not lease.trusted
    lease.renew(7, clock.now + 5)
    assert lease.permits(given)  # the same incarnation, renewed after all


def test_a_closed_lease_permits_nothing_until_it_is_renewed(lease: Lease, clock: Clock) -> None:
    lease.renew(7, clock.now + 5)
    given = lease.current
    lease.close()
    assert not lease.permits(given) and lease.incarnation == 7
    lease.renew(7, clock.now + 5)
    assert lease.permits(given)


def test_a_job_of_an_older_incarnation_never_starts_again(lease: Lease, clock: Clock) -> None:
    lease.renew(7, clock.now + 5)
    given = lease.current
    lease.renew(8, clock.now + 5)
    assert not lease.permits(given) and lease.permits(lease.current)


def test_a_new_epoch_refuses_what_was_handed_out_before(lease: Lease, clock: Clock) -> None:
    lease.renew(7, clock.now + 5)
    given = lease.current
    lease.advance()
    assert not lease.permits(given) and lease.permits(lease.current)


def test_registering_anew_shows_the_new_incarnation_before_its_deadline(lease: Lease, clock: Clock) -> None:
    """A reader between two stores must never see the old incarnation, or no incarnation, with a deadline ahead."""
    lease.renew(7, clock.now + 5)
    given, seen = lease.current, []

    class Spy:
        def __init__(self, cells: memoryview) -> None:
            self.cells = cells

        def __getitem__(self, index: int) -> int:
            return int(self.cells[index])

        def __setitem__(self, index: int, value: int) -> None:
            self.cells[index] = value
            seen.append((lease.permits(given), lease.permits(Pass(8, 0))))

    lease._cells = Spy(lease._cells)  # type: ignore[assignment] # looks at every store
    lease.renew(8, clock.now + 6)
    assert seen == [(False, False), (False, False), (False, True)]


def test_a_forked_child_sees_what_its_parent_writes() -> None:
    lease = Lease()
    lease.renew(7, boot_clock() + 60)
    given = lease.current
    (told, telling), (waiting, go) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            before = lease.permits(given)
            os.write(telling, b"x")
            os.read(waiting, 1)
            status = 0 if before and not lease.permits(given) and lease.permits(Pass(8, 0)) else 2
        finally:
            os._exit(status)
    os.read(told, 1)
    lease.renew(8, boot_clock() + 60)
    os.write(go, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for fd in (told, telling, waiting, go):
        os.close(fd)
