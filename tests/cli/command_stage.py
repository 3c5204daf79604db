"""What tests of commands play with: nodes that are rows, claims, and commands called as from a shell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from jobsync_celery.__main__ import main
from jobsync_celery.cli.main import jobsync
from jobsync_celery.core.model import Member, Run
from jobsync_celery.store.database import Database
from jobsync_celery.store.leader import Rebalance
from jobsync_celery.store.nodes import Identity
from jobsync_celery.store.outcomes import Ending, Granted, Wanted
from jobsync_celery.store.schema import ClusterShape, ensure_schema
from jobsync_celery.store.store import Store

#: Seconds; a slow machine must not make nodes silent.
LEASE = 300.0
SHAPE = ClusterShape(total_tokens=100, partitions=4, hash_function="md5")


class Cluster:
    """Nodes that are rows only; four partitions of 25 tokens."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.store = Store(self.database)
        ensure_schema(self.database, SHAPE)

    def join(self, name: str, *partitions: int, weight: float = 1.0) -> int:
        identity = Identity(name, weight, LEASE, "host", "", 7, "0")
        with self.database.transaction() as tx:
            incarnation = self.store.nodes.register(tx, identity)
            assert incarnation is not None
            self.store.partitions.assign(tx, dict.fromkeys(partitions, name))
            self.store.partitions.take(tx, partitions, name, incarnation)
        return incarnation

    def lead(self, name: str, incarnation: int) -> None:
        with self.database.transaction() as tx:
            self.store.leaders.take_term(tx, Member(name, incarnation))

    def plan(self, leader: str, term: int, tokens: int = 25, reason: str = "membership") -> None:
        with self.database.transaction() as tx:
            self.store.leaders.record(tx, Rebalance(reason, leader, term, 1, 2, tokens, 3.0))

    def bury(self, name: str, incarnation: int, grace: float = 0) -> None:
        with self.database.transaction() as tx:
            self.store.nodes.declare_dead(tx, name, incarnation, None, grace=grace)
            self.store.partitions.free_orphans(tx)

    def leave(self, name: str, incarnation: int, grace: float = 0) -> None:
        with self.database.transaction() as tx:
            self.store.nodes.drain(tx, name, incarnation, grace)
            self.store.nodes.remove(tx, name, incarnation)
            self.store.partitions.free_orphans(tx)

    def silence(self, name: str) -> None:
        late = "UPDATE {node} SET last_heartbeat = last_heartbeat - make_interval(secs => :secs) WHERE name = :name"
        self.execute(late, name=name, secs=LEASE + 1)

    def claim(self, name: str, incarnation: int, task_id: str, key: str, partition: int, retries: int = 0) -> Ending:
        """Claim a run; what would end it as done."""
        want = Wanted(Run(task_id, "origin", retries), "proj.settle", key, partition * 25, partition)
        with self.database.transaction() as tx:
            granted = self.store.claims.claim(tx, name, incarnation, [want])[want.run]
        assert isinstance(granted, Granted)
        return Ending(want.run, granted.fence, "done", partition)

    def end(self, ending: Ending, state: str = "done") -> None:
        link = self.database.link("test")
        assert self.store.claims.commit(link, "nobody", 0, [ending._replace(state=state)], []).recorded
        link.close()

    def observe(self, *workers: str, key: str | None = "42", task: str = "proj.settle") -> None:
        """Each of these workers runs the key for some seconds, and they begin a second after each other."""
        [(now,)] = self.rows("SELECT clock_timestamp()")
        for number, worker in enumerate(workers):
            self.execute(
                "WITH v AS (INSERT INTO {observer} (node) VALUES (:node) RETURNING observer_id)"
                " INSERT INTO {observation} (began_on, until, number, observer_id, error_sec, state, task_id,"
                " task_name, task_key) SELECT t, t + interval '3 s', 1, observer_id, 0.001, 'ended',"
                " CAST(:task_id AS text), :task, :key FROM v,"
                " (SELECT CAST(:now AS timestamptz) - make_interval(secs => 60 - :number) AS t) AS times",
                node=worker, task_id=f"id-{number}", task=task, key=key, number=number, now=now,
            )  # fmt: skip

    def execute(self, statement: str, **values: Any) -> None:
        with self.database.transaction() as tx:
            tx.execute(self.database.sql(statement), values)

    def rows(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        with self.database.transaction() as tx:
            return [tuple(row) for row in tx.execute(self.database.sql(query), values)]


def by_url(url: str, *words: str, env: Mapping[str, str] | None = None) -> Result:
    """``python -m jobsync_celery WORDS --url URL``."""
    return CliRunner().invoke(main, [*words, "--url", url], env=env)


def by_app(app: Celery, *words: str) -> Result:
    """``celery -A app jobsync WORDS``."""
    return CliRunner().invoke(jobsync, list(words), obj=CLIContext(app, no_color=True, workdir=None))


def said(done: Result) -> Any:
    """What a command with --json said."""
    return json.loads(done.stdout)


def refused(done: Result) -> str:
    """The one line with which a command was refused."""
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == "", done.stdout
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


def at_terminal(url: str, *words: str, columns: int = 80) -> str:
    """What a command shows at a terminal of so many columns, without its colours."""
    done = by_url(url, *words, env={"FORCE_COLOR": "1", "COLUMNS": str(columns), "TERM": "xterm"})
    shown = click.unstyle(done.stdout)
    assert max(map(len, shown.splitlines())) <= columns, shown
    return shown
