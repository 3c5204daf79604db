"""Private servers for the tests: one of each kind per test process, started when first asked for."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import hypothesis
import psutil
import psycopg2
import pytest

from jobsync_celery.servers import PrivatePostgres, PrivateRabbitMQ, PrivateRedis, ServerMissing
from jobsync_celery.servers.process import PrivateServer

RABBITMQ_VARIABLE = "JOBSYNC_TEST_RABBITMQ_URL"
IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")
_LEFT_OUT = "left out, "
MEMORY = Path("/dev/shm")  # of Linux
ROOM = 8 << 30

hypothesis.settings.register_profile("jobsync", deadline=None, derandomize=IN_CI)
hypothesis.settings.load_profile("jobsync")

Server = TypeVar("Server", bound=PrivateServer)


def _made(make: Callable[[], Server]) -> Server:
    """The server, not yet started; without its program a failure in CI, elsewhere a skip."""
    try:
        return make()
    except ServerMissing as error:
        _leave_out(str(error))


def _leave_out(reason: str) -> NoReturn:
    """A failure in CI, elsewhere a skip that the last line of the run tells."""
    if IN_CI:
        pytest.fail(reason, pytrace=False)
    pytest.skip(f"{_LEFT_OUT}{reason}")


@pytest.fixture(scope="session")
def leave_out() -> Callable[[str], NoReturn]:
    """For what a machine may lack: fail in CI, skip elsewhere; the reason says what to install."""
    return _leave_out


def _private(make: Callable[[], Server]) -> Iterator[Server]:
    """The server for as long as the fixture lives."""
    with _made(make) as server:
        yield server


@pytest.fixture(scope="session")
def available() -> Callable[[type[PrivateServer]], None]:
    """Skip or fail, as everywhere, when this machine has no program for a kind of server."""

    def check(kind: type[PrivateServer]) -> None:
        _made(kind)

    return check


@pytest.fixture(scope="session", autouse=True)
def servers_in_memory() -> Iterator[None]:
    """Servers keep their files in memory where there is plenty of it.

    Hundreds of tests begin with a database of their own: a thousand files, and on a disk three times the work.
    """
    folder = PrivateServer._base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrivateServer, "_base", lambda server: MEMORY if _is_roomy(MEMORY) else folder(server))
        yield


def _is_roomy(folder: Path) -> bool:
    """Whether servers can run there; containers often have 64 MB."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize > ROOM and psutil.virtual_memory().available > ROOM


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """A PostgreSQL; without fsync, for the machine does not crash in a test."""
    yield from _private(lambda: PrivatePostgres(fsync=False))


@pytest.fixture
def database_url(postgres: PrivatePostgres) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, empty database, dropped afterwards."""
    yield from _fresh_database(postgres)


@pytest.fixture(scope="module")
def module_database_url(postgres: PrivatePostgres) -> Iterator[str]:
    """The same for all tests of a module."""
    yield from _fresh_database(postgres)


def _fresh_database(postgres: PrivatePostgres) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    _execute(postgres, f"CREATE DATABASE {name}")
    yield postgres.url_of(name)
    if postgres.running:
        _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(postgres: PrivatePostgres, statement: str) -> None:
    connection = psycopg2.connect(postgres.url_of("postgres", driver="postgresql"))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateRedis]:
    """A Redis that keeps its data over a restart."""
    yield from _private(lambda: PrivateRedis(persist=True))


@pytest.fixture
def redis_url(redis_server: PrivateRedis) -> str:
    """The URL of the private Redis."""
    return redis_server.url


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[PrivateRabbitMQ]:
    """A RabbitMQ of our own, for tests that stop and kill it."""
    yield from _private(PrivateRabbitMQ)


@pytest.fixture
def rabbitmq_url(request: pytest.FixtureRequest) -> str:
    """The URL of the RabbitMQ named in the environment, else of the private one."""
    named = os.environ.get(RABBITMQ_VARIABLE)
    if named:
        return named
    server: PrivateRabbitMQ = request.getfixturevalue("rabbitmq")
    return server.url


@pytest.fixture(
    params=[pytest.param("redis", marks=pytest.mark.redis), pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]
)
def broker_url(request: pytest.FixtureRequest) -> str:
    """Each broker in turn. Brokers are shared by tests, so name queues with ``queue_prefix``."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def queue_prefix() -> str:
    """A prefix for queue names that no other test uses."""
    return f"t{uuid.uuid4().hex[:10]}-"


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Say in the very last line what was not tested, and how to have it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    reasons: dict[str, int] = {}
    for report in reporter.stats.get("skipped", []):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if _LEFT_OUT in reason:
            missing = reason.partition(_LEFT_OUT)[2]
            reasons[missing] = reasons.get(missing, 0) + 1
    for missing, count in reasons.items():
        reporter.write_line(f"!!! NOT TESTED: {count} tests were left out: {missing}", red=True, bold=True)
