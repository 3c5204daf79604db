"""The benchmark's app: one task, coordinated, observed or plain, that works for as long as the environment says.

Run, it publishes a backlog.
"""

from __future__ import annotations

import os
import sys
import time

from celery import Celery

from jobsync_celery import CoordinationConfig, JobSync, coordinated

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    worker_prefetch_multiplier=int(os.environ["BENCH_MULTIPLIER"]),
    broker_connection_retry_on_startup=True,
    task_default_queue=os.environ["BENCH_PREFIX"] + "plain",
    task_ignore_result=True,
)
DATABASE = os.environ["BENCH_DATABASE"]
PREFIX = os.environ["BENCH_PREFIX"]
APPNAME = os.environ.get("BENCH_APPNAME") or PREFIX.replace("-", "_")
WORK_SEC = float(os.environ.get("BENCH_WORK_MS") or 0) / 1000
MODE = os.environ.get("BENCH_MODE") or "coordinate"
JobSync(
    app,
    CoordinationConfig(url=DATABASE, queue_prefix=PREFIX, appname=APPNAME, mode=MODE) if DATABASE else None,
)
marks = os.open(os.environ["BENCH_MARKS"], os.O_WRONLY | os.O_APPEND)


@app.task(name="bench.noop", acks_late=True)
@coordinated(key="key")
def noop(key: int) -> None:
    """Leave one byte: the file's size counts the runs."""
    if WORK_SEC:
        end = time.thread_time() + WORK_SEC
        while time.thread_time() < end:
            pass
    os.write(marks, b".")


if __name__ == "__main__":
    tasks, keys = int(sys.argv[1]), int(sys.argv[2])
    with app.producer_or_acquire() as producer:
        for number in range(tasks):
            noop.apply_async((number % keys,), producer=producer)
