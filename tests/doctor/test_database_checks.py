"""Servers that are not as they should be, each for real, and what the doctor says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import NoReturn
from urllib.parse import urlsplit

import psycopg2
import pytest
from faults.servers import Postgres, Standby, can_stand_by
from pooler import Pooler

from jobsync_celery.doctor.doctor import examine
from jobsync_celery.doctor.finding import Finding
from jobsync_celery.servers import PrivatePostgres
from jobsync_celery.store.database import Database
from jobsync_celery.store.schema import ClusterShape, ensure_schema
from jobsync_celery.store.store import Store

SHAPE = ClusterShape(100, 4, "md5")


@pytest.fixture(scope="module")
def durable() -> Iterator[PrivatePostgres]:
    """A server as it should be, but for the number of its connections."""
    with PrivatePostgres(settings={"max_connections": "12", "superuser_reserved_connections": "2"}) as server:
        yield server


def found(url: str) -> dict[str, Finding]:
    """Check -> what it finds, but that there is no node."""
    findings = examine(Store(Database(url)), None, None, moment=0).findings
    return {each.check: each for each in findings if each.check != "no-leader"}


def made(url: str) -> str:
    """A URL at which there are tables."""
    ensure_schema(Database(url), SHAPE)
    return url


def test_of_a_server_that_is_well_nothing_is_said(durable: PrivatePostgres) -> None:
    assert found(made(durable.url)) == {}


def test_a_server_that_is_nearly_out_of_connections(durable: PrivatePostgres) -> None:
    url = made(durable.url)
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(closing(psycopg2.connect(durable.url_of("postgres", "postgresql"))))
        [(check, named)] = found(url).items()
        assert check == "connections-exhausted"
        assert named.evidence[0].endswith("of 10 are in use")


def test_a_server_that_forgets_what_it_has_promised(postgres: PrivatePostgres, database_url: str) -> None:
    url = made(database_url)
    name = urlsplit(url).path[1:]
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as session, session.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        session.commit()
    # The tests' server runs without fsync.
    named = [each for each in examine(Store(Database(url)), None, None).findings if each.check == "not-durable"]
    assert [each.severity for each in named] == ["problem", "risk"]


@pytest.mark.slow
def test_a_standby_that_is_not_synchronous_and_a_url_that_leads_to_it(leave_out: Callable[[str], NoReturn]) -> None:
    if not can_stand_by():
        leave_out("a standby needs pg_basebackup, which PostgreSQL's server package has")
    with Postgres(None, None) as primary:
        url = made(primary.url)
        with Standby(primary, urlsplit(primary.dsn).port or 0) as standby:
            assert "1 standby" in found(url)["asynchronous-standby"].evidence[0]
            assert "database-read-only" in found(standby.url)


def test_a_pooler_in_transaction_mode(durable: PrivatePostgres) -> None:
    url = made(durable.url)
    parts = urlsplit(url)
    with closing(Pooler(durable.url_of(parts.path[1:], "postgresql"))) as pooler:
        way = parts._replace(netloc=f"postgres@127.0.0.1:{pooler.port}", query="sslmode=disable&gssencmode=disable")
        assert "transaction-pooling" in found(way.geturl())
