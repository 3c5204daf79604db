"""The broker is restarted or killed under load: nothing is lost, and nothing that finished runs again."""

from typing import Any

import pytest

from e2e.history import revived
from e2e.load import load
from e2e.site import Site
from e2e.waiting import until
from jobsync_celery.servers.process import PrivateServer


@pytest.fixture(
    params=[pytest.param("redis_server", marks=pytest.mark.redis), pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]
)
def server(request: pytest.FixtureRequest) -> PrivateServer:
    """A broker of our own, whatever the environment names."""
    found: PrivateServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def broker_url(server: PrivateServer) -> str:
    return server.url


@pytest.mark.cluster("w1", "w2", conf={"broker_transport_options": {"confirm_publish": True}})
def test_a_broker_that_restarts_and_one_that_crashes_lose_and_revive_nothing(
    celery_setup: Any, site: Site, server: PrivateServer
) -> None:
    busy = [site.call("step", f"busy{n}", n, 4.0, ignore_result=True) for n in range(2)]
    held = [site.call("step", f"busy{n}", n, ignore_result=True) for n in range(2)]
    site.until_begun(*(result.id for result in busy))
    server.restart()
    site.until_ended(*(result.id for result in (*busy, *held)))
    with load(site, sec=0.05, pause=0.02, ignore_result=True) as stream:
        pass
    late = site.many(200, 40, "step", 0.05, ignore_result=True)
    until(lambda: len(site.history.runs(*(result.id for result in late))) > 20, "they run")
    server.kill()
    server.start()
    ids = [*stream.ids, *(result.id for result in (*busy, *held, *late))]
    site.until_ended(*ids)
    site.assert_once(ids)
    site.assert_brokers_are_empty()


@pytest.mark.cluster("w1", "w2", conf={"worker_cancel_long_running_tasks_on_connection_loss": True})
def test_tasks_that_celery_cancels_with_the_connection_run_again(
    celery_setup: Any, site: Site, server: PrivateServer
) -> None:
    cut = [site.call("slow_first", f"cut{n}", n, 60.0, ignore_result=True) for n in range(4)]
    until(lambda: len(site.history.runs()) >= 3, "they run")
    server.restart()
    site.until_ended(*(result.id for result in cut))
    runs = site.history.runs(*(result.id for result in cut))
    assert {run.attempt for run in runs} <= {1, 2}
    assert revived(runs) == []
    site.assert_serial()
    assert {claim["state"] for claim in site.settled()} == {"done"}
    site.assert_brokers_are_empty()


@pytest.mark.cluster("w1", "w2", conf={"broker_transport_options": {"confirm_publish": True}})
def test_a_retry_that_the_broker_does_not_take_is_no_loss(celery_setup: Any, site: Site, server: PrivateServer) -> None:
    """Celery rejects the message for good then; but nobody has the retry, so the run has to be run again."""
    result = site.call("again", "key", 1, 0.0, 1.0, ignore_result=True)
    site.until_begun(result.id)
    server.stop()
    until(lambda: [run.how for run in site.history.runs(result.id)] == ["Reject"], "the retry was not taken")
    server.start()
    site.until_ended(result.id)
    until(lambda: {claim["state"] for claim in site.settled(result.id)} == {"retried", "done"}, "both are recorded")
    assert [(run.retries, run.attempt) for run in site.history.runs(result.id)] == [(0, 1), (0, 2), (1, 1)]
    site.assert_serial()
    site.assert_brokers_are_empty()
