"""``cleanup`` at the command line: what it deletes, what it only counts, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, inspect

from jobsync_celery import JobSync
from jobsync_celery.__main__ import main
from jobsync_celery.cli.main import jobsync
from jobsync_celery.runtime.task_locks import LockRequest, TaskLocks
from jobsync_celery.store.database import Database
from jobsync_celery.store.schema import ClusterShape, ensure_schema
from jobsync_celery.store.store import Store

SHAPE = ClusterShape(total_tokens=100, partitions=4, hash_function="md5")
SETTINGS = {"partitions": 4, "total_tokens": 100, "hash_function": "md5"}


class Cluster:
    """Tables with rows that are forty days old."""

    def __init__(self, url: str, shape: ClusterShape = SHAPE) -> None:
        self.database = Database(url)
        ensure_schema(self.database, shape)
        old = "clock_timestamp() - interval '40 days'"
        for command in (
            "INSERT INTO {claim} (incarnation, finished_on, token_id, partition_id, task_id, task_name, task_key, node,"
            f" state) SELECT 1, {old}, 0, 0, n, 't', n, 'a', 'done' FROM generate_series(1, 1500) AS n",
            f"INSERT INTO {{rebalance}} (triggered_at) VALUES ({old}), (clock_timestamp())",
            f"INSERT INTO {{node}} (name, state, last_heartbeat) VALUES ('old', 'dead', {old})",
            f"INSERT INTO {{audit}} (date, task_id, node, created_on) VALUES ('2020-01-01', 'x', 'a', {old})",
        ):
            self.rows(command)
        with self.database.transaction() as tx:
            TaskLocks(Store(self.database), shape).set(tx, [LockRequest("k", ("gpu-%",))], "gone")
        self.rows("DELETE FROM {node} WHERE name = 'gone'")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(self.database.link("test")) as link:
            return [tuple(row) for row in link.statement(self.database.sql(query))]

    def left(self) -> dict[str, int]:
        return {table: self.rows(f"SELECT count(*) FROM {{{table}}}")[0][0] for table in TABLES}


TABLES = ("claim", "rebalance", "node", "audit", "lock")
BEFORE = {"claim": 1500, "rebalance": 2, "node": 1, "audit": 1, "lock": 1}


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


def by_url(url: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["cleanup", "--url", url, *options])


def by_app(url: str, *options: str, **settings: object) -> Result:
    app = Celery("proj", broker="memory://", set_as_current=False)
    JobSync(app, {"url": url, **SETTINGS, **settings})
    return CliRunner().invoke(jobsync, ["cleanup", *options], obj=CLIContext(app, no_color=True, workdir=None))


def test_an_app_s_cluster_is_cleaned_as_its_settings_say(cluster: Cluster, database_url: str) -> None:
    done = by_app(database_url, claim_retention=7200)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "what                   kept for   rows deleted",
        "scripts without locks       7 d              0",
        "orphaned locks                -  not asked for",
        "expired locks                 -              0",
        "dead nodes                  7 d              1",
        "rebalance history          30 d              1",
        "audit                      30 d              1",
        "sightings                  30 d              0",
        "finished claims             2 h          1,500",
        "observations                2 d              0",
        "observers                   2 d              0",
        "vacuumed: sync_claim",
    ]
    assert cluster.left() == {"claim": 0, "rebalance": 1, "node": 0, "audit": 0, "lock": 1}


def test_a_dry_run_counts_the_same_and_changes_nothing(cluster: Cluster, database_url: str) -> None:
    counted = by_app(database_url, "--dry-run", "--orphaned-locks", "--json")
    assert cluster.left() == BEFORE
    done = by_app(database_url, "--orphaned-locks", "--json")
    before, after = json.loads(counted.output), json.loads(done.output)
    assert before["cleaned"] == after["cleaned"]
    assert after["cleaned"]["claims"] == {"kept_for": 86400, "rows": 1500, "left": False}
    assert after["cleaned"]["orphaned_locks"] == {"kept_for": 0.0, "rows": 1, "left": False}
    assert (before["dry_run"], before["vacuumed"]) == (True, [])
    assert (after["dry_run"], after["vacuumed"], after["remarks"]) == (False, ["sync_claim"], [])
    assert by_app(database_url, "--dry-run").output.splitlines()[0].endswith("rows to delete")


def test_what_is_done_can_be_copied_into_the_audit(cluster: Cluster, database_url: str) -> None:
    done = by_app(database_url, "--no-vacuum", audit=True, audit_retention=50 * 86400)
    assert done.exit_code == 0 and done.output.splitlines()[-1] == "copied into the audit: 1,500"
    assert cluster.left()["audit"] == 1501


def test_without_an_app_claims_and_audit_go_only_if_their_retention_is_given(
    cluster: Cluster, database_url: str
) -> None:
    done = by_url(database_url)
    assert done.exit_code == 0, done.output
    said = {line[:21].strip(): line[21:].split(maxsplit=2) for line in done.output.splitlines()}
    kept = ["-", "not", "asked for"]
    assert [said[name] for name in ("finished claims", "audit", "observations")] == [kept] * 3
    assert cluster.left() == {**BEFORE, "rebalance": 1, "node": 0}
    given = ("--claim-retention", "90", "--audit-retention", "172800", "--no-vacuum")
    done = by_url(database_url, *given)
    assert done.exit_code == 0 and "finished claims            90 s          1,500\n" in done.output
    assert cluster.left() == {"claim": 0, "rebalance": 1, "node": 0, "audit": 0, "lock": 1}


def test_jobs_have_written_the_audit_already(database_url: str) -> None:
    cluster = Cluster(database_url, replace(SHAPE, kind="job"))
    given = ("--claim-retention", "90", "--audit-retention", str(50 * 86400), "--audit", "--no-vacuum")
    done = by_url(database_url, *given, "--orphaned-locks")
    assert done.exit_code == 0 and "copied" not in done.output
    assert cluster.left() == {"claim": 0, "rebalance": 1, "node": 0, "audit": 1, "lock": 0}


def test_what_somebody_holds_is_left_and_that_is_exit_code_1(cluster: Cluster, database_url: str) -> None:
    with cluster.database.transaction("operator") as tx:
        tx.execute(cluster.database.sql("DELETE FROM {lock}"))
        done = by_app(database_url)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == (
        "left for the next time, since somebody holds them just now: scripts without locks, expired locks"
    )
    assert cluster.left()["claim"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--claim-retention", "0"), "claim_retention must be"),
        (("--dead-node-retention", "nan"), "dead_node_retention must be"),
        (("--appname", "no such"), "appname must be"),
        (("--appname", "other_"), "no 'other_' tables"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_changed(
    cluster: Cluster, database_url: str, options: tuple[str, ...], said: str
) -> None:
    done = by_url(database_url, *options)
    assert done.exit_code == 2
    assert done.output.startswith("Error: ") and said in done.output and done.output.count("\n") == 1
    assert cluster.left() == BEFORE


def test_no_database_is_one_clear_line_without_the_password() -> None:
    done = by_url("postgresql://somebody:secret@127.0.0.1:1/none")
    assert (done.exit_code, done.output.count("\n"), "secret" in done.output) == (2, 1, False)


def test_no_tables_are_made(database_url: str) -> None:
    assert by_app(database_url).exit_code == 2
    engine = create_engine(database_url)
    assert not inspect(engine).get_table_names()
    engine.dispose()


def test_an_app_without_coordination_is_told_what_to_write() -> None:
    app = Celery("proj", broker="memory://", set_as_current=False)
    done = CliRunner().invoke(jobsync, ["cleanup"], obj=CLIContext(app, no_color=True, workdir=None))
    assert (done.exit_code, "write JobSync(app)" in done.output) == (2, True)


def test_celery_knows_the_command(cluster: Cluster, database_url: str, tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\nfrom jobsync_celery import JobSync\napp = Celery('proj', broker='memory://')\n"
        f"JobSync(app, dict(url={database_url!r}, **{SETTINGS!r}))\n"
    )
    command = [sys.executable, "-m", "celery", "-A", "proj", "jobsync", "cleanup", "--dry-run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cleaned"]["claims"]["rows"] == 1500


def test_beat_s_task_does_the_same_for_its_own_app(cluster: Cluster, database_url: str) -> None:
    other = Celery("other", broker="memory://", set_as_current=False)
    JobSync(other, {"url": "postgresql://nobody@127.0.0.1:1/none"})
    app = Celery("proj", broker="memory://", set_as_current=False)
    JobSync(app, {"url": database_url, **SETTINGS})
    assert app.tasks["jobsync.maintenance"]() == {
        "dead_nodes": 1,
        "expired_locks": 0,
        "orphaned_locks": 0,
        "lock_creators": 0,
        "history": 1,
        "audit": 1,
        "sightings": 0,
        "claims": 1500,
        "observations": 0,
        "observers": 0,
    }
