"""Links to a fresh database, and a proxy before it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from relay import Relay

from jobsync_celery.store.database import Database, Link, Timeouts


@pytest.fixture
def relay(database_url: str) -> Iterator[Relay]:
    relay = Relay(database_url)
    yield relay
    relay.close()


@pytest.fixture
def database(database_url: str) -> Database:
    return Database(database_url, timeouts=Timeouts(statement=1.0, lock=0.3))


@pytest.fixture
def link(database: Database) -> Iterator[Link]:
    link = database.link("jobsync test")
    yield link
    link.close()


@pytest.fixture
def other(database: Database) -> Iterator[Link]:
    link = database.link("jobsync other")
    yield link
    link.close()
