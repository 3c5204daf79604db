"""``status`` at the command line: right answers, right exit codes, and one clear line when there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from celery import Celery
from celery.bin.celery import celery
from command_stage import SHAPE, Cluster, at_terminal, by_app, by_url, said
from sqlalchemy import create_engine, inspect

from jobsync_celery import JobSync


def test_a_stable_cluster_is_shown_in_plain_columns_when_piped(cluster: Cluster, database_url: str) -> None:
    cluster.join("two", 3)
    done = by_url(database_url, "status")
    assert done.exit_code == 0, done.output
    summary, more, heading, one, two, note = done.output.splitlines()
    assert summary == "stable; leader one, term 1; 4 partitions, 0 unowned, 0 moving; 0 running"
    assert more.startswith("balance off by 50 %; heartbeat lag ") and more.endswith("0 leader changes in the last hour")
    assert heading.split() == ["node", "state", "lag", "s", "partitions", "tokens", "share", "%", "running"]
    assert one.split()[:2] == ["one", "live"] and one.split()[3:] == ["3", "75", "75.0", "0"]
    assert two.split()[:2] == ["two", "live"] and two.split()[3:] == ["1", "25", "25.0", "0"]
    assert note.startswith("4 partitions are too few for shares of 2 nodes within ±10 %")
    assert "\x1b" not in done.output


def test_json_says_the_same(cluster: Cluster, database_url: str) -> None:
    cluster.join("two", 3)
    done = by_url(database_url, "status", "--json")
    told = said(done)
    assert (told["state"], told["leader"]["node"], told["leader"]["term"]) == ("stable", "one", 1)
    assert told["partitions"] == {"total": 4, "unowned": 0, "waiting": 0, "moving": 0}
    assert [(node["name"], node["tokens"], node["share"]) for node in told["nodes"]] == [
        ("one", 75, 75.0),
        ("two", 25, 25.0),
    ]
    assert told["nodes"][0]["lag"] < 300


def test_free_partitions_mean_rebalancing_and_exit_code_1(cluster: Cluster, database_url: str) -> None:
    done = by_url(database_url, "status")
    assert done.exit_code == 1
    assert done.output.startswith("rebalancing; leader one, term 1; 4 partitions, 1 unowned")


def test_what_waits_for_a_name_is_no_trouble_and_told_with_the_time_at_which_the_wait_ends(
    cluster: Cluster, database_url: str
) -> None:
    cluster.leave("two", cluster.join("two", 3), grace=300)
    done = by_url(database_url, "status")
    assert done.exit_code == 1
    told = "waiting; leader one, term 1; 4 partitions, 1 unowned (1 waiting for a node to return), 0 moving"
    assert done.output.startswith(told)
    assert "1 partition waits until 20" in done.output and "for two to return: rebalance --no-wait" in done.output
    assert any(line.split()[:3] == ["two", "left", "-"] for line in done.output.splitlines())
    told = said(by_url(database_url, "status", "--json"))
    assert told["partitions"]["waiting"] == 1 and told["nodes"][1]["awaited_until"] is not None
    key = next(key for key in map(str, range(100)) if SHAPE.tokens.partition_for(key) == 3)
    assert "it waits until" in by_url(database_url, "where", key).output
    assert at_terminal(database_url, "status").startswith("waiting")


def test_a_dead_node_means_degraded_and_exit_code_1(cluster: Cluster, database_url: str) -> None:
    cluster.bury("two", cluster.join("two"))
    cluster.join("three", 3)
    done = by_url(database_url, "status")
    assert done.exit_code == 1
    assert done.output.startswith("degraded")


def test_without_nodes_there_is_no_leader_and_exit_code_2(database_url: str) -> None:
    Cluster(database_url)
    done = by_url(database_url, "status")
    assert done.exit_code == 2
    assert done.output.startswith("no leader; no leader yet")


def test_when_all_workers_are_killed_there_is_no_leader_though_nobody_is_left_to_say_so(database_url: str) -> None:
    cluster = Cluster(database_url)
    cluster.lead("one", cluster.join("one", *range(4)))
    cluster.join("two")
    assert by_url(database_url, "status").output.startswith("stable")
    cluster.silence("two")
    done = by_url(database_url, "status")
    assert (done.exit_code, done.output.splitlines()[4].split()[:2]) == (1, ["two", "silent"])
    assert done.output.startswith("degraded; leader one")
    cluster.silence("one")
    done = by_url(database_url, "status")
    assert done.exit_code == 2 and done.output.startswith("no leader; last leader one, term 1")


def test_tables_that_are_not_there_are_one_clear_line_and_are_not_made(database_url: str) -> None:
    done = by_url(database_url, "status", "--appname", "other_")
    assert done.exit_code == 2
    assert done.output.startswith("Error: no 'other_' tables") and done.output.count("\n") == 1
    engine = create_engine(database_url)
    assert not inspect(engine).get_table_names()
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://somebody:secret@127.0.0.1:1/none", "127.0.0.1:1"),
        ("mysql://somebody:secret@localhost/none", "url must be PostgreSQL"),
        ("nonsense", "url must begin with a scheme"),
    ],
)
def test_no_database_is_one_clear_line_without_the_password(url: str, told: str) -> None:
    done = by_url(url, "status")
    assert done.exit_code == 2
    assert done.output.startswith("Error: ") and told in done.output and done.output.count("\n") == 1
    assert "secret" not in done.output


def test_an_app_is_asked_about_its_own_cluster(cluster: Cluster, database_url: str) -> None:
    cluster.join("two", 3)
    app = Celery("proj", broker="memory://", set_as_current=False)
    JobSync(app, {"url": database_url, "partitions": 4, "total_tokens": 100, "hash_function": "md5"})
    assert by_app(app, "status").output.startswith("stable; leader one")


def test_an_app_without_coordination_is_told_what_to_write() -> None:
    app = Celery("proj", broker="memory://", set_as_current=False)
    done = by_app(app, "status")
    assert (done.exit_code, "write JobSync(app)" in done.output) == (2, True)
    JobSync(app, None)
    done = by_app(app, "status")
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


def test_balance_is_measured_against_weights(cluster: Cluster, database_url: str) -> None:
    cluster.join("light", 3, weight=1 / 3)
    told = said(by_url(database_url, "status", "--json"))
    assert told["balance"] == {"within": True, "off_percent": 0.0, "limit_percent": 10.0}
    assert "balance within ±10 %" in by_url(database_url, "status").output


def test_keys_that_other_nodes_wait_for_are_counted(cluster: Cluster, database_url: str) -> None:
    cluster.claim("one", cluster.rows("SELECT incarnation FROM {node}")[0][0], "task", "key", 0)
    assert said(by_url(database_url, "status", "--json"))["awaited_keys"] == 0
    cluster.execute("UPDATE {claim} SET awaited = true")
    assert said(by_url(database_url, "status", "--json"))["awaited_keys"] == 1
    assert "1 key is waited for" in by_url(database_url, "status").output


def changes(cluster: Cluster) -> int:
    return int(
        said(by_url(cluster.database._engine.url.render_as_string(False), "status", "--json"))[
            "leader_changes_last_hour"
        ]
    )


def test_the_first_leader_is_no_change_and_each_further_one_is(cluster: Cluster) -> None:
    assert changes(cluster) == 0
    cluster.plan("one", 1)
    cluster.lead("two", cluster.join("two", 3))
    assert changes(cluster) == 1
    cluster.lead("one", 1)
    assert changes(cluster) == 2


def test_leader_changes_of_earlier_hours_are_not_counted(cluster: Cluster) -> None:
    for term, leader in ((1, "one"), (2, "two"), (3, "one")):
        cluster.plan(leader, term)
        cluster.lead(leader, 1)
    cluster.execute("UPDATE {cluster} SET created_on = created_on - interval '1 day'")
    cluster.execute("UPDATE {rebalance} SET triggered_at = triggered_at - interval '2 hours' WHERE term < 3")
    assert changes(cluster) == 2  # to the third, and to the fourth, which has not planned yet
    cluster.execute("UPDATE {leader} SET since = since - interval '2 hours'")
    assert changes(cluster) == 0


def test_at_a_terminal_the_status_fits_into_80_columns(cluster: Cluster, database_url: str) -> None:
    cluster.join("celery-worker-with-a-long-name@ip-10-0-12-34.internal", 3)
    shown = at_terminal(database_url, "status")
    assert shown.startswith("stable; leader one, term 1;")
    assert "celery-worker-with-a-long" in shown


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE {node} SET state = 'dead' WHERE name = 'two'", "two was declared dead, its last heartbeat was"),
        ("UPDATE {node} SET last_heartbeat = last_heartbeat - interval '301 s' WHERE name = 'two'", "two is silent"),
        ("UPDATE {node} SET state = 'draining', drain_ordered = true WHERE name = 'two'", "undrain takes that back"),
        ("UPDATE {node} SET state = 'dead'", "no node is live, so nothing coordinated runs"),
        ("UPDATE {partition} SET target = 'two'", "partitions are on their way"),
    ],
)
def test_what_is_not_as_usual_is_explained(cluster: Cluster, database_url: str, change: str, told: str) -> None:
    cluster.join("two", 3)
    cluster.execute(change)
    assert any(told in note for note in said(by_url(database_url, "status", "--json"))["notes"])
    assert told in by_url(database_url, "status").stdout
