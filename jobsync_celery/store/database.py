"""The database: how to reach it, its timeouts, and what its tables are called."""

from __future__ import annotations

import hashlib
import io
import os
import re
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from sqlalchemy import URL, TextClause, create_engine, event, make_url, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from jobsync_celery.errors import SettingsError
from jobsync_celery.store.failures import translated
from jobsync_celery.store.link import Link, Row
from jobsync_celery.store.watchdog import Watchdog

__all__ = ["Connection", "Database", "Link", "Row", "Tables", "Timeouts", "copy_in", "set_patience", "translated"]

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*")
_LONGEST_SUFFIX = len("rebalance_triggered_at")
_PATIENCE = "jobsync_patience"
_COPIED = "jobsync_copied"

# One round trip; false means for the session. With synchronous_commit 'off' or 'local' as the server's
# default, a crash or failover would revive older leases and claims.
_SESSION = text(
    "SELECT set_config('application_name', :name, false),"
    " set_config('statement_timeout', :statement, false),"
    " set_config('lock_timeout', :lock, false),"
    " set_config('idle_in_transaction_session_timeout', :idle, false),"
    " set_config('default_transaction_isolation', 'read committed', false),"
    " set_config('synchronous_commit', CASE WHEN current_setting('synchronous_commit') IN ('off', 'local')"
    " THEN 'on' ELSE current_setting('synchronous_commit') END, false)"
)


@dataclass(frozen=True)
class Timeouts:
    """Limits of every database session, in seconds; each is to be well under the lease.

    ``connect`` counts per server address, and libpq takes at least 2 s. A statement that the server does not
    answer at all ends after ``statement`` + ``tcp_user``.
    """

    connect: float = 3.0
    statement: float = 2.0
    lock: float = 1.0
    idle_in_transaction: float = 3.0
    tcp_user: float = 3.0


@dataclass(frozen=True)
class Tables:
    """Tables, view, sequences and functions as SQL writes them: quoted, with the schema when there is one.

    ``{timeline}()`` is the timeline of the server's WAL as bigint: it grows at each failover, and is 0 where the
    server does not tell. ``commit_claims`` is the function behind :meth:`Claims.commit`; ``schema`` holds the
    revision of the tables.
    """

    cluster: str
    node: str
    profile: str
    partition: str
    token: str
    claim: str
    lock: str
    leader: str
    rebalance: str
    audit: str
    sighting: str
    observer: str
    observation: str
    schema: str
    incarnation_seq: str
    fence_seq: str
    timeline: str
    commit_claims: str
    locks_changed: str
    locks_checked: str


