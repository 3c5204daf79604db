"""``status`` at the command line: right answers, right exit codes, and one clear line when there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.celery import celery
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, inspect

from jobsync_celery import JobSync
from jobsync_celery.__main__ import main
from jobsync_celery.cli.main import jobsync
from jobsync_celery.core.model import Member
from jobsync_celery.store.database import Database
from jobsync_celery.store.nodes import Identity
from jobsync_celery.store.schema import ClusterShape, ensure_schema
from jobsync_celery.store.store import Store

SHAPE = ClusterShape(total_tokens=100, partitions=4, hash_function="md5")


class Cluster:
    """Nodes that are rows only."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.store = Store(self.database)
        ensure_schema(self.database, SHAPE)

    def join(self, name: str, *partitions: int) -> int:
        identity = Identity(name, 1.0, 15.0, "host", "", 7, "0")
        with self.database.transaction() as tx:
            incarnation = self.store.nodes.register(tx, identity)
            assert incarnation is not None
            self.store.partitions.assign(tx, dict.fromkeys(partitions, name))
            self.store.partitions.take(tx, partitions, name, incarnation)
        return incarnation

    def lead(self, name: str, incarnation: int) -> None:
        with self.database.transaction() as tx:
            self.store.leaders.take_term(tx, Member(name, incarnation))

    def bury(self, name: str, incarnation: int) -> None:
        with self.database.transaction() as tx:
            self.store.nodes.declare_dead(tx, name, incarnation, None)
            self.store.partitions.free_orphans(tx)

    def silence(self, name: str) -> None:
        with self.database.transaction() as tx:
            late = self.database.sql(
                "UPDATE {node} SET last_heartbeat = last_heartbeat - interval '16 s' WHERE name = :name"
            )
            tx.execute(late, {"name": name})


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    cluster = Cluster(database_url)
    cluster.lead("one", cluster.join("one", 0, 1, 2))
    return cluster


def by_url(url: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["status", "--url", url, *options])


def by_app(app: Celery, *options: str) -> Result:
    context = CLIContext(app, no_color=True, workdir=None)
    return CliRunner().invoke(jobsync, ["status", *options], obj=context)


def test_a_stable_cluster_is_shown_in_plain_columns_when_piped(cluster: Cluster, database_url: str) -> None:
    cluster.join("two", 3)
    done = by_url(database_url)
    assert done.exit_code == 0, done.output
    summary, heading, one, two = done.output.splitlines()
    assert summary == "stable; leader one, term 1; 4 partitions, 0 unowned, 0 moving; 0 running"
    assert heading.split() == ["node", "state", "lag", "s", "partitions", "tokens", "share", "%", "running"]
    assert one.split()[:2] == ["one", "live"] and one.split()[3:] == ["3", "75", "75.0", "0"]
    assert two.split()[:2] == ["two", "live"] and two.split()[3:] == ["1", "25", "25.0", "0"]
    assert "\x1b" not in done.output


def test_json_says_the_same(cluster: Cluster, database_url: str) -> None:
    cluster.join("two", 3)
    done = by_url(database_url, "--json")
    said = json.loads(done.output)
    assert (said["state"], said["leader"]["node"], said["leader"]["term"]) == ("stable", "one", 1)
    assert said["partitions"] == {"total": 4, "unowned": 0, "moving": 0}
    assert [(node["name"], node["tokens"], node["share"]) for node in said["nodes"]] == [
        ("one", 75, 75.0),
        ("two", 25, 25.0),
    ]
    assert said["nodes"][0]["lag"] < 5


def test_free_partitions_mean_rebalancing_and_exit_code_1(cluster: Cluster, database_url: str) -> None:
    done = by_url(database_url)
    assert done.exit_code == 1
    assert done.output.startswith("rebalancing; leader one, term 1; 4 partitions, 1 unowned")


def test_a_dead_node_means_degraded_and_exit_code_1(cluster: Cluster, database_url: str) -> None:
    cluster.bury("two", cluster.join("two"))
    cluster.join("three", 3)
    done = by_url(database_url)
    assert done.exit_code == 1
    assert done.output.startswith("degraded")


def test_without_nodes_there_is_no_leader_and_exit_code_2(database_url: str) -> None:
    Cluster(database_url)
    done = by_url(database_url)
    assert done.exit_code == 2
    assert done.output.startswith("no leader; no leader yet")


def test_when_all_workers_are_killed_there_is_no_leader_though_nobody_is_left_to_say_so(database_url: str) -> None:
    cluster = Cluster(database_url)
    cluster.lead("one", cluster.join("one", *range(4)))
    cluster.join("two")
    assert by_url(database_url).output.startswith("stable")
    cluster.silence("two")
    done = by_url(database_url)
    assert (done.exit_code, done.output.splitlines()[3].split()[:2]) == (1, ["two", "silent"])
    assert done.output.startswith("degraded; leader one")
    cluster.silence("one")
    done = by_url(database_url)
    assert done.exit_code == 2 and done.output.startswith("no leader; last leader one, term 1")


def test_tables_that_are_not_there_are_one_clear_line_and_are_not_made(database_url: str) -> None:
    done = by_url(database_url, "--appname", "other_")
    assert done.exit_code == 2
    assert done.output.startswith("Error: no 'other_' tables") and done.output.count("\n") == 1
    engine = create_engine(database_url)
    assert not inspect(engine).get_table_names()
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://somebody:secret@127.0.0.1:1/none", "127.0.0.1:1"),
        ("mysql://somebody:secret@localhost/none", "url must be PostgreSQL"),
        ("nonsense", "url must begin with a scheme"),
    ],
)
def test_no_database_is_one_clear_line_without_the_password(url: str, said: str) -> None:
    done = by_url(url)
    assert done.exit_code == 2
    assert done.output.startswith("Error: ") and said in done.output and done.output.count("\n") == 1
    assert "secret" not in done.output


def test_an_app_is_asked_about_its_own_cluster(cluster: Cluster, database_url: str) -> None:
    cluster.join("two", 3)
    app = Celery("proj", broker="memory://", set_as_current=False)
    JobSync(app, {"url": database_url, "partitions": 4, "total_tokens": 100, "hash_function": "md5"})
    assert by_app(app).output.startswith("stable; leader one")


def test_an_app_without_coordination_is_told_what_to_write() -> None:
    app = Celery("proj", broker="memory://", set_as_current=False)
    done = by_app(app)
    assert (done.exit_code, "write JobSync(app)" in done.output) == (2, True)
    JobSync(app, None)
    done = by_app(app)
    assert (done.exit_code, "switched off" in done.output) == (2, True)


def test_celery_knows_the_command() -> None:
    found = celery.get_command(click.Context(celery), "jobsync")
    assert isinstance(found, click.Group) and "status" in found.commands


def test_celery_passes_its_app(cluster: Cluster, database_url: str, tmp_path: Path) -> None:
    cluster.join("two", 3)
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\nfrom jobsync_celery import JobSync\napp = Celery('proj', broker='memory://')\n"
        f"JobSync(app, dict(url={database_url!r}))\n"
    )
    command = [sys.executable, "-m", "celery", "-A", "proj", "jobsync", "status", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "stable"
