"""Keys tied to kinds of workers: at once, alone, and without a moment of double running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from e2e.history import Run, now
from e2e.site import HEARTBEAT, TIMEOUT, Site
from e2e.waiting import until

#: What a loaded machine may add to a promised time.
SLACK = 3.0


def nodes_of(site: Site, *ids: str) -> set[str | None]:
    return {run.node for run in site.history.runs(*ids)}


def pool_owner(site: Site, *patterns: str) -> str | None:
    """The owner of the only partition of a lock pool; None while it has none."""
    row = next(row for row in site.rows("SELECT * FROM sync_partition") if row["pool"].count('"') == 2 * len(patterns))
    return row["owner"]


def run_now(site: Site, key: str, n: int = 0, task: str = "step") -> Run:
    """Publish one task and wait for it."""
    result = site.call(task, key, n)
    site.until_ended(result.id)
    return site.history.runs(result.id)[-1]


@pytest.mark.cluster("cpu1", "cpu2", "gpu1", jobsync={"partitions": 12})
def test_a_locked_key_runs_where_it_may_and_no_other_key_moves(celery_setup: Any, site: Site) -> None:
    gpu, cpu = site.node("gpu1"), site.node("cpu1")
    jobsync = site.app.jobsync
    key, other = (site.key_of(cpu, "own", n) for n in range(2))
    before = site.owners()
    assert run_now(site, key).node == cpu
    jobsync.register_lock(key, "gpu%", "needs a GPU")
    assert run_now(site, key, 1).node == gpu
    assert run_now(site, other).node == cpu
    assert {number: owner for number, owner in site.owners().items() if number in before} == before
    [lock] = jobsync.list_locks()
    assert (lock.key, lock.patterns, lock.reason, lock.unserved) == (key, ("gpu%",), "needs a GPU", False)
    assert jobsync.clear_locks_by_creator(lock.created_by) == 1
    assert run_now(site, key, 2).node == cpu
    site.assert_serial()
    site.assert_brokers_are_empty()


@pytest.mark.cluster("cpu1", "gpu1")
def test_two_keys_of_one_token_may_be_locked_differently(celery_setup: Any, site: Site) -> None:
    tokens = site.app.jobsync.cluster.tokens
    first = "key0"
    second = next(f"other{n}" for n in range(10**6) if tokens.token(f"other{n}") == tokens.token(first))
    site.app.jobsync.register_locks_bulk([(first, "gpu%", None), (second, ["cpu%"], None)])
    assert run_now(site, first).node == site.node("gpu1")
    assert run_now(site, second).node == site.node("cpu1")


@pytest.mark.cluster("cpu1", "gpu1")
def test_what_waits_for_a_running_task_follows_the_lock_when_it_ends(celery_setup: Any, site: Site) -> None:
    """And does not wait for a heartbeat: who ends the key's claim wakes those who wait for it elsewhere."""
    cpu, gpu = site.node("cpu1"), site.node("gpu1")
    key = site.key_of(cpu)
    long = site.call("step", key, 0, 1.5 * HEARTBEAT)
    site.until_begun(long.id)
    waiting = [site.call("step", key, n) for n in range(1, 6)]
    site.app.jobsync.register_lock(key, "gpu%")
    waiting += [site.call("step", key, n) for n in range(6, 9)]
    site.until_ended(long.id, *(result.id for result in waiting))
    assert nodes_of(site, *(result.id for result in waiting)) == {gpu}
    [running, *following] = site.history.runs()
    assert running.node == cpu and following[0].began < running.last + HEARTBEAT / 2
    site.assert_once([long.id, *(result.id for result in waiting)])
    site.assert_brokers_are_empty()


@pytest.mark.cluster("cpu1", "gpu1")
def test_what_waits_for_a_pool_slot_follows_the_lock_while_the_slots_are_full(
    celery_setup: Any, site: Site, tmp_path: Path
) -> None:
    cpu, gpu = site.node("cpu1"), site.node("gpu1")
    hold = tmp_path / "hold"
    hold.touch()
    long = [site.call("as_long_as", site.key_of(cpu, "long", n), n, str(hold)) for n in range(2)]
    site.until_begun(*(result.id for result in long))
    key = site.key_of(cpu, "late")
    late = site.call("step", key)
    until(lambda: [claim["node"] for claim in site.claims(late.id)] == [cpu], "its claim is granted")
    site.app.jobsync.register_lock(key, "gpu%")
    site.until_ended(late.id)
    assert nodes_of(site, late.id) == {gpu}
    assert not site.history.ended() & {result.id for result in long}
    hold.unlink()
    site.until_ended(*(result.id for result in long))
    site.assert_once([late.id, *(result.id for result in long)])
    assert [claim["lost_runs"] for claim in site.claims(late.id)] == [0]
    site.assert_brokers_are_empty()


