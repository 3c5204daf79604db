"""A broker that is back is found soon, and one that never comes is given up when Celery would have given up."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from kombu import Connection
from kombu.exceptions import OperationalError

from jobsync_celery.plugin.reconnection import reconnect_soon


def nowhere() -> Connection:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Connection(f"redis://127.0.0.1:{free.getsockname()[1]}/0")


def tries(connection: Connection, max_retries: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between the tries, which nobody waits for here."""
    waits: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda seconds: None)
    with pytest.raises(OperationalError):
        connection.ensure_connection(lambda error, seconds: waits.append(seconds) or seconds, max_retries)
    return waits


@pytest.mark.parametrize("max_retries", [0, 1, 20])
def test_it_is_tried_again_every_two_seconds_for_as_long_as_celery_would(
    max_retries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tries(nowhere(), max_retries, monkeypatch)
    ours: Any = nowhere()
    reconnect_soon(ours)
    waits = tries(ours, max_retries, monkeypatch)
    assert max(waits, default=0) <= 2.0
    assert sum(waits) == pytest.approx(sum(theirs), abs=4)
