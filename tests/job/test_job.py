"""A program that is no Celery worker, as one node of several."""

from __future__ import annotations

import datetime
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from sqlalchemy import text

from jobsync_celery import CoordinationConfig, Job, NullClaim, RebalanceEvent, Task
from jobsync_celery.errors import ClusterMismatch, JobsyncError, JoinTimeout, KeyInvalid, SettingsError
from jobsync_celery.job import cluster as job_cluster
from jobsync_celery.runtime.assembly import store_of
from jobsync_celery.store.schema import ClusterShape, ensure_schema

Configure = Callable[..., CoordinationConfig]

IDS = [f"task-{number}" for number in range(200)]


def owners(jobs: Iterable[Job], task: str) -> list[str]:
    return [job.node_name for job in jobs if job.can_claim_task(task)]


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def scalar(config: CoordinationConfig, statement: str) -> object:
    with store_of(config).database.transaction() as tx:
        return tx.execute(text(statement)).scalar()


def test_every_task_belongs_to_one_of_those_who_are_there_and_to_the_others_when_it_leaves(
    config: CoordinationConfig,
) -> None:
    with Job("one", config) as one, Job("two", config) as two:
        with Job("three", config) as three:
            jobs = (one, two, three)
            wait_until(lambda: all(len(owners(jobs, task)) == 1 for task in IDS))
            assert sorted(len(job.my_tokens) for job in jobs) == [3330, 3330, 3340]
            assert all(
                job.can_claim_task(task) == (job.task_to_token(task) in job.my_tokens) for job in jobs for task in IDS
            )
            assert [node.name for node in three.nodes] == ["one", "two", "three"]
        assert not three.my_tokens and not any(map(three.can_claim_task, IDS))
        wait_until(lambda: all(len(owners((one, two), task)) == 1 for task in IDS))
        assert [node.name for node in one.get_active_nodes()] == ["one", "two"]
    assert scalar(config, "SELECT count(*) FROM sync_node") == 0


def test_one_leads_and_each_says_what_it_is(config: CoordinationConfig) -> None:
    one = Job("one", config)
    assert one.state == "new" and not one.am_i_healthy() and not one.can_claim_task("a")
    with one, Job("two", config) as two:
        assert (one.state, two.state) == ("running_leader", "running_follower")
        assert one.am_i_leader() and not two.am_i_leader() and two.am_i_healthy()
        status = two.get_coordination_status()
        assert status["active_nodes"] == ["one", "two"] and status["state"] == "running_follower"
        assert status["my_tokens"] == len(two.my_tokens) == 5000 and status["last_heartbeat"]
        assert "node_registered" in [entry["event"] for entry in status["recent_events"]]
    assert one.state == "left" and not one.am_i_healthy()
    with pytest.raises(JobsyncError, match="make another Job"):
        one.__enter__()


def test_a_cluster_of_fewer_tokens_than_nodes_has_nodes_without_any(configure: Configure) -> None:
    config = configure(total_tokens=2, partitions=1)
    with Job("one", config) as one, Job("two", config) as two, Job("three", config) as three:
        assert [len(job.my_tokens) for job in (one, two, three)] == [1, 1, 0]


def test_the_first_plan_waits_for_those_who_come_together(config: CoordinationConfig) -> None:
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        entered = [pool.submit(Job(name, config, wait_on_enter=2).__enter__) for name in ("one", "two", "three")]
        jobs = [future.result(30) for future in entered]
        for job in jobs:
            stack.push(job.__exit__)
        assert sorted(len(job.my_tokens) for job in jobs) == [3330, 3330, 3340]
        assert scalar(config, "SELECT count(*) FROM sync_rebalance") == 1


def test_who_cannot_join_says_what_it_waits_for(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_cluster, "_JOIN_SEC", 1.5)
    monkeypatch.setattr(job_cluster, "_JOIN_LEASES", 0)
    with pytest.raises(JoinTimeout, match="1 of 2 nodes are here"), Job("one", configure(minimum_nodes=2)):
        pass
    assert scalar(configure(), "SELECT count(*) FROM sync_node") == 0
    with (
        Job("one", configure()),
        pytest.raises(JoinTimeout, match=f"another live process has this name .*pid {os.getpid()}"),
        Job("one", configure()),
    ):
        pass
    nowhere = CoordinationConfig(host="127.0.0.1", port=1, user="nobody")
    with pytest.raises(JoinTimeout, match="one cannot join"), Job("one", nowhere):
        pass


