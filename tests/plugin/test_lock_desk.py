"""Task locks as a user sets them: checked before anything is changed, and a provider's without a gap."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from celery import Celery

from jobsync_celery import CoordinationConfig, JobSync
from jobsync_celery.errors import JobsyncError, LockInvalid

Provider = Callable[[JobSync], object]


def site(database_url: str, provider: Provider | None = None) -> JobSync:
    config = CoordinationConfig(url=database_url, partitions=4, node_name="script")
    return JobSync(Celery("desk", broker="memory://"), config, lock_provider=provider, clear_existing_locks=True)


def keys(jobsync: JobSync) -> set[str]:
    return {lock.key for lock in jobsync.list_locks()}


@pytest.mark.parametrize("days", [0, -1, math.nan, math.inf, 3_000_000, True, "1"])
def test_a_lock_that_would_never_expire_though_it_should_is_refused(database_url: str, days: float) -> None:
    jobsync = site(database_url)
    with pytest.raises(LockInvalid, match="at most 36525 days"):
        jobsync.register_lock("key", "gpu-%", expires_in_days=days)
    assert not keys(jobsync)


def test_what_the_provider_knows_no_more_is_unlocked_behind_it_and_all_else_is_locked_throughout(
    database_url: str,
) -> None:
    meanwhile: list[set[str]] = []

    def provide(jobsync: JobSync) -> None:
        jobsync.register_locks_bulk([("stays", "eu-%", None), ("new", "eu-%", None)])
        meanwhile.append(keys(jobsync))

    jobsync = site(database_url, provide)
    jobsync.register_locks_bulk([("stays", "eu-%", None), ("gone", "eu-%", None)])
    jobsync.provide_locks()
    assert meanwhile == [{"stays", "gone", "new"}]
    assert keys(jobsync) == {"stays", "new"}


def test_as_long_as_the_provider_fails_nothing_is_unlocked(database_url: str) -> None:
    def fail(jobsync: JobSync) -> None:
        raise ConnectionError("the list of regions cannot be read")

    jobsync = site(database_url, fail)
    jobsync.register_lock("key", "eu-%")
    with pytest.raises(JobsyncError, match="the list of regions cannot be read"):
        jobsync.provide_locks()
    assert keys(jobsync) == {"key"}


def test_without_a_provider_the_locks_of_the_last_start_are_cleared(database_url: str) -> None:
    jobsync = site(database_url)
    jobsync.register_lock("key", "eu-%")
    jobsync.provide_locks()
    assert not keys(jobsync)
