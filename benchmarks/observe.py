"""What `mode="observe"` costs: the same no-op task on a plain app and on an observed one.

Two workers, each with a backlog of its own, take turns: while one runs for some seconds, the other is stopped
(SIGSTOP). So both see the same machine, whatever else it does, and each pair of turns gives a ratio. Beside the rates
stands the processor time of a worker and its children for each task. The task does nothing, so the cost in percent is
as high as it gets. `make bench-observe`, or `python benchmarks/observe.py --pairs 12 --broker redis`.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from throughput import backlog, reached, worker

from jobsync_celery.servers import PrivatePostgres, PrivateRabbitMQ, PrivateRedis
from jobsync_celery.store.database import Database
from jobsync_celery.store.schema import ensure_tables

APPNAME = "bench_"
WARM_UP = 500


@dataclass
class Turn:
    """What a worker did while it ran: tasks a second, and microseconds of processor time for each."""

    rate: float
    cost: float


@dataclass
class Runner:
    """A worker that runs only while it is its turn."""

    process: psutil.Process
    marks: Path

    def turn(self, seconds: float) -> Turn:
        """Run for so long."""
        before, used = self.marks.stat().st_size, spent(self.process)
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGCONT)
        time.sleep(seconds)
        self.stop()
        took = time.monotonic() - began
        count = self.marks.stat().st_size - before
        return Turn(count / took, (spent(self.process) - used) / max(1, count) * 1e6)

    def stop(self) -> None:
        """Stand still."""
        os.killpg(self.process.pid, signal.SIGSTOP)


def main() -> None:
    """Let them take turns, and print what observing costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--tasks", type=int, default=0, help="in each backlog (default: enough for 1,500 a second)")
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--multiplier", type=int, default=4, help="worker_prefetch_multiplier (Celery's default: 4)")
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], action="append")
    options = parser.parse_args()
    options.tasks = options.tasks or WARM_UP + int(options.pairs * options.seconds * 1500)
    with PrivatePostgres() as postgres:
        ensure_tables(Database(postgres.url, prefix=APPNAME))
        for broker in options.broker or ["redis", "rabbitmq"]:
            with (PrivateRedis if broker == "redis" else PrivateRabbitMQ)() as server:
                compare(broker, server.url, postgres, options)


def compare(broker: str, broker_url: str, postgres: PrivatePostgres, options: argparse.Namespace) -> None:
    """Two workers on one broker, turn by turn."""
    with ExitStack() as stack:
        plain = begun(stack, broker_url, None, options)
        observed = begun(stack, broker_url, postgres.url, options)
        server = psutil.Process(postgres.pid)
        used, done = spent(server), observed.marks.stat().st_size
        pairs = []
        for number in range(options.pairs):  # what comes first may have it easier
            if number % 2:
                turn = observed.turn(options.seconds)
                pairs.append((plain.turn(options.seconds), turn))
            else:
                pairs.append((plain.turn(options.seconds), observed.turn(options.seconds)))
        database = (spent(server) - used) / max(1, observed.marks.stat().st_size - done) * 1e6
        for each in (plain, observed):
            if each.marks.stat().st_size >= options.tasks:
                raise SystemExit(f"the backlog of {options.tasks} tasks was not enough: give --tasks")
    rates = [each.rate / other.rate for other, each in pairs]
    costs = [each.cost / other.cost - 1 for other, each in pairs]
    typical = statistics.median(other.rate for other, _ in pairs), statistics.median(other.cost for other, _ in pairs)
    print(
        f"{broker}: plain {typical[0]:.0f} tasks/s, {typical[1]:.0f} us of processor time each;"
        f" observed {spread(rates, '.3f')} of the rate, {spread(costs, '+.1%')} of processor time;"
        f" PostgreSQL {database:.0f} us a task",
        flush=True,
    )


def begun(stack: ExitStack, broker_url: str, database_url: str | None, options: argparse.Namespace) -> Runner:
    """A worker that is warm, and stands still."""
    published = backlog(broker_url, database_url, options, BENCH_MODE="observe", BENCH_APPNAME=APPNAME)
    marks, environment = stack.enter_context(published)
    runner = Runner(psutil.Process(stack.enter_context(worker(environment, options.concurrency))), marks)
    reached(marks, WARM_UP)
    runner.stop()
    return runner


def spread(values: list[float], style: str) -> str:
    """The median, and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{style}} ({low:{style}} to {high:{style}})"


def spent(process: psutil.Process) -> float:
    """Seconds of processor time of a process, its children, and those that it has waited for."""
    own = process.cpu_times()
    total: float = own.user + own.system + own.children_user + own.children_system
    for each in process.children(recursive=True):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


if __name__ == "__main__":
    main()
