"""What becomes of a delivery's message and its copies when it ends or is given back."""

from __future__ import annotations

import logging
from typing import Any

from jobsync_celery.plugin.brokers import Broker
from jobsync_celery.plugin.delivery import Delivery

logger = logging.getLogger(__name__)


def settle(delivery: Delivery, broker: Broker, connection: int, *, ours: bool) -> None:
    """Settle the message of an ended run.

    Arguments:
        broker: speaks through the worker's present broker connection, which is number ``connection``.
        ours: false if another node took the run over: what was lost is never acknowledged.
    """
    message = delivery.request.message
    fresh = delivery.connection == connection
    copies = [copy.request.message for copy in delivery.duplicates if copy.connection == connection]
    if not ours:
        # Celery rejects when its loop turns next: what went back already must not be rejected twice.
        broker.drop([message, *copies] if fresh and not delivery.returned else copies)
        return
    if delivery.returned:  # and what has come since is the same message again, on Redis by its tag too
        broker.give_back(copies)
        return
    if fresh and delivery.acknowledges:  # what Celery's own way comes to, several calls and a turn of the loop later
        broker.acknowledge(message)
    elif fresh and delivery.settlement is not None:
        delivery.settlement()
    else:
        broker.settle_stale(message, again=delivery.outcome == "lost")
    if copies and delivery.outcome == "lost":
        broker.return_copies(message, copies)
    else:
        for copy in copies:
            broker.acknowledge(copy)


def fail(request: Any, error: Exception, *copies: Any) -> None:
    """Fail a task that can never be run: its result says why, and its message is rejected for good."""
    request.app.jobsync.cluster.events("task_failed", task_name=request.name, task=request.id, error=str(error))
    request.task.backend.mark_as_failure(request.id, error, request=request._context, store_result=request.store_errors)
    for each in (request, *copies):
        each.reject(requeue=False)


def return_messages(broker: Broker, messages: list[Any]) -> None:
    """Give messages back, in the order of arrival; a lost connection has done so already."""
    try:
        broker.give_back(messages)
    except Exception:
        logger.warning("jobsync: %d messages could not be given back: they come again", len(messages), exc_info=True)
