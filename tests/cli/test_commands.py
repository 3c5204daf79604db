"""What all commands share: finding the cluster, pipes and terminals, JSON, watching, and being refused in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from celery import Celery
from click.testing import CliRunner
from command_stage import Cluster, at_terminal, by_app, by_url, refused, said

from jobsync_celery import JobSync
from jobsync_celery.__main__ import main
from jobsync_celery.cli.main import COMMANDS, jobsync

READING = ("status", "nodes", "tokens", "history", "claims")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "jobsync_celery", *words]


def test_every_question_is_answered_in_columns_at_a_terminal_and_as_json(cluster: Cluster, database_url: str) -> None:
    for name in READING:
        plain = by_url(database_url, name)
        assert plain.exit_code in (0, 1), plain.output
        assert "\x1b" not in plain.stdout and plain.stdout.strip()
        assert at_terminal(database_url, name).strip()
        assert isinstance(said(by_url(database_url, name, "--json")), dict)


def test_an_empty_cluster_is_no_error(database_url: str) -> None:
    Cluster(database_url)
    for name in READING:
        done = by_url(database_url, name)
        assert done.exit_code in (0, 1, 2) and done.stdout.strip() and not done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--url", "postgresql://somebody:secret@127.0.0.1:1/none"), "127.0.0.1:1"),
        (("--url", "mysql://somebody:secret@localhost/none"), "must be PostgreSQL"),
        (("--url", "postgresql://somebody:secret@localhost:port/none"), "no database URL"),
        (("--url", "postgresql://somebody:sec@ret@localhost/none"), "two '@'"),
        (("--url", "postgresql://somebody:secret@127.0.0.1:1/none?nonsense=1"), "nonsense"),
        (("--url", "secret"), "must begin with a scheme"),
        (("--url", "postgresql://somebody:secret@localhost/none", "--appname", "Bad-"), "appname"),
        ((), "no database is named: give --url"),
    ],
)
def test_a_database_that_cannot_be_asked_is_one_line_without_the_password(words: tuple[str, ...], told: str) -> None:
    done = CliRunner().invoke(main, ["nodes", *words], env={"JOBSYNC_URL": ""})
    assert told in refused(done)
    assert "secret" not in done.output and "sec@ret" not in done.output


def test_the_url_may_come_from_the_environment_where_no_password_shows_in_the_list_of_processes(
    cluster: Cluster, database_url: str
) -> None:
    done = CliRunner().invoke(main, ["status"], env={"JOBSYNC_URL": database_url})
    assert done.stdout.startswith("rebalancing; leader one")


def test_an_app_goes_before_the_environment_and_a_url_before_the_app(
    cluster: Cluster, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBSYNC_URL", "postgresql://127.0.0.1:1/none")
    app = Celery("proj", broker="memory://", set_as_current=False)
    JobSync(app, {"url": database_url, "partitions": 4, "total_tokens": 100, "hash_function": "md5"})
    assert by_app(app, "nodes").exit_code == 1
    assert "127.0.0.1:1" in refused(by_app(app, "nodes", "--url", "postgresql://127.0.0.1:1/none"))
    assert "go with --url" in refused(by_app(app, "nodes", "--appname", "sync_"))


def test_a_question_that_is_watched_is_answered_until_it_is_interrupted(cluster: Cluster, database_url: str) -> None:
    watching = subprocess.Popen(
        command("status", "--url", database_url, "--json", "--watch", "0.2"), stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    states = [json.loads(watching.stdout.readline())["state"] for _ in range(2)]
    cluster.join("two", 3)
    while states[-1] == "rebalancing":
        states.append(json.loads(watching.stdout.readline())["state"])
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 0  # the code of the last answer
    assert states[:2] == ["rebalancing"] * 2 and states[-1] == "stable"


def test_a_database_that_goes_away_is_said_and_watched_for(cluster: Cluster, database_url: str) -> None:
    watching = subprocess.Popen(
        command("nodes", "--url", database_url, "--watch=0.2"), stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    assert watching.stdout.readline().startswith("node")
    cluster.execute("ALTER TABLE {leader} RENAME TO away")
    while not (line := watching.stdout.readline()).startswith("Error: "):
        assert line
    assert 'relation "sync_leader" does not exist' in line
    cluster.execute('ALTER TABLE away RENAME TO "sync_leader"')
    while not (line := watching.stdout.readline()).startswith("node"):
        assert line.startswith("Error: ")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 1


def test_who_is_watched_can_be_left_out_of_its_pipe(cluster: Cluster, database_url: str) -> None:
    watching = subprocess.Popen(
        command("nodes", "--url", database_url, "--watch=0.2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None and watching.stderr is not None
    watching.stdout.readline()
    watching.stdout.close()  # as `| head -1` does
    assert watching.wait(10) != 0
    assert "Traceback" not in watching.stderr.read()


def test_what_a_key_contains_cannot_move_the_cursor(cluster: Cluster, database_url: str) -> None:
    one = int(cluster.rows("SELECT incarnation FROM {node}")[0][0])
    cluster.claim("one", one, "task", "a\x1b[2J\nb", 0)
    for shown in (by_url(database_url, "claims").stdout, at_terminal(database_url, "claims")):
        assert "\x1b[2J" not in shown and "a\\x1b[2J\\nb" in shown and shown.count("\n") == 2
    assert said(by_url(database_url, "claims", "--json"))["claims"][0]["key"] == "a\x1b[2J\nb"


def test_a_terminal_without_utf_8_is_no_reason_to_fail(cluster: Cluster, database_url: str) -> None:
    cluster.join("größe", 3)
    told = {**os.environ, "PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1", "COLUMNS": "100", "TERM": "xterm"}
    words = command("status", "--url", database_url)
    done = subprocess.run(words, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr and "gr\\xf6\\xdfe" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete_the_commands(shell: str) -> None:
    celery = Path(sys.executable).parent / "celery"
    made = subprocess.run(
        [celery], env={**os.environ, "_CELERY_COMPLETE": f"{shell}_source"}, capture_output=True, text=True, check=True
    )
    assert "_CELERY_COMPLETE=" in made.stdout
    if shell == "bash":
        asked = {"_CELERY_COMPLETE": "bash_complete", "COMP_WORDS": "celery jobsync sta", "COMP_CWORD": "2"}
        offered = subprocess.run([celery], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
        assert offered.stdout.split() == ["plain,status"]


def commands(group: click.Group) -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, each in group.commands.items():
        found += [(f"{name} {inner}", one) for inner, one in commands(each)] if isinstance(each, click.Group) else []
        found += [] if isinstance(each, click.Group) else [(name, each)]
    return found


@pytest.mark.parametrize(("name", "one"), commands(jobsync))
def test_every_command_says_what_it_does_and_every_option_too(name: str, one: click.Command) -> None:
    assert one.help, name
    assert [option.name for option in one.params if isinstance(option, click.Option) and not option.help] == []
    here = {"--file"} if name == "probe" else {"--url"}
    assert {*here, "--json"} <= {word for option in one.params for word in option.opts}


def test_both_ways_of_calling_offer_the_same_commands() -> None:
    assert {name: one.name for name, one in jobsync.commands.items()} == {name: name for name in COMMANDS}
    assert set(main.list_commands(click.Context(main))) == {*COMMANDS, "demo"}


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
@pytest.mark.parametrize("words", [("status", "--watch"), ("probe", "liveness", "--wait"), ("claims", "--since")])
def test_a_number_that_nobody_can_wait_for_is_refused(words: tuple[str, ...], number: str) -> None:
    done = by_url("postgresql://nobody@127.0.0.1:1/none", *words, number)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
