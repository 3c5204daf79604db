"""Keep something per key where the key is owned: caches in the pool children.

    export DATABASE_URL=postgresql://postgres@localhost/postgres REDIS_URL=redis://localhost:6379/0
    celery -A owner_state worker -n one@%h -l INFO      # a terminal; and a second one, with -n two@%h
    python owner_state.py                               # one more: a reading of each device

The page docs/how-to/owner-state.md goes through it; websocket_fan_in.py keeps a connection per key.
"""

import logging
import os
from functools import lru_cache
from typing import Any

from celery import Celery

from jobsync_celery import JobSync, RebalanceEvent, coordinated, current_claim
from jobsync_celery.signals import tenure_changed

logger = logging.getLogger(__name__)

app = Celery("owner_state", broker=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
database = os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")
jobsync = JobSync(app, {"url": database, "partitions": 16})
DEVICES = [f"device-{number}" for number in range(12)]


# -- what has changed, in the worker's main process ----------------------------------------------------------------


@jobsync.on_rebalance
def report(event: RebalanceEvent) -> None:
    logger.info("%d tokens more, %d fewer, %d here", event.tokens_added, event.tokens_removed, len(jobsync.my_tokens))


# -- a cache, in the processes that run the tasks ------------------------------------------------------------------

models: dict[int, dict[str, dict[str, float]]] = {}


@tenure_changed.connect
def tend(gained: frozenset[int], lost: frozenset[int], **kwargs: Any) -> None:
    for partition in lost:
        models.pop(partition, None)
    for partition in gained:
        models[partition] = {device: load(device) for device in DEVICES if partition_of(device) == partition}


@app.task
@coordinated(key="device")
def store(device: str, reading: float) -> None:
    model = models.setdefault(current_claim().partition or 0, {}).setdefault(device, {"sum": 0.0})
    model["sum"] += reading


@lru_cache(maxsize=1000)
def limits_of(device: str, partition: int | None, tenure: int) -> dict[str, float]:
    return load(device)


@app.task
@coordinated(key="device")
def check(device: str, reading: float) -> bool:
    claim = current_claim()
    return reading < limits_of(device, claim.partition, claim.tenure)["limit"]


# -- what stands for the outside world -----------------------------------------------------------------------------


def load(device: str) -> dict[str, float]:
    """From a database, say."""
    return {"sum": 0.0, "limit": 10.0}


def partition_of(device: str) -> int:
    """The partition of a key, from the end of its queue's name."""
    return int(jobsync.queue_for(device).rpartition("-")[2])


def main() -> None:
    for device in DEVICES:
        store.delay(device, 9.5)
        check.delay(device, 9.5)


if __name__ == "__main__":
    main()
