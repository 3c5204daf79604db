"""The shapes of JSON answers are those of the reference page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from celery import Celery
from click.testing import CliRunner
from command_stage import SHAPE, Cluster, by_app, by_url, said

from jobsync_celery import JobSync
from jobsync_celery.__main__ import main
from jobsync_celery.cli.main import jobsync
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.vitals import Vitals, VitalsFile

#: In the first partition.
KEY = next(key for key in map(str, range(100)) if SHAPE.tokens.partition_for(key) == 0)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md"
SECTION = re.compile(r"^## `([a-z-]+(?: [a-z-]+)?)[^\n]*\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documented() -> dict[str, Any]:
    """Command -> its example."""
    found = {}
    for name, section in SECTION.findall(PAGE.read_text()):
        [example] = EXAMPLE.findall(section)
        found[name] = json.loads(example)
    return found


def shape(value: object) -> object:
    """Names, all the way down; of a list's elements those of the first."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "a value"


@pytest.fixture
def url(cluster: Cluster, database_url: str) -> str:
    """A cluster in which every list has something."""
    one = int(cluster.rows("SELECT incarnation FROM {node}")[0][0])
    cluster.join("two", 3)
    cluster.bury("three", cluster.join("three"), grace=300)
    cluster.plan("one", 1)
    cluster.end(cluster.claim("one", one, "ended", KEY, 0))
    cluster.end(cluster.claim("one", one, "lost", KEY, 0), "lost")
    cluster.claim("one", one, "running", KEY, 0)
    cluster.observe("one", "two")
    by_url(database_url, "locks", "add", KEY, "gpu%", "--by", "script")
    by_url(database_url, "locks", "add", "another", "gpu%", "--by", "other")
    return database_url


def probed(folder: Path) -> Any:
    """What the probe of a worker says, which no database is asked for."""
    now = boot_clock()
    VitalsFile(str(folder / "probe")).write(Vitals("w1@host", 4711, "takes part", now, now, now + 12))
    return said(CliRunner().invoke(main, ["probe", "readiness", "--file", str(folder / "probe"), "--json"]))


def test_every_command_answers_in_the_documented_shape(url: str, tmp_path: Path) -> None:
    asked = {
        "status": (),
        "doctor": (),
        "nodes": (),
        "tokens": (),
        "history": (),
        "claims": (),
        "where": (KEY,),
        "why": ("lost",),
        "locks list": (),
        "locks add": (KEY, "gpu%"),
        "locks remove": (KEY,),
        "locks clear-by": ("other",),
        "rebalance": ("--dry-run", "--without", "one"),
        "drain": ("two",),
        "undrain": ("two",),
        "cleanup": ("--dry-run",),
        "probe": (),
        "schema show": (),
        "schema upgrade": (),
        "observe": (),
    }
    examples = documented()
    assert set(examples) - set(asked) == {"schema reshape", "flush-back"}
    for name, words in asked.items():
        answer = probed(tmp_path) if name == "probe" else said(by_url(url, *name.split(), *words, "--json"))
        assert shape(answer) == shape(examples[name]), name


@pytest.mark.redis
def test_what_moves_messages_answers_in_the_documented_shape(
    cluster: Cluster, database_url: str, redis_url: str, queue_prefix: str
) -> None:
    cluster.execute("DELETE FROM {node}")
    app = Celery("proj", broker=redis_url, set_as_current=False)
    app.conf.task_default_queue = f"{queue_prefix}ordinary"
    numbers = {"total_tokens": SHAPE.total_tokens, "partitions": 2, "hash_function": SHAPE.hash_function}
    JobSync(app, {"url": database_url, "queue_prefix": queue_prefix, "tasks": {"proj.settle": 0}, **numbers})
    for number, command in ((3, "schema reshape"), (1, "flush-back")):
        app.send_task("proj.settle", (KEY,), queue=f"{queue_prefix}{number:03}")
        answer = said(by_app(app, *command.split(), "--json"))
        example = documented()[command]
        for each in (*answer["queues"], *example["queues"]):
            assert each["moved"].pop(next(iter(each["moved"]))) > 0  # its names are those of queues
            each["moved"].clear()
        assert shape(answer) == shape(example), command


def test_every_command_has_its_section() -> None:
    names = []
    for name, command in jobsync.commands.items():
        names += [f"{name} {inner}" for inner in command.commands] if isinstance(command, click.Group) else [name]
    assert sorted(names) == sorted(documented())


def test_every_option_of_a_command_is_in_its_heading_or_its_section() -> None:
    common = {"--url", "--appname", "--schema", "--json", "--watch", "--help"}
    text = dict(re.findall(r"^## `([a-z-]+(?: [a-z-]+(?=[ `\[]))?)(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S))
    for name, command in jobsync.commands.items():
        inner = command.commands.items() if isinstance(command, click.Group) else [("", command)]
        for word, one in inner:
            options = {each for option in one.params for each in option.opts if each.startswith("--")} - common
            section = next(body for head, body in text.items() if head == f"{name} {word}".strip())
            assert [option for option in options if option not in section] == [], name
