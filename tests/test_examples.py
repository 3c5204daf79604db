"""The examples run as their own comments say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CELERY = Path(sys.executable).parent / "celery"
SETTINGS = {"APP", "BROKER_URL", "DATABASE_URL", "APPNAME"}

pytestmark = pytest.mark.timeout(120)


def environment(**settings: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in SETTINGS} | settings


@contextmanager
def running(command: list[str | Path], log: Path, folder: Path, settings: dict[str, str]) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, env=settings, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(pattern: str, log: Path, seconds: float = 30) -> str:
    until = time.monotonic() + seconds
    while not re.search(pattern, said := log.read_text()):
        assert time.monotonic() < until, said
        time.sleep(0.1)
    return said


@pytest.mark.redis
def test_the_worker_runs_as_the_guide_prints_it(database_url: str, redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = environment(DATABASE_URL=database_url, BROKER_URL=redis_url, C_FORCE_ROOT="1")
    with running([sys.executable, "worker.py", "--node-name", "worker-01"], log, EXAMPLES, settings):
        wait_for("took partitions", log)
        publish = "import os, worker; from jobsync_celery import *\n" + (
            "JobSync(worker.app, CoordinationConfig(url=os.environ['DATABASE_URL'])); worker.settle.delay(42, 7)"
        )
        subprocess.run([sys.executable, "-c", publish], cwd=EXAMPLES, env=settings, check=True)
        said = wait_for("worker-01 settles 7 of account 42, fence ", log)
    assert "worker-01@" in said


def test_the_worker_says_what_to_write_when_no_database_is_named() -> None:
    command = [sys.executable, "worker.py", "--node-name", "worker-01"]
    done = subprocess.run(command, cwd=EXAMPLES, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "export DATABASE_URL=postgresql://" in done.stderr and "Traceback" not in done.stderr


def test_the_worker_says_what_is_wrong_with_a_setting() -> None:
    command = [sys.executable, "worker.py", "--node-name", "worker-01"]
    settings = environment(DATABASE_URL="mysql://localhost/db")
    done = subprocess.run(command, cwd=EXAMPLES, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "url must be PostgreSQL" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.redis
def test_the_minimal_app_runs_as_its_comment_says(database_url: str, redis_url: str, tmp_path: Path) -> None:
    text = (EXAMPLES / "minimal" / "proj.py").read_text()
    commands = [line.strip().partition("  #")[0].strip() for line in text.splitlines() if line.startswith("    ")]
    worker, publish, status = commands[:3]
    servers = {"redis://localhost:6379/0": redis_url, "postgresql://postgres@localhost/postgres": database_url}
    for given, ours in servers.items():
        assert given in text
        text = text.replace(given, ours)
    (tmp_path / "proj.py").write_text(text)
    log, settings = tmp_path / "log", environment(C_FORCE_ROOT="1", PATH=f"{CELERY.parent}:{os.environ['PATH']}")
    with running(worker.split(), log, tmp_path, settings):
        subprocess.run(publish, shell=True, cwd=tmp_path, env=settings, check=True)
        wait_for(r"account 1: 99\b", log)
        done = subprocess.run(status.split(), cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stable; leader one@")


@pytest.mark.parametrize(
    "example", ["fenced_sql.py", "fenced_http.py", pytest.param("fenced_redis.py", marks=pytest.mark.redis)]
)
def test_a_fenced_resource_refuses_the_write_of_an_older_run(example: str, request: pytest.FixtureRequest) -> None:
    settings = environment()
    if example == "fenced_redis.py":
        settings["REDIS_URL"] = request.getfixturevalue("redis_url")
    done = subprocess.run(
        [sys.executable, example], cwd=EXAMPLES, env=settings, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    refused, kept = done.stdout.splitlines()
    assert refused.startswith("refused: ") and "a newer run than 7 has written" in refused
    assert "200" in kept and "8" in kept and "120" not in kept


@pytest.mark.redis
def test_connections_and_caches_follow_the_owner(database_url: str, redis_url: str, tmp_path: Path) -> None:
    settings = environment(DATABASE_URL=database_url, REDIS_URL=redis_url, C_FORCE_ROOT="1")

    def worker(name: str) -> list[str]:
        options = ["-n", f"{name}@owner-state", "-l", "INFO", "-c", "1", "--without-mingle", "--without-gossip"]
        return [str(CELERY), "-A", "owner_state", "worker", *options]

    first, second = tmp_path / "first", tmp_path / "second"
    with running(worker("one"), first, EXAMPLES, settings):
        wait_for(r"tokens more, 0 fewer, 10000 here", first)
        wait_for(r"owner_state\.store\[.*succeeded", first)
        assert set(re.findall(r" connected to (\S+)", first.read_text())) == {f"device-{n}" for n in range(12)}
        with running(worker("two"), second, EXAMPLES, settings):
            said = wait_for(r" 0 tokens more, \d+ fewer, 5000 here", first)
            wait_for(r" 0 fewer, 5000 here", second)
            gone = set(re.findall(r"disconnected from (\S+)", said))
            assert gone and set(re.findall(r" connected to (\S+)", second.read_text())) == gone
            wait_for(r"owner_state\.store\[.*succeeded", second)


def test_the_page_about_owner_state_prints_what_the_example_runs() -> None:
    page = (EXAMPLES.parent / "docs" / "how-to" / "owner-state.md").read_text()
    example = (EXAMPLES / "owner_state.py").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 6
    assert not [snippet for snippet in snippets if snippet not in example]
