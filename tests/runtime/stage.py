"""What runtime tests play with: a clock that they move, nodes as rows, and a broker's side that only records."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from jobsync_celery.core.model import Run
from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.runtime.events import Events
from jobsync_celery.store.database import Database, Timeouts
from jobsync_celery.store.nodes import Identity
from jobsync_celery.store.outcomes import Wanted
from jobsync_celery.store.partitions import LockPartition
from jobsync_celery.store.schema import ClusterShape, ensure_schema
from jobsync_celery.store.store import Store

SHAPE = ClusterShape(640, 64, "double_sha256")


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class Facts:
    """Every fact that was emitted, in order."""

    def __init__(self) -> None:
        self.events = Events()
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.events.listen(lambda fact, fields: self.seen.append((fact, fields)))

    def of(self, fact: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.seen if name == fact]


class FakeHold:
    """Knows which processes are gone because the test says so."""

    def __init__(self, *gone: str) -> None:
        self.gone = set(gone)

    def proves_gone(self, identity: str) -> bool:
        return identity in self.gone


class RecordingSurface:
    """Remembers what it was told; with ``stopped`` set it confirms every stop at once."""

    def __init__(self) -> None:
        self.consumed: set[int] = set()
        self.learnt: dict[int, LockPartition] = {}
        self.calls: list[tuple[str, frozenset[int]]] = []
        self.stopped: Callable[[frozenset[int]], None] | None = None
        self.recovered = self.rechecked = 0
        self.locked: list[dict[str, int]] = []

    def learn(self, pools: Mapping[int, LockPartition]) -> None:
        self.learnt.update(pools)

    def start(self, partitions: frozenset[int]) -> None:
        self.calls.append(("start", partitions))
        self.consumed |= partitions

    def stop(self, partitions: frozenset[int]) -> None:
        self.calls.append(("stop", partitions))
        self.consumed -= partitions
        if self.stopped is not None:
            self.stopped(partitions)

    def recover(self) -> None:
        self.recovered += 1

    def recheck(self) -> None:
        self.rechecked += 1

    def reconsider(self, locked: Mapping[str, int]) -> None:
        self.locked.append(dict(locked))


class Outage:
    """Makes a store's next transactions fail, as an unreachable server would."""

    def __init__(self, link: Any, monkeypatch: Any) -> None:
        self._link = link
        self._monkeypatch = monkeypatch

    def __enter__(self) -> None:
        def refuse() -> None:
            raise StoreUnavailable("the test says so")

        self._patch = self._monkeypatch.context()
        patch = self._patch.__enter__()
        patch.setattr(self._link, "_live", refuse)

    def __exit__(self, *_: object) -> None:
        self._patch.__exit__(None, None, None)


def store_at(database_url: str, *, lock: float = 5.0) -> Store:
    """A store with its tables."""
    database = Database(database_url, timeouts=Timeouts(statement=8.0, lock=lock, idle_in_transaction=15.0))
    ensure_schema(database, SHAPE)
    return Store(database)


def identity(name: str, *, lease_sec: float = 10.0, presence: str = "", weight: float = 1.0) -> Identity:
    return Identity(name, weight, lease_sec, "host", presence, 7, "0")


def join(store: Store, name: str, *partitions: int, lease_sec: float = 10.0, presence: str = "") -> int:
    """Register a node as a row, and let it own these partitions."""
    with store.database.transaction() as tx:
        incarnation = store.nodes.register(tx, identity(name, lease_sec=lease_sec, presence=presence))
        assert incarnation is not None
        store.partitions.assign(tx, dict.fromkeys(partitions, name))
        assert store.partitions.take(tx, partitions, name, incarnation) == set(partitions)
    return incarnation


def rows(store: Store, query: str, **values: Any) -> list[tuple[Any, ...]]:
    with store.database.transaction() as tx:
        result = tx.execute(store.database.sql(query), values)
        return [tuple(row) for row in result] if result.returns_rows else []


def counts(store: Store, column: str = "owner") -> dict[str | None, int]:
    """How many partitions each name has, or should have."""
    return dict(rows(store, f"SELECT {column}, count(*) FROM {{partition}} GROUP BY 1"))


def wanted(task_id: str, key: str = "k", partition: int = 0) -> Wanted:
    return Wanted(Run(task_id, "o", 0), "proj.task", key, partition * 10, partition)


def eventually(true: Callable[[], object], timeout: float = 10.0) -> float:
    """Look until it is so; how many seconds that took."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < timeout, "it did not come about"
        threading.Event().wait(0.01)
    return time.monotonic() - begun
