"""Private servers start whatever listens, keep to themselves, and end with their holder."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from jobsync_celery.servers import (
    PrivatePostgres,
    PrivateRabbitMQ,
    PrivateRedis,
    ServerError,
    ServerMissing,
    ports,
    process,
)
from jobsync_celery.servers.process import PrivateServer

KINDS = [
    pytest.param(PrivatePostgres, id="postgres"),
    pytest.param(PrivateRedis, id="redis", marks=pytest.mark.redis),
    pytest.param(PrivateRabbitMQ, id="rabbitmq", marks=pytest.mark.rabbitmq),
]
HOLDER = """
import json, sys, time
from jobsync_celery.servers import PrivatePostgres, PrivateRabbitMQ, PrivateRedis
import psutil
server = {kind}().start()
family = [p.pid for p in psutil.Process().children(recursive=True)]
print(json.dumps([str(server.directory), server.port, family]), flush=True)
{then}
"""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, available: Callable[[type[PrivateServer]], None]) -> type[PrivateServer]:
    chosen: type[PrivateServer] = request.param
    available(chosen)
    return chosen


@pytest.fixture
def server(kind: type[PrivateServer]) -> Iterator[PrivateServer]:
    with kind() as started:
        yield started


def family(server: PrivateServer) -> list[psutil.Process]:
    """The server's guardian and everything below it."""
    guard = psutil.Process(server.pid).parent()
    assert guard is not None
    return [guard, *guard.children(recursive=True)]


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ports.HOST, port)) == 0


def query(server: PrivatePostgres, statement: str) -> Any:
    connection = psycopg2.connect(server.url_of("postgres", driver="postgresql"))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else None
    finally:
        connection.close()


def test_a_server_listens_on_loopback_addresses_only(server: PrivateServer) -> None:
    listening = {
        connection.laddr.ip
        for member in family(server)
        for connection in member.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports.HOST in listening
    assert listening <= {ports.HOST, "::1"}


def test_a_server_comes_back_on_its_port_after_stop_and_after_kill(server: PrivateServer) -> None:
    port, url, first = server.port, server.url, server.pid
    server.restart()
    second = server.pid
    server.kill()
    assert not server.running
    assert not listens(port)
    server.start()
    assert (server.port, server.url) == (port, url)
    assert len({first, second, server.pid}) == 3
    assert listens(port)


def test_closing_a_server_leaves_nothing(kind: type[PrivateServer]) -> None:
    with kind() as server:
        directory, members = server.directory, family(server)
    assert gone([member.pid for member in members])
    assert not directory.exists()


def test_a_server_ends_with_its_holder_though_that_is_killed(kind: type[PrivateServer]) -> None:
    check_end_with_holder(kind, signal.SIGKILL)


@pytest.mark.redis
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda how: how.name)
def test_a_server_ends_with_its_holder_whatever_signal_ends_that(how: signal.Signals) -> None:
    check_end_with_holder(PrivateRedis, how)


def check_end_with_holder(kind: type[PrivateServer], how: signal.Signals) -> None:
    holder, directory, port, members = hold(kind)
    holder.send_signal(how)
    holder.wait()
    assert eventually(lambda: gone(members) and not directory.exists(), 2), f"left: {directory}, {members}"
    assert not listens(port)


def test_a_server_ends_with_its_holder_though_a_fork_of_it_lives_on() -> None:
    fork = "import os\nif os.fork() == 0: time.sleep(30)\nelse: time.sleep(600)"
    holder, directory, _, members = hold(PrivateRedis, fork)
    orphans = psutil.Process(holder.pid).children()
    holder.kill()
    holder.wait()
    try:
        assert eventually(lambda: gone(members) and not directory.exists(), 2)
    finally:
        for orphan in orphans:
            if orphan.pid not in members and orphan.is_running():
                orphan.kill()


def test_a_fork_that_ends_does_not_end_the_holders_server(redis_server: PrivateRedis) -> None:
    child = os.fork()
    if child == 0:
        try:
            redis_server.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert redis_server.running


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's help is Linux's")
def test_a_server_ends_though_its_guardian_is_killed() -> None:
    with PrivateRedis() as server:
        guard, redis = family(server)[:2]
        directory = server.directory
        guard.kill()
        assert eventually(lambda: gone([redis.pid]), 2)
    for leftover in directory.iterdir():
        leftover.unlink()
    directory.rmdir()


def _heed_signals() -> None:
    """Tests that run in the background inherit from their shell that they ignore these."""
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_DFL)


