"""Jobs of one process on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobsync_celery import CoordinationConfig

Configure = Callable[..., CoordinationConfig]


@pytest.fixture
def configure(database_url: str) -> Configure:
    """The settings of a cluster of the test's own, with a lease of seconds."""

    def configure(**settings: object) -> CoordinationConfig:
        settings = {"heartbeat_interval_sec": 0.5, "heartbeat_timeout_sec": 4, **settings}
        return CoordinationConfig(url=database_url, **settings)  # type: ignore[arg-type] # they are checked there

    return configure


@pytest.fixture
def config(configure: Configure) -> CoordinationConfig:
    """Those settings."""
    return configure()
