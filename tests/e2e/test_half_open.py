"""RabbitMQ keeps a connection that was lost without its knowing, and what belongs to it, for a while."""

from __future__ import annotations

import kombu
import pytest

from e2e.site import Site
from e2e.waiting import until


@pytest.fixture
def broker_url(rabbitmq_url: str) -> str:
    return rabbitmq_url


@pytest.mark.rabbitmq
def test_a_worker_waits_for_the_queue_that_a_lost_connection_of_its_own_still_holds(site: Site) -> None:
    """Celery's queue for remote control is exclusive: to declare it again is an error, which used to end the worker."""
    name = f"{site.node('w1')}.celery.pidbox"
    with kombu.Connection(site.broker_url) as half_open:
        kombu.Queue(name, channel=half_open, exclusive=True, durable=False).declare()
        worker = site.worker("w1")
        until(lambda: worker.logs().count("RESOURCE_LOCKED") >= 2, "it was refused, and tried again")
        assert worker.container.exit_code is None
    site.until_shared("w1")
    result = site.call("step", "key")
    site.until_ended(result.id)
    site.assert_once([result.id])
