"""Faults are made on a running cluster, and the doctor names each; afterwards it says nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import psycopg2
import pytest
from faults.servers import WallClock, clock_library

from e2e import app as under_test
from e2e.examined import Clocked, beside, finding, found, names
from e2e.site import HEARTBEAT, Site
from e2e.stand_ins import Worker
from e2e.waiting import until
from jobsync_celery.doctor.doctor import examine
from jobsync_celery.servers import PrivatePostgres, PrivateRedis

SHARED = {"workers": ("w1", "w2"), "jobsync": {"partitions": 20, "rebalance_check_interval_sec": 1.0}}


@pytest.fixture(scope="module")
def shared_broker(redis_server: PrivateRedis) -> str:
    """One is enough: what is wrong here is in the database."""
    return str(redis_server.url)


@pytest.fixture(scope="module")
def clock() -> Iterator[WallClock | None]:
    """The database's, to be set wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server has a user of its own
        library = clock_library(folder)
        clock = None if library is None else WallClock(library, folder / "offset")
        if clock is not None:
            clock.set(0)
        yield clock


@pytest.fixture(scope="module")
def postgres(clock: WallClock | None) -> Iterator[PrivatePostgres]:
    """A durable one: the doctor complains of others."""
    with Clocked(clock) as server:
        yield server


@contextmanager
def beats(site: Site, number: int, folder: Path) -> Iterator[None]:
    """Beat processes."""
    settings = {under_test.SETTINGS: json.dumps(site.settings()), "PYTHONPATH": str(Path(__file__).parents[1])}
    call = [sys.executable, "-m", "celery", "-A", "e2e.app", "beat", "--pidfile=", "--max-interval=1", "-s"]
    running = [
        subprocess.Popen([*call, str(folder / f"schedule{each}")], env={**os.environ, **settings})
        for each in range(number)
    ]
    try:
        yield
    finally:
        for process in running:
            process.terminate()
            process.wait()


def test_who_drains_by_order_is_named(well: Site) -> None:
    w1 = well.node("w1")
    well.app.jobsync.drain(w1)
    assert w1 in finding(well, "node-without-tokens").what
    well.app.jobsync.undrain(w1)


def test_locks_that_nobody_serves_and_those_of_a_creator_who_is_gone(well: Site) -> None:
    well.app.jobsync.register_lock("tied", "gpu-%")
    well.rows("UPDATE sync_lock SET created_by = 'long gone'")
    waiting = finding(well, "locked-keys-wait")
    assert "tied is locked to gpu-%" in waiting.evidence
    assert "long gone" in finding(well, "orphaned-locks").fix
    well.app.jobsync.clear_all_locks()
    well.rows("DELETE FROM sync_node WHERE state = 'admin'")


def test_a_second_worker_of_a_name(well: Site) -> None:
    first = well.node("w1")
    with beside(well, "other", "--node-name", first):
        assert first in finding(well, "name-taken").what


def test_workers_and_producers_that_do_not_agree(well: Site) -> None:
    with beside(well, "w3", jobsync={"claim_retention": 50_000}):
        named = finding(well, "settings-differ")
        assert named.what == "claim_retention differs"
        assert any("50000" in each and "w3" in each for each in named.evidence)
        well.until_shared("w1", "w2", "w3")
    with beside(well, "w4", jobsync={"partitions": 30}):
        until(lambda: any("was refused" in each.what for each in found(well, "settings-differ")), "it was refused")
    other = well.producer(partitions=30)
    cluster = other.jobsync.cluster
    differing = [each for each in examine(cluster.store, other, cluster).findings if each.check == "settings-differ"]
    assert any("partitions is 20 there, 30 here" in each.evidence for each in differing)


def test_two_beats_but_not_one(well: Site, tmp_path: Path) -> None:
    with beats(well, 1, tmp_path):
        until(lambda: well.rows("SELECT kind FROM sync_sighting WHERE kind = 'beat' AND times > 3"), "beat is seen", 12)
        assert found(well, "two-beats") == []
    with beats(well, 2, tmp_path):
        assert "2 beat processes" in finding(well, "two-beats").what


@contextmanager
def doomed(site: Site) -> Iterator[Worker]:
    """A third worker, with a share, that does not leave in good order."""
    worker = site.worker("w3")
    try:
        site.until_shared("w1", "w2", "w3")
        yield worker
    finally:
        worker.kill("SIGKILL")
        worker.container.wait()
        site.workers.remove(worker)
    live = "SELECT name FROM sync_node WHERE state = 'live' AND name = %s"
    until(lambda: not site.rows(live, worker.hostname()), "it is declared dead")


def test_a_worker_that_was_killed_with_a_task(well: Site) -> None:
    with doomed(well) as worker:
        long = well.call("step", well.key_of(worker.hostname(), "long"), 0, 2.0)
        well.until_begun(long.id)
        worker.kill("SIGKILL")
        assert worker.hostname() in finding(well, "node-died").what
        long.get(timeout=60)
        assert long.id in finding(well, "run-twice").evidence[0]


def test_a_worker_that_was_stopped_for_too_long(well: Site) -> None:
    with doomed(well) as worker:
        worker.freeze()
        store, late = well.app.jobsync.cluster.store, {"heartbeat-lag", "node-silent"}
        until(lambda: late & names(examine(store, None, None, moment=0)), "its silence is noticed")
        well.until_shared("w1", "w2")
        worker.thaw()
        assert worker.hostname() in finding(well, "node-restless").what


def test_partitions_that_move_too_often(well: Site) -> None:
    [leader] = [row["node"] for row in well.rows("SELECT node FROM sync_leader")]
    stays, goes = ("w1", "w2") if leader == well.node("w1") else ("w2", "w1")
    for _ in range(3):
        well.app.jobsync.drain(well.node(goes))
        well.until_shared(stays)
        well.app.jobsync.undrain(well.node(goes))
        well.until_shared("w1", "w2")
    assert "'membership'" in finding(well, "constant-rebalancing").evidence[0]


def test_a_session_that_holds_our_tables(well: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobsync_celery.store.examination._FORGOTTEN_SEC", HEARTBEAT)
    session = psycopg2.connect(well.database_url.replace("+psycopg2", ""), application_name="psql")
    with session.cursor() as cursor:
        cursor.execute("SELECT * FROM sync_lock FOR UPDATE")
        named = finding(well, "tables-held")
        assert f"session {session.info.backend_pid} (psql" in named.what
    session.close()


def test_a_clock_that_was_set(well: Site, clock: WallClock | None, leave_out: Callable[[str], NoReturn]) -> None:
    if clock is None:
        leave_out("a wall clock is set by a library that needs Linux and a C compiler (cc)")
    clock.set(30)
    assert "+30" in finding(well, "clock-set").what
    clock.set(0)
    until(lambda: "-30" in finding(well, "clock-set").what, "it was set back")


def test_claims_that_are_never_deleted(well: Site) -> None:
    old = well.call("step", "old", 1)
    well.settled(old.id)
    well.rows("UPDATE sync_claim SET finished_on = finished_on - interval '3 days' WHERE state = 'done'")
    assert "claim_retention" in finding(well, "maintenance-missing").evidence[0]
