"""The tables: created once by many, upgraded, refused, and fit for the operator guide."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import uuid
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
from sqlalchemy import Engine, event, make_url, text

from jobsync_celery.errors import ClusterMismatch, SchemaOutdated, StoreError
from jobsync_celery.store.database import Database
from jobsync_celery.store.migrations import NEWEST
from jobsync_celery.store.revisions import script
from jobsync_celery.store.schema import ClusterInfo, ClusterShape, drop_schema, ensure_schema

SHAPE = ClusterShape(total_tokens=10_000, partitions=64, hash_function="double_sha256")

# Every statement of OPERATOR_GUIDE.md, word for word.
GUIDE = [
    "SELECT * FROM sync_node ORDER BY created_on;",
    "SELECT node, COUNT(*) FROM sync_token GROUP BY node;",
    "SELECT node, COUNT(*) FROM sync_claim GROUP BY node;",
    "SELECT COUNT(*) FROM sync_node \nWHERE last_heartbeat > NOW() - INTERVAL '15 seconds';",
    "SELECT node, COUNT(*) as tokens,\n"
    "       ROUND(100.0 * COUNT(*) / SUM(COUNT(*)) OVER (), 1) as pct\n"
    "FROM sync_token GROUP BY node;",
    "SELECT COUNT(*) FROM sync_rebalance \nWHERE triggered_at > NOW() - INTERVAL '1 hour';",
    "SELECT COUNT(*) FROM sync_token WHERE node = 'worker-01';",
    "SELECT * FROM sync_lock l\nLEFT JOIN sync_node n ON l.created_by = n.name\nWHERE n.name IS NULL;",
    "DELETE FROM sync_rebalance \nWHERE triggered_at < NOW() - INTERVAL '30 days';",
    "DELETE FROM sync_node \nWHERE last_heartbeat < NOW() - INTERVAL '7 days';",
    "DELETE FROM sync_lock\nWHERE created_by NOT IN (SELECT name FROM sync_node);",
    "VACUUM ANALYZE sync_node;",
    "VACUUM ANALYZE sync_token;",
    "VACUUM ANALYZE sync_lock;",
]


def _ensure(url: str, start: Barrier, results: multiprocessing.Queue[ClusterInfo | str]) -> None:
    start.wait(60)
    try:
        results.put(ensure_schema(Database(url), SHAPE))
    except StoreError as error:
        results.put(repr(error))


@pytest.fixture
def database(database_url: str) -> Database:
    return Database(database_url)


def rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    with database.transaction() as tx:
        return [tuple(row) for row in tx.execute(database.sql(query))]


def run(database: Database, *commands: str) -> None:
    with database.transaction() as tx:
        for command in commands:
            tx.execute(database.sql(command))


def test_twenty_processes_starting_together_make_one_cluster(database_url: str, database: Database) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jobsync_celery.store.schema"])
    start, results = context.Barrier(20), context.Queue()
    processes = [context.Process(target=_ensure, args=(database_url, start, results)) for _ in range(20)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    assert len(set(answers)) == 1, answers
    assert isinstance(answers[0], ClusterInfo)
    assert rows(database, "SELECT count(*) FROM {partition}") == [(64,)]
    assert rows(database, "SELECT term, node FROM {leader}") == [(0, None)]


def test_a_second_call_answers_the_same_with_one_statement(database: Database) -> None:
    first = ensure_schema(database, SHAPE)
    assert str(uuid.UUID(first.cluster_id)) == first.cluster_id
    assert first.created_on.utcoffset() == timedelta(0)
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert ensure_schema(database, SHAPE) == first
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len([each for each in statements if "set_config" not in each]) == 1


@pytest.mark.parametrize(("tokens", "partitions"), [(10_000, 64), (7, 7), (10, 3), (1, 1)])
def test_partitions_cover_all_tokens_in_order(database: Database, tokens: int, partitions: int) -> None:
    ensure_schema(database, ClusterShape(tokens, partitions, "md5"))
    ranges = rows(database, "SELECT first_token, last_token FROM {partition} ORDER BY partition_id")
    covered = [token for first, last in ranges for token in range(first, last + 1)]
    sizes = [last - first + 1 for first, last in ranges]
    assert covered == list(range(tokens))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1


def test_tokens_are_those_of_owned_partitions_outside_pools(database: Database) -> None:
    ensure_schema(database, ClusterShape(10, 3, "md5"))
    assert rows(database, "SELECT count(*) FROM {token}") == [(0,)]
    run(
        database,
        "UPDATE {partition} SET owner = 'worker-01', owner_incarnation = 1, version = 5 WHERE partition_id = 1",
        "INSERT INTO {partition} (partition_id, pool, first_token, last_token, owner, owner_incarnation)"
        " VALUES (3, '[\"gpu-%\"]', 0, 9, 'worker-01', 1)",
    )
    tokens = rows(database, "SELECT token_id, node, version FROM {token} ORDER BY token_id")
    assert tokens == [(4, "worker-01", 5), (5, "worker-01", 5), (6, "worker-01", 5)]


def test_other_prefixes_and_schemas_stand_side_by_side(database_url: str, database: Database) -> None:
    run(database, "CREATE SCHEMA elsewhere")
    others = [
        database,
        Database(database_url, prefix="other_"),
        Database(database_url, schema="elsewhere"),
        Database(database_url, prefix="other_", schema="elsewhere"),
    ]
    shapes = [ClusterShape(100, size, "md5") for size in (1, 2, 3, 4)]
    infos = [ensure_schema(each, shape) for each, shape in zip(others, shapes, strict=True)]
    assert len({info.cluster_id for info in infos}) == 4
    assert [rows(each, "SELECT count(*) FROM {partition}")[0][0] for each in others] == [1, 2, 3, 4]
    assert ensure_schema(Database(database_url, schema="public"), shapes[0]) == infos[0]
    drop_schema(others[0])
    assert ensure_schema(others[3], shapes[3]) == infos[3]


def test_dropping_leaves_nothing_and_can_be_repeated(database: Database) -> None:
    ensure_schema(database, SHAPE)
    drop_schema(database)
    drop_schema(database)
    left = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    functions = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    assert rows(database, f"{left} UNION ALL {functions}") == []
    ensure_schema(database, SHAPE)


@pytest.mark.parametrize(
    ("other", "both"),
    [
        (ClusterShape(5_000, 64, "double_sha256"), ["total_tokens=10000", "total_tokens=5000", "appname"]),
        (ClusterShape(10_000, 32, "double_sha256"), ["partitions=64", "partitions=32", "appname"]),
        (
            ClusterShape(10_000, 64, "md5"),
            ["hash_function='double_sha256'", "hash_function='md5'", "appname"],
        ),
        (ClusterShape(10_000, 64, "double_sha256", "job"), ["'celery'", "'job'", "appname"]),
    ],
)
def test_another_shape_is_refused_naming_both_values(database: Database, other: ClusterShape, both: list[str]) -> None:
    ensure_schema(database, SHAPE)
    with pytest.raises(ClusterMismatch) as caught:
        ensure_schema(database, other)
    assert all(part in str(caught.value) for part in both)


def test_the_newest_revision_is_the_last_of_the_history() -> None:
    assert script().get_heads() == [NEWEST]


def test_where_the_tables_are_there_nobody_loads_the_library_that_makes_them(
    database: Database, database_url: str
) -> None:
    """It would cost every worker, probe and command a fifth of a second."""
    ensure_schema(database, SHAPE)
    program = (
        "import sys; from jobsync_celery.store.database import Database;"
        " from jobsync_celery.store.schema import ClusterShape, ensure_schema;"
        f" ensure_schema(Database(sys.argv[1]), {SHAPE!r}); print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", program, database_url]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_tables_of_a_newer_revision_are_refused(database: Database) -> None:
    ensure_schema(database, SHAPE)
    run(database, "UPDATE {schema} SET version_num = '9999'", "ALTER TABLE {cluster} DROP COLUMN kind")
    with pytest.raises(SchemaOutdated, match=r"9999.*newer.*upgrade"):
        ensure_schema(database, SHAPE)


def test_a_schema_that_does_not_exist_is_named(database_url: str) -> None:
    with pytest.raises(StoreError, match=r"'nowhere'.*CREATE SCHEMA"):
        ensure_schema(Database(database_url, schema="nowhere"), SHAPE)


def test_a_role_needs_no_more_than_create_in_the_schema(database_url: str, database: Database) -> None:
    role = f"jobsync_{uuid.uuid4().hex}"
    url = make_url(database_url).update_query_dict({"options": f"-c role={role}"})
    limited = Database(url.render_as_string(False))
    run(database, f"CREATE ROLE {role}", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    try:
        with pytest.raises(StoreError, match=f"GRANT CREATE ON SCHEMA public TO {role}"):
            ensure_schema(limited, SHAPE)
        run(database, f"GRANT USAGE, CREATE ON SCHEMA public TO {role}")
        ensure_schema(limited, SHAPE)
        assert rows(limited, "SELECT {timeline}()") == [(1,)]
    finally:
        run(database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_every_statement_of_the_operator_guide_runs_unchanged(database: Database) -> None:
    ensure_schema(database, SHAPE)
    run(
        database,
        "INSERT INTO {node} (name, last_heartbeat) VALUES ('worker-01', clock_timestamp())",
        "INSERT INTO {node} (name, state) VALUES ('script', 'admin')",
        "UPDATE {partition} SET owner = 'worker-01', owner_incarnation = 1",
        "INSERT INTO {partition} (partition_id, pool, first_token, last_token) VALUES (64, '[\"%gpu%\"]', 0, 9999)",
        "INSERT INTO {lock} (task_id, node_patterns, partition_id, created_by)"
        " VALUES ('1', '[\"%gpu%\"]', 64, 'gone'), ('2', '[\"%gpu%\"]', 64, 'script')",
    )
    link = database.link("operator")
    answers = {statement: link.statement(text(statement)) for statement in GUIDE}
    link.close()
    assert answers[GUIDE[1]] == [("worker-01", 10_000)]
    assert answers[GUIDE[3]] == [(1,)]
    assert [row.task_id for row in answers[GUIDE[7]]] == ["1"]
    assert rows(database, "SELECT task_id FROM {lock}") == [("2",)]


def test_the_database_itself_keeps_a_key_from_running_twice(database: Database) -> None:
    ensure_schema(database, SHAPE)
    claim = (
        "INSERT INTO {{claim}} (task_id, task_key, token_id, partition_id, node, incarnation, state)"
        " VALUES ('{}', 'account 42', 1, 1, 'worker-01', 1, '{}')"
    )
    run(database, claim.format("a", "done"), claim.format("b", "lost"), claim.format("c", "running"))
    with pytest.raises(StoreError, match="claim_running_key"):
        run(database, claim.format("d", "running"))
