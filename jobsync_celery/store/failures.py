"""What the driver raises, in the store's own words; nothing else interprets driver errors."""

from __future__ import annotations

from jobsync_celery.errors import SchemaOutdated, StoreError, StoreUnavailable

#: The server cannot serve now: timed out, locked out, a standby, or it chose this transaction to be repeated.
_UNAVAILABLE = frozenset({"57014", "55P03", "25006", "25P03", "25P04", "40001", "40P01"})
_UNAVAILABLE_CLASSES = frozenset({"08", "53", "57", "58"})
#: Somebody else held what was asked for, longer than one was ready to wait; or each waited for the other.
_HELD = frozenset({"55P03", "40P01"})
#: A table, column or schema is missing.
_OUTDATED = frozenset({"42P01", "42703", "3F000"})
#: This session is of no more use, whatever the driver thinks: shut down, or its server became a standby.
_BREAKING = frozenset({"25006", "25P03", "25P04", "57P01", "57P02", "57P03", "57P04", "57P05"})

_UNKNOWN_OPTION = "invalid connection option"


def translated(error: BaseException, where: str = "") -> StoreError:
    """The store's error for a driver's or SQLAlchemy's; raise it ``from`` the original.

    ``where`` names the server. The message quotes the server, or for a failed connection the client library,
    neither of which knows the password. ``sqlstate`` is None where the server gave none.
    """
    cause = getattr(error, "orig", None) or error
    state = sqlstate_of(error)
    failure = _kind(cause, state)(f"{where}: {_message(cause, state)}" if where else _message(cause, state))
    failure.sqlstate = state  # type: ignore[attr-defined]
    return failure


def sqlstate_of(error: BaseException) -> str | None:
    """The five-character code of the server's error, if it sent one."""
    state = getattr(getattr(error, "orig", None) or error, "pgcode", None)
    return str(state) if state else None


def met_a_lock(error: StoreError) -> bool:
    """Whether somebody else held what was asked for: nothing was changed, and another time it may be free."""
    return getattr(error, "sqlstate", None) in _HELD


def breaks_session(error: BaseException) -> bool:
    """Whether the session that met this error has to be replaced."""
    return sqlstate_of(error) in _BREAKING or bool(getattr(error, "connection_invalidated", False))


def met_a_newer_row(error: BaseException) -> bool:
    """Whether a statement under REPEATABLE READ or SERIALIZABLE met a row that was written after its snapshot.

    Of the serialization failures those that locking or changing a row raises, told apart by the server's source file:
    messages are translated. Knows the errors of psycopg2 and psycopg 3, also inside SQLAlchemy's and Django's.
    """
    for each in (error, getattr(error, "orig", None), error.__cause__):
        told = getattr(each, "diag", None)
        if told is not None:
            return told.sqlstate == "40001" and told.source_file in ("nodeLockRows.c", "nodeModifyTable.c")
    return False


def _kind(cause: BaseException, state: str | None) -> type[StoreError]:
    if state is None:
        return StoreUnavailable if _is_connection_trouble(cause) else StoreError
    if state in _UNAVAILABLE or state[:2] in _UNAVAILABLE_CLASSES:
        return StoreUnavailable
    return SchemaOutdated if state in _OUTDATED else StoreError


def _is_connection_trouble(cause: BaseException) -> bool:
    """By name: psycopg2 gives failures of the connection itself no code; some are plain DatabaseErrors."""
    return type(cause).__name__ in ("OperationalError", "InterfaceError", "DatabaseError")


def _message(cause: BaseException, state: str | None) -> str:
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    if primary:
        return f"{primary} (SQLSTATE {state})" if state else str(primary)
    if _is_connection_trouble(cause):
        return " ".join(str(cause).split()) or type(cause).__name__
    if _UNKNOWN_OPTION in str(cause):  # quotes the option's name and no value
        return " ".join(str(cause).split())
    return type(cause).__name__
