"""``schema show`` and ``upgrade``: tables that are not there, older, written down for others, and looked at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_stage import SHAPE, Cluster, at_terminal, by_url, refused, said
from sqlalchemy import create_engine

from jobsync_celery.store import migrations, revisions
from jobsync_celery.store.database import Database
from jobsync_celery.store.schema import ensure_schema, stored_cluster

NUMBERS = ("--total-tokens", "100", "--partitions", "4", "--hash-function", "md5")
SECOND = """
from jobsync_celery.store.migrations import run

revision, down_revision, branch_labels, depends_on = "0002", "0001", None, None


def upgrade(names):
    run("ALTER TABLE {audit} ADD COLUMN more text".format_map(names))
"""
#: Everything of a schema that is not data.
CATALOGUE = (
    "SELECT table_name, column_name, data_type, column_default FROM information_schema.columns"
    " WHERE table_schema = 'public' UNION ALL SELECT tablename, indexname, indexdef, NULL FROM pg_indexes"
    " WHERE schemaname = 'public' UNION ALL SELECT proname, prosrc, NULL, NULL FROM pg_proc"
    " WHERE pronamespace = 'public'::regnamespace ORDER BY 1, 2, 3"
)


@pytest.fixture
def second_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the code knows one revision more."""
    folder = shutil.copytree(Path(migrations.__file__).parent, tmp_path / "migrations")
    (folder / "versions" / "r0002_more.py").write_text(SECOND)
    monkeypatch.setattr(migrations, "__file__", str(folder / "__init__.py"))
    monkeypatch.setattr(migrations, "NEWEST", "0002")
    monkeypatch.setattr("jobsync_celery.cli.schema.NEWEST", "0002")
    revisions.script.cache_clear()
    monkeypatch.setattr(revisions, "script", revisions.script.__wrapped__)


def run_script(url: str, script: str) -> None:
    """As a DBA would, with psql."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, connection.connection.cursor() as cursor:
        cursor.execute(script)
    engine.dispose()


def catalogue(url: str) -> list[tuple[object, ...]]:
    with Database(url).transaction() as tx:
        return [tuple(row) for row in tx.exec_driver_sql(CATALOGUE)]


def test_tables_are_created_once_with_the_numbers_that_are_given(database_url: str) -> None:
    done = by_url(database_url, "schema", "upgrade", *NUMBERS)
    assert done.exit_code == 0 and done.stdout.startswith("the tables were created, of revision 0001\ncluster ")
    assert stored_cluster(Database(database_url)).shape == SHAPE
    again = said(by_url(database_url, "schema", "upgrade", "--partitions", "9", "--json"))
    assert (again["before"], again["cluster"]["partitions"]) == ("0001", 4)  # an existing cluster keeps its own


def test_tables_without_their_cluster_are_made_whole(cluster: Cluster, database_url: str) -> None:
    cluster.execute("DELETE FROM {cluster}")
    cluster.execute("DELETE FROM {partition}")
    assert "tables in database" in (told := refused(by_url(database_url, "status")))
    assert "they are incomplete: run jobsync schema upgrade" in told
    assert by_url(database_url, "schema", "upgrade", *NUMBERS).exit_code == 0
    assert stored_cluster(Database(database_url)).shape == SHAPE


def test_what_is_written_down_makes_the_same_tables(database_url: str, module_database_url: str) -> None:
    script = by_url(database_url, "schema", "upgrade", "--sql", *NUMBERS).stdout
    assert catalogue(database_url) == []
    run_script(database_url, script)
    ensure_schema(Database(module_database_url), SHAPE)
    assert catalogue(database_url) == catalogue(module_database_url)
    assert stored_cluster(Database(database_url)).shape == SHAPE
    query = "SELECT partition_id, first_token, last_token FROM {partition} ORDER BY 1"
    assert Cluster(database_url).rows(query) == [(n, *SHAPE.tokens.range(n)) for n in range(SHAPE.partitions)]
    assert by_url(database_url, "schema", "upgrade", "--sql").stdout == "-- nothing is to be done\n"


@pytest.mark.parametrize("by_hand", [False, True], ids=["run", "written-down"])
def test_older_tables_are_upgraded(cluster: Cluster, database_url: str, second_revision: None, by_hand: bool) -> None:
    assert "are of revision 0001, and 0002 is needed: run jobsync schema upgrade" in refused(
        by_url(database_url, "status")
    )
    shown = by_url(database_url, "schema", "show", "--json")
    assert shown.exit_code == 1
    assert (said(shown)["revision"], said(shown)["newest_revision"], said(shown)["upgrade_due"]) == (
        "0001",
        "0002",
        True,
    )
    if by_hand:
        run_script(database_url, by_url(database_url, "schema", "upgrade", "--sql").stdout)
    else:
        assert by_url(database_url, "schema", "upgrade").stdout.startswith("upgraded from 0001 to 0002\n")
    assert cluster.rows("SELECT version_num, more FROM {schema} LEFT JOIN {audit} ON true") == [("0002", None)]
    assert said(by_url(database_url, "schema", "show", "--json"))["upgrade_due"] is False


def test_a_role_that_does_not_own_older_tables_is_told_who_does(
    cluster: Cluster, database_url: str, second_revision: None
) -> None:
    cluster.execute("CREATE ROLE stranger")
    try:
        cluster.execute("GRANT SELECT ON {schema}, {cluster} TO stranger")
        cluster.execute("GRANT USAGE ON SCHEMA public TO stranger")
        told = refused(by_url(f"{database_url}?options=-c%20role%3Dstranger", "schema", "upgrade"))
        assert "run jobsync schema upgrade as 'jobsync', who owns them; 'stranger' may not change them" in told
    finally:
        cluster.execute("DROP OWNED BY stranger")
        cluster.execute("DROP ROLE stranger")


def test_everything_about_the_tables_is_shown(cluster: Cluster, database_url: str) -> None:
    by_url(database_url, "locks", "add", "key", "gpu%", "--by", "script")
    cluster.execute("ANALYZE {partition}")
    shown = " ".join(at_terminal(database_url, "schema", "show").split())
    assert "revision 0001, as this code" in shown and "100 tokens in 4 partitions by md5" in shown
    assert "gpu%" in shown and "sync_partition" in shown
    [size] = [each for each in said(by_url(database_url, "schema", "show", "--json"))["tables"]
              if each["table"] == "sync_partition"]  # fmt: skip
    assert size["rows"] == 5 and size["bytes"] > 8192
