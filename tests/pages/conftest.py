"""A reader for each page, and one cluster for the pages that speak of a cluster that is there."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
from e2e.site import with_database

from jobsync_celery.servers import PrivatePostgres, PrivateRedis
from pages.reader import NODE, Reader
from pages.snippets import ROOT

#: What comes up, and how one sees it.
LONG = {
    "celery -A proj worker": NODE,
    "celery -A proj beat": "beat: Starting",
    "python worker.py": NODE,
    "python feed.py": "opens device-",
}
#: The app that the operator guide speaks of; its tasks are those of examples/worker.py.
PROJ = """
import os
from worker import app, settle
from jobsync_celery import CoordinationConfig, JobSync

JobSync(app, CoordinationConfig(url=os.environ["DATABASE_URL"]))
"""
_DATABASES = itertools.cycle(range(2, 16))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """A durable one, as the pages suppose: the doctor complains of others."""
    with PrivatePostgres() as server:
        yield server


@contextmanager
def a_reader(postgres: PrivatePostgres, server: PrivateRedis, folder: Path, **how: Any) -> Iterator[Reader]:
    """Somebody with servers of their own, who begins with nothing in this folder."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    broker = with_database(server.url, next(_DATABASES))
    with closing(redis.Redis.from_url(broker)) as client:
        client.flushdb()
    _execute(postgres, f"CREATE DATABASE {name}")
    database = postgres.url_of(name, driver="postgresql")
    addresses = {
        "redis://localhost:6379/0": broker,
        "postgresql://user:password@localhost/dbname": database,
        "postgresql://user@localhost/dbname": database,
    }
    reader = Reader(folder, addresses, database, **{"long": LONG, **how})
    reader.environment |= {"DATABASE_URL": database, "BROKER_URL": broker}
    try:
        yield reader
    finally:
        reader.close()
        _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(postgres: PrivatePostgres, statement: str) -> None:
    with closing(psycopg2.connect(postgres.url_of("postgres", driver="postgresql"))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


@pytest.fixture
def reader(postgres: PrivatePostgres, redis_server: PrivateRedis, tmp_path: Path) -> Iterator[Reader]:
    """Somebody who begins with nothing."""
    with a_reader(postgres, redis_server, tmp_path) as reader:
        yield reader


@pytest.fixture
def operator(reader: Reader) -> Reader:
    """A reader with the app that the guide speaks of."""
    (reader.folder / "worker.py").write_text((ROOT / "examples" / "worker.py").read_text())
    (reader.folder / "proj.py").write_text(PROJ)
    return reader
