"""How much of plain Celery's throughput coordination keeps, and what a route costs.

The same no-op task, plain and coordinated, on one worker, alternating in one run on each broker; the ratio of each
pair is what counts, since both halves see the same machine. `make bench`, or
`python benchmarks/throughput.py --pairs 5 --tasks 4000 --broker redis`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import uuid
from collections.abc import Iterator
from pathlib import Path

from celery import Celery

from jobsync_celery import CoordinationConfig, JobSync
from jobsync_celery.servers import PrivatePostgres, PrivateRabbitMQ, PrivateRedis

HERE = Path(__file__).parent
STARTUP_SEC = 30.0


def main() -> None:
    """Run the pairs and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=4000)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--multiplier", type=int, default=4, help="worker_prefetch_multiplier (Celery's default: 4)")
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], action="append")
    options = parser.parse_args()
    print(f"router: {router_cost():.1f} us a call")
    with PrivatePostgres() as postgres:
        for broker in options.broker or ["redis", "rabbitmq"]:
            with (PrivateRedis if broker == "redis" else PrivateRabbitMQ)() as server:
                compare(broker, server.url, postgres.url, options)


def compare(broker: str, broker_url: str, database_url: str, options: argparse.Namespace) -> None:
    """Alternate plain and coordinated runs on one broker."""
    ratios = []
    for pair in range(1, options.pairs + 1):
        plain = rate(broker_url, None, options)
        coordinated = rate(broker_url, database_url, options)
        ratios.append(coordinated / plain)
        print(
            f"{broker} pair {pair}: plain {plain:6.0f}/s, coordinated {coordinated:6.0f}/s, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"{broker}: ratio median {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")


def rate(broker_url: str, database_url: str | None, options: argparse.Namespace) -> float:
    """Tasks per second between the 10th and the 90th percent of a backlog, on one worker."""
    with backlog(broker_url, database_url, options) as (marks, environment), worker(environment, options.concurrency):
        first = reached(marks, options.tasks // 10)
        last = reached(marks, options.tasks * 9 // 10)
    return (options.tasks * 9 // 10 - options.tasks // 10) / (last - first)


@contextlib.contextmanager
def backlog(
    broker_url: str, database_url: str | None, options: argparse.Namespace, **more: str
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Publish tasks; the file in which they leave their marks, and what a worker's environment has to be."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder, "marks")
        marks.touch()
        environment = {
            **os.environ,
            "BENCH_BROKER": broker_url,
            "BENCH_DATABASE": database_url or "",
            "BENCH_PREFIX": f"bench-{uuid.uuid4().hex[:8]}-",
            "BENCH_MARKS": str(marks),
            "BENCH_MULTIPLIER": str(options.multiplier),
            "PYTHONPATH": str(HERE),
            **more,
        }
        subprocess.run(
            [sys.executable, str(HERE / "bench_app.py"), str(options.tasks), str(options.keys)],
            env=environment, check=True,
        )  # fmt: skip
        yield marks, environment


@contextlib.contextmanager
def worker(environment: dict[str, str], concurrency: int) -> Iterator[int]:
    """A real worker, killed at the end: what is left over does not matter. Its process."""
    command = [sys.executable, "-m", "celery", "-A", "bench_app", "worker", "-c", str(concurrency), "-l", "WARNING"]
    output = None if os.environ.get("BENCH_LOG") else subprocess.DEVNULL
    process = subprocess.Popen(
        [*command, "-n", f"bench-{uuid.uuid4().hex[:6]}@bench"],
        env=environment, start_new_session=True, stdout=output, stderr=output,
    )  # fmt: skip
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def reached(marks: Path, count: int) -> float:
    """When so many tasks had run."""
    end = time.monotonic() + STARTUP_SEC
    while marks.stat().st_size < count:
        if time.monotonic() > end:
            raise SystemExit(f"only {marks.stat().st_size} of {count} tasks ran within {STARTUP_SEC:.0f} s")
        time.sleep(0.005)
    return time.monotonic()


def router_cost() -> float:
    """Microseconds for one route of a coordinated task."""
    app = Celery("router", broker="memory://")
    jobsync = JobSync(app, CoordinationConfig(url="postgresql://nobody@localhost/none", tasks={"settle": "account_id"}))
    assert jobsync.cluster is not None
    router = jobsync.cluster.router
    calls = 20000
    return timeit.timeit(lambda: router("settle", (), {"account_id": 4711}, {}), number=calls) / calls * 1e6


if __name__ == "__main__":
    main()