def test_another_shape_is_refused_at_once(configure: Configure) -> None:
    with (
        Job("one", configure()),
        pytest.raises(ClusterMismatch, match="total_tokens=10000"),
        Job("two", configure(total_tokens=20, partitions=1)),
    ):
        pass


def test_what_is_impossible_is_refused_when_the_job_is_made(config: CoordinationConfig) -> None:
    for name in ("no name", None, 5):
        with pytest.raises(SettingsError, match="node_name"):
            Job(name, config)  # type: ignore[arg-type] # that is the test
    with pytest.raises(SettingsError, match="date must be"):
        Job("one", config, date="today")  # type: ignore[arg-type] # that is the test
    with pytest.raises(SettingsError, match="wait_on_exit"):
        Job("one", config, wait_on_exit=-1)
    with pytest.raises(SettingsError, match="wait_on_enter"):
        Job("one", config, wait_on_enter=-1)
    with pytest.raises(SettingsError, match="on_rebalance"):
        Job("one", config, on_rebalance=lambda a, b: None)
    moment = datetime.datetime(2030, 1, 2, 3, 4)  # noqa: DTZ001 - the user's day
    assert Job("one", config, date=moment).date == datetime.date(2030, 1, 2)


def test_alone_it_may_claim_everything_and_needs_no_database() -> None:
    with Job("one") as job:
        assert job.can_claim_task("a") and job.state == "standalone" and job.am_i_healthy()
        assert isinstance(job.set_claim("a"), NullClaim) and isinstance(job.add_task(Task("a")), NullClaim)
        assert [claim.key for claim in job.set_claim(["a", "b"])] == ["b"] and job.add_task("a") is None
        assert job.give_back("a") and not job.give_back("a") and job.set_claim("a")
        assert job.write_audit() == 0 and job.get_audit() == []
        assert job.task_to_token("a") == 0 and not job.my_tokens and not job.nodes
        assert job.get_coordination_status()["enabled"] is False
        with pytest.raises(KeyInvalid):
            job.can_claim_task(1.5)  # type: ignore[arg-type] # that is the test
        with pytest.raises(JobsyncError, match="alone"):
            job.register_lock("a", "%")
    assert not job.can_claim_task("a")


def test_callbacks_hear_of_every_change_before_another_node_has_what_is_lost(config: CoordinationConfig) -> None:
    heard: list[RebalanceEvent] = []
    still_free: list[bool] = []
    two = Job("two", config)

    def hear(event: RebalanceEvent) -> None:
        heard.append(event)
        still_free.append(not two.my_tokens)

    with Job("one", config, on_rebalance=hear) as one:
        version = one.token_version
        with two:
            wait_until(lambda: len(heard) == 2)
        wait_until(lambda: len(heard) == 3)
        assert one.token_version > version
    assert [(event.tokens_added, event.tokens_removed) for event in heard] == [
        (10000, 0),
        (0, 5000),
        (5000, 0),
        (0, 10000),
    ]
    assert [event.is_initial for event in heard] == [True, False, False, False]
    assert all(still_free)


def test_the_first_callback_finds_what_it_tells_of(config: CoordinationConfig) -> None:
    seen: list[tuple[int, bool]] = []
    job = Job("one", config, on_rebalance=lambda: seen.append((len(job.my_tokens), job.can_claim_task("a"))))
    with job:
        wait_until(lambda: bool(seen))
        assert seen == [(10000, True)]


