"""What `mode="observe"` costs: the same task on a plain app and on an observed one.

Two workers on one backlog take turns: while one runs for a second, the other is stopped (SIGSTOP). So both see the
same machine, whatever else it does. Beside the rates stands the processor time of a worker and its children for each
task. First the task does nothing, and the cost in percent is as high as it gets; then it works for a millisecond.

A machine's speed changes by more from one second to the next than observing costs, and so do two processes of one
program, as their memory happens to lie. Hence many short turns, new workers after some of them, and as the result the
ratio of all turns together, with the interval in which it would lie in nine of ten repetitions (bootstrap over the
pairs of workers, Efron 1979). `--same` compares plain workers with plain ones, and shows what the method is good for.

`make bench-observe`, or `python benchmarks/observe.py --rounds 12 --work 5 --broker redis`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from throughput import backlog, reached, worker

from jobsync_celery.servers import PrivatePostgres, PrivateRabbitMQ, PrivateRedis
from jobsync_celery.store.database import Database
from jobsync_celery.store.schema import ensure_tables

APPNAME = "bench_"
WARM_UP, WARM_UP_SEC = 500, 2.0


@dataclass
class Turn:
    """What a worker did while it ran: how many tasks, in how many seconds, with how many of processor time."""

    count: int
    took: float
    used: float


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
        return Turn(self.marks.stat().st_size - before, took, spent(self.process) - used)

    def stop(self) -> None:
        """Stand still."""
        os.killpg(self.process.pid, signal.SIGSTOP)


@dataclass(frozen=True)
class Setting:
    """What a worker is started with, and the file in which its tasks leave their marks."""

    marks: Path
    environment: dict[str, str]


#: The plain worker's, and the other's.
Pair = tuple[Turn, Turn]


def main() -> None:
    """Let them take turns, and print what observing costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="with two new workers each")
    parser.add_argument("--pairs", type=int, default=10, help="of turns in a round")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument("--work", type=float, action="append", help="milliseconds of processor time (default: 0, 1)")
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--multiplier", type=int, default=4, help="worker_prefetch_multiplier (Celery's default: 4)")
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], action="append")
    parser.add_argument("--same", action="store_true", help="compare a plain worker with a plain one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a worker that stands still ends with it
    with PrivatePostgres() as postgres:
        ensure_tables(Database(postgres.url, prefix=APPNAME))
        for broker in options.broker or ["redis", "rabbitmq"]:
            for work in options.work or [0.0, 1.0]:
                with (PrivateRedis if broker == "redis" else PrivateRabbitMQ)() as server:
                    compare(broker, server.url, postgres, work, options)


def compare(broker: str, broker_url: str, postgres: PrivatePostgres, work: float, options: argparse.Namespace) -> None:
    """Two workers on one broker, turn by turn, again and again."""
    seconds = 2 * options.rounds * (WARM_UP_SEC + options.pairs * options.seconds)
    options.tasks = int(seconds * min(2000, 1500 * options.concurrency / max(work, 1e-3))) + WARM_UP
    server = psutil.Process(postgres.pid)
    observing = {"BENCH_DATABASE": postgres.url, "BENCH_MODE": "observe", "BENCH_APPNAME": APPNAME}
    with backlog(broker_url, None, options, BENCH_WORK_MS=str(work)) as (marks, environment):
        used, rounds, observed, ran = spent(server), [], 0, 0
        for number in range(options.rounds):
            plain = Setting(marks.with_name(f"plain-{number}"), environment)
            other = Setting(marks.with_name(f"other-{number}"), environment | ({} if options.same else observing))
            rounds.append(in_turns(plain, other, number % 2 == 0, options))
            observed += other.marks.stat().st_size
            ran += plain.marks.stat().st_size + other.marks.stat().st_size
            if ran > options.tasks - WARM_UP:
                raise SystemExit(f"the backlog of {options.tasks} tasks was not enough")
        total = [together(each) for each in zip(*rounds, strict=True)]
        database = (spent(server) - used) / observed * 1e6
    speed = total[0].count / total[0].took
    print(
        f"{broker}, tasks of {work:g} ms: plain {speed:.0f} a second, {cost(total[0]) * 1e6:.0f} us of processor time"
        f" each; {'again' if options.same else 'observed'} {interval(rounds, rates)} of the rate,"
        f" {interval(rounds, costs)} of the processor time; PostgreSQL {database:.0f} us a task",
        flush=True,
    )


def in_turns(plain: Setting, other: Setting, plain_first: bool, options: argparse.Namespace) -> Pair:
    """All turns of two workers, each as one; which is first, as which came first to the queue, changes."""
    with ExitStack() as stack:
        settings = (plain, other) if plain_first else (other, plain)
        first, second = (begun(stack, each, options) for each in settings)
        turns: list[Pair] = []
        for number in range(options.pairs):
            if number % 2:
                last = second.turn(options.seconds)
                turns.append((first.turn(options.seconds), last))
            else:
                turns.append((first.turn(options.seconds), second.turn(options.seconds)))
    one, two = (together(each) for each in zip(*turns, strict=True))
    return (one, two) if plain_first else (two, one)


def begun(stack: ExitStack, setting: Setting, options: argparse.Namespace) -> Runner:
    """A worker that is warm, and stands still."""
    setting.marks.touch()
    environment = setting.environment | {"BENCH_MARKS": str(setting.marks)}
    runner = Runner(psutil.Process(stack.enter_context(worker(environment, options.concurrency))), setting.marks)
    reached(setting.marks, WARM_UP)
    time.sleep(WARM_UP_SEC)  # what an observer loads for its first write is no cost of a task
    runner.stop()
    return runner


def together(turns: Iterable[Turn]) -> Turn:
    """All of them as one."""
    counts, seconds, used = zip(*((turn.count, turn.took, turn.used) for turn in turns), strict=True)
    return Turn(sum(counts), sum(seconds), sum(used))


def cost(turn: Turn) -> float:
    """Seconds of processor time for a task."""
    return turn.used / turn.count


def rates(plain: Turn, other: Turn) -> float:
    """What is left of the throughput."""
    return (other.count / other.took) / (plain.count / plain.took)


def costs(plain: Turn, other: Turn) -> float:
    """How much more processor time a task takes."""
    return cost(other) / cost(plain)


def interval(rounds: Sequence[Pair], ratio: Callable[[Turn, Turn], float]) -> str:
    """A ratio of all rounds together, and where it lies in nine of ten samples of as many of them."""
    dice = random.Random(2026)

    def of(sample: Sequence[Pair]) -> float:
        return ratio(*(together(each) for each in zip(*sample, strict=True)))

    samples = [of(dice.choices(rounds, k=len(rounds))) for _ in range(1000)]
    low, *_, high = statistics.quantiles(samples, n=20)
    return f"{of(rounds):.3f} ({low:.3f} to {high:.3f})"


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
