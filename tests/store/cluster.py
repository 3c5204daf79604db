"""A cluster whose nodes are rows only, for tests that play several nodes at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

from sqlalchemy import text
from sqlalchemy.engine import Connection

from jobsync_celery.core.model import Run
from jobsync_celery.store.database import Database, Link, Timeouts
from jobsync_celery.store.nodes import Identity
from jobsync_celery.store.outcomes import Ending, Granted, Outcome, Wanted
from jobsync_celery.store.schema import ClusterShape, ensure_schema
from jobsync_celery.store.store import Store

Result = TypeVar("Result")
_AWAITED_SEC = 10.0


def identity(name: str, *, lease_sec: float = 15.0, weight: float = 1.0, presence: str = "") -> Identity:
    return Identity(name, weight, lease_sec, "host", presence, 7, "0")


def wanted(task_id: str, key: str = "k", partition: int = 0, *, origin: str = "o", retries: int = 0) -> Wanted:
    return Wanted(Run(task_id, origin, retries), "proj.task", key, partition * 10, partition)


def ending(want: Wanted, granted: Outcome, state: str = "done") -> Ending:
    assert isinstance(granted, Granted)
    return Ending(want.run, granted.fence, state, want.partition)


class Cluster:
    """Tables with eight partitions; every method is a transaction of its own."""

    def __init__(self, database_url: str) -> None:
        # Patient, since a test holds locks until it has seen the other one wait.
        self.database = Database(database_url, timeouts=Timeouts(statement=15.0, lock=12.0, idle_in_transaction=15.0))
        ensure_schema(self.database, ClusterShape(80, 8, "double_sha256"))
        self.store = Store(self.database)
        self._threads = ThreadPoolExecutor(8)

    def link(self, name: str) -> Link:
        return self.database.link(name)

    def join(self, name: str, *partitions: int, lease_sec: float = 15.0, presence: str = "") -> int:
        """Register a node, and let it own these partitions."""
        with self.database.transaction() as tx:
            incarnation = self.store.nodes.register(tx, identity(name, lease_sec=lease_sec, presence=presence))
            assert incarnation is not None
            self.store.partitions.assign(tx, dict.fromkeys(partitions, name))
            assert self.store.partitions.take(tx, partitions, name, incarnation) == set(partitions)
        return incarnation

    def bury(self, name: str, incarnation: int) -> bool:
        """Declare a node dead, and nothing else."""
        return self.within(lambda tx: self.store.nodes.declare_dead(tx, name, incarnation, None))

    def claim(self, name: str, incarnation: int, *wants: Wanted) -> list[Outcome]:
        outcomes = self.within(lambda tx: self.store.claims.claim(tx, name, incarnation, wants))
        assert len(outcomes) == len({want.run for want in wants})
        return [outcomes[want.run] for want in wants]

    def end(self, *endings: Ending) -> set[Run]:
        """Record ends as the claimer does; the runs whose end was this node's to settle."""
        with closing(self.link("claimer")) as link:
            return self.store.claims.commit(link, "nobody", 0, endings, []).recorded

    def within(self, work: Callable[[Connection], Result], name: str = "jobsync test") -> Result:
        with self.database.transaction(name) as tx:
            return work(tx)

    def rows(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """What a query answers; ``{claim}`` and the like are tables."""
        with self.database.transaction() as tx:
            result = tx.execute(self.database.sql(query), values)
            return [tuple(row) for row in result] if result.returns_rows else []

    def states(self) -> dict[str, str]:
        return dict(self.rows("SELECT task_id, state FROM {claim}"))

    def meanwhile(self, work: Callable[[], Result]) -> Future[Result]:
        """Run in a thread of its own."""
        return self._threads.submit(work)

    def await_blocked(self, name: str) -> None:
        """Return when the session called ``name`` waits for another session's lock."""
        query = text(
            "SELECT FROM pg_stat_activity WHERE application_name = :name AND cardinality(pg_blocking_pids(pid)) > 0"
        )
        end = time.monotonic() + _AWAITED_SEC
        with closing(self.link("observer")) as link:  # a transaction would see one snapshot of the activity
            while not link.statement(query, {"name": name}):
                assert time.monotonic() < end, f"{name} does not wait"
                time.sleep(0.005)
