"""The user's own transaction, as something that runs a statement: SQLAlchemy, Django, psycopg2 and psycopg 3.

Django and psycopg 3 are recognised without being imported: who does not use them need not install them. Nor is
SQLAlchemy's ORM, which takes a tenth of a second of every worker's start.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from inspect import iscoroutinefunction
from typing import Any

from psycopg2 import extensions
from sqlalchemy import TextClause
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.engine import Connection

from jobsync_celery.errors import StoreError

Params = Mapping[str, Any]

_ACCEPTED = (
    "give a SQLAlchemy Session or Connection, a Django connection (django.db.connection or connections[alias]),"
    " or a connection of psycopg2 or psycopg 3"
)


@dataclass(frozen=True)
class Handle:
    """Runs a statement in the user's transaction, for its only row; ``begin`` says how the user opens one."""

    row: Callable[[TextClause, Params], Sequence[Any]]
    begin: str


def handle_of(given: Any) -> Handle:
    """What the user gave to a guard; raises :class:`StoreError` if it can guard nothing. Asks no server."""
    if _is_async(given):
        raise StoreError(
            f"guard() and complete() cannot wait for an async {type(given).__name__}: with SQLAlchemy write"
            f" `await session.run_sync(claim.guard)`; otherwise {_ACCEPTED}"
        )
    if _is_session(given):
        given = given.connection()
    if isinstance(given, Connection):
        return _of_sqlalchemy(given)
    if all(hasattr(given, name) for name in ("vendor", "cursor", "in_atomic_block")):
        return _of_django(given)
    if isinstance(given, extensions.connection):
        return _of_psycopg2(given)
    if _is_psycopg(given):
        return _of_psycopg(given)
    raise StoreError(f"guard() and complete() cannot use {type(given).__name__!r}: {_ACCEPTED}")


def _of_sqlalchemy(connection: Connection) -> Handle:
    _expect_postgresql(connection.dialect.name)
    return Handle(
        lambda statement, params: connection.execute(statement, params).one(),
        "use `with session.begin():` or `with engine.begin() as connection:`, not isolation_level='AUTOCOMMIT'",
    )


def _of_django(connection: Any) -> Handle:
    _expect_postgresql(connection.vendor)
    return Handle(_through(connection.cursor), "use `with transaction.atomic():`, with `using=` if it is not 'default'")


def _of_psycopg2(connection: Any) -> Handle:
    return Handle(
        # A cursor of our own: the connection's may answer with dictionaries.
        _through(lambda: connection.cursor(cursor_factory=extensions.cursor)),
        "switch `connection.autocommit` off, and end with commit() or `with connection:`",
    )


def _of_psycopg(connection: Any) -> Handle:
    tuples = import_module("psycopg.rows").tuple_row
    return Handle(
        _through(lambda: connection.cursor(row_factory=tuples)),
        "use `with connection.transaction():`, or switch `connection.autocommit` off",
    )


def _through(cursor_of: Callable[[], Any]) -> Callable[[TextClause, Params], Sequence[Any]]:
    def row(statement: TextClause, params: Params) -> Sequence[Any]:
        with cursor_of() as cursor:
            cursor.execute(_with_percent_names(statement), params)
            found: Sequence[Any] = cursor.fetchone()
            return found

    return row


@lru_cache(maxsize=32)
def _with_percent_names(statement: TextClause) -> str:
    """``:name`` as ``%(name)s``, which is how Django and both psycopgs bind."""
    dialect = PGDialect(paramstyle="pyformat")  # type: ignore[no-untyped-call]
    return str(statement.compile(dialect=dialect))


def _expect_postgresql(kind: str) -> None:
    if kind != "postgresql":
        raise StoreError(
            f"this connection is to {kind}: guard() and complete() need the PostgreSQL database that"
            " CoordinationConfig names; elsewhere let the other side compare claim.fence"
        )


def _is_async(given: Any) -> bool:
    return any(iscoroutinefunction(getattr(type(given), name, None)) for name in ("commit", "execute"))


def _is_session(given: Any) -> bool:
    orm = sys.modules.get("sqlalchemy.orm")
    # Another thread may be importing it just now; then this is no session yet.
    return isinstance(given, tuple(getattr(orm, name) for name in ("Session", "scoped_session") if hasattr(orm, name)))


def _is_psycopg(given: Any) -> bool:
    return any(base.__module__.partition(".")[0] == "psycopg" for base in type(given).__mro__) and hasattr(
        given, "cursor"
    )
