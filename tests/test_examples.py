"""The examples run as their own comments say."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
HOW_TO = EXAMPLES.parent / "docs" / "how-to"
CELERY = Path(sys.executable).parent / "celery"
SETTINGS = {"APP", "DEVICES_URL", "BROKER_URL", "DATABASE_URL", "APPNAME"}

pytestmark = pytest.mark.timeout(120)


def environment(**settings: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in SETTINGS} | settings


@contextmanager
def running(
    command: list[str], log: Path, folder: Path, settings: dict[str, str], end: signal.Signals = signal.SIGTERM
) -> Iterator[None]:
    with log.open("wb") as out:
        # A shell that runs in the background has its children ignore Ctrl-C, and theirs.
        inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess.Popen(
                command, cwd=folder, env=settings, stdout=out, stderr=out, start_new_session=True
            )
        finally:
            signal.signal(signal.SIGINT, inherited)
    try:
        yield
        process.send_signal(end)
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


# -- the how-to pages ----------------------------------------------------------------------------------------------


def commands(page: str) -> list[str]:
    """What a page has one type, but for the installation and the servers' addresses."""
    lines = [line.strip() for line in (HOW_TO / page).read_text().splitlines() if line.startswith("    ")]
    return [line for line in lines if line.startswith(("celery ", "python "))]


def workers_of(page: str) -> dict[str, list[str]]:
    """Worker -> the command of the page that starts it."""
    named = {line.partition(" -n ")[2].partition("@")[0]: line for line in commands(page) if " worker " in line}
    return {name: line.split() for name, line in named.items()}


@pytest.fixture
def user(database_url: str, redis_url: str) -> dict[str, str]:
    """The environment of somebody who did what the pages say first."""
    path = f"{CELERY.parent}{os.pathsep}{os.environ['PATH']}"
    return environment(
        DATABASE_URL=database_url, BROKER_URL=redis_url, REDIS_URL=redis_url, PATH=path, C_FORCE_ROOT="1"
    )


