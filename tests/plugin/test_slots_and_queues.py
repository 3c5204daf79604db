"""Pool slots are counted once, and a worker consumes what it owns whatever its connection does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery

from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.plugin.consumption import Consumption
from jobsync_celery.plugin.router import PartitionQueues
from jobsync_celery.plugin.slots import CountedSlots


def test_a_revoked_task_gives_its_slot_back_once() -> None:
    started: list[int] = []

    def start() -> bool:
        started.append(len(started))
        return True

    slots = CountedSlots(2, start)
    slots.want(1)
    slots.finished()  # Celery settled it as revoked: it left the pool that it never reached …
    slots.release()  # … and its slot is free
    slots.want(5)
    assert len(started) == 1 + 2


def test_a_paused_partition_is_consumed_again_after_a_reconnect() -> None:
    app, consumption, _ = _connected()
    consumption.add(3)
    consumption.pause(3)
    assert "t-003" not in app.amqp.queues.consume_from
    consumption.detach()
    assert "t-003" in app.amqp.queues.consume_from


def test_a_partition_is_given_up_though_its_connection_is_dead() -> None:
    app, consumption, consumer = _connected()
    consumption.add(3)
    consumption.add(4)
    consumer.task_consumer.cancel_by_queue = _broken
    consumption.cancel(3)
    consumption.cancel(4)
    assert not {"t-003", "t-004"} & set(app.amqp.queues.consume_from)


def test_a_partition_taken_while_the_connection_dies_is_consumed_on_the_next_one() -> None:
    app, consumption, consumer = _connected()
    consumer.add_task_queue = _broken
    consumption.turn()
    consumption.add(3)
    consumption.add(4)
    assert {"t-003", "t-004"} <= set(app.amqp.queues.consume_from)
    with pytest.raises(OSError, match="the socket is gone"):
        consumption.raise_failure()
    consumption.raise_failure()


def test_a_channel_that_was_closed_has_the_worker_connect_anew_and_does_not_end_it() -> None:
    _, consumption, consumer = _connected()
    consumer.channel_errors = (LookupError,)
    consumer.task_consumer.cancel_by_queue = {}.__getitem__
    consumption.turn()
    consumption.add(3)
    consumption.raise_failure()
    consumption.cancel(3)
    with pytest.raises(ConnectionError):
        consumption.raise_failure()
    consumption.cancel(3)
    consumption.detach()
    consumption.raise_failure()


def test_a_partition_taken_before_the_loop_turns_is_consumed_when_it_does() -> None:
    """A message that came before that would find nobody to take it, and end the worker."""
    app, consumption, consumer = _connected()
    consumed: list[str] = []
    consumer.add_task_queue = consumed.append
    consumption.add(3)
    assert (consumed, consumer.added) == ([], ["t-003"])
    assert "t-003" in app.amqp.queues.consume_from
    consumption.turn()
    consumption.add(4)
    assert (consumed, consumer.added) == (["t-004"], ["t-003"])
    consumption.detach()
    consumption.attach(consumer)
    consumption.add(5)
    assert (consumed, consumer.added) == (["t-004"], ["t-003", "t-005"])


def _connected() -> tuple[Celery, Consumption, SimpleNamespace]:
    app = Celery("queues", broker="memory://")
    consumption = Consumption(app, PartitionQueues("t-", TokenMap(100, 8, "md5")))
    added: list[str] = []
    consumer = SimpleNamespace(
        added=added,
        add_task_queue=lambda name: app.amqp.queues.select_add(app.amqp.queues[name]),
        task_consumer=SimpleNamespace(
            cancel_by_queue=lambda name: None, add_queue=lambda queue: added.append(queue.name)
        ),
        connection_errors=(OSError,),
        channel_errors=(),
    )
    consumption.attach(consumer)
    return app, consumption, consumer


def _broken(name: str) -> None:
    raise OSError("the socket is gone")
