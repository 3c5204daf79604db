"""What becomes of a delivery's message, and of further copies of it, once its end is recorded."""

from __future__ import annotations

from jobsync_celery.plugin.brokers import Broker
from jobsync_celery.plugin.delivery import Delivery


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
        broker.drop([message, *copies] if fresh else copies)
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
