"""One winner for each task and day, and what becomes of what it claimed."""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection

from jobsync_celery import Claim, CoordinationConfig, Job, Task
from jobsync_celery.errors import Fenced, JobsyncError, KeyInvalid, StoreUnavailable
from jobsync_celery.runtime.assembly import store_of
from jobsync_celery.runtime.eviction import evict

IDS = [f"task-{number}" for number in range(60)]
DAY = datetime.date(2030, 1, 2)


@contextmanager
def transaction(config: CoordinationConfig) -> Iterator[Connection]:
    engine = create_engine(config.database_url())
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def states(config: CoordinationConfig) -> dict[str, str]:
    with transaction(config) as tx:
        return {row.task_id: row.state for row in tx.execute(text("SELECT task_id, state FROM sync_claim"))}


def expel(config: CoordinationConfig, name: str) -> None:
    """As if the node had been silent for its whole lease."""
    store = store_of(config)
    with store.database.transaction() as tx:
        store.leaders.lock(tx)
        [row] = [node for node in store.nodes.everyone(tx) if node.name == name]
        assert evict(tx, store, name, row.incarnation, None, None)


def eventually(seconds: float = 20.0) -> Iterator[None]:
    """Again and again, for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield
        time.sleep(0.02)


def added(job: Job, task: str) -> Claim | None:
    """A task added, if its node has a lease and its share again."""
    try:
        claim = job.add_task(task)
    except StoreUnavailable:
        return None
    assert claim is None or isinstance(claim, Claim)
    return claim


def done(job: Job) -> list[tuple[str, str]]:
    return sorted((row["node"], row["task_id"]) for row in job.get_audit())


def test_of_all_who_claim_a_task_one_wins(config: CoordinationConfig) -> None:
    with Job("one", config, date=DAY) as one, Job("two", config, date=DAY) as two, ThreadPoolExecutor(6) as pool:
        tries = [pool.submit(job.set_claim, IDS) for job in (one, two, one, two)]
        won = [claim for future in tries for claim in future.result(30)]
        assert sorted(claim.key or "" for claim in won) == sorted(IDS)
        assert {claim.node for claim in won} == {"one", "two"}
        assert one.set_claim(IDS) == [] and two.set_claim(Task(IDS[0])) is None


def test_what_is_done_for_a_day_is_claimed_for_another_day_only(config: CoordinationConfig) -> None:
    with Job("one", config, date=DAY) as job:
        first = job.add_task("a")
        assert isinstance(first, Claim) and job.add_task("a") is None and job.set_claim("a") is None
        assert job.write_audit() == 1 and job.write_audit() == 0
        assert job.add_task("a") is None
        assert done(job) == [("one", "a")] and job.get_audit(DAY + datetime.timedelta(1)) == []
    with Job("two", config, date=DAY) as job:
        assert job.set_claim("a") is None and done(job) == [("one", "a")]
    with Job("two", config, date=DAY + datetime.timedelta(1)) as job:
        again = job.add_task("a")
        assert isinstance(again, Claim) and again.fence > first.fence
    with Job("two", config, date=DAY + datetime.timedelta(1)) as job:
        assert done(job) == [("two", "a")]


def test_a_task_that_was_claimed_first_and_added_when_done_has_one_claim(config: CoordinationConfig) -> None:
    with Job("one", config) as job:
        claim = job.set_claim(Task("a", "settle"))
        assert isinstance(claim, Claim) and job.add_task("a") is claim
        assert job.write_audit() == 1
    with transaction(config) as tx:
        assert tx.execute(text("SELECT task_name, attempt, state FROM sync_claim")).one() == ("settle", 1, "done")
        assert tx.execute(text("SELECT task_name, date FROM sync_audit")).one() == ("settle", job.date)


def test_leaving_records_what_was_added_and_gives_back_what_was_only_claimed(config: CoordinationConfig) -> None:
    with Job("one", config) as job:
        job.add_task("added")
        job.set_claim("claimed")
    assert states(config) == {"added": "done", "claimed": "lost"}
    with Job("two", config) as job:
        claim = job.set_claim("claimed")
        assert isinstance(claim, Claim) and claim.attempt == 2


def test_a_block_that_raises_gives_back_what_each_thread_may_be_at(config: CoordinationConfig) -> None:
    def fail() -> None:
        with Job("one", config) as job, ThreadPoolExecutor(1) as pool:
            for task in ("a", "b"):
                job.add_task(task)
                pool.submit(job.add_task, f"thread's {task}").result(10)
            job.set_claim("claimed first")
            job.add_task("claimed first")  # it is done: it was claimed when it began
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert states(config) == {
        "a": "done",
        "thread's a": "done",
        "claimed first": "done",
        "b": "lost",
        "thread's b": "lost",
    }


def test_what_another_node_has_taken_over_is_not_recorded_again(
    config: CoordinationConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with Job("one", config, date=DAY) as one:
        mine = one.add_task("a")
        assert isinstance(mine, Claim)
        assert one.add_task("kept")
        expel(config, "one")
        with Job("two", config, date=DAY) as two:
            taken = next(filter(None, (two.set_claim("a") or one.set_claim("a") for _ in eventually())))
            assert isinstance(taken, Claim) and taken.attempt == 2 and taken.fence > mine.fence
            assert not mine.held
            with pytest.raises(Fenced), transaction(config) as tx:
                mine.guard(tx)
            # Its lease was over when it said so, and yet nobody had taken it over.
            assert one.write_audit() == 1
            assert done(two) == [("one", "kept")]
    assert "1 tasks of one, 'a' first, were not recorded" in caplog.text


def test_a_claim_completes_in_the_users_own_transaction(config: CoordinationConfig) -> None:
    with Job("one", config) as job:
        claim = job.add_task("a")
        assert isinstance(claim, Claim) and claim.held
        with transaction(config) as tx:
            claim.complete(tx)
        assert states(config) == {"a": "done"}
        assert job.write_audit() == 1 and done(job) == [("one", "a")]


def test_an_impossible_id_claims_nothing(config: CoordinationConfig) -> None:
    with Job("one", config) as job:
        for wrong in (["a", 1.5], 1.5, None, b"ab"):
            with pytest.raises(KeyInvalid):
                job.set_claim(wrong)  # type: ignore[arg-type] # that is the test
        assert states(config) == {}
    with pytest.raises(JobsyncError, match="inside of the block"):
        job.set_claim("a")
    with pytest.raises(JobsyncError, match="inside of the block"):
        job.write_audit()


def test_thousands_are_claimed_and_recorded_in_batches(config: CoordinationConfig) -> None:
    ids = range(1200)
    with Job("one", config) as one, Job("two", config) as two:
        for job in (one, two):
            assert all(job.add_task(claim.key or "") for claim in job.set_claim([*ids, *ids]))
        assert one.write_audit() + two.write_audit() == len(ids)
        assert sorted(int(row["task_id"]) for row in two.get_audit()) == list(ids)


def test_a_task_can_be_given_back_to_whoever_claims_it_next(config: CoordinationConfig) -> None:
    with Job("one", config) as job:
        first = job.add_task("a")
        assert isinstance(first, Claim) and job.give_back("a") and not job.give_back("a")
        assert job.write_audit() == 0
        again = job.set_claim("a")
        assert isinstance(again, Claim) and again.attempt == 2 and again.fence > first.fence


def test_what_another_thread_may_be_at_is_not_recorded_yet(config: CoordinationConfig) -> None:
    with Job("one", config) as job, ThreadPoolExecutor(1) as pool:
        for task in ("a", "b"):
            pool.submit(job.add_task, task).result(10)
        job.add_task("mine")
        assert job.write_audit() == 2 and done(job) == [("one", "a"), ("one", "mine")]
    assert states(config)["b"] == "done"  # the block has ended well, so it is done


def test_a_claim_that_is_locked_holds_up_no_other_and_is_recorded_when_it_is_free(config: CoordinationConfig) -> None:
    with Job("one", config) as job:
        claims = [job.add_task(task) for task in ("a", "b", "c")]
        assert isinstance(claims[0], Claim)
        with transaction(config) as tx:
            claims[0].guard(tx)
            assert job.write_audit() == 2
        assert job.write_audit() == 1
    assert set(states(config).values()) == {"done"}


def test_what_is_added_again_after_the_lease_was_lost_is_at_the_end_of_the_list(config: CoordinationConfig) -> None:
    def fail() -> None:
        with Job("one", config) as job:
            job.add_task("a")
            job.add_task("b")
            expel(config, "one")
            assert next(filter(None, (added(job, "a") for _ in eventually())))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert states(config) == {"a": "lost", "b": "done"}


def test_what_was_claimed_under_a_lease_that_was_lost_is_claimed_anew_or_not_at_all(config: CoordinationConfig) -> None:
    """Whoever begins a task when it is added must not begin what another node may have taken over."""
    with Job("one", config) as job:
        mine, theirs = (next(task for task in IDS if job.can_claim_task(task)), "x")
        claims = [job.set_claim(task) for task in (mine, theirs)]
        assert all(isinstance(claim, Claim) for claim in claims)
        job.register_lock(theirs, "two")
        expel(config, "one")
        assert next(filter(None, (claims[0] and not claims[0].held for _ in eventually())))
        again = next(filter(None, (added(job, mine) for _ in eventually())))
        assert again.attempt == 2 and claims[0] is not None and again.fence > claims[0].fence
        assert job.add_task(theirs) is None and job.write_audit() == 1


def test_a_batch_that_breaks_off_keeps_nothing_from_whoever_claims_again(
    config: CoordinationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Job("one", config) as job:
        assert job._ledger is not None
        inner, calls = job._ledger._store.claims.commit, itertools.count(1)

        def commit(*args: Any) -> Any:
            if next(calls) == 2:
                raise StoreUnavailable("the second batch meets an outage")
            return inner(*args)

        monkeypatch.setattr(job._ledger._store.claims, "commit", commit)
        with pytest.raises(StoreUnavailable):
            job.set_claim(range(700))
        assert len(job.set_claim(range(700))) == 700
        assert job.set_claim(range(700)) == []


def test_without_a_lease_a_claim_is_an_error_and_not_somebody_elses(config: CoordinationConfig) -> None:
    with Job("one", config) as job:
        job.add_task("a")
        seat = job._seat
        assert seat is not None
        seat.lease.close()
        with pytest.raises(StoreUnavailable, match="whole lease"):
            job.set_claim("b")
        assert job.state == "suspended" and not job.can_claim_task("b") and not job.my_tokens
        assert next(filter(None, (job.can_claim_task("b") for _ in eventually())))
    assert states(config) == {"a": "done"}


def test_many_claims_are_won_beside_many_that_run_already(config: CoordinationConfig) -> None:
    with Job("one", config) as job:
        assert len(job.set_claim(range(6000))) == 6000
        assert len(job.set_claim(range(6500))) == 500
    assert set(states(config).values()) <= {"lost", "running"}
    with Job("two", config) as job:
        assert len(job.set_claim(range(3000))) == 3000