@pytest.mark.cluster("cpu1", "gpu1")
def test_messages_of_every_kind_follow_a_lock(celery_setup: Any, site: Site) -> None:
    """kombu unpacks what was compressed, and reads an expiration in other units than it is given."""
    key = site.key_of(site.node("cpu1"))
    site.app.jobsync.register_lock(key, "gpu%")
    kinds: list[dict[str, Any]] = [{"compression": "gzip"}, {"expires": 60}, {"priority": 3}, {}]
    results = [site.call("step", key, n, **options) for n, options in enumerate(kinds)]
    site.until_ended(*(result.id for result in results))
    assert nodes_of(site, *(result.id for result in results)) == {site.node("gpu1")}
    site.assert_once(result.id for result in results)
    site.assert_brokers_are_empty()


@pytest.mark.cluster("cpu1", "cpu2")
def test_a_lock_that_no_node_matches_waits_without_loss_and_says_so(celery_setup: Any, site: Site) -> None:
    jobsync = site.app.jobsync
    freed, kept = (site.key_of(site.node("cpu1"), "own", n) for n in range(2))
    jobsync.register_locks_bulk([(key, "gpu%", None) for key in (freed, kept)])
    assert [lock.unserved for lock in jobsync.list_locks()] == [True, True]
    assert jobsync.status().unserved_locks == 2
    results = [site.call("step", key, n) for n in range(3) for key in (freed, kept)]
    assert run_now(site, "somebody").how == "returned"
    assert nodes_of(site, *(result.id for result in results)) == set()
    # Some of these lie in the queue of a pool that nobody serves; they come back all the same.
    jobsync.clear_lock(freed)
    site.until_ended(*(result.id for result in results[::2]))
    assert nodes_of(site, *(result.id for result in results[1::2])) == set()
    site.worker("gpu1").ready()
    site.until_ended(*(result.id for result in results))
    assert nodes_of(site, *(result.id for result in results[1::2])) == {site.node("gpu1")}
    assert jobsync.status().unserved_locks == 0
    site.assert_once(result.id for result in results)
    site.assert_brokers_are_empty()


@pytest.mark.cluster("cpu1", "gpu1")
def test_the_next_pattern_serves_while_nobody_matches_the_first(celery_setup: Any, site: Site) -> None:
    gpu = next(worker for worker in celery_setup.worker_cluster if worker.hostname() == site.node("gpu1"))
    key = site.key_of(site.node("cpu1"))
    site.app.jobsync.register_lock(key, ["gpu%", "cpu%"])
    assert run_now(site, key).node == site.node("gpu1")
    gpu.kill("SIGKILL")
    died = now()
    run = run_now(site, key, 1)
    assert run.node == site.node("cpu1") and run.began - died < TIMEOUT + 1 + SLACK
    gpu.container.begin()
    until(lambda: pool_owner(site, "gpu%", "cpu%") == site.node("gpu1"), "the first pattern serves again")
    assert run_now(site, key, 2).node == site.node("gpu1")
    site.assert_serial()


@pytest.mark.cluster("cpu1", "gpu1")
def test_a_lock_expires_when_it_is_due_and_not_at_some_later_look(celery_setup: Any, site: Site) -> None:
    key = site.key_of(site.node("cpu1"))
    site.app.jobsync.register_lock(key, "gpu%", expires_in_days=2.0 / 86400)
    registered = now()
    assert run_now(site, key).node == site.node("gpu1")
    until(lambda: site.app.jobsync.list_locks() == [], "the lock has expired", every=0.01)
    assert 2.0 <= now() - registered + 0.1 < 2.0 + SLACK
    assert run_now(site, key, 1).node == site.node("cpu1")


@pytest.mark.cluster("cpu1", "gpu1")
def test_a_task_may_be_for_certain_nodes_whatever_its_key(celery_setup: Any, site: Site) -> None:
    gpu = next(worker for worker in celery_setup.worker_cluster if worker.hostname() == site.node("gpu1"))
    keys = [site.key_of(site.node("cpu1"), "own", n) for n in range(4)]
    with_gpu = [site.call("gpu", key, n) for n, key in enumerate(keys)]
    without = [site.call("step", key, n) for n, key in enumerate(keys)]
    by_stranger = site.stranger().send_task("e2e.gpu", (keys[0], 9))
    site.until_ended(*(result.id for result in (*with_gpu, *without, by_stranger)))
    assert nodes_of(site, *(result.id for result in (*with_gpu, by_stranger))) == {site.node("gpu1")}
    assert nodes_of(site, *(result.id for result in without)) == {site.node("cpu1")}
    gpu.stop()
    assert run_now(site, keys[0], 10, "gpu").node == site.node("cpu1")
    site.assert_serial()
    site.assert_brokers_are_empty()
