"""The kinds of connections that users have, driven alike."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import django
import django.db
import psycopg
import psycopg2
from django.conf import settings
from django.db import transaction
from django.db.utils import ConnectionHandler
from psycopg.rows import dict_row
from psycopg2.extras import RealDictCursor
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import Session, scoped_session, sessionmaker

ISOLATIONS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


def is_serialization_failure(error: BaseException) -> bool:
    """Whether PostgreSQL wants the transaction to be tried again, by whichever library it says so."""
    causes = (error, getattr(error, "orig", None), error.__cause__)
    return any("40001" in (getattr(each, "pgcode", None), getattr(each, "sqlstate", None)) for each in causes)


class Hand(ABC):
    """One connection to ``url``; ``handle`` is what goes to the guard."""

    handle: Any

    def __init__(self, url: str, isolation: str = ISOLATIONS[0]) -> None:
        self.url = make_url(url)
        level = isolation.lower().replace(" ", r"\ ")
        self.options = f"-c default_transaction_isolation={level}"
        self.plain_url = re.sub(r"^postgresql\+\w+", "postgresql", url)

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Any]:
        """Commits at the end of the block, rolls back on an exception."""

    @abstractmethod
    def autocommit(self) -> AbstractContextManager[Any]:
        """No transaction: every statement commits by itself."""

    @abstractmethod
    def execute(self, statement: str, values: Mapping[str, Any] | None = None) -> Any:
        """Run a statement with ``%(name)s`` values, beside the guard; the rows of a SELECT."""

    @abstractmethod
    def close(self) -> None:
        """Give the connection back."""


class _SQLAlchemy(Hand):
    driver = "psycopg2"

    def __init__(self, url: str, isolation: str = ISOLATIONS[0]) -> None:
        super().__init__(url, isolation)
        self.engine = create_engine(
            self.url.set(drivername=f"postgresql+{self.driver}"), connect_args={"options": self.options}
        )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self.engine.begin() as self.handle:
            yield

    @contextmanager
    def autocommit(self) -> Iterator[None]:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as self.handle:
            yield

    def execute(self, statement: str, values: Mapping[str, Any] | None = None) -> Any:
        result = self.connection.exec_driver_sql(statement, dict(values or {}))
        return [tuple(row) for row in result] if result.returns_rows else []

    @property
    def connection(self) -> Any:
        return self.handle

    def close(self) -> None:
        self.engine.dispose()


class _SQLAlchemyOnPsycopg(_SQLAlchemy):
    driver = "psycopg"


class _OrmSession(_SQLAlchemy):
    @contextmanager
    def transaction(self) -> Iterator[None]:
        with Session(self.engine) as self.handle, self.handle.begin():
            yield

    @contextmanager
    def autocommit(self) -> Iterator[None]:
        with Session(self.engine.execution_options(isolation_level="AUTOCOMMIT")) as self.handle:
            yield

    @property
    def connection(self) -> Any:
        return self.handle.connection()


class _ScopedSession(_OrmSession):
    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.handle = scoped_session(sessionmaker(self.engine))
        try:
            with self.handle.begin():
                yield
        finally:
            self.handle.remove()


class _Driver(Hand):
    def execute(self, statement: str, values: Mapping[str, Any] | None = None) -> Any:
        with self.cursor() as cursor:
            cursor.execute(statement, values or {})
            return cursor.fetchall() if cursor.description else []

    def cursor(self) -> Any:
        return self.handle.cursor()

    def close(self) -> None:
        self.handle.close()


class _Psycopg2(_Driver):
    def __init__(self, url: str, isolation: str = ISOLATIONS[0]) -> None:
        super().__init__(url, isolation)
        self.handle = psycopg2.connect(self.plain_url, options=self.options, cursor_factory=RealDictCursor)

    def cursor(self) -> Any:
        return self.handle.cursor(cursor_factory=psycopg2.extensions.cursor)

    def transaction(self) -> AbstractContextManager[Any]:
        self.handle.autocommit = False
        connection: AbstractContextManager[Any] = self.handle
        return connection

    @contextmanager
    def autocommit(self) -> Iterator[None]:
        self.handle.autocommit = True
        yield


class _Psycopg(_Driver):
    def __init__(self, url: str, isolation: str = ISOLATIONS[0]) -> None:
        super().__init__(url, isolation)
        self.handle = psycopg.connect(
            self.plain_url, options=self.options, autocommit=True, row_factory=dict_row, prepare_threshold=1
        )

    def cursor(self) -> Any:
        return self.handle.cursor(row_factory=psycopg.rows.tuple_row)

    def transaction(self) -> AbstractContextManager[Any]:
        return self.handle.transaction()  # type: ignore[no-any-return]

    @contextmanager
    def autocommit(self) -> Iterator[None]:
        yield


class _Django(_Driver):
    """``connections[alias]``, without a Django project around it."""

    def __init__(self, url: str, isolation: str = ISOLATIONS[0]) -> None:
        super().__init__(url, isolation)
        if not settings.configured:
            settings.configure(LOGGING_CONFIG=None)
            django.setup()
        address = {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": self.url.host,
            "PORT": self.url.port,
            "NAME": self.url.database,
            "USER": self.url.username,
            "PASSWORD": self.url.password,
            "OPTIONS": {"options": self.options},
        }
        self.alias = f"{self.url.database} {isolation}"
        self.handle = ConnectionHandler({"default": address})["default"]
        django.db.connections[self.alias] = self.handle  # where transaction.atomic(using=...) looks, in this thread

    def transaction(self) -> AbstractContextManager[Any]:
        return transaction.atomic(using=self.alias)

    @contextmanager
    def autocommit(self) -> Iterator[None]:
        yield


KINDS: dict[str, type[Hand]] = {
    "SQLAlchemy Connection": _SQLAlchemy,
    "SQLAlchemy on psycopg 3": _SQLAlchemyOnPsycopg,
    "SQLAlchemy Session": _OrmSession,
    "scoped_session": _ScopedSession,
    "Django": _Django,
    "psycopg2": _Psycopg2,
    "psycopg 3": _Psycopg,
}
