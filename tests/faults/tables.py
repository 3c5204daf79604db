"""Questions to the coordination database, over a direct connection that outages may break."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import psycopg2
import psycopg2.extras

from tests.faults.model import Sample
from tests.faults.waiting import now

Rows = list[dict[str, Any]]

_OPTIONS = {"connect_timeout": 2, "options": "-c statement_timeout=5000 -c default_transaction_read_only=off"}
_POLL_SEC = 0.2


class Tables:
    """One connection of our own, made again when it broke, to where the database is then; its callers take turns."""

    def __init__(self, dsn: Callable[[], str], name: str) -> None:
        self._dsn = dsn
        self._name = name
        self._connection: Any = None
        self._turn = threading.RLock()

    def rows(self, statement: str, *values: Any) -> Rows:
        """The answer; raises psycopg2's error, after one more try if the connection was found broken."""
        for last in (False, True):
            with self._turn:
                try:
                    return self._ask(statement, values)
                except (psycopg2.OperationalError, psycopg2.InterfaceError):
                    self.close()
                    if last:
                        raise
        raise AssertionError

    def ask(self, statement: str, *values: Any) -> Rows | None:
        """The answer; None while the database does not give one, for whatever reason."""
        try:
            return self.rows(statement, *values)
        except psycopg2.Error:
            return None

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        with self._turn, suppress(psycopg2.Error):
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _ask(self, statement: str, values: tuple[Any, ...]) -> Rows:
        if self._connection is None:
            self._connection = connected(self._dsn(), self._name)
        with closing(self._connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor)) as cursor:
            cursor.execute(statement, values)
            return [dict(row) for row in cursor.fetchall()] if cursor.description else []


def connected(dsn: str, name: str) -> Any:
    """A connection that commits each statement, and may write where the default is not to."""
    connection = psycopg2.connect(dsn, application_name=name, **_OPTIONS)
    connection.autocommit = True
    return connection


class Sampler(threading.Thread):
    """Looks five times a second who owns each partition; says nothing for the moments when nobody answers."""

    def __init__(self, dsn: Callable[[], str]) -> None:
        super().__init__(name="sampler", daemon=True)
        self._tables = Tables(dsn, "faults sampler")
        self._over = threading.Event()
        self.samples: list[Sample] = []

    def run(self) -> None:
        """Sample until :meth:`stop`."""
        while not self._over.wait(_POLL_SEC):
            at = now()
            rows = self._tables.ask("SELECT partition_id, owner FROM sync_partition WHERE pool = ''")
            if rows:
                self.samples.append(Sample(at, {row["partition_id"]: row["owner"] for row in rows}))
        self._tables.close()

    def stop(self) -> None:
        """Stop, and return when it has."""
        self._over.set()
        if self.is_alive():
            self.join()
