"""Checks of an app before it is deployed: without database or broker."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery, Task

from jobsync_celery.doctor.broker_checks import CONSUMER_TIMEOUT_SEC, visibility_of
from jobsync_celery.doctor.case import Case
from jobsync_celery.doctor.finding import Checks, Finding, problem, risk
from jobsync_celery.doctor.words import listed, span
from jobsync_celery.errors import JobsyncError
from jobsync_celery.plugin.cluster import Cluster
from jobsync_celery.plugin.observing import Observed

checks = Checks()

_POOLS = ("prefork", "threads", "thread", "solo", "processes")
_GREEN = ("gevent", "eventlet")
_REDIS = ("redis", "rediss", "sentinel")
_RABBITMQ = ("amqp", "amqps", "pyamqp")


@checks("coordination-off", "app")
def coordination_off(case: Case) -> Iterator[Finding]:
    """The app has no coordination, or no task that is coordinated or observed."""
    observed = _observed(case)
    if observed is not None:
        if not observed.keys():
            yield risk(
                "no task of the app is observed",
                f"it knows {listed(_own(case.the_app)) or 'no task at all'}",
                cause="no task has a key, or the modules that have them are not imported",
                fix="name tasks in CoordinationConfig(tasks=…), or decorate them with @coordinated(key=…)",
            )
    elif case.cluster is None:
        yield problem(
            "coordination is switched off: coordinated tasks run like any others",
            "JobSync was given None, or enabled=False",
            cause="the settings say so",
            fix="give JobSync(app, CoordinationConfig(url=…)); producers need it, too",
        )
    elif not _broken(case.cluster) and not _coordinated(case.the_app, case.cluster):
        yield risk(
            "the app has no coordinated task",
            f"it knows {listed(_own(case.the_app)) or 'no task at all'}",
            cause="no task is decorated with @coordinated(key=…), or the modules that have them are not imported",
            fix="name them in the app's include or imports; autodiscover_tasks works at a worker's start only",
        )


@checks("key-unreadable", "app")
def key_unreadable(case: Case) -> Iterator[Finding]:
    """A task's key is none of its arguments."""
    declaring = _declaring(case)
    if declaring is not None:
        for said in (*map(str, _broken(declaring)), *_beyond(declaring)):
            yield problem(
                "a task's key cannot be read",
                said,
                cause="the key that was declared is no argument of the task",
                fix="name one of its arguments in @coordinated(key=…) or CoordinationConfig(tasks=…)",
            )


@checks("task-unknown", "app")
def task_unknown(case: Case) -> Iterator[Finding]:
    """The settings name a task that the app does not have, though one of nearly its name; or any, to observe it."""
    declaring = _declaring(case)
    if declaring is None:
        return
    own = _own(case.the_app)
    for name in declaring.config.tasks:
        close = difflib.get_close_matches(name, own, n=1, cutoff=0.8)
        if name in case.the_app.tasks:
            continue
        if isinstance(declaring, Observed):
            yield risk(
                f"{name} is to be observed, and the app does not have it",
                f"it has {close[0] if close else listed(own) or 'no task at all'}",
                cause="a typing error, the task was renamed, or its module is not imported: workers of this app do not"
                " observe it",
                fix="write its name as it is registered, name its module in the app's include, or leave it out",
            )
        elif close:
            yield risk(
                f"CoordinationConfig(tasks=…) names {name}, which the app does not have",
                f"it has {close[0]}",
                cause="a typing error, or the task was renamed: nobody could run what is routed so",
                fix=f"write {close[0]}, or leave it out",
            )


