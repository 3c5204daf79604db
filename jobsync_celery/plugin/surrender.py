"""A worker without a lease lets go of its messages at once; what its claims need to end comes later.

To record an end may take as long as the worker is cut off from the database, and the next owner needs the messages
before that. It cannot start what we still hold a claim of, unless we are evicted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from jobsync_celery.plugin.delivery import Delivery, Stage
from jobsync_celery.plugin.lanes import Lanes


def surrendered(
    lanes: Lanes,
    partitions: Collection[int],
    abandon: Callable[[Delivery], None],
    forget_copies: Callable[[Delivery], None],
) -> list[Any]:
    """The messages to give back now, in the order of arrival.

    Of what has not started all are, and ``abandon`` is called with it. What runs keeps its own message until it has
    ended, but not the further copies of it: on Redis they were fetched when it was given to the next owner. With it
    ``forget_copies`` is called.
    """
    messages: list[Any] = []
    for delivery in (one for one in lanes if one.partition in partitions):
        copies = [copy.request.message for copy in delivery.duplicates]
        if delivery.stage in (Stage.STARTED, Stage.ENDING):
            messages += copies
            forget_copies(delivery)
            return_ended(delivery)
        else:
            messages += [delivery.request.message, *copies]
            abandon(delivery)
    return messages


def return_ended(delivery: Delivery) -> None:
    """Settle now what is to be run again, though that it was lost is not recorded yet."""
    if delivery.stage is Stage.ENDING and delivery.outcome == "lost" and delivery.settlement is not None:
        settlement, delivery.settlement = delivery.settlement, _settled
        settlement()


def _settled() -> None:
    """The message has gone back already."""
