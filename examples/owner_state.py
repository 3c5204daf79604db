"""Keep something per key where the key is owned: a connection per device, and a cache in the pool children.

    export DATABASE_URL=postgresql://postgres@localhost/postgres REDIS_URL=redis://localhost:6379/0
    celery -A owner_state worker -n one@%h -l INFO      # a terminal; and a second one, with -n two@%h

The page docs/how-to/owner-state.md goes through it.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from celery import Celery

from jobsync_celery import JobSync, RebalanceEvent, coordinated, current_claim
from jobsync_celery.signals import partitions_assigned, partitions_revoked, tenure_changed

logger = logging.getLogger(__name__)

app = Celery("owner_state", broker=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
database = os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")
jobsync = JobSync(app, {"url": database, "partitions": 16})
DEVICES = [f"device-{number}" for number in range(12)]


# -- a connection per device, in the worker's main process ---------------------------------------------------------


class Stream(threading.Thread):
    """Receives what one device says, for as long as this worker owns it."""

    def __init__(self, device: str) -> None:
        super().__init__(name=f"stream of {device}", daemon=True)
        self.device = device
        self.over = threading.Event()

    def run(self) -> None:
        logger.info("connected to %s", self.device)
        for reading in readings(self.device):
            if self.over.is_set() or not jobsync.owns(self.device):
                break
            store.delay(self.device, reading)
        logger.info("disconnected from %s", self.device)


streams: dict[str, Stream] = {}


@partitions_assigned.connect
def connect(**kwargs: Any) -> None:
    for device in DEVICES:
        if jobsync.owns(device) and device not in streams:
            streams[device] = Stream(device)
            streams[device].start()


@partitions_revoked.connect
def disconnect(lost: bool, **kwargs: Any) -> None:
    gone = [streams.pop(device) for device in list(streams) if not jobsync.owns(device)]
    for stream in gone:
        stream.over.set()
    for stream in gone:
        stream.join()  # the next owner connects only when we have returned, unless the lease is lost


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


def readings(device: str) -> Iterator[float]:
    """A websocket's messages, say."""
    while True:
        time.sleep(0.1)
        yield len(device) / 10


def load(device: str) -> dict[str, float]:
    """From a database, say."""
    return {"sum": 0.0, "limit": 10.0}


def partition_of(device: str) -> int:
    """The partition of a key, from the end of its queue's name."""
    return int(jobsync.queue_for(device).rpartition("-")[2])
