"""The revisions of the tables: which one they are of, and running what is missing, or writing it down."""

from __future__ import annotations

import io
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import TextClause, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.errors import SchemaOutdated, StoreError
from jobsync_celery.store import migrations
from jobsync_celery.store.database import Database

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory


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

    @property
    def pool_tokens(self) -> TokenMap:
        """How locked keys map to the partitions of their pool."""
        return TokenMap(self.total_tokens, min(self.lock_partitions, self.total_tokens), self.hash_function)


def revision_of(database: Database) -> str | None:
    """The revision of the tables; None if there are none."""
    with database.transaction("jobsync schema") as tx:
        return found_revision(database, tx)


def found_revision(database: Database, tx: Connection) -> str | None:
    """The revision of the tables as a transaction sees it; None if there are none."""
    if tx.execute(text("SELECT to_regclass(:table)"), {"table": database.tables.schema}).scalar() is None:
        return None
    revision: str | None = tx.execute(database.sql("SELECT version_num FROM {schema}")).scalar()
    return revision


def check_known(database: Database, revision: str) -> None:
    """Raise :class:`SchemaOutdated` for a revision that a newer version of this package has made."""
    known = [each.revision for each in script().walk_revisions()]
    if revision not in known:
        raise SchemaOutdated(
            f"the {database.prefix!r} tables in {database.where} are of revision {revision}, made by a newer"
            f" jobsync_celery; this one knows revisions up to {known[0]}: upgrade jobsync_celery here"
        )


def check_namespace(database: Database, tx: Connection) -> None:
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
    revision = found_revision(database, tx)
    if revision is None and not row.may_create:
        raise StoreError(
            f"{row.role!r} may not create tables in {database.where}: run GRANT CREATE ON SCHEMA {row.schema}"
            f" TO {row.role}, or run jobsync schema upgrade once as a role that may"
        )
    if revision not in (None, migrations.NEWEST):
        _check_owner(database, tx, str(revision))


def _check_owner(database: Database, tx: Connection, revision: str) -> None:
    owner, role, may = tx.execute(
        text(
            "SELECT pg_get_userbyid(relowner), current_user, pg_has_role(relowner, 'USAGE')"
            " FROM pg_class WHERE oid = to_regclass(:table)"
        ),
        {"table": database.tables.schema},
    ).one()
    if not may:
        raise StoreError(
            f"the {database.prefix!r} tables in {database.where} are of revision {revision}, and {migrations.NEWEST}"
            f" is needed: run jobsync schema upgrade as {owner!r}, who owns them; {role!r} may not change them"
        )


def migrate(database: Database, tx: Connection) -> None:
    """Run the missing revisions inside the transaction."""
    from alembic.runtime.migration import MigrationContext

    context = MigrationContext.configure(connection=tx, opts=_options(database))
    for revision in context.get_current_heads():
        check_known(database, revision)
    _run(database, context)


def written(database: Database, revision: str | None, shape: ClusterShape) -> str:
    """The statements that lead from a revision to the newest, for somebody else to run; nothing is run.

    Those that create everything, for a cluster of this shape, if the revision is None; empty if nothing is missing.
    """
    from alembic.runtime.migration import MigrationContext

    if revision == migrations.NEWEST:
        return ""
    buffer = io.StringIO()
    options = {**_options(database), "as_sql": True, "output_buffer": buffer, "starting_rev": revision}
    _run(database, MigrationContext.configure(dialect_name="postgresql", opts=options))
    if revision is None:
        buffer.writelines(f"{_literal(statement)};\n\n" for statement in seed(database, shape))
    return f"BEGIN;\n\n{buffer.getvalue().strip()}\n\nCOMMIT;\n"


def seed(database: Database, shape: ClusterShape) -> Sequence[TextClause]:
    """The statements that write a new cluster's row and its partitions."""
    cluster = database.sql(
        "INSERT INTO {cluster} (cluster_id, kind, total_tokens, partitions, hash_function, lock_partitions,"
        " timeline) VALUES (:cluster_id, :kind, :total_tokens, :partitions, :hash_function, :lock_partitions,"
        " {timeline}())"
    ).bindparams(cluster_id=str(uuid.uuid4()), **asdict(shape))
    partitions = database.sql(
        "INSERT INTO {partition} (partition_id, first_token, last_token) SELECT * FROM unnest("
        "CAST(:numbers AS int[]), CAST(:firsts AS int[]), CAST(:lasts AS int[]))"
    )
    ranges = [shape.tokens.range(number) for number in range(shape.partitions)]
    columns = {
        "numbers": range(shape.partitions),
        "firsts": [first for first, _ in ranges],
        "lasts": [last for _, last in ranges],
    }
    return cluster, partitions.bindparams(**{name: array(numbers) for name, numbers in columns.items()})


def array(numbers: Sequence[int]) -> str:
    """Whole numbers as the text of an array, which can be bound and written down alike."""
    return f"{{{','.join(map(str, numbers))}}}"


@lru_cache(maxsize=1)
def script() -> ScriptDirectory:
    """The history of the tables. It takes a fifth of a second to load."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(migrations.__file__).parent))


def _options(database: Database) -> dict[str, Any]:
    return {
        "version_table": f"{database.prefix}schema",
        "version_table_schema": database.schema,
        "script": script(),
        "fn": lambda current, _: script()._upgrade_revs("heads", current),
    }


def _run(database: Database, context: MigrationContext) -> None:
    from alembic.operations import Operations

    names = {**asdict(database.tables), "prefix": database.prefix, "channel": database.channel}
    with Operations.context(context):
        context.run_migrations(names=names)


def _literal(statement: TextClause) -> str:
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
