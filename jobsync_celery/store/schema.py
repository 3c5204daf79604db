"""The tables: created at the first start by any number of processes at once, and upgraded by revisions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.engine import Connection

from jobsync_celery.errors import ClusterMismatch, SchemaOutdated
from jobsync_celery.store import migrations
from jobsync_celery.store.database import Database, Link, Row, set_patience
from jobsync_celery.store.revisions import (
    ClusterShape,
    check_known,
    check_namespace,
    found_revision,
    migrate,
    revision_of,
    seed,
)

__all__ = [
    "ClusterInfo",
    "ClusterShape",
    "cluster_in",
    "ensure_schema",
    "ensure_tables",
    "find_cluster",
    "has_tables",
    "known_revision",
    "locked_cluster",
    "stored_cluster",
    "upgrade_schema",
]

#: Seconds for the slow path: others may be creating the same tables, or holding old ones during an upgrade.
_PATIENCE = 60.0

_RESHAPE = "with all workers stopped run jobsync schema reshape, or "


@dataclass(frozen=True)
class ClusterInfo:
    """The cluster that the tables belong to; ``cluster_id`` is made once, at its creation.

    ``former``: the shapes that it had before, the oldest first. Messages may still lie in their queues.
    """

    cluster_id: str
    shape: ClusterShape
    created_on: datetime
    former: tuple[ClusterShape, ...] = ()


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


def ensure_tables(database: Database) -> None:
    """Create or upgrade the tables, and begin no cluster: its shape is left to the first node that coordinates."""
    if has_tables(database):
        return
    with database.transaction("jobsync schema") as tx:
        set_patience(tx, _PATIENCE)
        _prepare(database, tx)


def upgrade_schema(database: Database, shape: ClusterShape) -> tuple[str | None, ClusterInfo]:
    """Create or upgrade what is missing; the revision that was found, and the cluster that is there now.

    Only a cluster that is created has this shape; another one keeps its own.
    """
    with database.transaction("jobsync schema") as tx:
        set_patience(tx, _PATIENCE)
        _take_turns(database, tx)
        before = found_revision(database, tx)
        return before, _create(database, tx, shape)


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
        revision = known_revision(database)
        if revision == migrations.NEWEST and has_tables(database):
            raise SchemaOutdated(
                f"the {database.prefix!r} tables in {database.place} hold observations only: ask jobsync observe. No"
                " worker coordinates there yet; if one did, they are incomplete: run jobsync schema upgrade"
            )
        state = f"are of revision {revision}, and {migrations.NEWEST} is needed"
        if revision == migrations.NEWEST:
            state = "are incomplete"
        raise SchemaOutdated(f"the {database.prefix!r} tables in {database.place} {state}: run jobsync schema upgrade")
    return info


def known_revision(database: Database, *, missing: bool = False) -> str | None:
    """The revision of the tables.

    Raises :class:`SchemaOutdated` if this code does not know it, and if there are no tables, unless they may be
    ``missing``.
    """
    revision = revision_of(database)
    if revision is not None:
        check_known(database, revision)
    elif not missing:
        raise SchemaOutdated(
            f"no {database.prefix!r} tables in {database.place}: no worker has started there yet, or with another"
            " appname or schema"
        )
    return revision


def has_tables(database: Database) -> bool:
    """Whether the tables are there, of this version, with or without a cluster."""
    link = database.link("jobsync schema")
    try:
        rows = link.statement(database.sql("SELECT version_num FROM {schema} LEFT JOIN {cluster} ON true"))
    except SchemaOutdated:
        return False
    finally:
        link.close()
    return bool(rows) and bool(rows[0].version_num == migrations.NEWEST)


def locked_cluster(database: Database, tx: Connection, shape: ClusterShape) -> None:
    """See that the cluster is of this shape, and keep it so until the transaction ends.

    Raises :class:`ClusterMismatch` if it was reshaped.
    """
    row = tx.execute(database.sql("SELECT * FROM {cluster} FOR KEY SHARE")).one()
    _check_shape(database, cluster_in(row).shape, shape)


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
        " former, created_on FROM {schema}, {cluster}"
    )
    try:
        rows = link.statement(database.sql(query))
    except SchemaOutdated:
        return None
    return cluster_in(rows[0]) if rows and rows[0].version_num == migrations.NEWEST else None


def _prepare(database: Database, tx: Connection) -> None:
    check_namespace(database, tx)
    _take_turns(database, tx)
    migrate(database, tx)


def _create(database: Database, tx: Connection, shape: ClusterShape) -> ClusterInfo:
    _prepare(database, tx)
    row = tx.execute(database.sql("SELECT * FROM {cluster}")).first()
    if row is None:
        for statement in seed(database, shape):
            tx.execute(statement)
        row = tx.execute(database.sql("SELECT * FROM {cluster}")).one()
    return cluster_in(row)


def _take_turns(database: Database, tx: Connection) -> None:
    """Until the end of the transaction nobody else creates, upgrades or drops these tables."""
    name = "coalesce(:schema, current_schema()) || :prefix"
    tx.execute(
        text(f"SELECT pg_advisory_xact_lock(hashtextextended({name}, 0))"),
        {"schema": database.schema, "prefix": f".{database.prefix}"},
    )


def cluster_in(row: Row) -> ClusterInfo:
    """The cluster that a row of ``sync_cluster`` describes."""
    shape = ClusterShape(row.total_tokens, row.partitions, row.hash_function, row.kind, row.lock_partitions)
    former = tuple(ClusterShape(kind=row.kind, **each) for each in row.former)
    return ClusterInfo(row.cluster_id, shape, row.created_on, former)


def _check_shape(database: Database, stored: ClusterShape, wanted: ClusterShape) -> None:
    if stored.kind != wanted.kind:
        raise ClusterMismatch(
            f"the cluster {database.prefix!r} in {database.where} was created by nodes of kind {stored.kind!r}, and"
            f" takes no others: use another appname here ({wanted.kind!r}), or drop its tables if that was a mistake"
        )
    differences = [
        f"{name}={theirs!r}, here {name}={ours!r}"
        for name, theirs in asdict(stored).items()
        if (ours := getattr(wanted, name)) != theirs
    ]
    if differences:
        raise ClusterMismatch(
            f"the cluster {database.prefix!r} in {database.where} has {'; '.join(differences)}: set it as stored,"
            f" or {_RESHAPE if stored.kind == 'celery' else ''}take another appname"
        )
