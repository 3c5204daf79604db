"""The demo as a user runs it, small and without a terminal: it proves its point and leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from redis import Redis
from sqlalchemy import create_engine, inspect

from jobsync_celery.servers import PrivatePostgres, PrivateRedis
from jobsync_celery.servers.process import PrivateServer

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(180)]
MARK = "JOBSYNC_TEST_DEMO"
FIRST_DONE = re.compile(r"done [1-9]")


@pytest.fixture(autouse=True)
def servers(available: Callable[[type[PrivateServer]], None]) -> None:
    available(PrivatePostgres)
    available(PrivateRedis)


@contextmanager
def demo(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The running demo, its temporary files in ``folder``; all of its processes carry the folder's name as a mark."""
    # Its own folder for temporary files tells what it leaves there.
    folder.chmod(0o755)
    command = [sys.executable, "-m", "jobsync_celery", "demo", "--tasks", "300", *options]
    environment = {**os.environ, "TMPDIR": str(folder), MARK: str(folder)}
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The demo and everything below it."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def all_gone(members: list[psutil.Process], folder: Path, seconds: float = 10) -> bool:
    """Whether these are gone, and no other process carries the mark."""
    _, alive = psutil.wait_procs(members, timeout=seconds)
    return not alive and not [each for each in psutil.process_iter() if _carries(each, folder)]


def _carries(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get(MARK) == str(folder)
    except psutil.Error:
        return False


def wait_for_tasks(process: subprocess.Popen[str]) -> str:
    """Read until the first tasks are done."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if FIRST_DONE.search(line):
            break
    return said


def test_the_demo_proves_that_nothing_was_lost_doubled_or_overlapped(tmp_path: Path) -> None:
    with demo(tmp_path, "--keys", "40", "--seed", "5") as process:
        members = family(process)
        said, _ = process.communicate(timeout=150)
    assert process.returncode == 0, said
    assert "All 300 tasks took effect exactly once" in said
    assert re.search(r"SIGKILL to worker-0\d", said) and re.search(r"SIGTERM to worker-0\d", said)
    assert re.search(r"published +300\n +done +300 .*\n +lost +0\n +doubled +0 .*\n +overlapping +0", said)
    assert "\x1b" not in said
    assert all_gone(members, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_half_way_ends_the_demo_and_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with demo(tmp_path) as process:
        said = wait_for_tasks(process)
        members = family(process)
        assert len(members) > 10, said
        process.send_signal(number)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == code, said + rest
    assert "Traceback" not in rest
    assert all_gone(members, tmp_path)
    assert not list(tmp_path.iterdir())


def test_even_a_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        wait_for_tasks(process)
        members = family(process)
        process.kill()
        process.wait()
        assert all_gone(members, tmp_path)
    until = time.monotonic() + 5
    while list(tmp_path.iterdir()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not list(tmp_path.iterdir())


def test_on_given_servers_the_demo_takes_everything_away_that_it_made(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    with demo(tmp_path, "--database", database_url, "--broker", redis_url) as process:
        wait_for_tasks(process)
        client = Redis.from_url(redis_url)
        assert list(client.scan_iter("demo-*"))
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 143, said
    assert not list(client.scan_iter("demo-*"))
    engine = create_engine(database_url)
    assert not inspect(engine).get_table_names() and not inspect(engine).get_view_names()
    engine.dispose()


def test_records_are_kept_on_demand(tmp_path: Path) -> None:
    with demo(tmp_path, "--keep") as process:
        wait_for_tasks(process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    (folder,) = tmp_path.iterdir()
    assert f"records and logs: {folder}" in said
    assert {"history.jsonl", "worker-01.log"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "options",
    [
        ("--database", "postgresql://nobody:secret@127.0.0.1:1/none"),
        ("--database", "mysql://nobody:secret@127.0.0.1:1/none"),
        ("--broker", "redis://:secret@127.0.0.1:1/0"),
        ("--broker", "amqp://nobody:secret@127.0.0.1:1//"),
        ("--broker", "memory://"),
    ],
)
def test_a_server_that_does_not_answer_is_one_clear_line(tmp_path: Path, options: tuple[str, str]) -> None:
    with demo(tmp_path, *options) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("Error: ") and said.count("\n") == 2, said
    assert "Traceback" not in said and "secret" not in said
    assert not list(tmp_path.iterdir())