def hold(kind: type[PrivateServer], then: str = "time.sleep(600)") -> tuple[Any, Path, int, list[int]]:
    """Start another Python that holds a server; tell what it started."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(kind=kind.__name__, then=then)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=_heed_signals,
    )
    assert holder.stdout is not None
    directory, port, members = json.loads(holder.stdout.readline())
    assert listens(port)
    return holder, Path(directory), port, members


def test_a_taken_port_makes_a_server_take_another(
    server: PrivateServer, kind: type[PrivateServer], monkeypatch: Any
) -> None:
    given = iter([server.port])
    monkeypatch.setattr(process, "free_port", lambda: next(given, 0) or ports.free_port())
    with kind() as other:
        assert other.port != server.port
        assert other.url != server.url
        assert listens(other.port)
    assert server.running


def test_standard_ports_and_settings_of_others_do_not_matter(kind: type[PrivateServer], monkeypatch: Any) -> None:
    for name, value in {
        "PGPORT": "5432",
        "PGDATA": "/nonexistent",
        "PGHOST": "example.invalid",
        "RABBITMQ_NODENAME": "rabbit@example",
        "RABBITMQ_NODE_PORT": "5672",
        "ERL_EPMD_PORT": "4369",
        "ERL_FLAGS": "-sname other",
        "PYTHONPATH": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    with kind() as server:
        assert server.running


def test_a_server_without_its_program_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ServerMissing, match="install redis-server"):
        PrivateRedis()


def test_a_server_that_cannot_start_says_what_its_log_says() -> None:
    server = PrivatePostgres(settings={"no_such_setting": "1"})
    with pytest.raises(ServerError, match="no_such_setting"), server:
        pass


def test_postgres_asks_for_a_password(postgres: PrivatePostgres) -> None:
    wrong = postgres.url_of("postgres", driver="postgresql").replace(postgres.password, "wrong")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(wrong)


def test_postgres_keeps_committed_rows_over_stop_and_kill() -> None:
    with PrivatePostgres() as server:
        query(server, "CREATE TABLE kept (n int)")
        for end in (server.stop, lambda: server.stop(immediate=True), server.kill):
            query(server, "INSERT INTO kept VALUES (1)")
            end()
            server.start()
        assert query(server, "SELECT count(*) FROM kept") == [(3,)]
        assert query(server, "SHOW fsync") == [("on",)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must not run PostgreSQL")
def test_root_runs_postgres_as_somebody_without_rights(postgres: PrivatePostgres) -> None:
    assert psutil.Process(postgres.pid).uids().effective != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="others need no copy")
def test_root_runs_postgres_from_programs_that_only_root_can_read(monkeypatch: Any) -> None:
    works = PrivatePostgres._works
    monkeypatch.setattr(PrivatePostgres, "_works", lambda self, at: False if at == original else works(self, at))
    server = PrivatePostgres()
    original = server._programs
    with server:
        assert query(server, "SELECT 1") == [(1,)]


def test_postgres_in_a_folder_of_the_callers_keeps_it(tmp_path: Path) -> None:
    base = tmp_path if os.geteuid() != 0 else Path("/tmp") / f"jobsync-given-{os.getpid()}"
    folder = base / "pg"
    base.mkdir(exist_ok=True)
    base.chmod(0o755)
    try:
        with PrivatePostgres(folder) as server:
            query(server, "CREATE TABLE kept (n int)")
        with PrivatePostgres(folder) as again:
            assert query(again, "SELECT count(*) FROM kept") == [(0,)]
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        if base != tmp_path:
            base.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="others run it as themselves")
def test_root_is_told_when_postgres_cannot_reach_its_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(ServerError, match="cannot reach"), PrivatePostgres(tmp_path / "pg"):
        pass


def test_redis_keeps_its_data_when_asked(redis_server: PrivateRedis) -> None:
    import redis

    with redis.Redis.from_url(redis_server.url) as client:
        client.set("kept", "1")
    redis_server.kill()
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.getdel("kept") == b"1"


@pytest.mark.rabbitmq
def test_rabbitmq_keeps_durable_queues_over_a_kill(rabbitmq: PrivateRabbitMQ, queue_prefix: str) -> None:
    import kombu

    name = f"{queue_prefix}kept"
    with kombu.Connection(rabbitmq.url, transport_options={"confirm_publish": True}) as connection:
        connection.SimpleQueue(name).put("hello")
    rabbitmq.kill()
    rabbitmq.start()
    with kombu.Connection(rabbitmq.url) as connection:
        assert connection.SimpleQueue(name).get(timeout=10).payload == "hello"
    assert name in rabbitmq.ctl("list_queues", "name")


def test_fresh_databases_are_empty_and_different(database_url: str, postgres: PrivatePostgres) -> None:
    assert database_url != postgres.url
    assert database_url.startswith("postgresql+psycopg2://")
