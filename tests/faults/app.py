"""The application under fault; ``celery -A tests.faults.app worker`` finds its settings in the environment."""

from __future__ import annotations

import inspect
import json
import os
from typing import Any

from celery import Celery, Task

from jobsync_celery import JobSync, coordinated
from tests.faults import builds
from tests.faults.bodies import Work
from tests.faults.record import Recorder

SETTINGS = "JOBSYNC_FAULTS"
STEP = "faults.step"
STRICT = "faults.strict"

#: Whether this build ends bodies at their deadline.
CAN_TERMINATE = "on_lease_lost" in inspect.signature(coordinated).parameters


def make_app(settings: dict[str, Any]) -> Celery:
    """An app as a user would make it: ``conf`` goes to Celery, ``jobsync`` to the plugin."""
    app = Celery("faults", set_as_current=False)
    app.conf.update(settings["conf"])
    JobSync(app, settings["jobsync"])
    _define(app)
    return app


def _define(app: Celery) -> None:
    @app.task(shared=False, name=STEP, bind=True)
    @coordinated(key="key")
    def step(self: Task, key: str, n: int, sec: float, kind: str = "plain", times: int = 0) -> None:
        with Recorder(self, key, n) as body:
            Work(self, body, key, n, sec, times, STRICT if CAN_TERMINATE else STEP).play(kind)

    if CAN_TERMINATE:

        @app.task(shared=False, name=STRICT, bind=True)
        @coordinated(key="key", on_lease_lost="terminate")
        def strict(self: Task, key: str, n: int, sec: float, kind: str = "plain", times: int = 0) -> None:
            with Recorder(self, key, n) as body:
                Work(self, body, key, n, sec, times, STEP).play(kind)


if SETTINGS in os.environ:
    _settings = json.loads(os.environ[SETTINGS])
    if _settings.get("build"):
        builds.BUILDS[_settings["build"]].switch_off()
    app = make_app(_settings)
    app.set_current()
    app.set_default()