@checks("router-unseen", "app")
def router_unseen(case: Case) -> Iterator[Finding]:
    """A coordinated task is published past the router that knows its key."""
    app, cluster, declaring = case.the_app, case.cluster, _declaring(case)
    if declaring is None or _broken(declaring):
        return
    names = _coordinated(app, declaring)
    if names and app.conf.task_always_eager:
        yield risk(
            "tasks run in the process that publishes them",
            "task_always_eager is set",
            cause="eager tasks are routed nowhere, and neither coordinated nor observed",
            fix="set it in tests only",
        )
    if cluster is None:
        return
    routes = app.conf.task_routes or ()
    if names and not (isinstance(routes, (list, tuple)) and routes and routes[0] is cluster.router):
        yield problem(
            "another router comes before ours",
            f"task_routes is {routes!r:.100}",
            cause="task_routes was set after JobSync(app) had been made",
            fix="set task_routes first, or leave coordinated tasks out of it",
        )
    for name in names:
        task = app.tasks.get(name)
        if task is not None and (queue := _queue_of(task)):
            yield problem(
                f"{name} names a queue of its own",
                f"{queue[0]}={queue[1]!r} on the task",
                cause="an explicit queue goes before all routers, so its messages take a way round or, where no worker"
                " with JobSync consumes that queue, run without coordination",
                fix=f"take {queue[0]} away from the task",
            )
    for entry, how in _scheduled(app, names):
        yield problem(
            f"the beat entry {entry} names a queue",
            f"{how}",
            cause="an explicit queue goes before all routers",
            fix="take it out of the entry's options",
        )


@checks("late-ack-without-reject", "app")
def late_ack(case: Case) -> Iterator[Finding]:
    """Ordinary tasks are acknowledged late, and lost all the same if their process is killed."""
    app = case.the_app
    coordinated = set() if case.cluster is None or _broken(case.cluster) else set(_coordinated(app, case.cluster))
    names = [
        name
        for name in _own(app)
        if name not in coordinated and app.tasks[name].acks_late and not app.tasks[name].reject_on_worker_lost
    ]
    if names:
        yield risk(
            "tasks with acks_late are lost when their process is killed",
            listed(names),
            cause="without reject_on_worker_lost Celery acknowledges a task whose child died. Coordinated tasks are"
            " not concerned: the plugin sets both",
            fix="set task_reject_on_worker_lost = True; a task that kills its process then runs again and again, but"
            " for coordinated ones (max_lost_runs)",
        )


@checks("pool-unsupported", "app")
def pool_unsupported(case: Case) -> Iterator[Finding]:
    """Workers or broker are of a kind that cannot be coordinated, or workers of one that cannot be observed."""
    app, observed = case.the_app, _observed(case)
    if observed is None and case.cluster is None:
        return
    happens = "workers with this pool refuse to start" if observed is None else "workers with this pool observe nothing"
    if (pool := _pool(app)) in _GREEN or (observed is None and pool not in _POOLS):
        yield problem(
            happens,
            f"worker_pool is {app.conf.worker_pool}",
            cause="gevent and eventlet are not supported",
            fix="use prefork, threads or solo",
        )
    if app.conf.worker_pool_start_method == "spawn":
        yield problem(
            happens,
            "worker_pool_start_method is spawn",
            cause="children that are spawned share no memory and no pipe with their worker",
            fix="leave it out, or set it to 'fork'",
        )
    broker = (app.conf.broker_read_url or app.conf.broker_url or "amqp://").partition(":")[0].partition("+")[0]
    if case.cluster is not None and broker not in (*_REDIS, *_RABBITMQ):
        yield problem(
            "the broker is not supported",
            f"its transport is {broker}",
            cause="partitions need a broker that many workers share safely: Redis or RabbitMQ",
            fix="set broker_url to redis://… or amqp://…",
        )


@checks("lease-short", "app")
def lease_short(case: Case) -> Iterator[Finding]:
    """A lease leaves no room for one late heartbeat."""
    if case.cluster is None:
        return
    config = case.cluster.config
    if config.heartbeat_timeout_sec < 2.5 * config.heartbeat_interval_sec:
        yield risk(
            "one late heartbeat costs a worker its lease",
            f"heartbeat_timeout_sec is {config.heartbeat_timeout_sec:g}, heartbeat_interval_sec"
            f" {config.heartbeat_interval_sec:g}",
            cause="a lease should last three intervals",
            fix=f"set heartbeat_timeout_sec to {3 * config.heartbeat_interval_sec:g} or more",
        )
    options = case.the_app.conf.broker_transport_options or {}
    silence = options.get("socket_timeout")
    if silence and float(silence) > config.heartbeat_timeout_sec:
        yield risk(
            "a Redis that falls silent hangs a worker for longer than its lease",
            f"socket_timeout is {span(float(silence))}",
            cause="the event loop waits for Redis meanwhile, and the worker loses its lease",
            fix=f"leave it out, or set it below {config.heartbeat_timeout_sec / 4:g}",
        )


