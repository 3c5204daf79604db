"""Apps as they should not be deployed, and what the doctor says of them without asking any server."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from jobsync_celery import JobSync, coordinated
from jobsync_celery.cli.main import jobsync
from jobsync_celery.doctor.doctor import CHECKS, examine_app
from jobsync_celery.doctor.finding import Finding
from jobsync_celery.errors import SettingsError

URL = "postgresql://nobody@localhost:1/nowhere"


def app_with(broker: str = "redis://localhost:1", settings: Any = None, **conf: Any) -> Celery:
    """An app with two tasks, of which one is coordinated."""
    app = Celery("proj", broker=broker, set_as_current=False)
    app.conf.update(conf)
    JobSync(app, {"url": URL, **(settings or {})})

    @app.task(name="proj.settle", shared=False)
    @coordinated(key="account")
    def settle(account: int) -> None: ...

    @app.task(name="proj.mail", shared=False)
    def mail(to: str) -> None: ...

    return app


def found(app: Celery) -> list[Finding]:
    app.finalize()
    return list(examine_app(app, app.jobsync.cluster).findings)


def only(app: Celery, check: str) -> Finding:
    """The only finding, which says what was seen, why, and what to do."""
    [named] = found(app)
    assert named.check == check
    assert named.evidence and named.cause and named.fix
    return named


@pytest.mark.parametrize("broker", ["redis://localhost:1", "amqp://localhost:1", "sentinel://localhost:1"])
def test_of_an_app_that_is_well_nothing_is_said(broker: str) -> None:
    assert found(app_with(broker)) == []


def test_coordination_that_is_off() -> None:
    app = Celery("proj", broker="redis://localhost:1", set_as_current=False)
    JobSync(app, None)
    only(app, "coordination-off")


def test_no_task_that_is_coordinated() -> None:
    program = (  # in a process of its own, where no other test has a shared task
        "def mail(to): ...\nfrom celery import Celery; from jobsync_celery import JobSync;"
        " from jobsync_celery.doctor.doctor import examine_app;"
        " app = Celery('proj', broker='redis://localhost:1');"
        f" JobSync(app, {{'url': {URL!r}}}); app.task(name='proj.mail')(mail); app.finalize();"
        " print(*examine_app(app, app.jobsync.cluster).findings)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "the app has no coordinated task" in told and "proj.mail" in told


def test_a_key_that_is_no_argument() -> None:
    app = app_with()

    @app.task(name="proj.odd", shared=False)
    @coordinated(key="acount")
    def odd(account: int) -> None: ...

    assert "acount" in only(app, "key-unreadable").evidence[0]


def test_a_task_of_the_settings_that_nobody_has_but_another_of_nearly_its_name() -> None:
    app = app_with(settings={"tasks": {"proj.mails": "to", "other.service": "id"}})
    assert "proj.mail" in only(app, "task-unknown").fix


def test_routers_that_were_set_later() -> None:
    app = app_with()
    app.conf.task_routes = {"proj.settle": {"queue": "money"}}
    assert "money" in only(app, "router-unseen").evidence[0]


def test_routers_that_were_set_before_are_no_trouble() -> None:
    assert found(app_with(task_routes={"proj.mail": {"queue": "mail"}})) == []


def test_a_coordinated_task_with_a_queue_of_its_own() -> None:
    app = app_with()
    app.finalize()
    app.tasks["proj.settle"].queue = "money"
    assert "queue='money'" in only(app, "router-unseen").evidence[0]


def test_a_beat_entry_that_names_a_queue() -> None:
    entry = {"task": "proj.settle", "schedule": 60.0, "args": (1,), "options": {"queue": "money"}}
    assert "nightly" in only(app_with(beat_schedule={"nightly": entry}), "router-unseen").what


def test_eager_tasks() -> None:
    only(app_with(task_always_eager=True), "router-unseen")


def test_late_acknowledgement_without_rejection() -> None:
    named = only(app_with(task_acks_late=True), "late-ack-without-reject")
    assert named.evidence[0].startswith("proj.mail")  # before the shared tasks of other tests
    assert found(app_with(task_acks_late=True, task_reject_on_worker_lost=True)) == []


def test_pools_and_brokers_that_cannot_be_coordinated() -> None:
    only(app_with(worker_pool="gevent"), "pool-unsupported")
    assert "sqs" in only(app_with("sqs://"), "pool-unsupported").evidence[0]


@pytest.mark.parametrize(
    "pool", ["threads", "celery.concurrency.thread:TaskPool", "celery.concurrency.prefork.TaskPool"]
)
def test_pools_by_the_names_of_their_classes(pool: str) -> None:
    assert found(app_with(worker_pool=pool)) == []


def test_children_that_are_spawned() -> None:
    assert "spawn" in only(app_with(worker_pool_start_method="spawn"), "pool-unsupported").evidence[0]


def test_a_key_at_a_position_that_the_task_does_not_have() -> None:
    assert found(app_with(settings={"tasks": {"proj.mail": 0}})) == []
    named = only(app_with(settings={"tasks": {"proj.mail": 1}}), "key-unreadable")
    assert named.evidence == ("task proj.mail: its key is positional argument 1, but it takes 1",)


def test_a_lease_without_room_for_a_late_heartbeat() -> None:
    only(app_with(settings={"heartbeat_interval_sec": 5, "heartbeat_timeout_sec": 11}), "lease-short")
    only(app_with(broker_transport_options={"socket_timeout": 60}), "lease-short")


@pytest.mark.parametrize(("broker", "limit"), [("redis://localhost:1", 3600), ("amqp://localhost:1", 1800)])
def test_time_limits_beyond_what_the_broker_waits(broker: str, limit: int) -> None:
    assert found(app_with(broker, task_time_limit=limit)) == []
    only(app_with(broker, task_time_limit=limit + 1), "time-limits-long")
    app = app_with(broker)
    app.finalize()
    app.tasks["proj.settle"].time_limit = 2 * limit
    assert "proj.settle" in only(app, "time-limits-long").evidence[0]


# -- apps whose tasks are only observed -----------------------------------------------------------------------------


def observed_with(tasks: Any = None, broker: str = "redis://localhost:1", **conf: Any) -> Celery:
    return app_with(broker, {"mode": "observe", "tasks": tasks or {}}, **conf)


def test_of_an_observed_app_that_is_well_nothing_is_said() -> None:
    assert found(observed_with({"proj.mail": "to"}, "sqs://", worker_pool="solo")) == []


def test_an_observed_app_without_a_database_is_none() -> None:
    with pytest.raises(SettingsError, match="no database is named"):
        JobSync(Celery("proj", set_as_current=False), {"mode": "observe"})


def test_nothing_to_observe(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("proj", broker="redis://localhost:1", set_as_current=False)
    JobSync(app, {"url": URL, "mode": "observe"})
    monkeypatch.setattr(app.jobsync.observed, "keys", dict)  # other tests may have shared tasks
    assert "no task of the app is observed" in only(app, "coordination-off").what


def test_an_observed_key_that_is_no_argument() -> None:
    assert "takes (to)" in only(observed_with({"proj.mail": "too"}), "key-unreadable").evidence[0]
    assert "it takes 1" in only(observed_with({"proj.mail": 1}), "key-unreadable").evidence[0]


@pytest.mark.parametrize(("name", "known"), [("proj.mails", "proj.mail"), ("other.service", "proj.settle")])
def test_a_task_to_be_observed_that_the_app_does_not_have(name: str, known: str) -> None:
    named = only(observed_with({name: "id"}), "task-unknown")
    assert named.severity == "risk" and known in named.evidence[0]


@pytest.mark.parametrize(
    "conf",
    [{"worker_pool": "gevent"}, {"worker_pool": "eventlet"}, {"worker_pool_start_method": "spawn"}],
    ids=str,
)
def test_pools_that_cannot_be_observed(conf: dict[str, Any]) -> None:
    named = only(observed_with(**conf), "pool-unsupported")
    assert named.what == "workers with this pool observe nothing"


def test_eager_tasks_are_not_observed() -> None:
    only(observed_with(task_always_eager=True), "router-unseen")


# -- as a command ---------------------------------------------------------------------------------------------------


def doctor(app: Celery, *words: str) -> Result:
    """``celery -A app jobsync doctor WORDS``."""
    return CliRunner().invoke(jobsync, ["doctor", *words], obj=CLIContext(app, no_color=True, workdir=None))


def test_the_configuration_is_checked_without_any_server() -> None:
    done = doctor(app_with(), "--config")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "nothing is wrong: 8 checks")


def test_a_problem_fails_a_risk_only_if_asked_for() -> None:
    assert doctor(app_with(task_always_eager=True), "--config").exit_code == 0
    assert doctor(app_with(task_always_eager=True), "--config", "--strict").exit_code == 1
    assert doctor(app_with(worker_pool="gevent"), "--config").exit_code == 1


def test_an_observed_app_is_checked_as_well() -> None:
    assert doctor(observed_with(), "--config").stdout.splitlines()[0] == "nothing is wrong: 8 checks"
    assert doctor(observed_with(worker_pool="gevent"), "--config").exit_code == 1
    assert 'mode="observe"' in doctor(observed_with()).stderr  # there is no cluster to look at


def test_only_an_app_with_jobsync_has_a_configuration() -> None:
    without = doctor(Celery("proj", set_as_current=False), "--config")
    assert without.exit_code == 2
    assert without.stderr == "Error: the app 'proj' has no JobSync: write JobSync(app)\n"
    assert "--without" not in doctor(app_with(), "--config", "--url", URL).stderr
    assert doctor(app_with(), "--config", "--url", URL).exit_code == 2


def test_checks_have_names_of_their_own_and_say_what_they_look_for() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert [check.name for check in CHECKS if not check.looks_for.endswith(".")] == []