class Database:
    """One PostgreSQL database and a cluster's tables in it; opens nothing until it is used.

    Arguments:
        url: SQLAlchemy URL; a bare ``postgresql://`` means psycopg2.
        prefix: begins the name of every table.
        schema: holds the tables; None leaves it to the search path.
    """

    def __init__(
        self, url: str, *, prefix: str = "sync_", schema: str | None = None, timeouts: Timeouts | None = None
    ) -> None:
        self.prefix = _identifier("appname", prefix, 63 - _LONGEST_SUFFIX)
        self.schema = _identifier("schema", schema, 63) if schema is not None else None
        self.timeouts = timeouts or Timeouts()
        self.channel = _channel(self.schema or "public", prefix)
        self.tables = Tables(**{noun: self._quoted(noun) for noun in Tables.__dataclass_fields__})
        self._names = asdict(self.tables)
        parsed = _parsed(url)
        self.where = _where(parsed)
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()
        self._watchdog = Watchdog()
        self._engine = create_engine(
            parsed,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,
            use_native_hstore=False,
            hide_parameters=True,
            connect_args=self._connect_args(parsed),
        )
        event.listen(self._engine, "do_execute", self._execute_watched)

    def __repr__(self) -> str:
        return f"<Database {self.where} tables {self._quoted('')}>"

    @property
    def place(self) -> str:
        """Where the tables are, as messages name it."""
        return f"schema {self.schema!r} of {self.where}" if self.schema else self.where

    def link(self, name: str, timeouts: Timeouts | None = None) -> Link:
        """A connection of its own for one thread; ``name`` shows in ``pg_stat_activity``.

        Arguments:
            timeouts: in place of the database's, but for ``connect`` and ``tcp_user``.
        """
        link = Link(name, partial(self._open, limits=timeouts or self.timeouts), self.where)
        self._links.add(link)
        return link

    @contextmanager
    def transaction(self, name: str = "jobsync") -> Iterator[Connection]:
        """A transaction on a connection that is opened for it; for reports and tools."""
        with closing(self.link(name)) as link, link.transaction() as tx:
            yield tx

    def sql(self, template: str, **more: str) -> TextClause:
        """The statement with ``{node}`` and the like replaced by table names; literal braces are doubled.

        ``more`` adds names of its own; their values are such templates too.
        """
        parts = {name: part.format_map(self._names) for name, part in more.items()}
        return text(template.format_map({**self._names, **parts}))

    def discard_after_fork(self) -> None:
        """In a forked child: forget all of the parent's connections without a word to the server."""
        self._watchdog = Watchdog()
        for link in list(self._links):
            link.discard_after_fork()

    def _quoted(self, noun: str) -> str:
        name = f'"{self.prefix}{noun}"'
        return f'"{self.schema}".{name}' if self.schema else name

    def _open(self, name: str, limits: Timeouts) -> Connection:
        connection = self._engine.connect().execution_options(**{_PATIENCE: limits.statement})
        session = {
            "name": name,
            "statement": str(_milliseconds(limits.statement)),
            "lock": str(_milliseconds(limits.lock)),
            "idle": str(_milliseconds(limits.idle_in_transaction)),
        }
        try:
            connection.execute(_SESSION, session)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_args(self, url: URL) -> dict[str, Any]:
        limits = self.timeouts
        arguments: dict[str, Any] = {
            "connect_timeout": max(2, round(limits.connect)),
            "client_encoding": "UTF8",
            "keepalives": 1,
            "keepalives_idle": max(1, round(limits.tcp_user)),
            "keepalives_interval": 1,
            "keepalives_count": 3,
            "tcp_user_timeout": _milliseconds(limits.tcp_user),
        }
        if _has_several_hosts(url) and "target_session_attrs" not in url.query:
            arguments["target_session_attrs"] = "read-write"
        return arguments

    def _execute_watched(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        patience = context.execution_options.get(_PATIENCE, self.timeouts.statement)
        with self._watchdog.watching(cursor.connection.fileno(), patience + self.timeouts.tcp_user):
            if (copied := context.execution_options.get(_COPIED)) is None:
                cursor.execute(statement, parameters)
            else:
                cursor.copy_expert(statement, io.BytesIO(copied), len(copied))  # in one piece: each takes the GIL
        return True


def copy_in(tx: Connection, sql: TextClause, copied: bytes) -> None:
    """Run ``COPY … FROM STDIN`` within a transaction, with this as its input."""
    tx.execute(sql, execution_options={_COPIED: copied})


def set_patience(tx: Connection, seconds: float, silence: float | None = None) -> None:
    """Let the rest of this transaction take longer than the session's timeouts; see :class:`Timeouts`.

    The client's own limit stays raised for the connection: use it on short-lived ones.

    Arguments:
        silence: seconds after which the server ends a client that says nothing; as long as a statement if not given.
    """
    tx.execution_options(**{_PATIENCE: seconds})
    limits = {
        "statement_timeout": seconds,
        "lock_timeout": seconds,
        "idle_in_transaction_session_timeout": seconds if silence is None else silence,
    }
    columns = ", ".join(f"set_config('{name}', :{name}, true)" for name in limits)
    tx.execute(text(f"SELECT {columns}"), {name: str(_milliseconds(limit)) for name, limit in limits.items()})


def _milliseconds(seconds: float) -> int:
    """Zero would switch a timeout off."""
    return max(1, round(seconds * 1000))


def _identifier(setting: str, name: str, longest: int) -> str:
    if not _IDENTIFIER.fullmatch(name) or len(name) > longest:
        raise SettingsError(
            f"{setting}={name!r} cannot name tables: use lower-case letters, digits and '_', not beginning"
            f" with a digit, at most {longest} characters"
        )
    return name


def _parsed(url: str) -> URL:
    """The URL for psycopg2; errors do not quote it, since it holds the password."""
    try:
        parsed = make_url(re.sub(r"^postgres(ql)?:", "postgresql+psycopg2:", url))
    except (ArgumentError, ValueError):
        raise SettingsError("no database URL: write postgresql://user:password@host:port/dbname") from None
    if parsed.drivername != "postgresql+psycopg2":
        raise SettingsError(f"no database URL for psycopg2: {parsed.drivername!r}; write postgresql://…")
    if "@" in (parsed.host or ""):
        raise SettingsError("the database URL has two '@'; write '@' in the user or password as %40")
    return parsed


def _where(url: URL) -> str:
    """Server and database as messages name them; no user, no password."""
    given = os.environ.get
    several = url.query.get("host", ())
    hosts = [url.host] if url.host else [several] if isinstance(several, str) else list(several)
    server = ",".join(str(host) for host in hosts) or given("PGHOST") or "local socket"
    port = f":{url.port}" if url.port else ""
    return f"database {url.database or given('PGDATABASE') or url.username or 'default'} at {server}{port}"


def _has_several_hosts(url: URL) -> bool:
    hosts = url.query.get("host", ())
    return "," in hosts if isinstance(hosts, str) else len(hosts) > 1


def _channel(schema: str, prefix: str) -> str:
    """At most 63 characters, and different for each schema and prefix."""
    digest = hashlib.sha256(f"{schema}.{prefix}".encode()).hexdigest()[:12]
    return f"jobsync_{prefix[:40].strip('_')}_{digest}"
