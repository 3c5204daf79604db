"""How large the tables are, by PostgreSQL's own book-keeping."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import text

from jobsync_celery.store.database import Connection, Database

_NO_TABLES = frozenset(
    ("token", "incarnation_seq", "fence_seq", "timeline", "commit_claims", "locks_changed", "locks_checked")
)


@dataclass(frozen=True)
class TableSize:
    """A table: ``rows`` as last estimated, None if never; ``size`` in bytes, with its indexes."""

    name: str
    rows: int | None
    size: int


def table_sizes(database: Database, tx: Connection) -> list[TableSize]:
    """The tables that are there, the largest first."""
    nouns = [noun for noun in asdict(database.tables) if noun not in _NO_TABLES]
    rows = tx.execute(
        text(
            "SELECT c.relname, CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint END, pg_total_relation_size(c.oid)"
            " FROM unnest(CAST(:tables AS text[])) AS t (name) JOIN pg_class c ON c.oid = to_regclass(t.name)"
            " ORDER BY 3 DESC, 1"
        ),
        {"tables": [getattr(database.tables, noun) for noun in nouns]},
    )
    return [TableSize(*row) for row in rows]
