"""One cluster under test: its settings, its producer, its workers, and the questions that tests ask."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kombu
import psycopg2
import psycopg2.extras
import redis
from celery import Celery
from celery.result import AsyncResult

from e2e import app as under_test
from e2e.history import History, doubled, out_of_fence, overlaps
from e2e.stand_ins import LocalWorker, Worker
from e2e.waiting import PATIENCE, until
from jobsync_celery.runtime.vitals import FILE_VARIABLE

HEARTBEAT = 1.0
TIMEOUT = 3.0
_TESTS = Path(__file__).resolve().parent.parent

Claim = dict[str, Any]


class Site:
    """Everything of one cluster.

    Arguments:
        jobsync, conf: settings that differ from this module's, for the plugin and for Celery.
    """

    def __init__(
        self,
        folder: Path,
        broker: str,
        backend: str,
        database: str,
        prefix: str,
        *,
        jobsync: Mapping[str, Any] | None = None,
        conf: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.broker_url = broker
        self.backend_url = backend
        self.database_url = database
        self.prefix = prefix
        self.history = History(folder / "history.jsonl")
        self.workers: list[Worker] = []
        self._connection: Any = None
        self._jobsync = dict(jobsync or {})
        self._conf = dict(conf or {})
        self.app = self.producer()

    # -- making it ----------------------------------------------------------------------------------------------

    @property
    def is_redis(self) -> bool:
        return self.broker_url.startswith("redis")

    def settings(self, **jobsync: Any) -> dict[str, Any]:
        """What an app of this cluster is made from."""
        conf = {
            "broker_url": self.broker_url,
            "result_backend": self.backend_url,
            "task_default_queue": f"{self.prefix}ordinary",
            "broker_connection_retry_on_startup": True,
            "broker_connection_max_retries": None,
            "worker_prefetch_multiplier": 4,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
            "worker_send_task_events": False,
            "e2e_history": str(self.history.path),
            "e2e_database": self.database_url,
            **self._conf,
        }
        settings = {
            "url": self.database_url,
            "partitions": 8,
            "heartbeat_interval_sec": HEARTBEAT,
            "heartbeat_timeout_sec": TIMEOUT,
            "queue_prefix": self.prefix,
            **self._jobsync,
            **jobsync,
        }
        return {"conf": conf, "jobsync": settings}

    def producer(self, **jobsync: Any) -> Celery:
        """An app in this process, to publish with."""
        return under_test.make_app(self.settings(**jobsync))

    def stranger(self) -> Celery:
        """An app in this process that knows neither the plugin nor the tasks."""
        return under_test.bare_app(self.settings())

    def worker(
        self,
        name: str,
        *options: str,
        jobsync: dict[str, Any] | None = None,
        conf: dict[str, Any] | None = None,
        off: bool = False,
        path: str = "",
        broker: str | None = None,
    ) -> Worker:
        """Start a worker; it need not be ready yet.

        Arguments:
            options: come after ``celery worker``.
            jobsync, conf: settings of this worker only.
            off: without coordination.
            path: a further folder for its imports, which may shadow others.
            broker: another way to the broker.
        """
        settings = self.settings(**(jobsync or {}))
        settings["conf"].update(conf or {})
        if off:
            settings["jobsync"] = None
        if broker is not None:
            settings["conf"]["broker_url"] = broker
        env = {
            under_test.SETTINGS: json.dumps(settings),
            "TMPDIR": str(self.folder),  # what killed workers leave behind goes with the test's folder
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_TESTS), path))),
            FILE_VARIABLE: self.probe_file(name),
        }
        if "-c" not in options:
            options = ("-c", "2", *options)
        local = LocalWorker(
            self.node(name), ["--without-mingle", "--without-gossip", *options], env, self.folder, forked=not path
        )
        worker = Worker(local, self.app)
        self.workers.append(worker)
        return worker

    def listen(self, path: Path, **how: float) -> None:
        """Let the workers to come write down what their receivers hear; see :func:`e2e.listening.listen`."""
        self._conf["e2e_listen"] = {"path": str(path), **how}

    def node(self, name: str) -> str:
        """The node name of a worker."""
        return f"{name}@{self.prefix}host"  # RabbitMQ refuses a second worker of one name in a virtual host

    def probe_file(self, name: str) -> str:
        """What a worker writes for probes."""
        return str(self.folder / f"{name}.probe")

    def close(self) -> None:
        """End everything."""
        for worker in self.workers:
            worker.container.teardown()
        if self._connection is not None:
            self._connection.close()
        self.app.close()

    # -- asking -------------------------------------------------------------------------------------------------

    def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Ask the coordination database."""
        for last in (False, True):
            try:
                with self._connected().cursor() as cursor:
                    cursor.execute(statement, values)
                    return [dict(row) for row in cursor.fetchall()] if cursor.description else []
            except (psycopg2.OperationalError, psycopg2.InterfaceError):  # the server was restarted
                self._connection = None
                if last:
                    raise
        raise AssertionError

    def _connected(self) -> Any:
        if self._connection is None:
            dsn = self.database_url.replace("+psycopg2", "")
            self._connection = psycopg2.connect(dsn, cursor_factory=psycopg2.extras.RealDictCursor)
            self._connection.autocommit = True
        return self._connection

    def claims(self, *ids: str) -> list[Claim]:
        """The claims of these tasks, or all, in the order of their fences."""
        if ids:
            return self.rows("SELECT * FROM sync_claim WHERE task_id = ANY(%s) ORDER BY fence", list(ids))
        return self.rows("SELECT * FROM sync_claim ORDER BY fence")

    def owners(self) -> dict[int, str | None]:
        """Partition -> the node that owns it."""
        return {
            row["partition_id"]: row["owner"] for row in self.rows("SELECT partition_id, owner FROM sync_partition")
        }

    def shares(self) -> Counter[str | None]:
        """Node -> how many partitions it owns, without those of lock pools."""
        try:
            rows = self.rows("SELECT owner FROM sync_partition WHERE pool = ''")
            return Counter(row["owner"] for row in rows)
        except psycopg2.errors.UndefinedTable:
            return Counter()

    def key_of(self, node: str, stem: str = "key", n: int = 0) -> str:
        """The nth key whose partition this node owns."""
        owners = self.owners()
        cluster = self.app.jobsync.cluster
        found = (f"{stem}{i}" for i in range(10_000) if owners[cluster.tokens.partition_for(f"{stem}{i}")] == node)
        return next(key for i, key in enumerate(found) if i == n)

    def waiting(self, *queues: str) -> int:
        """How many messages lie in these queues, ready to be fetched."""
        with kombu.Connection(self.broker_url) as connection:
            return sum(self._size(connection, queue) for queue in queues)

    def _size(self, connection: kombu.Connection, queue: str) -> int:
        if self.is_redis:
            return int(connection.default_channel._size(queue))
        with connection.channel() as channel:
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except connection.channel_errors:
                return 0

    def queues(self) -> list[str]:
        """The partitions' queues, those of lock pools too, and the ordinary one."""
        queues = self.app.jobsync.cluster.queues
        pools = self.rows(
            "SELECT pool, row_number() OVER (PARTITION BY pool ORDER BY first_token) - 1 AS position"
            " FROM sync_partition WHERE pool <> ''"
        )
        names = [queues.of_pool(row["pool"], row["position"]).name for row in pools]
        return [queue.name for queue in queues.queues] + names + [f"{self.prefix}ordinary"]

    def unacked(self) -> int:
        """How many messages Redis keeps as fetched and not acknowledged."""
        return int(redis.Redis.from_url(self.broker_url).hlen("unacked"))

    # -- publishing ---------------------------------------------------------------------------------------------

    def call(self, task: str, *args: Any, **options: Any) -> AsyncResult:
        """Publish a task of the app under test."""
        return self.app.tasks[f"e2e.{task}"].apply_async(args, **options)

    def many(self, count: int, keys: int, task: str = "step", *rest: Any, **options: Any) -> list[AsyncResult]:
        """Publish so many tasks over so many keys, numbered."""
        return [self.call(task, f"key{n % keys}", n, *rest, **options) for n in range(count)]

    # -- waiting ------------------------------------------------------------------------------------------------

    def until_shared(self, *names: str, timeout: float = PATIENCE) -> None:
        """Wait until these workers, and no others, own all partitions, in numbers that differ by one at most."""
        nodes = {self.node(name) for name in names}

        def shared() -> bool:
            shares = self.shares()
            return set(shares) == nodes and max(shares.values()) - min(shares.values()) <= 1

        until(shared, f"{sorted(nodes)} share the partitions", timeout)

    def until_ready(self) -> None:
        """Wait until every worker is ready."""
        for worker in self.workers:
            assert worker.container.ready(), worker.logs()

    def results(self, results: Iterable[AsyncResult], timeout: float = PATIENCE) -> list[Any]:
        """The values of all results, in order."""
        return [result.get(timeout=timeout, disable_sync_subtasks=False) for result in results]

    def settled(self, *ids: str, timeout: float = PATIENCE) -> list[Claim]:
        """Wait until none of these claims (or of all) runs; the claims."""

        def over() -> bool:
            claims = self.claims(*ids)
            running = [claim for claim in claims if claim["state"] == "running"]
            return not running and set(ids) <= {claim["task_id"] for claim in claims}

        until(over, f"the claims of {ids or 'all'} have ended", timeout)
        return self.claims(*ids)

    def until_begun(self, *ids: str, timeout: float = PATIENCE) -> None:
        """Wait until the bodies of these tasks run, or have run."""
        until(lambda: set(ids) <= {run.id for run in self.history.runs()}, f"{ids} have begun", timeout)

    def until_ended(self, *ids: str, timeout: float = PATIENCE) -> None:
        """Wait until the bodies of these tasks have returned."""
        until(lambda: set(ids) <= self.history.ended(), f"{len(ids)} bodies have returned", timeout, every=0.1)

    # -- judging ------------------------------------------------------------------------------------------------

    def assert_serial(self) -> None:
        """No key ever ran twice at a time, and later runs of a key had larger fences."""
        runs = self.history.runs()
        assert overlaps(runs) == []
        assert out_of_fence(runs) == []

    def assert_once(self, ids: Iterable[str]) -> None:
        """Each of these ran once, to its end, was recorded done, and nothing overlapped."""
        wanted = set(ids)
        runs = self.history.runs(*wanted)
        assert wanted - {run.id for run in runs if run.how == "returned"} == set()
        assert doubled(runs) == []
        self.assert_serial()
        states = {claim["task_id"]: claim["state"] for claim in self.settled(*wanted)}
        assert {id_: state for id_, state in states.items() if state != "done"} == {}

    def assert_at_home(self, *ids: str) -> None:
        """The claims of these tasks name the node that owns their partition, and the bodies ran there."""
        owners = self.owners()
        claims = self.settled(*ids)
        assert [claim for claim in claims if claim["node"] != owners[claim["partition_id"]]] == []
        tokens = self.app.jobsync.cluster.tokens
        assert [claim for claim in claims if claim["partition_id"] != tokens.partition_for(claim["task_key"])] == []
        at = {claim["fence"]: claim["node"] for claim in claims}  # of a run's attempts only the last has a row
        assert [run for run in self.history.runs(*ids) if at.get(run.fence, run.node) != run.node] == []

    def assert_brokers_are_empty(self) -> None:
        """Nothing waits in a queue, and (Redis) nothing is left as fetched."""
        until(lambda: {queue: n for queue in self.queues() if (n := self.waiting(queue))} == {}, "queues are empty")
        if self.is_redis:
            until(lambda: self.unacked() == 0, "nothing is unacknowledged")


def with_database(url: str, number: int) -> str:
    """A Redis URL with another database number."""
    return urlsplit(url)._replace(path=f"/{number}").geturl()


def with_port(url: str, port: int) -> str:
    """A URL that leads to another port, of a proxy for instance."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl()


def pid_of(worker: Worker) -> int:
    """The main process."""
    return worker.container.pid


def alive(pid: int) -> bool:
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
