"""Redis delivers again what is not acknowledged in time; a long task still runs once."""

from typing import Any

import pytest

from e2e.site import Site

# kombu looks at every tenth interval.
OPTIONS = {"visibility_timeout": 2, "unacked_restore_interval": 0.1}


@pytest.fixture
def broker_url(redis_url: str) -> str:
    return redis_url


@pytest.mark.redis
@pytest.mark.cluster("w1", "w2", conf={"broker_transport_options": OPTIONS})
def test_a_task_three_times_as_long_as_the_visibility_timeout_runs_once(celery_setup: Any, site: Site) -> None:
    long = [site.call("step", f"long{n}", n, 6.0) for n in range(3)]
    held = [site.call("step", f"long{n}", n) for n in range(3)]
    assert site.results([*long, *held]) == [*range(3)] * 2
    site.assert_once(result.id for result in (*long, *held))
    logs = "".join(worker.logs() for worker in celery_setup.worker_cluster)
    assert max(logs.count(f"[{result.id}] received") for result in long) > 1, "the test meets a redelivery"
    site.assert_brokers_are_empty()
