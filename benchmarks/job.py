"""What a ``Job`` costs: questions, claims, locks, joining and planning, beside the figures of the jobsync library.

Jobs of one process on a private PostgreSQL that syncs to disk, as the library was measured. `make bench-job`, or
`python benchmarks/job.py --rounds 9 --out job.json`. Times of the processor where nothing is waited for, since other
programs do not disturb those; of the clock elsewhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql

from jobsync_celery import CoordinationConfig, Job
from jobsync_celery.core.tokens import HASH_FUNCTIONS
from jobsync_celery.servers import PrivatePostgres

_PATIENCE_SEC = 30.0
#: A node sees within so much that all others know the locks by now.
_LOOK_SEC = 1.5
_TRIES = 7
_ASKED, _LOCKS, _ADDED, _AGAIN, _CLAIMED = 20_000, 1_000, 1_000, 100, 10_000
#: What a question may cost, in microseconds.
BOUND_US = 2.0
#: jobsync 1.3.14 by default and at the best settings that were found for it: medians on a shared machine of two cores,
#: PostgreSQL 15 with fsync, Python 3.11. The ratio counts, not the digits.
LIBRARY: dict[str, tuple[str, str]] = {
    "the bare hash of a str, µs": ("1.18", ""),
    "the bare hash of a str, md5, µs": ("0.86", ""),
    "can_claim_task, owned, int, µs": ("2.03", "1.65 (md5)"),
    "can_claim_task, owned, str, µs": ("1.98", "1.65 (md5)"),
    "can_claim_task, not owned, str, µs": ("2.35", "2.01 (md5)"),
    "add_task, a second": ("1,429-1,484", "the same"),
    "set_claim of many, rows a second": ("4,800-6,400", "the same"),
    "write_audit, rows a second": ("5,200-7,300", "the same"),
    "register_lock, a second": ("374-411", "the same"),
    "register_locks_bulk of 1,000, s": ("0.18-0.28", "the same"),
    "join to its share, s": ("120.9", "1.3"),
    "first plan, 10,000 tokens, 3 nodes, ms": ("158", "the same"),
    "first plan, 50,000 tokens, 3 nodes, ms": ("713", "the same"),
    "first plan to all shares, 10,000 tokens, s": ("0.46-0.49", "the same"),
    "first plan to all shares, 50,000 tokens, s": ("0.91-1.00", "the same"),
}
Figures = dict[str, list[float]]


def main() -> int:
    """Measure and print; 1 if a question costs too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    asked = parser.parse_args()
    figures: Figures = {}
    with PrivatePostgres() as postgres:
        for number in range(asked.rounds):
            for measure in (questions, claims, locks, joining, planning):
                measure(lambda **settings: config(postgres, **settings), figures)
            print(f"round {number + 1} of {asked.rounds}", file=sys.stderr, flush=True)
    show(figures)
    if asked.out is not None:
        asked.out.write_text(json.dumps(figures, indent=2) + "\n")
    costs = [min(each) for name, each in figures.items() if name.startswith("can_claim_task")]
    return int(max(costs) > BOUND_US)


def config(postgres: PrivatePostgres, **settings: Any) -> CoordinationConfig:
    """A cluster of its own."""
    return CoordinationConfig(url=postgres.url, appname=f"b{uuid.uuid4().hex[:10]}_", **settings)


@contextmanager
def running(config: CoordinationConfig, *names: str) -> Iterator[list[Job]]:
    """These nodes, that came together."""
    jobs = [Job(name, coordination_config=config) for name in names]
    with ExitStack() as stack, ThreadPoolExecutor(len(names)) as threads:
        for job in threads.map(lambda job: job.__enter__(), jobs):
            stack.push(job)
        yield jobs


def questions(make: Callable[..., CoordinationConfig], figures: Figures) -> None:
    """can_claim_task: what is asked all the time."""
    ids: dict[str, list[Any]] = {
        "int": list(range(_ASKED)),
        "str": [str(uuid.UUID(int=number * 0x9E3779B97F4A7C15)) for number in range(_ASKED)],
    }
    for hash_name in ("double_sha256", "md5"):
        settings = make(minimum_nodes=2, hash_function=hash_name, heartbeat_interval_sec=1, heartbeat_timeout_sec=3)
        suffix = "" if hash_name == "double_sha256" else f", {hash_name}"
        bare = asking(HASH_FUNCTIONS[hash_name], ids["str"])
        figures.setdefault(f"the bare hash of a str{suffix}, µs", []).append(bare)
        with running(settings, "a", "b") as (job, other):
            for locks in ("", ", 1,000 locks"):
                for kind, each in ids.items():
                    for word, answer in (("owned", True), ("not owned", False)):
                        asked = [id_ for id_ in each if job.can_claim_task(id_) is answer]
                        name = f"can_claim_task, {word}, {kind}{suffix}{locks}, µs"
                        figures.setdefault(name, []).append(asking(job.can_claim_task, asked))
                if not locks:
                    other.register_locks_bulk([(f"locked {number}", "a", "") for number in range(_LOCKS)])
                    await_true(lambda job=job: all(job.can_claim_task(f"locked {n}") for n in range(_LOCKS)))
                    time.sleep(_LOOK_SEC)


