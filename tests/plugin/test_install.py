"""Where the settings come from, and what an app is without them."""

from __future__ import annotations

import pytest
from celery import Celery

from jobsync_celery import CoordinationConfig, JobSync, coordinated, current_claim
from jobsync_celery.errors import JobsyncError, KeyMissing, SettingsError
from jobsync_celery.plugin.probe import ProbeStep

URL = "postgresql+psycopg2://nobody@localhost/none"


def test_the_app_s_own_setting_is_read_with_a_namespace_too() -> None:
    plain = Celery("plain", broker="memory://")
    plain.conf.jobsync = {"url": URL, "partitions": 8}
    django = Celery("django")
    settings = {"CELERY_BROKER_URL": "memory://", "CELERY_JOBSYNC": {"URL": URL, "PARTITIONS": 8}}
    django.config_from_object(type("Settings", (), settings), namespace="CELERY")
    assert JobSync(plain).config == JobSync(django).config == CoordinationConfig(url=URL, partitions=8)


def test_an_app_that_names_no_database_is_told_what_to_write() -> None:
    with pytest.raises(SettingsError, match="CoordinationConfig"):
        JobSync(Celery("bare", broker="memory://"))
    with pytest.raises(SettingsError, match="url="):
        JobSync(Celery("bare", broker="memory://"), {})


@pytest.mark.parametrize("off", [None, {"enabled": False}])
def test_switched_off_an_app_is_an_ordinary_one(off: object) -> None:
    app = Celery("off", broker="memory://")
    jobsync = JobSync(app, off)

    @app.task
    @coordinated(key="account")
    def settle(account: int) -> int:
        current_claim().guard(None)
        return account

    assert jobsync.cluster is None and app.steps["worker"] == {ProbeStep} and not app.steps["consumer"]
    assert app.amqp.router.route({}, settle.name, (1,), {}, settle)["queue"].name == "celery"
    assert settle(7) == 7
    with pytest.raises(JobsyncError, match="switched off"):
        jobsync.queue_for(1)


def test_the_router_comes_before_the_app_s_own_routes_and_leaves_ordinary_tasks_to_them() -> None:
    app = Celery("routed", broker="memory://")
    app.conf.task_routes = {"*": {"queue": "everything"}}
    jobsync = JobSync(app, CoordinationConfig(url=URL, tasks={"proj.settle": "account"}))
    route = app.amqp.router.route
    assert route({}, "proj.settle", (), {"account": 5})["queue"].name == jobsync.queue_for(5)
    assert route({}, "proj.other", (), {"account": 5})["queue"].name == "everything"
    with pytest.raises(KeyMissing, match=r"proj\.settle.*account"):
        route({}, "proj.settle", (5,), {})


def test_a_retry_keeps_its_origin_and_a_new_publish_gets_one() -> None:
    app = Celery("origin", broker="memory://")
    JobSync(app, CoordinationConfig(url=URL, tasks={"proj.settle": "account"}))
    route = app.amqp.router.route
    first, second = (route({}, "proj.settle", (), {"account": 5})["headers"] for _ in range(2))
    assert first["jobsync_origin"] != second["jobsync_origin"]
    assert route({"headers": first}, "proj.settle", (), {"account": 5})["headers"] == first


def test_a_claim_retention_under_twice_redis_s_visibility_timeout_is_refused() -> None:
    app = Celery("redis", broker="redis://localhost:1/0")
    app.conf.broker_transport_options = {"visibility_timeout": 50_000}
    with pytest.raises(SettingsError, match="claim_retention"):
        JobSync(app, CoordinationConfig(url=URL))
    JobSync(Celery("rabbit", broker="amqp://localhost//"), CoordinationConfig(url=URL, claim_retention=60))


def test_the_beat_schedule_has_both_jobs_beside_the_user_s_own() -> None:
    app = Celery("beat", broker="memory://")
    JobSync(app, CoordinationConfig(url=URL))
    app.conf.beat_schedule = {"mine": {"task": "proj.mine", "schedule": 5.0}}
    app.finalize()
    assert set(app.conf.beat_schedule) == {"mine", "jobsync.rebalance", "jobsync.maintenance"}
    assert app.conf.beat_schedule["jobsync.rebalance"]["schedule"] == 30


def test_a_stable_cluster_has_beat_look_half_as_often_whether_a_plan_is_missing() -> None:
    app = Celery("stable", broker="memory://")
    JobSync(app, CoordinationConfig(url=URL, heartbeat_timeout_sec=30, rebalance_check_interval_sec=60))
    app.finalize()
    assert app.conf.beat_schedule["jobsync.rebalance"]["schedule"] == 60
    assert app.tasks["jobsync.rebalance"].expires == 60
