"""A dedicated database connection for one thread."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from sqlalchemy import TextClause, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from jobsync_celery.errors import StoreError
from jobsync_celery.store.failures import breaks_session, translated

Row: TypeAlias = Any
"""A SQLAlchemy row of a textual statement: its columns are known to the statement only."""

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_IN_FAILED_TRANSACTION = 3  # libpq's PQTRANS_INERROR

#: Connections inherited through a fork: kept, since collecting them would close them politely.
_abandoned: list[Connection] = []


class Link:
    """A connection that is opened at first use, and again after it broke; made by :meth:`Database.link`.

    A link belongs to one thread at a time. Every failure is raised as a :class:`StoreError`; after one that
    broke the connection, the next use connects again. Work is never repeated by itself.
    """

    def __init__(self, name: str, connect: Callable[[str], Connection], where: str) -> None:
        self.name = name
        self._connect = connect
        self._where = where
        self._connection: Connection | None = None
        self._channels: list[str] = []
        self._received: list[str] = []

    def __repr__(self) -> str:
        return f"<Link {self.name!r} to {self._where}, {'connected' if self.connected else 'not connected'}>"

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known here without asking the server."""
        return self._connection is not None

    def statement(self, sql: TextClause, params: Mapping[str, Any] | None = None) -> list[Row]:
        """Run one statement that commits by itself; exactly one round trip when connected."""
        with self._translating():
            result = self._live().execute(sql, params or {})
            return list(result.all()) if result.returns_rows else []

    def command(self, sql: TextClause) -> list[str]:
        """Run a command that belongs in no transaction; what the server remarked on it: warnings, notices."""
        with self._translating():
            connection = self._live()
            driver = _driver(connection)
            driver.notices = remarks = _Remarks()
            try:
                connection.execute(sql)
            finally:
                driver.notices = []
        return [" ".join(line.partition(":")[2].split()) for line in remarks.lines]

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A READ COMMITTED transaction; commits at the end of the block, rolls back on any exception.

        An error at the commit leaves open whether it took place: :class:`StoreUnavailable` then.
        """
        with self._translating():
            connection = self._live()
            try:
                connection.exec_driver_sql(_BEGIN)
                yield connection
                self._commit(connection)
            except BaseException:
                self._roll_back(connection)
                raise

    def listen(self, channel: str) -> None:
        """Receive what is notified on ``channel``, now and after each reconnect."""
        if channel in self._channels:
            return
        self._channels.append(channel)
        try:
            if self._connection is None:
                self.connect()
            else:
                self.statement(_listen(channel))
        except StoreError:
            self.close()  # so that the next use connects, and listens
            raise

    def connect(self) -> None:
        """Connect now if there is no connection."""
        with self._translating():
            self._live()

    def wait(self, timeout: float, wake_fd: int | None = None) -> list[str]:
        """Wait for notifications, at most ``timeout`` seconds or until ``wake_fd`` is readable; never raises.

        Returns the payloads that arrived since the last call, at once if there are any. A connection found
        broken is dropped, and the wait ends: notifications may be lost then, so look for yourself.
        """
        end = time.monotonic() + timeout
        had_connection = self.connected
        received = self.notifications()
        while not received and self.connected == had_connection:
            remaining = end - time.monotonic()
            if remaining <= 0 or self._sleep(remaining, wake_fd):
                return self.notifications()
            received = self.notifications()
        return received

    def notifications(self) -> list[str]:
        """The payloads that arrived since the last call; does not wait."""
        self._read_pending()
        received, self._received = self._received, []
        return received

    def close(self) -> None:
        """Close the connection; a later use opens it again."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if not connection.invalidated:
            self._collect(_driver(connection))
        try:
            connection.close()
        except SQLAlchemyError:
            pass  # broken already

    def discard_after_fork(self) -> None:
        """In a forked child: forget the parent's connection without a word to the server."""
        connection, self._connection = self._connection, None
        self._received = []
        if connection is None:
            return
        _abandoned.append(connection)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, _driver(connection).fileno())
        os.close(null)

    def _live(self) -> Connection:
        """The connection; a server that hung up meanwhile is noticed here, without a round trip."""
        self._read_pending()
        if self._connection is None:
            connection = self._connect(self.name)
            try:
                for channel in self._channels:
                    connection.execute(_listen(channel))
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _read_pending(self) -> None:
        """Take in what the socket holds; drop the connection if the server closed it."""
        if self._connection is not None and self._connection.invalidated:
            self.close()  # SQLAlchemy would connect again by itself, without our session
        if self._connection is None:
            return
        try:
            driver = _driver(self._connection)
            driver.poll()
            if _readable(driver.fileno()):  # a server's farewell: its end of file comes after it
                driver.poll()
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it is of no more use
            self.close()
        else:
            self._collect(driver)

    def _collect(self, driver: Any) -> None:
        while driver.notifies:
            self._received.append(driver.notifies.pop(0).payload)

    def _sleep(self, timeout: float, wake_fd: int | None) -> bool:
        """Sleep until there is something to read; whether it was ``wake_fd`` (or the time is over)."""
        poller = select.poll()
        if wake_fd is not None:
            poller.register(wake_fd, select.POLLIN)
        if self._connection is not None:
            poller.register(_driver(self._connection).fileno(), select.POLLIN)
        ready = [fileno for fileno, _ in poller.poll(max(1, round(timeout * 1000)))]
        return not ready or wake_fd in ready

    def _commit(self, connection: Connection) -> None:
        if _driver(connection).info.transaction_status == _IN_FAILED_TRANSACTION:
            raise StoreError("a statement of the transaction failed, unnoticed by its caller: rolled back")
        connection.exec_driver_sql("COMMIT")
        connection.commit()  # ends what SQLAlchemy tracks; sends nothing

    def _roll_back(self, connection: Connection) -> None:
        if connection.invalidated:
            return self.close()
        try:
            connection.rollback()  # ends what SQLAlchemy tracks; sends nothing
            connection.exec_driver_sql("ROLLBACK")
        except Exception:  # noqa: BLE001 - closing it rolls back as well
            self.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            if breaks_session(error):
                self.close()
            raise translated(error, self._where) from error


class _Remarks:
    """In place of psycopg2's list of notices, which SQLAlchemy empties."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def append(self, line: str) -> None:
        self.lines.append(line)


def _driver(connection: Connection) -> Any:
    """psycopg2's own connection."""
    return connection.connection.dbapi_connection


def _readable(fileno: int) -> bool:
    poller = select.poll()
    poller.register(fileno, select.POLLIN)
    return bool(poller.poll(0))


def _listen(channel: str) -> TextClause:
    quoted = channel.replace('"', '""')
    return text(f'LISTEN "{quoted}"')
