"""Back to the broker as soon as it is back.

Celery waits longer from try to try, up to half a minute. All that while a node without a connection owns nothing, and
when the broker itself was away that is every node.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

#: Seconds before the first new try, how much longer before each other one, and the longest.
_FIRST_SEC, _STEP_SEC, _LONGEST_SEC = 1.0, 0.25, 2.0


def reconnect_soon(connection: Any) -> None:
    """Have a connection tried again every second or two, for as long in all as Celery would have tried."""
    ensure: Callable[..., Any] = connection.ensure_connection

    def ensure_connection(errback: Any = None, max_retries: int | None = None, **options: Any) -> Any:
        tries = None if max_retries is None else math.ceil(_patience(max_retries) / _LONGEST_SEC)
        pace = {"interval_start": _FIRST_SEC, "interval_step": _STEP_SEC, "interval_max": _LONGEST_SEC}
        return ensure(errback, tries, **{**options, **pace})

    connection.ensure_connection = ensure_connection


def _patience(retries: int) -> float:
    """For how many seconds kombu tries, with its own intervals."""
    return float(sum(min(2 * retry, 30) for retry in range(1, retries + 1)))