@checks("time-limits-long", "app")
def time_limits_long(case: Case) -> Iterator[Finding]:
    """Tasks may take longer than the broker waits before it delivers them again."""
    app = case.the_app
    broker = app.conf.broker_read_url or app.conf.broker_url or ""
    if broker.startswith(_REDIS):
        limit, setting = visibility_of(app), "broker_transport_options['visibility_timeout']"
    elif broker.startswith(_RABBITMQ):
        limit, setting = CONSUMER_TIMEOUT_SEC, "consumer_timeout in rabbitmq.conf"
    else:
        return
    limits = {name: app.tasks[name].time_limit for name in _own(app)}
    long = [f"{name} may take {span(own)}" for name, own in limits.items() if own and own > limit]
    if (general := app.conf.task_time_limit) and general > limit:
        long.insert(0, f"task_time_limit is {span(general)}")
    if long:
        yield risk(
            f"tasks may take longer than the broker waits for them: {span(limit)}",
            *long[:5],
            cause="it then delivers them again. A coordinated task does not run again for that; an ordinary one with"
            " acks_late does",
            fix=f"set {setting} above the longest task, countdown and eta; or if it is, leave this",
        )


def _own(app: Celery) -> list[str]:
    return sorted(name for name in app.tasks if not name.startswith(("celery.", "jobsync.")))


def _observed(case: Case) -> Observed | None:
    """What is observed, where tasks are only observed."""
    observed: Observed | None = case.the_app.jobsync.observed
    return observed


def _declaring(case: Case) -> Cluster | Observed | None:
    """What knows the keys of tasks, coordinated or observed."""
    return case.cluster or _observed(case)


def _pool(app: Celery) -> str:
    """The pool's name: prefork, or celery.concurrency.prefork:TaskPool."""
    module, _, name = str(app.conf.worker_pool).partition(":")
    return (module if name or "." not in module else module.rpartition(".")[0]).rpartition(".")[2]


def _coordinated(app: Celery, declaring: Cluster | Observed) -> list[str]:
    return sorted(declaring.registry.all())


def _broken(declaring: Cluster | Observed) -> list[JobsyncError]:
    """Tasks whose declaration is refused."""
    errors = []
    for name in dict.fromkeys((*declaring.app.tasks, *declaring.config.tasks)):
        try:
            declaring.registry.get(name)
        except JobsyncError as error:
            errors.append(error)
    return errors


def _beyond(declaring: Cluster | Observed) -> Iterator[str]:
    """Tasks that do not take as many arguments as the position of their key needs."""
    for name, task in sorted(declaring.app.tasks.items()):
        try:
            how = declaring.registry.get(name)
        except JobsyncError:
            continue
        if how is None or not isinstance(how.spec, int):
            continue
        parameters = inspect.signature(task.run).parameters.values()
        places = sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)
        if not any(each.kind is each.VAR_POSITIONAL for each in parameters) and how.spec not in range(-places, places):
            yield f"task {name}: its key is positional argument {how.spec}, but it takes {places}"


def _queue_of(task: Task) -> tuple[str, str] | None:
    for name in ("queue", "exchange", "routing_key"):
        value = getattr(task, name, None)
        if value:
            return name, str(value)
    return None


def _scheduled(app: Celery, names: list[str]) -> Iterator[tuple[str, str]]:
    """The beat entries of these tasks that name a queue, and how."""
    entries: Mapping[str, Any] = app.conf.beat_schedule or {}
    for entry, what in entries.items():
        options = what.get("options") or {}
        for option in ("queue", "exchange", "routing_key"):
            if what.get("task") in names and options.get(option):
                yield entry, f"task {what['task']}, options {option}={options[option]!r}"
