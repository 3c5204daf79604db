"""Clusters of real workers: one shared by a module for each broker, or one of a test's own."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
from celery import Celery
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryWorkerCluster,
)

from e2e.examined import nothing_found_anew
from e2e.site import Site, with_database
from e2e.stand_ins import LocalServer, Setup
from e2e.waiting import until
from jobsync_celery.servers import PrivatePostgres, PrivateRedis

# Redis has 16 databases; each cluster gets two of its own, emptied first. 0 is everybody's.
_databases = itertools.cycle([(2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12, 13), (14, 15)])
_LOG_TAIL = 6000
_FOLDER = Path(__file__).parent
_BROKERS = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("redis", "rabbitmq")]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cluster(*workers, options, jobsync, conf): the workers of this test's own cluster, by name"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, tests of one module and broker share a process, and so its cluster."""
    for item in items:
        if _FOLDER in item.path.parents:
            broker = "rabbitmq" if item.get_closest_marker("rabbitmq") else "redis"
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{broker}"))
            item.add_marker(pytest.mark.slow)


def _site(request: pytest.FixtureRequest, folder: Path, broker: str, **settings: Any) -> Iterator[Site]:
    postgres: PrivatePostgres = request.getfixturevalue("postgres")
    server: PrivateRedis = request.getfixturevalue("redis_server")
    name = f"test_{uuid.uuid4().hex[:12]}"
    queues, results = (with_database(server.url, number) for number in next(_databases))
    for url in (queues, results):
        with closing(redis.Redis.from_url(url)) as client:
            client.flushdb()
    _execute(postgres, f"CREATE DATABASE {name}")
    site = Site(
        folder, queues if broker.startswith("redis") else broker, results, postgres.url_of(name),
        f"t{uuid.uuid4().hex[:8]}-", **settings,
    )  # fmt: skip
    try:
        yield site
    finally:
        site.close()
        postgres.start()
        _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(postgres: PrivatePostgres, statement: str) -> None:
    connection = psycopg2.connect(postgres.url_of("postgres", driver="postgresql"))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


# -- a cluster of the module's own: SHARED = dict(workers=…, options=…, jobsync=…, conf=…) --------------------------


@pytest.fixture(scope="module", params=_BROKERS)
def shared_broker(request: pytest.FixtureRequest) -> str:
    """Each broker in turn."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis_server").url)
    named = request.getfixturevalue("named_rabbitmq")
    return named or str(request.getfixturevalue("rabbitmq").url)


@pytest.fixture(scope="session")
def named_rabbitmq() -> str | None:
    """The RabbitMQ that the environment names."""
    return os.environ.get("JOBSYNC_TEST_RABBITMQ_URL")


@pytest.fixture(scope="module")
def shared(
    request: pytest.FixtureRequest, shared_broker: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A running cluster for tests that leave it as it was."""
    asked = getattr(request.module, "SHARED", {})
    folder = tmp_path_factory.mktemp("cluster")
    for site in _site(request, folder, shared_broker, jobsync=asked.get("jobsync"), conf=asked.get("conf")):
        names = asked.get("workers", ("w1", "w2"))
        for name in names:
            site.worker(name, *asked.get("options", ()))
        if asked.get("jobsync", {}).get("mode") == "observe":
            site.until_ready()
        else:
            site.until_shared(*names)
        yield site


@pytest.fixture
def well(shared: Site) -> Iterator[Site]:
    """The same, of which the doctor finds nothing wrong afterwards."""
    yield shared
    names = [worker.hostname().partition("@")[0] for worker in shared.workers[:2]]
    shared.until_shared(*names)
    until(lambda: nothing_found_anew(shared), "the doctor finds nothing any more", every=0.5)


# -- a cluster of the test's own, by pytest-celery's fixtures --------------------------------------------------------


@pytest.fixture
def site(request: pytest.FixtureRequest, broker_url: str, tmp_path: Path) -> Iterator[Site]:
    """Surroundings for a cluster, and no worker yet."""
    marker = request.node.get_closest_marker("cluster")
    asked = marker.kwargs if marker else {}
    yield from _site(request, tmp_path, broker_url, jobsync=asked.get("jobsync"), conf=asked.get("conf"))


@pytest.fixture
def celery_broker(site: Site) -> CeleryTestBroker:
    return CeleryTestBroker(LocalServer("broker", site.broker_url))


@pytest.fixture
def celery_backend(site: Site) -> CeleryTestBackend:
    return CeleryTestBackend(LocalServer("backend", site.backend_url))


@pytest.fixture
def celery_broker_cluster(celery_broker: CeleryTestBroker) -> CeleryBrokerCluster:
    return CeleryBrokerCluster(celery_broker)


@pytest.fixture
def celery_backend_cluster(celery_backend: CeleryTestBackend) -> CeleryBackendCluster:
    return CeleryBackendCluster(celery_backend)


@pytest.fixture
def celery_worker_cluster(request: pytest.FixtureRequest, site: Site) -> CeleryWorkerCluster:
    """The workers that the test's ``cluster`` mark names, started together and sharing the partitions."""
    marker = request.node.get_closest_marker("cluster")
    assert marker is not None, "a test with celery_setup says which workers it needs: @pytest.mark.cluster('w1')"
    workers = [site.worker(name, *marker.kwargs.get("options", ())) for name in marker.args]
    site.until_shared(*marker.args)
    return CeleryWorkerCluster(*workers)


@pytest.fixture
def celery_setup_cls() -> type[Setup]:
    return Setup


@pytest.fixture
def celery_setup_app(site: Site) -> Celery:
    return site.app


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show what the workers said when a test has failed."""
    report = yield
    if report.failed:
        for site in (getattr(item, "funcargs", {}).get(name) for name in ("site", "shared")):
            for worker in site.workers if site is not None else ():
                report.sections.append((f"log of {worker.hostname()}", worker.logs()[-_LOG_TAIL:]))
    return report
