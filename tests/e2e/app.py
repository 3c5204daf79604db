"""The application under test; ``celery -A e2e.app worker`` finds its settings in the environment."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from celery import Celery, Task, shared_task
from celery.exceptions import Ignore, Reject
from celery.worker.control import control_command
from sqlalchemy import create_engine, text

from e2e import calls
from e2e.history import running
from e2e.listening import listen
from jobsync_celery import JobSync, coordinated, current_claim

SETTINGS = "JOBSYNC_E2E"


def make_app(settings: dict[str, Any]) -> Celery:
    """An app as a user would make it: ``conf`` goes to Celery, ``jobsync`` to the plugin."""
    app = Celery("e2e", set_as_current=False)
    app.conf.update(settings["conf"])
    if path := app.conf.get("e2e_calls"):
        calls.record(path)
    JobSync(app, settings["jobsync"])
    define(app)
    if app.conf.get("e2e_listen") and SETTINGS in os.environ:
        listen(app, **app.conf.e2e_listen)
    return app


def bare_app(settings: dict[str, Any]) -> Celery:
    """A producer that knows neither the plugin nor the tasks."""
    app = Celery("bare", set_as_current=False)
    app.conf.update(settings["conf"])
    return app


@coordinated(key="key")
@shared_task(name="e2e.shared_over", bind=True)
def shared_over(self: Task, key: str, n: int = 0) -> int:
    with running(self, key, n):
        return n


@shared_task(name="e2e.shared_under", bind=True)
@coordinated(key="key")
def shared_under(self: Task, key: str, n: int = 0) -> int:
    with running(self, key, n):
        return n


class Stubborn(Exception):
    """An exception that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("stubborn")
        self.hook = lambda: None


def define(app: Celery) -> None:
    """All tasks of this app."""
    _define_steps(app)
    _define_choosy(app)
    _define_waiting(app)
    _define_orders(app)
    _define_ends(app)
    _define_deaths(app)
    _define_oddities(app)
    _define_killers(app)
    _define_retries(app)
    _define_effects(app)
    if app.conf.get("e2e_mortal"):  # which only prefork can run
        _define_mortal(app)


@control_command(args=[("sec", float)])
def hang(state: Any, sec: float) -> None:
    """Keep the worker's event loop busy."""
    time.sleep(sec)


def _define_steps(app: Celery) -> None:
    @app.task(shared=False, name="e2e.step", bind=True)
    @coordinated(key="key")
    def step(self: Task, key: str, n: int = 0, sec: float = 0.0) -> int:
        with running(self, key, n) as body:
            body.stay(sec)
            return n

    @app.task(shared=False, name="e2e.slow_first", bind=True)
    @coordinated(key="key")
    def slow_first(self: Task, key: str, n: int, sec: float) -> int:
        with running(self, key, n) as body:
            body.stay(sec if current_claim().attempt == 1 else 0)
            return n

    @app.task(shared=False, name="e2e.plain", bind=True)
    def plain(self: Task, n: int = 0, sec: float = 0.0) -> int:
        with running(self, None, n) as body:
            body.stay(sec)
            return n

    @app.task(shared=False, name="e2e.total", bind=True)
    @coordinated(key="key")
    def total(self: Task, numbers: list[int], key: str) -> int:
        with running(self, key):
            return sum(numbers)

    @app.task(shared=False, name="e2e.add", bind=True)
    @coordinated(key="key")
    def add(self: Task, number: int, key: str, more: int) -> int:
        with running(self, key):
            return number + more

    @app.task(shared=False, name="e2e.heard", bind=True)
    @coordinated(key=lambda *args, **kwargs: "errors")
    def heard(self: Task, *args: Any) -> None:
        with running(self, "errors"):
            pass

    @app.task(shared=False, name="e2e.limited", bind=True, rate_limit="5/s")
    @coordinated(key="key")
    def limited(self: Task, key: str, n: int = 0) -> int:
        with running(self, key, n):
            return n


def _define_waiting(app: Celery) -> None:
    @app.task(shared=False, name="e2e.as_long_as", bind=True)
    @coordinated(key="key")
    def as_long_as(self: Task, key: str, n: int, file: str) -> int:
        with running(self, key, n) as body:
            while os.path.exists(file):
                body.stay(0.05)
            return n


def _define_mortal(app: Celery) -> None:
    @app.task(shared=False, name="e2e.mortal", bind=True)
    @coordinated(key="key", on_lease_lost="terminate")
    def mortal(self: Task, key: str, n: int, sec: float) -> int:
        with running(self, key, n) as body:
            body.stay(sec if current_claim().attempt == 1 else 0)
            return n


def _define_choosy(app: Celery) -> None:
    @app.task(shared=False, name="e2e.gpu", bind=True)
    @coordinated(key="key", nodes=["gpu%", "%"])
    def gpu(self: Task, key: str, n: int = 0, sec: float = 0.0) -> int:
        with running(self, key, n) as body:
            body.stay(sec)
            return n


