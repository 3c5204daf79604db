"""``mode="observe"`` in the app itself: what it leaves alone, what it answers, and whom it does not observe."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from jobsync_celery import Job, JobSync, coordinated, current_claim
from jobsync_celery.core.observation import Run
from jobsync_celery.errors import ObservedOnly, SettingsError
from jobsync_celery.plugin.observing import ObserverStep, WorkerObserver

SETTINGS = {"url": "postgresql://nobody@127.0.0.1:1/none", "mode": "observe"}
SCHEDULE = {"mine": {"task": "proj.mine", "schedule": 5.0}}


def made(settings: dict[str, Any] | None) -> Celery:
    app = Celery("proj", broker="redis://localhost:1/0", set_as_current=False)
    app.conf.update(beat_schedule=dict(SCHEDULE), task_routes={"proj.b": {"queue": "b"}}, task_acks_late=True)
    app.conf.broker_transport_options = {"visibility_timeout": 500_000}
    JobSync(app, settings)

    @app.task(name="proj.settle", shared=False, acks_late=False)
    @coordinated(key="account_id")
    def settle(account_id: int, amount: int = 0) -> object:
        return current_claim().key

    @app.task(name="proj.b", shared=False)
    def other(account: int) -> int:
        return account // 0

    app.finalize()
    return app


def options(app: Celery) -> dict[str, Any]:
    """All that decides how and where tasks run."""
    names = (
        "acks_late",
        "reject_on_worker_lost",
        "track_started",
        "ignore_result",
        "priority",
        "rate_limit",
        "expires",
    )
    return {
        "conf": {name: value for name, value in app.conf.items() if name != "jobsync"},
        "tasks": {each: [getattr(task, name) for name in names] for each, task in app.tasks.items()},
        "queues": sorted(app.amqp.queues),
        "routes": [app.amqp.router.route({}, each, (1,), {})["queue"].name for each in ("proj.settle", "proj.b")],
    }


def test_tasks_queues_routes_settings_and_schedule_are_those_of_an_app_without_the_plugin() -> None:
    observed, plain = made({**SETTINGS, "tasks": {"proj.b": "account"}}), made(None)
    assert options(observed) == options(plain)
    assert set(observed.conf.beat_schedule) == set(SCHEDULE)
    assert observed.tasks["proj.settle"](7) is None  # the null claim's key
    assert observed.amqp.router.route({}, "proj.settle", (), {})["queue"].name == "celery"  # a missing key is no error


def test_who_asks_for_an_owner_is_told_that_nobody_owns_anything() -> None:
    jobsync = made(SETTINGS).jobsync
    for ask in (jobsync.owner_of, jobsync.token_for, jobsync.queue_for, jobsync.drain):
        with pytest.raises(ObservedOnly, match=r"only observed.*nobody owns"):
            ask("42")
    for tell in (jobsync.status, jobsync.get_active_nodes, jobsync.rebalance, jobsync.list_locks):
        with pytest.raises(ObservedOnly):
            tell()
    assert not jobsync.owns("42") and not jobsync.my_tokens and not jobsync.am_i_leader()


def test_a_job_does_not_observe() -> None:
    with pytest.raises(SettingsError, match="for Celery workers"):
        Job("worker-01", coordination_config=SETTINGS)


def worker(app: Celery, pool: str = "prefork", start_method: str = "fork") -> Any:
    return SimpleNamespace(app=app, pool_cls=pool, pool_start_method=start_method, hostname="w1@host", concurrency=2)


@pytest.mark.parametrize(("pool", "method"), [("gevent", "fork"), ("eventlet", "fork"), ("prefork", "spawn")])
def test_pools_that_would_be_slowed_down_or_are_out_of_reach_are_not_observed_and_work(pool: str, method: str) -> None:
    app = made(SETTINGS)
    facts: list[str] = []
    app.jobsync.observed.events.listen(lambda fact, _: facts.append(fact))
    one = worker(app, pool, method)
    ObserverStep(one).create(one)
    assert one.jobsync_observer is None and facts == ["not_observing"]


class Heard(list[Any]):
    """What was recorded: of a begin what is run, of an end nothing."""

    def begin(self, pid: int, number: int, at: float, run: Run, dropped: int) -> None:
        self.append(run)

    def end(self, pid: int, number: int, at: float) -> None:
        self.append(None)


def traced(app: Celery, name: str, args: tuple[Any, ...], **request: Any) -> Heard:
    """Run a task by a tracer of its worker's, and tell what was recorded of it."""
    observer = WorkerObserver(worker(app), app.jobsync.observed, "w1@host")
    task = app.tasks[name]
    ran = []
    task.__trace__ = lambda uuid, args, kwargs, request: ran.append((args, kwargs, request)) or "result"
    observer._in_child()
    observer._in_child()
    told = {"delivery_info": {"redelivered": False}, **request}
    assert task.__trace__(str(uuid.uuid4()), args, {}, told) == "result"
    assert ran == [(args, {}, told)]
    heard = Heard()
    observer._recorder.read(heard)
    return heard


def test_a_run_is_told_once_with_its_key_and_how_it_came() -> None:
    began, ended = traced(made(SETTINGS), "proj.settle", (7,), retries=2, delivery_info={"redelivered": True})
    assert began._replace(task_id="") == Run("proj.settle", "7", "", 2, True) and ended is None


@pytest.mark.parametrize("argument", ["no such argument".replace(" ", "_"), "account"])
def test_a_key_that_cannot_be_read_or_is_none_hinders_nothing(argument: str) -> None:
    app = made({**SETTINGS, "tasks": {"proj.b": argument}})
    began, _ = traced(app, "proj.b", (None,))
    assert began.key is None


def test_a_task_without_a_key_is_not_touched() -> None:
    assert traced(made(SETTINGS), "proj.b", (7,)) == []
