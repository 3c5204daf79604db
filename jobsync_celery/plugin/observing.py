"""``mode="observe"``: tasks run as without the plugin, and each run of a task with a key is noted."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from billiard import current_process
from celery import Celery, bootsteps, signals

from jobsync_celery.errors import JobsyncError
from jobsync_celery.plugin.bootsteps import pool_name
from jobsync_celery.plugin.coordinated import Registry
from jobsync_celery.runtime.assembly import store_of
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.observer import Observer
from jobsync_celery.runtime.recorder import Recorder
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.observations import ObserverIdentity

logger = logging.getLogger(__name__)

ReadKey = Callable[[Sequence[Any], Mapping[str, Any]], str]
#: How long a worker that stops waits for its last observations to be written.
_FAREWELL_SEC = 3.0
#: Children beyond those of the settings: ``celery control pool_grow`` knows no limit.
_MORE_CHILDREN = 32


class Observed:
    """What the processes of an observed app share. Opens nothing by itself."""

    def __init__(self, app: Celery, config: CoordinationConfig) -> None:
        self.app = app
        self.config = config
        self.events = Events()
        self.registry = Registry(app, config.tasks)
        self.store = store_of(config)

    def keys(self) -> dict[str, ReadKey]:
        """How the key of each observed task is read, by the task's name."""
        found: dict[str, ReadKey] = {}
        for name in list(self.app.tasks):
            try:
                coordination = self.registry.get(name)
            except JobsyncError as error:  # it takes no such argument, say
                found[name] = _failing(error)
            else:
                if coordination is not None:
                    found[name] = coordination.key
        return found


class WorkerObserver:
    """One worker's part: a pipe before the pool forks, and from the first connection on a thread that reads it."""

    def __init__(self, worker: Any, observed: Observed, name: str) -> None:
        self._observed = observed
        self._name = name
        self._recorder = Recorder(_most_children(worker))
        self._pid = os.getpid()
        self._started = False
        self._warned: set[str] = set()
        identity = ObserverIdentity(name, socket.gethostname(), self._pid, pool_name(worker))
        self._observer = Observer(
            observed.store.database, self._recorder, identity, observed.events, observed.config.observation_retention
        )
        signals.worker_process_init.connect(self._in_child, weak=False)
        signals.worker_shutdown.connect(self._shut_down, sender=worker, weak=False)

    def connected(self) -> None:
        """The consumer has made its tracers, and fetches nothing yet."""
        keys = self._wrap()
        if self._started:
            return
        self._started = True
        missing = sorted(set(self._observed.config.tasks) - set(keys))
        if missing:
            self._observed.events("not_registered", tasks=", ".join(missing))
        if keys:
            self._observed.events("observing", name=self._name, tasks=", ".join(sorted(keys)))
            self._observer.start()
        else:
            self._observed.events("nothing_to_observe")

    def _in_child(self, **_: Any) -> None:
        """In a pool child, and for some pools in the worker itself."""
        self._wrap()
        if os.getpid() != self._pid:
            self._observed.store.database.discard_after_fork()
            self._recorder.enter(current_process().index)  # no two children that live have the same

    def _shut_down(self, **_: Any) -> None:
        """The pool is gone, warm or cold."""
        if os.getpid() == self._pid:
            self._observer.stop(_FAREWELL_SEC)

    def _wrap(self) -> dict[str, ReadKey]:
        keys = self._observed.keys()
        for name, read_key in keys.items():
            task = self._observed.app.tasks[name]
            tracer = task.__trace__
            if tracer is not None and not hasattr(tracer, "__jobsync_observes__"):
                task.__trace__ = self._wrapped(name, tracer, read_key)
        return keys

    def _wrapped(self, name: str, tracer: Callable[..., Any], read_key: ReadKey) -> Callable[..., Any]:
        begin, end = self._recorder.begin, self._recorder.end

        def trace(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
            told = request or {}
            delivery = told.get("delivery_info") or {}
            key = None
            try:
                key = read_key(args, kwargs)
            except JobsyncError as error:
                self._say_keyless(name, error)
            number = begin(name, key, uuid, told.get("retries") or 0, bool(delivery.get("redelivered")))
            try:
                return tracer(uuid, args, kwargs, request)
            finally:
                if number is not None:
                    end(number)

        trace.__jobsync_observes__ = True  # type: ignore[attr-defined]
        return trace

    def _say_keyless(self, name: str, error: JobsyncError) -> None:
        """A run that would be refused at publish runs here; said once for each task and process."""
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("jobsync: observed without a key, and run all the same: %s", error)


class ObserverStep(bootsteps.StartStopStep):
    """Makes the pipe before the pool forks."""

    name = "jobsync.Observer"
    label = "jobsync observer"
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, node_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        worker.jobsync_observer = None
        self._node_name = node_name

    def create(self, worker: Any) -> None:
        """The pool is made, and no child is forked yet."""
        observed = worker.app.jobsync.observed
        if reason := _obstacle(worker):
            observed.events("not_observing", reason=reason)
            return
        name = self._node_name or observed.config.node_name or worker.hostname
        worker.jobsync_observer = WorkerObserver(worker, observed, name)


class TracersStep(bootsteps.StartStopStep):
    """Follows the broker connection: with each, Celery makes its tracers anew."""

    name = "jobsync.Tracers"
    label = "jobsync tracers"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        observer: WorkerObserver | None = consumer.controller.jobsync_observer
        if observer is not None:
            observer.connected()


def _most_children(worker: Any) -> int:
    """How many processes its pool can have, also when it grows; a few more do without a slot."""
    if pool_name(worker) != "prefork":
        return 0
    return int(getattr(worker, "max_concurrency", None) or worker.concurrency) + _MORE_CHILDREN


def _obstacle(worker: Any) -> str | None:
    """Why this worker cannot be observed; it works all the same."""
    if pool_name(worker) in ("gevent", "eventlet"):
        return f"the pool {pool_name(worker)} would wait for the database; prefork, threads and solo are observed"
    if worker.pool_start_method == "spawn":
        return "children that are spawned share no pipe with their worker: worker_pool_start_method='fork' is observed"
    return None


def _failing(error: JobsyncError) -> ReadKey:
    def read_key(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        raise error

    return read_key
