"""Messages that Celery itself keeps waiting: for their ETA, or for their task's rate limit."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from celery.worker import state


def withdraw_scheduled(consumer: Any, queues: Collection[str]) -> list[Any]:
    """Take back from Celery the requests of these queues that wait for a time; their messages, oldest first."""
    withdrawn = [request for request in tuple(state.scheduled_requests) if _came_by(request, queues)]
    for request in withdrawn:
        if request._eta_timer_entry is not None:
            consumer.timer.cancel(request._eta_timer_entry)
            consumer.qos.decrement_eventually()
    limited = [request for bucket in consumer.task_buckets.values() if bucket for request in _take(bucket, queues)]
    withdrawn += [request for request in limited if request not in withdrawn]
    for request in withdrawn:
        state.scheduled_requests.discard(request)
        state.task_ready(request)
    return [request.message for request in withdrawn]


def _take(bucket: Any, queues: Collection[str]) -> list[Any]:
    mine = [entry for entry in bucket.contents if _came_by(entry[0], queues)]
    for entry in mine:
        bucket.contents.remove(entry)
    return [request for request, _ in mine]


def _came_by(request: Any, queues: Collection[str]) -> bool:
    return request.delivery_info.get("routing_key") in queues
