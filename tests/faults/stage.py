"""Where a run plays: its servers, its workers behind proxies, and the questions that nemeses ask."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from celery import Celery

from jobsync_celery.servers.process import Guard
from tests.faults import app as under_fault
from tests.faults import audit, ledger
from tests.faults.proxy import Exchange, Mode, Proxy
from tests.faults.servers import Postgres, Standby, WallClock, broker_of, clock_library, small_disk
from tests.faults.tables import Tables
from tests.faults.tail import Body, Tail
from tests.faults.waiting import PATIENCE, happens, until
from tests.faults.workers import Worker

HEARTBEAT = 0.5
TIMEOUT = 2.0
PARTITIONS = 24
MAX_LOST_RUNS = 1000  # those whom we kill are innocent
_BASE = ("w1", "w2", "w3")
_ROOT = Path(__file__).resolve().parents[2]
_SHARES = (
    "SELECT n.name, n.pid, count(p.partition_id) AS owned FROM sync_node n"
    " LEFT JOIN sync_partition p ON p.owner_incarnation = n.incarnation AND p.pool = ''"
    " WHERE n.state IN ('live', 'draining') GROUP BY n.name, n.pid"
)
# One packet less before each connection, and nothing that a proxy could not read.
_PLAIN = "?sslmode=disable&gssencmode=disable"
_ALIEN = ("APP", "BROKER_URL", "RESULT_BACKEND", "LOADER", "CONFIG_MODULE")


class Stage:
    """Servers and workers of one run; leaving the block ends them all, and so does the end of this process.

    Arguments:
        build: the build that the workers are of, by its name in ``builds``; None for the product as it is.
    """

    def __init__(self, broker: str, folder: Path, build: str | None = None) -> None:
        self.kind = broker
        self._build_name = build
        self.folder = folder
        self.history = folder / "history.jsonl"
        self.workers: dict[str, Worker] = {}
        #: Workers that ended though nobody had asked them to.
        self.deaths: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Stage:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _build(self) -> None:
        for name in [name for name in os.environ if name in _ALIEN or name.startswith("CELERY_")]:
            del os.environ[name]  # Celery prefers these to what an app says
        disk = self._stack.enter_context(small_disk(self.folder))
        self.folder.chmod(0o711)  # root's PostgreSQL runs as somebody else
        self._clock_library = clock_library(self.folder)
        self.tail = Tail(self.history)
        self.exchange = Exchange()
        self._stack.callback(self.exchange.close)
        self.postgres = self._stack.enter_context(Postgres(disk, self.clock("database")))
        self._database_port = self.postgres.port
        self.broker = broker_of(self.kind)
        self._stack.enter_context(self.broker)
        self.guard = Guard(None)
        self._stack.callback(self.guard.close)
        self.tables = self.connection("faults")
        self._stack.callback(self.tables.close)
        self._stack.callback(self._close_workers)

    def _close_workers(self) -> None:
        for worker in self.workers.values():
            worker.close()

    # -- making it ----------------------------------------------------------------------------------------------

    @property
    def dsn(self) -> str:
        """The coordination database, reached directly."""
        return self.postgres.dsn

    def connection(self, name: str) -> Tables:
        """A connection to the database."""
        return Tables(lambda: self.dsn, name)

    def clock(self, name: str) -> WallClock | None:
        """A wall clock, right so far, that can be set wrong for those who run by it; None if this machine cannot."""
        if self._clock_library is None:
            return None
        clock = WallClock(self._clock_library, self.folder / f"clock-{name}")
        clock.set(0)
        return clock

    def producer(self) -> Celery:
        """An app in this process, to publish with, on a direct connection to the broker."""
        return under_fault.make_app(self._settings(self.postgres.port, self.broker.port))

    def start(self) -> None:
        """Start the first workers, and wait until they share the partitions."""
        for name in _BASE:
            self.add(name)
        until(self.settled, "the first workers share the partitions")
        audit.install(self.tables)
        self.tables.rows(ledger.CREATE)

    def add(self, name: str) -> Worker:
        """Start one more worker; it need not be ready yet."""
        worker = self.workers.get(name)
        if worker is None:
            database, broker = (Proxy(self.exchange, port) for port in (self._database_port, self.broker.port))
            env = {
                **os.environ,
                under_fault.SETTINGS: json.dumps(self._settings(database.port, broker.port)),
                "PYTHONPATH": str(_ROOT),
                "TMPDIR": str(self.folder),  # what killed workers leave behind goes with the run's folder
            }
            worker = Worker(self.guard, name, self.folder, env, database=database, broker=broker)
            self.workers[name] = worker
        worker.start()
        return worker

    def _settings(self, database_port: int, broker_port: int) -> dict[str, Any]:
        conf = {
            "broker_url": _at(self.broker.url, broker_port),
            "broker_connection_retry_on_startup": True,
            "broker_connection_max_retries": None,
            "broker_transport_options": {"confirm_publish": True} if self.kind == "rabbitmq" else {},
            "task_ignore_result": True,
            "worker_prefetch_multiplier": 4,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
            "worker_send_task_events": False,
            "faults_history": str(self.history),
            "faults_ledger": _at(self.dsn, database_port) + _PLAIN,
        }
        jobsync = {
            "url": _at(self.postgres.url, database_port) + _PLAIN,
            "partitions": PARTITIONS,
            "heartbeat_interval_sec": HEARTBEAT,
            "heartbeat_timeout_sec": TIMEOUT,
            "queue_prefix": "faults-",
            "max_lost_runs": MAX_LOST_RUNS,
        }
        return {"conf": conf, "jobsync": jobsync, "build": self._build_name}

    # -- asking -------------------------------------------------------------------------------------------------

    @property
    def wanted(self) -> list[Worker]:
        """The workers that are meant to run now."""
        return [worker for worker in self.workers.values() if worker.wanted]

    def owners(self) -> dict[int, str | None] | None:
        """Partition -> owner; None while the database does not answer."""
        rows = self.tables.ask("SELECT partition_id, owner FROM sync_partition")
        return {row["partition_id"]: row["owner"] for row in rows} if rows else None

    def settled(self) -> bool:
        """Whether the wanted workers as they run now, and no others, are live and share all partitions evenly."""
        rows = self.tables.ask(_SHARES)
        if not rows or {(row["name"], row["pid"]) for row in rows} != {(each.name, each.pid) for each in self.wanted}:
            return False
        counts = [row["owned"] for row in rows]
        return sum(counts) == PARTITIONS and bool(max(counts) - min(counts) <= 1)

    def aim(self, rng: Random) -> tuple[Worker, list[Body]]:
        """A worker at random, at a moment when bodies run on it, and these bodies."""
        worker = rng.choice(self.wanted)
        return worker, self.busy(worker)

    def busy(self, *workers: Worker) -> list[Body]:
        """The bodies that run on these workers (on any if none is given), once there are some."""
        names = {worker.name for worker in workers or self.wanted}

        def bodies() -> list[Body]:
            return [body for body in self.tail.running() if body.node in names]

        happens(bodies, 20.0, 0.02)
        return bodies()

    def until_lost(self, worker: Worker, timeout: float = PATIENCE) -> None:
        """Wait until the others have taken everything from a worker, or it was started anew meanwhile."""
        starts = worker.starts

        def lost() -> bool:
            owners = self.owners()
            return worker.starts > starts or (owners is not None and worker.name not in owners.values())

        until(lost, f"{worker.name} has lost its partitions", timeout)

    def until_ready(self, worker: Worker, timeout: float = PATIENCE) -> None:
        """Wait until a worker owns something."""
        until(lambda: worker.name in (self.owners() or {}).values(), f"{worker.name} owns partitions", timeout)

    # -- breaking and healing -----------------------------------------------------------------------------------

    def cut(self, workers: Iterable[Worker], sides: Iterable[str], mode: Mode) -> None:
        """Set the proxies of these workers before these servers (``database``, ``broker``) to a mode."""
        sides = tuple(sides)
        for worker in workers:
            for side in sides:
                getattr(worker, side).set(mode)

    def heal(self) -> None:
        """Undo whatever may still be broken: processes that are stopped or gone, proxies, servers."""
        for worker in self.workers.values():
            worker.heal()
        self.postgres.start()
        self.broker.start()
        for worker in self.wanted:
            if not worker.running:
                self.deaths.append(f"{worker.name} ended by itself with {worker.exit_code}: see {worker.log}")
                worker.start()

    def redirect_database(self, port: int) -> None:
        """Let all workers reach the database by another port."""
        self._database_port = port
        for worker in self.workers.values():
            worker.database.redirect(port)

    def new_standby(self, port: int) -> Standby:
        """A copy of the database that follows it through a port."""
        standby = Standby(self.postgres, port)
        self._stack.callback(standby.close)
        return standby.start()

    def fail_over(self, standby: Standby) -> None:
        """Make the standby the database, for workers and for us, and remove the one that was."""
        standby.promote()
        before, self.postgres = self.postgres, standby
        self.redirect_database(standby.port)
        before.remove()

    def await_settled(self, timeout: float) -> None:
        """Wait until everybody shares again and bodies end; raises :class:`Stuck` if that takes longer."""
        before = self.tail.done()
        until(self.settled, f"{[worker.name for worker in self.wanted]} share the partitions again", timeout)
        until(lambda: self.tail.done() > before, "tasks end again", timeout)

    def stop_workers(self) -> dict[str, int | None]:
        """SIGTERM all workers at once; their exit codes by name."""
        workers = self.wanted
        ends: list[Callable[[], int | None]] = []
        for worker in workers:
            worker.wanted = False
            worker.signal(15)
            ends.append(worker.await_end)
        return {worker.name: end() for worker, end in zip(workers, ends, strict=True)}


def _at(url: str, port: int) -> str:
    """The URL with another port."""
    parts = urlsplit(url)
    login, _, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()
