"""Nodes in one process on one real database, with surfaces that only record."""

from __future__ import annotations

import threading

from sqlalchemy import event
from stage import SHAPE, Facts, FakeHold, RecordingSurface, counts, eventually, identity

from jobsync_celery.runtime.leadership import FirstPlan
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.node import Node, NodeSettings
from jobsync_celery.store.database import Database, Timeouts
from jobsync_celery.store.store import Store

INTERVAL, TIMEOUT = 0.4, 2.0


class Worker:
    """A node whose broker's side confirms every stop at once."""

    def __init__(self, url: str, name: str, grace: float = 0.0, interval: float = INTERVAL) -> None:
        self.name = name
        self.database = Database(url, timeouts=Timeouts(statement=1.0, lock=0.5, idle_in_transaction=1.0, tcp_user=1.0))
        self.surface, self.facts, self.lease = RecordingSurface(), Facts(), Lease()
        timeout = max(TIMEOUT, 3 * interval)
        settings = NodeSettings(identity(name, lease_sec=timeout), SHAPE, interval, timeout, FirstPlan(), grace)
        store = Store(self.database)
        self.node = Node(store, settings, self.surface, self.lease, FakeHold(), self.facts.events)
        self.surface.stopped = self.node.ownership.stopped
        self.statements = 0
        event.listen(self.database._engine, "before_cursor_execute", self._count)
        self.dead = False

    def _count(self, *_: object) -> None:
        self.statements += 1

    def start(self) -> Worker:
        self.node.start()
        return self

    def kill(self) -> None:
        """As SIGKILL would: it says nothing more, and hears nothing."""
        self.dead = True

        def gone() -> None:
            threading.Event().wait()

        self.node._tick = gone  # type: ignore[method-assign] # the thread ends with the test process
        self.node.wake()

    def freeze(self) -> threading.Event:
        """As SIGSTOP would: the loop stands still until the event is set."""
        go, tick = threading.Event(), self.node._tick

        def frozen() -> None:
            go.wait()
            self.node._tick = tick  # type: ignore[method-assign] # as it was
            tick()

        self.node._tick = frozen  # type: ignore[method-assign] # for the test
        self.node.wake()
        return go

    def close(self) -> None:
        if not self.dead:
            self.node.leave(10)


class Cluster:
    """Workers by name."""

    def __init__(self, url: str, **how: float) -> None:
        self.url, self.how = url, how
        self.store = Store(Database(url))
        self.workers: dict[str, Worker] = {}

    def start(self, *names: str) -> None:
        for name in names:
            self.workers[name] = Worker(self.url, name, **self.how)
        for name in names:
            self.workers[name].start()

    def stop(self, *names: str) -> None:
        """As SIGTERM does, one after the other."""
        stopping = [self.workers.pop(name).node for name in names]
        for node in stopping:
            node.drain()
        for node in stopping:
            assert node.drained.wait(5) and node.leave(5)

    def balanced(self) -> bool:
        """Every partition is consumed by exactly one worker, its owner, and the shares differ by at most one."""
        shares = [len(worker.surface.consumed) for worker in self.workers.values()]
        if sum(shares) != SHAPE.partitions or max(shares) - min(shares) > 1:
            return False
        if len(set[int]().union(*[worker.surface.consumed for worker in self.workers.values()])) != SHAPE.partitions:
            return False
        owners: dict[str | None, int] = {name: len(worker.surface.consumed) for name, worker in self.workers.items()}
        return counts(self.store) == owners

    def all_hear(self) -> None:
        """Return when every worker has had an answer from the database from now on."""
        before = {name: worker.node.leadership._watch for name, worker in self.workers.items()}
        eventually(lambda: all(w.node.leadership._watch is not before[name] for name, w in self.workers.items()))

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