def run(command: str, user: dict[str, str]) -> str:
    """Run a command of a page; what it prints. The status exits with 1 when something waits."""
    done = subprocess.run(
        command.split(), cwd=EXAMPLES, env=user, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 or (" status" in command and done.returncode == 1), done.stderr
    return done.stdout


@pytest.mark.redis
@pytest.mark.slow
def test_gpu_workers_do_what_is_theirs_and_others_help_out(user: dict[str, str], tmp_path: Path) -> None:
    page = "gpu-workers.md"
    publish, lock, again, status = [line for line in commands(page) if " worker " not in line]
    assert publish == again
    command = workers_of(page)
    gpu, cpu, back = tmp_path / "gpu", tmp_path / "cpu", tmp_path / "back"
    with running(command["cpu-1"], cpu, EXAMPLES, user):
        wait_for("took partitions", cpu)
        with running(command["gpu-1"], gpu, EXAMPLES, user):
            wait_for("took partitions", gpu)
            run(publish, user)
            for model in range(4):
                wait_for(rf"gpu-1@\S+ trains model-{model}", gpu)
                wait_for(rf"gpu-1@\S+ renders model-{model}", gpu)
        assert not re.search(r"trains|renders", cpu.read_text())
        run(lock, user)
        scored = cpu.read_text().count(" scores model-2")
        run(publish, user)
        for model in (0, 1, 3):
            wait_for(rf"cpu-1@\S+ trains model-{model}", cpu)
        assert "1 of them wait for a node that matches" in run(status, user)
        with running(command["gpu-1"], back, EXAMPLES, user):
            for model in range(4):
                wait_for(rf"gpu-1@\S+ renders model-{model}", back)
            wait_for(r"gpu-1@\S+ scores model-2", back)
        said = cpu.read_text()
        assert said.count(" scores model-2") == scored
        assert " renders " not in said and " trains model-2" not in said


@pytest.mark.redis
@pytest.mark.slow
def test_a_region_falls_back_where_it_may_and_returns(user: dict[str, str], tmp_path: Path) -> None:
    page = "data-in-regions.md"
    publish, again, status = [line for line in commands(page) if " worker " not in line]
    assert publish == again
    command = workers_of(page)
    eu, us, back = tmp_path / "eu", tmp_path / "us", tmp_path / "back"
    with running(command["us-1"], us, EXAMPLES, user):
        wait_for("took partitions", us)
        with running(command["eu-1"], eu, EXAMPLES, user):
            wait_for("took partitions", eu)
            run(publish, user)
            for log, customer in ((eu, 1), (us, 2), (eu, 3)):
                wait_for(rf" bills customer-{customer}", log)
            assert " bills customer-1" not in us.read_text()
        run(publish, user)
        wait_for(" bills customer-1", us)
        assert "1 of them wait for a node that matches" in run(status, user)
        with running(command["eu-1"], back, EXAMPLES, user):
            wait_for(" bills customer-3", back)
            run(publish, user)
            wait_for(" bills customer-1", back)
        said = us.read_text()
        assert said.count(" bills customer-1") == 1 and " bills customer-3" not in said


@pytest.mark.redis
@pytest.mark.slow
def test_each_device_has_one_listener_at_a_time(user: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        user["DEVICES_URL"] = f"ws://127.0.0.1:{free.getsockname()[1]}"
    page = "websocket-fan-in.md"
    devices_command = next(line for line in commands(page) if " worker " not in line)
    command = workers_of(page)
    devices, first, second = tmp_path / "devices", tmp_path / "first", tmp_path / "second"
    with running(devices_command.split(), devices, EXAMPLES, user, end=signal.SIGINT):
        wait_for("devices at ", devices)
        with running(command["one"], first, EXAMPLES, user):
            for number in range(12):
                wait_for(rf"device-{number} has a listener", devices)
            wait_for(r"one@\S+ records 1 of device-0\b", first)
            with running(command["two"], second, EXAMPLES, user):
                wait_for(r"two@\S+ records ", second)
                # Locked, a device of the second goes to the first, with no signal to tell it.
                device = re.findall(r" connected to (\S+)", second.read_text())[0]
                lock = f"import websocket_fan_in as example; example.jobsync.register_lock('{device}', 'one@%')"
                subprocess.run([sys.executable, "-c", lock], cwd=EXAMPLES, env=user, check=True)
                wait_for(rf" disconnected from {device}\b", second)
                wait_for(rf"(?s) disconnected from {device}\b.* connected to {device}\b", first)
            gone = set(re.findall(r" connected to (\S+)", second.read_text()))
            for each in gone:
                wait_for(rf"(?s) disconnected from {each}\b.* connected to {each}\b", first)
    assert gone and "two listeners" not in devices.read_text()


@pytest.mark.redis
@pytest.mark.slow
def test_a_nightly_batch_is_shared_under_one_plan(user: dict[str, str], tmp_path: Path) -> None:
    page = "nightly-batch.md"
    publish, shares = [line for line in commands(page) if " worker " not in line]
    command = workers_of(page)
    logs = {name: tmp_path / name for name in command}
    run(publish.replace("10000", "600"), user)
    with ExitStack() as stack:
        for name, log in logs.items():
            stack.enter_context(running(command[name], log, EXAMPLES, user))
        for log in logs.values():
            wait_for("took partitions", log)
        assert any("the first plan waits: " in log.read_text() for log in logs.values())
        until = time.monotonic() + 60
        while (
            sum((runs := {name: int(n) for name, n in map(str.split, run(shares, user).splitlines())}).values()) < 600
        ):
            assert time.monotonic() < until, runs
        assert {name.partition("@")[0] for name in runs} == set(logs)
        assert min(runs.values()) > 100, runs
        assert all(log.read_text().count("took partitions") == 1 for log in logs.values())


def test_the_nightly_batch_asks_as_the_operator_guide_does() -> None:
    query = "SELECT node, COUNT(*) FROM sync_claim GROUP BY node"
    places = (HOW_TO.parent / "OPERATOR_GUIDE.md", HOW_TO / "nightly-batch.md", EXAMPLES / "nightly_batch.py")
    assert all(query in place.read_text() for place in places)


@pytest.mark.redis
def test_caches_follow_the_owner(user: dict[str, str], tmp_path: Path) -> None:
    def worker(name: str) -> list[str]:
        return ["celery", "-A", "owner_state", "worker", "-n", f"{name}@owner-state", "-l", "INFO", "-c", "1"]

    first, second = tmp_path / "first", tmp_path / "second"
    with running(worker("one"), first, EXAMPLES, user):
        wait_for(r"tokens more, 0 fewer, 10000 here", first)
        with running(worker("two"), second, EXAMPLES, user):
            wait_for(r" 0 tokens more, \d+ fewer, 5000 here", first)
            wait_for(r" 0 fewer, 5000 here", second)
            run("python owner_state.py", user)
            for log in (first, second):
                wait_for(r"owner_state\.store\[.*succeeded", log)
                wait_for(r"owner_state\.check\[.*succeeded.*True", log)


#: Page -> the example that its Python is from, and how many snippets it has.
PRINTED = {
    "owner-state.md": ("owner_state.py", 3),
    "gpu-workers.md": ("gpu_workers.py", 2),
    "data-in-regions.md": ("regions.py", 3),
    "websocket-fan-in.md": ("websocket_fan_in.py", 3),
    "nightly-batch.md": ("nightly_batch.py", 1),
}


@pytest.mark.parametrize("page", PRINTED)
def test_a_page_prints_what_its_example_runs(page: str) -> None:
    example, count = PRINTED[page]
    snippets = re.findall(r"^```python\n(.*?)^```$", (HOW_TO / page).read_text(), re.MULTILINE | re.DOTALL)
    assert len(snippets) == count
    assert not [snippet for snippet in snippets if snippet not in (EXAMPLES / example).read_text()]
