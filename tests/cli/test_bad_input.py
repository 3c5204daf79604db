"""Whatever is wrong, every command says so in one line, exits with 2, changes nothing, and shows no password."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click
import pytest
from celery import Celery
from click.testing import CliRunner, Result
from command_stage import SHAPE, Cluster, by_app, by_url, refused
from kombu import Queue
from sqlalchemy import make_url

from jobsync_celery import JobSync
from jobsync_celery.__main__ import main
from jobsync_celery.cli.main import jobsync
from jobsync_celery.store.database import Database
from jobsync_celery.store.schema import ensure_schema

#: What each command needs besides.
ARGUMENTS = {
    "where": ("key",),
    "why": ("task",),
    "locks add": ("key", "gpu%"),
    "locks remove": ("key",),
    "locks clear-by": ("script",),
    "drain": ("one",),
    "undrain": ("one",),
}
SECRET = "pass/word"
SETTINGS = {"total_tokens": SHAPE.total_tokens, "partitions": SHAPE.partitions, "hash_function": SHAPE.hash_function}


def commands() -> Iterator[str]:
    for name, command in jobsync.commands.items():
        if name == "probe":  # it asks no cluster
            continue
        inner = command.commands if isinstance(command, click.Group) else [""]
        yield from (f"{name} {word}".strip() for word in inner)


EVERY = sorted(commands())
#: Needs an app, and says so before it looks anywhere.
BY_URL = [name for name in EVERY if name != "flush-back"]


def words(name: str) -> tuple[str, ...]:
    return (*name.split(), *ARGUMENTS.get(name, ()))


def ask(url: str, name: str, *more: str) -> Result:
    """A command in the two ways of being refused: the line, and with --json the same line as JSON."""
    told = refused(by_url(url, *words(name), *more))
    as_json = by_url(url, *words(name), *more, "--json")
    assert as_json.exit_code == 2 and as_json.stderr.strip() == told
    assert json.loads(as_json.stdout) == {"error": told.removeprefix("Error: ")}
    assert SECRET not in as_json.output and "pass%2Fword" not in as_json.output
    return told


def app_of(url: str | None, broker: str = "memory://", **settings: object) -> Celery:
    app = Celery("proj", broker=broker, set_as_current=False)
    JobSync(app, None if url is None else {"url": url, **SETTINGS, **settings})
    return app


@pytest.fixture(scope="module")
def url(module_database_url: str) -> str:
    """A database that nothing here changes; the tables that begin with newer_ are of a later revision."""
    Cluster(module_database_url)
    newer = Database(module_database_url, prefix="newer_")
    ensure_schema(newer, SHAPE)
    with newer.transaction() as tx:
        tx.execute(newer.sql("UPDATE {schema} SET version_num = '9999'"))
    return module_database_url


@pytest.mark.parametrize("name", BY_URL)
def test_a_database_that_is_not_there_or_lets_nobody_in(url: str, name: str) -> None:
    nowhere = make_url("postgresql://somebody@127.0.0.1:1/none").set(password=SECRET).render_as_string(False)
    assert "127.0.0.1:1" in ask(nowhere, name)
    forged = make_url(url).set(password=SECRET).render_as_string(False)
    assert "password authentication failed" in ask(forged, name)
    missing = make_url(url).set(database="nowhere").render_as_string(False)
    assert 'database "nowhere" does not exist' in ask(missing, name)


@pytest.mark.parametrize("name", BY_URL)
def test_a_wrong_prefix_or_schema_and_a_database_without_tables(url: str, name: str) -> None:
    if name == "schema upgrade":
        assert "'nowhere'" in ask(url, name, "--schema", "nowhere")
    else:
        assert "no 'other_' tables in database" in ask(url, name, "--appname", "other_")
        assert "no 'sync_' tables in schema 'nowhere' of database" in ask(url, name, "--schema", "nowhere")


@pytest.mark.parametrize("name", BY_URL)
def test_tables_that_are_newer_than_the_code(url: str, name: str) -> None:
    assert "revision 9999, made by a newer jobsync_celery" in ask(url, name, "--appname", "newer_")


@pytest.mark.parametrize("name", EVERY)
def test_an_app_without_the_plugin_or_with_coordination_off(name: str) -> None:
    bare = Celery("proj", broker="memory://", set_as_current=False)
    assert "the app 'proj' has no JobSync" in refused(by_app(bare, *words(name)))
    assert "coordination is switched off for the app 'proj'" in refused(by_app(app_of(None), *words(name)))


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_named(name: str) -> None:
    done = CliRunner().invoke(main, words(name), env={"JOBSYNC_URL": ""})
    assert "no database is named" in refused(done)


@pytest.mark.parametrize("name", EVERY)
def test_an_option_that_there_is_not(name: str) -> None:
    done = CliRunner().invoke(main, [*words(name), "--nonsense"])
    assert done.exit_code == 2 and "No such option" in done.stderr and "Traceback" not in done.output


def test_an_address_that_swallows_everything_is_given_up_in_time() -> None:
    told = refused(by_url("postgresql://somebody@10.255.255.1/none", "status"))
    assert "10.255.255.1" in told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (("drain", "tow"), "no live node is called 'tow'"),
        (("undrain", "nobody"), "no live node is called 'nobody': there are one"),
        (("rebalance", "--dry-run", "--without", "nobody"), "nobody"),
        (("tokens", "--node", "on"), "did you mean 'one'?"),
        (("claims", "--node", "on"), "did you mean 'one'?"),
        (("locks", "list", "--by", "nobody"), "no lock was set by 'nobody'"),
        (("locks", "clear-by", "nobody"), "no lock was set by 'nobody'"),
        (("locks", "remove", "key"), "not locked"),
        (("locks", "add", "key", "ends in an escape\\"), "ends in an escape"),
        (("locks", "add", "k" * 256, "gpu%"), "255 characters"),
        (("locks", "add", "key", "gpu%", "--expires-in-days", "-1"), "must expire in more than 0"),
        (("where", ""), "1 to 255 characters"),
        (("where", "k" * 256), "255 characters"),
        (("why", "task", "--key", "k" * 256), "255 characters"),
        (("cleanup", "--history-retention", "1"), "history_retention must be"),
        (("schema", "reshape", "--partitions", "0"), "partitions must be"),
        (("schema", "reshape", "--partitions", "101"), "must not exceed total_tokens=100"),
        (("schema", "reshape", "--partitions", "8"), "a node is live: stop all workers first (one)"),
        (("schema", "reshape", "--partitions", "8", "--dry-run"), "a node is live: stop all workers first (one)"),
        (("schema", "upgrade", "--total-tokens", "-1"), "total_tokens must be"),
        (("flush-back",), "name it with celery -A"),
    ],
)
def test_what_is_not_there_or_not_allowed(
    cluster: Cluster, database_url: str, said: tuple[str, ...], told: str
) -> None:
    assert told in refused(by_url(database_url, *said))


def test_what_an_app_is_asked_for_and_its_broker_or_queues_do_not_have(cluster: Cluster, database_url: str) -> None:
    cluster.execute("DELETE FROM {node}")
    app = app_of(database_url, "redis://:pass%2Fword@127.0.0.1:1/0", partitions=8)
    for name in ("flush-back", "schema reshape"):
        told = refused(by_app(app, *words(name)))
        assert "the broker does not answer" in told and SECRET not in told and "pass%2Fword" not in told
    assert cluster.rows("SELECT partitions FROM {cluster}") == [(4,)]
    strict = app_of(database_url)
    strict.conf.update(task_create_missing_queues=False, task_queues=[Queue("ordinary")])
    assert "no such queue" in refused(by_app(strict, "flush-back", "--queue", "nowhere"))
    assert "carries a partition" in refused(by_app(app_of(database_url), "flush-back", "--queue", "jobsync-000"))
    assert "on Redis and RabbitMQ" in refused(by_app(app_of(database_url), "flush-back"))
