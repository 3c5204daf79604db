"""The tables: created at the first start by any number of processes at once, and upgraded by revisions."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.errors import ClusterMismatch, SchemaOutdated, StoreError
from jobsync_celery.store.database import Database, Link, Row, set_patience
from jobsync_celery.store.migrations import NEWEST

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

#: Seconds for the slow path: others may be creating the same tables, or holding old ones during an upgrade.
_PATIENCE = 60.0

_RESHAPE = "set it as stored, or begin another cluster under another appname"
_REMEDIES = {
    "total_tokens": _RESHAPE,
    "partitions": _RESHAPE,
    "hash_function": "set it as stored, or begin another cluster under another appname",
    "lock_partitions": _RESHAPE,
}


@dataclass(frozen=True)
class ClusterShape:
    """What all processes of a cluster have to agree on."""

    total_tokens: int
    partitions: int
    hash_function: str
    kind: str = "celery"
    lock_partitions: int = 1

    @property
    def tokens(self) -> TokenMap:
        """How keys map to tokens and partitions."""
        return TokenMap(self.total_tokens, self.partitions, self.hash_function)


@dataclass(frozen=True)
class ClusterInfo:
    """The cluster that the tables belong to; ``cluster_id`` is made once, at its creation."""

    cluster_id: str
    shape: ClusterShape
    created_on: datetime


def ensure_schema(database: Database, settings: ClusterShape) -> ClusterInfo:
    """Create or upgrade what is missing, and see that the cluster is of this shape.

    One statement when everything is there. Raises :class:`SchemaOutdated` if the tables are newer than this
    code, :class:`ClusterMismatch` if the cluster was created with another shape.
    """
    link = database.link("jobsync schema")
    try:
        info = _stored(database, link)
        if info is None:
            with link.transaction() as tx:
                set_patience(tx, _PATIENCE)
                info = _create(database, tx, settings)
    finally:
        link.close()
    _check_shape(database, info.shape, settings)
    return info


def find_cluster(database: Database) -> ClusterInfo | None:
    """The cluster that is there, of whatever shape; None if there are no tables, or older ones. Creates nothing."""
    link = database.link("jobsync schema")
    try:
        return _stored(database, link)
    finally:
        link.close()


def stored_cluster(database: Database) -> ClusterInfo:
    """The cluster that has to be there, of whatever shape; raises :class:`SchemaOutdated` if it is not."""
    info = find_cluster(database)
    if info is None:
        raise SchemaOutdated(
            f"no {database.prefix!r} tables of this version in {database.where}: no worker has started there yet, or"
            " with another appname"
        )
    return info


def drop_schema(database: Database) -> None:
    """Drop everything that :func:`ensure_schema` made, with all data; for tests and tools."""
    tables = asdict(database.tables)
    functions = [tables.pop(noun) for noun in ("timeline", "commit_claims", "locks_changed", "locks_checked")]
    view = tables.pop("token")
    sequences = [tables.pop(noun) for noun in ("incarnation_seq", "fence_seq")]
    with database.transaction("jobsync schema") as tx:
        set_patience(tx, _PATIENCE)
        _take_turns(database, tx)
        tx.exec_driver_sql(f"DROP VIEW IF EXISTS {view}")
        tx.exec_driver_sql(f"DROP TABLE IF EXISTS {', '.join(tables.values())}")
        tx.exec_driver_sql(f"DROP SEQUENCE IF EXISTS {', '.join(sequences)}")
        tx.exec_driver_sql(f"DROP FUNCTION IF EXISTS {', '.join(functions)}")


def _stored(database: Database, link: Link) -> ClusterInfo | None:
    """The cluster if its tables are of the newest revision, None if there is something to do."""
    query = (
        "SELECT version_num, cluster_id, kind, total_tokens, partitions, hash_function, lock_partitions,"
        " created_on FROM {schema}, {cluster}"
    )
    try:
        rows = link.statement(database.sql(query))
    except SchemaOutdated:
        return None
    return _cluster(rows[0]) if rows and rows[0].version_num == NEWEST else None


def _create(database: Database, tx: Connection, shape: ClusterShape) -> ClusterInfo:
    _check_namespace(database, tx)
    _take_turns(database, tx)
    _migrate(database, tx)
    row = tx.execute(database.sql("SELECT * FROM {cluster}")).first()
    if row is None:
        _seed(database, tx, shape)
        row = tx.execute(database.sql("SELECT * FROM {cluster}")).one()
    return _cluster(row)


def _check_namespace(database: Database, tx: Connection) -> None:
    """Say clearly what is missing before the first CREATE fails."""
    row = tx.execute(
        text(
            "SELECT current_user AS role, n.nspname AS schema,"
            " has_schema_privilege(n.oid, 'CREATE') AS may_create"
            " FROM pg_namespace n WHERE n.nspname = coalesce(:schema, current_schema())"
        ),
        {"schema": database.schema},
    ).first()
    if row is None:
        missing = f"schema {database.schema!r}" if database.schema else "any schema on the search path"
        raise StoreError(f"{database.where} does not have {missing}: run CREATE SCHEMA, or name another")
    exists = tx.execute(text("SELECT to_regclass(:table)"), {"table": database.tables.schema}).scalar()
    if exists is None and not row.may_create:
        raise StoreError(
            f"{row.role!r} may not create tables in {database.where}: run GRANT CREATE ON SCHEMA {row.schema}"
            f" TO {row.role}, or start once as a role that may"
        )


def _take_turns(database: Database, tx: Connection) -> None:
    """Until the end of the transaction nobody else creates, upgrades or drops these tables."""
    name = "coalesce(:schema, current_schema()) || :prefix"
    tx.execute(
        text(f"SELECT pg_advisory_xact_lock(hashtextextended({name}, 0))"),
        {"schema": database.schema, "prefix": f".{database.prefix}"},
    )


def _migrate(database: Database, tx: Connection) -> None:
    """Run the missing revisions inside the transaction."""
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    script = _revisions()
    options: dict[str, Any] = {
        "version_table": f"{database.prefix}schema",
        "version_table_schema": database.schema,
        "script": script,
        "fn": lambda current, _: script._upgrade_revs("heads", current),
    }
    context = MigrationContext.configure(connection=tx, opts=options)
    for revision in context.get_current_heads():
        _check_known(database, revision)
    names = {**asdict(database.tables), "prefix": database.prefix, "channel": database.channel}
    with Operations.context(context):
        context.run_migrations(names=names)


def _check_known(database: Database, revision: str) -> None:
    known = [each.revision for each in _revisions().walk_revisions()]
    if revision not in known:
        raise SchemaOutdated(
            f"the {database.prefix!r} tables in {database.where} are of revision {revision}, made by a newer"
            f" jobsync_celery; this one knows revisions up to {known[0]}: upgrade jobsync_celery here"
        )


@lru_cache(maxsize=1)
def _revisions() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(__file__).parent / "migrations"))


def _seed(database: Database, tx: Connection, shape: ClusterShape) -> None:
    """Write the cluster's row and its partitions."""
    tokens = shape.tokens
    ranges = [tokens.range(number) for number in range(shape.partitions)]
    tx.execute(
        database.sql(
            "INSERT INTO {cluster} (cluster_id, kind, total_tokens, partitions, hash_function, lock_partitions,"
            " timeline) VALUES (:cluster_id, :kind, :total_tokens, :partitions, :hash_function, :lock_partitions,"
            " {timeline}())"
        ),
        {"cluster_id": str(uuid.uuid4()), **asdict(shape)},
    )
    tx.execute(
        database.sql(
            "INSERT INTO {partition} (partition_id, first_token, last_token) SELECT * FROM unnest("
            "CAST(:numbers AS int[]), CAST(:firsts AS int[]), CAST(:lasts AS int[]))"
        ),
        {
            "numbers": list(range(shape.partitions)),
            "firsts": [each[0] for each in ranges],
            "lasts": [each[-1] for each in ranges],
        },
    )


def _cluster(row: Row) -> ClusterInfo:
    shape = ClusterShape(row.total_tokens, row.partitions, row.hash_function, row.kind, row.lock_partitions)
    return ClusterInfo(row.cluster_id, shape, row.created_on)


def _check_shape(database: Database, stored: ClusterShape, wanted: ClusterShape) -> None:
    if stored.kind != wanted.kind:
        raise ClusterMismatch(
            f"the cluster {database.prefix!r} in {database.where} was created by nodes of kind {stored.kind!r}, and"
            f" takes no others: use another appname here ({wanted.kind!r}), or drop its tables if that was a mistake"
        )
    differences = [
        f"{name}={theirs!r}, here {name}={ours!r} ({_REMEDIES[name]})"
        for name, theirs in asdict(stored).items()
        if (ours := getattr(wanted, name)) != theirs
    ]
    if differences:
        raise ClusterMismatch(
            f"the cluster {database.prefix!r} in {database.where} was created with " + "; ".join(differences)
        )