def _define_orders(app: Celery) -> None:
    @coordinated(key="key")
    @app.task(shared=False, name="e2e.over", bind=True)
    def over(self: Task, key: str, n: int = 0) -> int:
        with running(self, key, n):
            return n

    @app.task(shared=False, name="e2e.unbound")
    @coordinated(key="key")
    def unbound(n: int, key: str = "by default") -> str | None:
        return current_claim().key

    @app.task(shared=False, name="e2e.by_position", bind=True)
    @coordinated(key=1)
    def by_position(self: Task, n: int, key: str) -> int:
        with running(self, key, n):
            return n

    @app.task(shared=False, name="e2e.by_call", bind=True)
    @coordinated(key=lambda order: f"order-{order['id']}")
    def by_call(self: Task, order: dict[str, Any]) -> int:
        with running(self, f"order-{order['id']}"):
            return int(order["id"])

    class ByClass(app.Task):  # type: ignore[misc, name-defined]
        name = "e2e.by_class"

        def run(self, key: str, n: int = 0) -> int:
            with running(self, key, n):
                return n

    app.register_task(coordinated(key="key")(ByClass)())


def _define_ends(app: Celery) -> None:
    @app.task(shared=False, name="e2e.fail", bind=True)
    @coordinated(key="key")
    def fail(self: Task, key: str) -> None:
        with running(self, key):
            raise ValueError("as asked")

    @app.task(shared=False, name="e2e.ignore", bind=True)
    @coordinated(key="key")
    def ignore(self: Task, key: str) -> None:
        with running(self, key):
            raise Ignore()

    @app.task(shared=False, name="e2e.reject", bind=True)
    @coordinated(key="key")
    def reject(self: Task, key: str, requeue: bool) -> str:
        with running(self, key):
            if current_claim().attempt == 1:
                raise Reject("as asked", requeue=requeue)
            return "second attempt"


def _define_oddities(app: Celery) -> None:
    @app.task(shared=False, name="e2e.odd", bind=True)
    @coordinated(key="key")
    def odd(self: Task, key: str, how: str, sec: float = 0.0) -> Any:
        with running(self, key) as body:
            body.stay(sec)
            if how == "raises":
                raise Stubborn()
            if how == "shouts":
                raise ValueError("x" * 1_000_000)
            return {"result": lambda: None, "large": "x" * 3_000_000}[how]


def _define_deaths(app: Celery) -> None:
    @app.task(shared=False, name="e2e.die", bind=True)
    @coordinated(key="key")
    def die(self: Task, key: str, how: str) -> str:
        with running(self, key):
            if current_claim().attempt == 1:
                if how == "exit":
                    sys.exit(3)
                os.kill(os.getpid(), signal.SIGKILL)
            return "second attempt"

    @app.task(shared=False, name="e2e.deaf", bind=True)
    @coordinated(key="key")
    def deaf(self: Task, key: str, sec: float, deaf: bool = True) -> str:
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            with running(self, key) as body:
                body.stay(sec)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return "to the end"


def _define_killers(app: Celery) -> None:
    @app.task(shared=False, name="e2e.deadly", bind=True)
    @coordinated(key="key")
    def deadly(self: Task, key: str, whom: str) -> None:
        with running(self, key):
            os.kill(os.getppid() if whom == "worker" else os.getpid(), signal.SIGKILL)
            signal.pause()


def _define_retries(app: Celery) -> None:
    @app.task(shared=False, name="e2e.again", bind=True, max_retries=10)
    @coordinated(key="key")
    def again(self: Task, key: str, times: int, countdown: float = 0.0, sec: float = 0.0) -> int:
        with running(self, key) as body:
            body.stay(sec)
            if self.request.retries < times:
                raise self.retry(countdown=countdown)
            return self.request.retries

    @app.task(
        shared=False,
        name="e2e.auto",
        bind=True,
        autoretry_for=(ValueError,),
        retry_kwargs={"max_retries": 2},
        default_retry_delay=0,
    )
    @coordinated(key="key")
    def auto(self: Task, key: str, times: int) -> int:
        with running(self, key):
            if self.request.retries < times:
                raise ValueError("once more")
            return self.request.retries

    @app.task(shared=False, name="e2e.replace", bind=True)
    @coordinated(key="key")
    def replace(self: Task, key: str, other: str) -> None:
        with running(self, key):
            self.replace(self.app.tasks["e2e.step"].s(other, 7))


def _define_effects(app: Celery) -> None:
    engine = create_engine(app.conf.e2e_database, pool_pre_ping=True)

    @app.task(shared=False, name="e2e.effect", bind=True)
    @coordinated(key="key")
    def effect(self: Task, key: str, how: str, sec: float = 0.0, die: bool = False) -> str:
        claim = current_claim()
        with running(self, key) as body:
            with engine.begin() as connection:
                connection.execute(
                    text("INSERT INTO effect (key, fence, attempt) VALUES (:key, :fence, :attempt)"),
                    {"key": key, "fence": claim.fence, "attempt": claim.attempt},
                )
                # Only the first attempt lingers; its transaction is open meanwhile.
                body.stay(sec if claim.attempt == 1 else 0)
                getattr(claim, how)(connection)
            if die and claim.attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return how


if SETTINGS in os.environ:
    app = make_app(json.loads(os.environ[SETTINGS]))
    app.set_current()
    app.set_default()