def test_a_callback_that_does_not_return_keeps_a_job_from_handing_over_and_not_from_ending(
    config: CoordinationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobsync_celery.job.seat._FAREWELL_SEC", 0.5)
    release = threading.Event()

    def cling(event: RebalanceEvent) -> None:
        if event.tokens_removed:
            release.wait(60)

    with Job("one", config, on_rebalance=cling) as job:
        job.set_claim("a")
    assert job._seat is not None and not job._seat.node._thread.is_alive()
    with Job("two", config) as two:  # its lease has ended by itself
        assert len(two.my_tokens) == 10000 and two.set_claim("a")
    release.set()


def test_an_exit_that_is_interrupted_leaves_all_the_same(config: CoordinationConfig) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), Job("one", config, wait_on_exit=60) as job:
            signal.setitimer(signal.ITIMER_REAL, 1.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert job.state == "left" and scalar(config, "SELECT count(*) FROM sync_node") == 0


def test_a_job_may_stay_for_a_while_after_its_work(config: CoordinationConfig) -> None:
    with Job("one", config) as one, ThreadPoolExecutor() as pool:
        two = Job("two", config, wait_on_exit=1.5).__enter__()
        leaving = pool.submit(two.__exit__, None, None, None)
        wait_until(lambda: not two.my_tokens)
        assert len(one.my_tokens) == 5000 and [node.name for node in one.get_active_nodes()] == ["one", "two"]
        leaving.result(20)
        wait_until(lambda: len(one.my_tokens) == 10000)


def test_a_forked_child_owns_nothing_and_leaves_its_parent_alone(config: CoordinationConfig) -> None:
    with Job("one", config) as job:
        assert any(map(job.can_claim_task, IDS))
        child = os.fork()
        if child == 0:  # no assertion may leave the child: it would run the rest of the suite
            os._exit(any(map(job.can_claim_task, IDS)) or bool(job.my_tokens) or job.state != "left")
        assert os.waitpid(child, 0)[1] == 0
        assert job.add_task(next(filter(job.can_claim_task, IDS)))
        wait_until(lambda: job.get_active_nodes()[0].lag is not None)
        assert job.write_audit() == 1


# -- task locks


def test_a_locked_task_is_for_the_nodes_that_match_and_spreads_over_all_of_them(config: CoordinationConfig) -> None:
    with Job("cpu-1", config) as cpu, Job("gpu-1", config) as one, Job("gpu-2", config) as two:
        one.register_locks_bulk([(task, "gpu-%", None) for task in IDS])
        assert not any(map(cpu.set_claim, IDS))
        wait_until(lambda: all(len(owners((one, two), task)) == 1 for task in IDS))
        assert not any(map(cpu.can_claim_task, IDS))
        assert 60 < sum(map(one.can_claim_task, IDS)) < 140
        assert two.clear_locks_by_creator("gpu-1") == len(IDS)
        wait_until(lambda: any(map(cpu.can_claim_task, IDS)))
        assert [lock.key for lock in cpu.list_locks()] == []


def test_a_provider_sets_the_locks_before_its_job_joins(config: CoordinationConfig) -> None:
    def provide(job: Job) -> None:
        assert not job.my_tokens
        job.register_lock("a", "one", "it has the disk")

    with Job("one", config, lock_provider=provide, clear_existing_locks=True) as job:
        job.register_lock("b", "one")
        assert [lock.key for lock in job.list_locks()] == ["a", "b"]
    with Job("one", config, lock_provider=provide, clear_existing_locks=True) as job:
        assert [(lock.key, lock.reason) for lock in job.list_locks()] == [("a", "it has the disk")]
        assert job.can_claim_task("a")


def test_a_provider_that_fails_keeps_its_job_from_joining(config: CoordinationConfig) -> None:
    def fail(job: Job) -> None:
        raise RuntimeError("the disk is gone")

    with pytest.raises(JobsyncError, match="the disk is gone"), Job("one", config, lock_provider=fail):
        pass
    assert scalar(config, "SELECT count(*) FROM sync_node") == 0


# -- beside Celery workers


def test_among_celery_workers_it_is_a_guest_that_may_set_and_clear_locks(
    config: CoordinationConfig, caplog: pytest.LogCaptureFixture
) -> None:
    shape = ClusterShape(500, 4, "md5")
    store = store_of(config)
    ensure_schema(store.database, shape)
    with store.database.transaction() as tx:
        store.locks.introduce(tx, "old-worker-name", "celery")
    Job("script", coordination_config=config).register_lock("a", "gpu-%")
    with Job("admin", coordination_config=config) as job:
        assert job.state == "guest" and job.am_i_healthy()
        assert not any(map(job.can_claim_task, IDS)) and job.set_claim(IDS) == [] and job.add_task("a") is None
        assert job.task_to_token("a") == shape.tokens.token("a") and not job.my_tokens
        assert job.clear_locks_by_creator("nobody") == 0
        assert job.clear_locks_by_creator("script") == 1
        assert job.get_active_nodes() == [] and job.write_audit() == 0
    assert "admin is a guest of a cluster of nodes of kind 'celery'" in caplog.text
    assert scalar(config, "SELECT count(*) FROM sync_partition WHERE target IS NOT NULL") == 0
    assert scalar(config, "SELECT string_agg(name, ' ' ORDER BY name) FROM sync_node") == "old-worker-name script"