def asking(ask: Callable[[Any], object], ids: Sequence[Any]) -> float:
    """Microseconds of this thread for one question; the best of some, for what else runs here only adds to it."""
    best = float("inf")
    for _ in range(_TRIES):
        begun = time.thread_time_ns()
        for id_ in ids:
            ask(id_)
        best = min(best, (time.thread_time_ns() - begun) / len(ids) / 1000)
    return best


def claims(make: Callable[..., CoordinationConfig], figures: Figures) -> None:
    """Claiming one by one and many at once, and writing down what was done."""
    with running(make(), "a") as (job,):
        rate(figures, "add_task, a second", _ADDED, lambda: [job.add_task(number) for number in range(_ADDED)])
        job.write_audit()
        many = [f"task {number}" for number in range(_CLAIMED)]
        rate(figures, "set_claim of many, rows a second", _CLAIMED, lambda: job.set_claim(many))
        for id_ in many:
            job.add_task(id_)
        rate(figures, "write_audit, rows a second", _CLAIMED, job.write_audit)
        done = range(_AGAIN)
        rate(figures, "add_task of what is done, a second", _AGAIN, lambda: [job.add_task(number) for number in done])


def locks(make: Callable[..., CoordinationConfig], figures: Figures) -> None:
    """Task locks, one by one and many at once."""
    with running(make(), "a") as (job,):
        single = 100
        rate(
            figures, "register_lock, a second", single,
            lambda: [job.register_lock(f"single {number}", "a") for number in range(single)],
        )  # fmt: skip
        many = [(f"many {number}", "a", "") for number in range(_LOCKS)]
        figures.setdefault("register_locks_bulk of 1,000, s", []).append(timed(lambda: job.register_locks_bulk(many)))


def joining(make: Callable[..., CoordinationConfig], figures: Figures) -> None:
    """A third node comes to two."""
    settings = make(minimum_nodes=2)
    with running(settings, "a", "b"):
        job = Job("c", coordination_config=settings)
        figures.setdefault("join to its share, s", []).append(timed(job.__enter__))
        assert len(job.my_tokens) > 3_000
        job.__exit__(None, None, None)


def planning(make: Callable[..., CoordinationConfig], figures: Figures) -> None:
    """Three nodes come together; what the first plan takes, and until each has its share."""
    for tokens in (10_000, 50_000):
        settings = make(minimum_nodes=3, total_tokens=tokens)
        with running(settings, "a", "b", "c"):
            plan, shares = history(settings)
        figures.setdefault(f"first plan, {tokens:,} tokens, 3 nodes, ms", []).append(plan)
        figures.setdefault(f"first plan to all shares, {tokens:,} tokens, s", []).append(shares)


def history(settings: CoordinationConfig) -> tuple[float, float]:
    """The milliseconds of the only plan, and the seconds from it until the last partition was taken."""
    connection = psycopg2.connect(settings.database_url().replace("+psycopg2", ""))
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                sql.SQL(
                    "SELECT duration_ms, extract(epoch FROM (SELECT max(claimed_at) FROM {partition}) - triggered_at)"
                    " + duration_ms / 1000 FROM {rebalance}"
                ).format(
                    partition=sql.Identifier(f"{settings.appname}partition"),
                    rebalance=sql.Identifier(f"{settings.appname}rebalance"),
                )
            )
            ((plan, shares),) = cursor.fetchall()
    finally:
        connection.close()
    return float(plan), float(shares)


def rate(figures: Figures, name: str, count: int, work: Callable[[], object]) -> None:
    """How many a second."""
    figures.setdefault(name, []).append(count / timed(work))


def timed(work: Callable[[], object]) -> float:
    """Seconds by the clock."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def await_true(true: Callable[[], bool]) -> None:
    """Wait until it is so."""
    end = time.monotonic() + _PATIENCE_SEC
    while not true():
        if time.monotonic() > end:
            raise SystemExit("the locks did not become known")
        time.sleep(0.01)


def show(figures: Figures) -> None:
    """A table: median, least and most, and the library's figures."""
    print(f"{'':50} {'median':>9} {'least':>9} {'most':>9}   {'jobsync':>12}  {'at its best'}")
    for name, values in figures.items():
        default, best = LIBRARY.get(name, ("", ""))
        numbers = " ".join(f"{value:9,.{3 if value < 100 else 0}f}" for value in spread(values))
        print(f"{name:50} {numbers}   {default:>12}  {best}")


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return statistics.median(values), min(values), max(values)


if __name__ == "__main__":
    sys.exit(main())
