"""A pool child ends itself when the lease of its body has ended, and at no other time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from jobsync_celery.plugin.terminator import LEASE_LOST_STATUS, Terminator
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.lease import Lease

INCARNATION = 7
LONG = 60.0


def in_child(body: Callable[[], None]) -> int:
    """Fork, run ``body`` there, and return how the child ended: an exit status, or minus a signal's number."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def lease() -> Lease:
    lease = Lease()
    lease.renew(INCARNATION, boot_clock() + LONG)
    return lease


def test_a_body_that_outlives_the_deadline_is_ended_at_it(lease: Lease) -> None:
    deadline = boot_clock() + 0.2
    lease.renew(INCARNATION, deadline)
    terminator = Terminator(lease)

    def body() -> None:
        with terminator.watching(INCARNATION):
            time.sleep(LONG)

    assert in_child(body) == LEASE_LOST_STATUS
    assert 0 <= boot_clock() - deadline < LONG / 2


def test_a_renewed_lease_ends_nothing(lease: Lease) -> None:
    terminator = Terminator(lease)
    lease.renew(INCARNATION, boot_clock() + 0.1)
    reader, writer = os.pipe()

    def body() -> None:
        with terminator.watching(INCARNATION):
            os.read(reader, 1)

    pid = os.fork()
    if pid == 0:
        body()
        os._exit(0)
    for _ in range(10):  # the parent goes on renewing
        lease.renew(INCARNATION, boot_clock() + 0.1)
        time.sleep(0.03)
    lease.renew(INCARNATION, boot_clock() + LONG)
    os.write(writer, b".")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_body_of_an_older_incarnation_is_ended_though_a_newer_one_is_trusted(lease: Lease) -> None:
    terminator = Terminator(lease)

    def body() -> None:
        with terminator.watching(INCARNATION):
            lease.renew(INCARNATION + 1, boot_clock() + LONG)
            time.sleep(LONG)

    assert in_child(body) == LEASE_LOST_STATUS


def test_nothing_is_ended_between_bodies(lease: Lease) -> None:
    terminator = Terminator(lease)

    def body() -> None:
        with terminator.watching(INCARNATION):
            pass
        lease.close()
        time.sleep(0.2)

    assert in_child(body) == 0


def test_a_child_that_forks_again_watches_for_itself(lease: Lease) -> None:
    terminator = Terminator(lease)

    def body() -> None:
        with terminator.watching(INCARNATION):
            pass

        def grandchild() -> None:
            with terminator.watching(INCARNATION):
                lease.close()
                time.sleep(LONG)

        os._exit(0 if in_child(grandchild) == LEASE_LOST_STATUS else 1)

    assert in_child(body) == 0


def test_a_body_in_c_code_that_lets_others_run_is_ended_as_well(lease: Lease) -> None:
    terminator = Terminator(lease)
    lease.renew(INCARNATION, boot_clock() + 0.1)
    reader, _ = os.pipe()

    def body() -> None:
        with terminator.watching(INCARNATION):
            os.read(reader, 1)

    assert in_child(body) == LEASE_LOST_STATUS
