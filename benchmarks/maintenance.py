"""What finished tasks cost on disk, and what it costs to delete them as fast as they come.

On a private PostgreSQL with its default settings, on this machine: bytes per task; deletions by themselves; claims with
and without deletions beside them; a vacuum of the indexes; and a steady state, scaled down in time. At the end what
that means for a day at 1,000 tasks a second. `make maintenance`, or `python benchmarks/maintenance.py --part steady`;
about fifteen minutes for all.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil

from jobsync_celery.core.model import Run
from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.runtime.housekeeping import BATCH, Housekeeping, Retention
from jobsync_celery.servers import PrivatePostgres
from jobsync_celery.store.database import Database, Link, Timeouts
from jobsync_celery.store.maintenance import Maintenance
from jobsync_celery.store.nodes import Identity
from jobsync_celery.store.outcomes import Ending, Granted, Wanted
from jobsync_celery.store.schema import ClusterShape, ensure_schema
from jobsync_celery.store.store import Store

SHAPE = ClusterShape(10_000, 64, "double_sha256")
TOKENS = TokenMap(SHAPE.total_tokens, SHAPE.partitions, SHAPE.hash_function)
DAY = 86_400
NODE = "worker-01@bench"

# As long as those of real tasks; in the order in which they ended.
_BACKLOG = (
    "INSERT INTO {claim} (incarnation, fence, created_on, finished_on, token_id, partition_id, task_id, origin,"
    " task_name, task_key, node, state) SELECT 1, n, t.at, t.at, n % 10000, n % 64, gen_random_uuid(),"
    " gen_random_uuid(), 'proj.tasks.settle', 'account-' || n, 'worker-01@bench', 'done'"
    " FROM generate_series(1, :rows) AS n CROSS JOIN LATERAL (SELECT clock_timestamp()"
    " - make_interval(days => 2, secs => (:rows - n) / 1000.0) AS at) AS t"
)
_SIZES = (
    "SELECT relname, pg_relation_size(oid) AS bytes FROM pg_class WHERE relkind IN ('r', 'i') AND relname LIKE :name"
    " ORDER BY relkind DESC, relname"
)


@dataclass
class Bench:
    """A server, and a node that claims."""

    store: Store
    link: Link
    incarnation: int

    def ask(self, query: str, **values: Any) -> list[Any]:
        """What a query answers; `{claim}` and the like are tables."""
        return self.link.statement(self.store.database.sql(query), values)

    def wal(self) -> int:
        """Bytes of WAL written since the server was made."""
        return int(self.ask("SELECT pg_current_wal_lsn() - CAST('0/0' AS pg_lsn)")[0][0])

    def sizes(self, noun: str) -> dict[str, int]:
        """Bytes of a table and its indexes."""
        return {row.relname: row.bytes for row in self.ask(_SIZES, name=f"sync_{noun}%")}

    def load(self, rows: int) -> None:
        """Finished claims of two days ago, as a thousand a second would have left them."""
        for _ in range(rows // 100_000):
            self.ask(_BACKLOG, rows=100_000)
        self.ask("VACUUM (ANALYZE) {claim}")
        self.ask("CHECKPOINT")

    def commits(self, link: Link, batch: int) -> Iterator[float]:
        """Claim runs and end those of the last batch, in one commit, as a node does; how long each took."""
        endings: list[Ending] = []
        while True:
            wants = [_want(f"account-{uuid.uuid4().int % 10**9}") for _ in range(batch)]
            begun = time.perf_counter()
            done = self.store.claims.commit(link, NODE, self.incarnation, endings, wants)
            yield time.perf_counter() - begun
            granted = [(want, done.outcomes[want.run]) for want in wants]
            endings = [Ending(w.run, o.fence, "done", w.partition) for w, o in granted if isinstance(o, Granted)]


def main() -> None:
    """Run the parts and print what they measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows in the tables that are deleted from")
    parser.add_argument("--rate", type=int, default=1000, help="tasks a second")
    parser.add_argument("--seconds", type=int, default=180, help="length of the steady state")
    parser.add_argument("--retention", type=float, default=60.0, help="of the steady state, in seconds")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between clean-ups in the steady state")
    options = parser.parse_args()
    measured: dict[str, float] = {}
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{os.cpu_count()} processors, load {load} before this began")
    for part in options.part or PARTS:
        print(f"\n{part}")
        PARTS[part](options, measured)
    extrapolate(options, measured)


@contextmanager
def bench(**settings: str) -> Iterator[Bench]:
    """A fresh server with a node that owns all partitions."""
    with PrivatePostgres(settings=settings) as postgres:
        database = Database(postgres.url, timeouts=Timeouts(statement=600.0, lock=60.0, idle_in_transaction=600.0))
        ensure_schema(database, SHAPE)
        store = Store(database)
        with database.transaction() as tx:
            incarnation = store.nodes.register(tx, Identity(NODE, 1.0, 3600.0, "host", "", 1, "0"))
            assert incarnation is not None
            store.partitions.assign(tx, dict.fromkeys(range(SHAPE.partitions), NODE))
            store.partitions.take(tx, range(SHAPE.partitions), NODE, incarnation)
        with closing(database.link("bench")) as link:
            yield Bench(store, link, incarnation)


def _want(key: str) -> Wanted:
    run = Run(str(uuid.uuid4()), str(uuid.uuid4()), 0)
    return Wanted(run, "proj.tasks.settle", key, TOKENS.token(key), TOKENS.partition_for(key))


def sizes(options: argparse.Namespace, measured: dict[str, float]) -> None:
    """Bytes of a task that was claimed and ended, and of its row in the audit."""
    with bench(autovacuum="off") as scene, closing(scene.store.database.link("claims")) as link:
        tasks, batch, slices = 200_000, 50, 20
        commits, wal = scene.commits(link, batch), scene.wal()
        for _ in range(slices):
            for _ in itertools.islice(commits, tasks // batch // slices):
                pass
            scene.ask("VACUUM {claim}")  # as autovacuum does when a tenth of the rows are dead
        print(f"  WAL of a claim and its end: {(scene.wal() - wal) / tasks:.0f} bytes a task, vacuums included")
        show_sizes(scene.sizes("claim"), tasks, "claim")
        measured["claim"] = sum(scene.sizes("claim").values()) / tasks
        house = Housekeeping(scene.store, SHAPE, Retention(claims=0.0, copy=True))
        copied = sum(each.audited for each in house.clean(vacuum=False).cleaned)
        show_sizes(scene.sizes("audit"), copied, "audit row")
        measured["audit"] = sum(scene.sizes("audit").values()) / copied


def show_sizes(found: dict[str, int], count: int, what: str) -> None:
    """Bytes for each of the rows."""
    for name, size in found.items():
        print(f"  {name:28} {size / count:6.0f} bytes")
    print(f"  {'one ' + what:28} {sum(found.values()) / count:6.0f} bytes, of {count:,}")


def deletes(options: argparse.Namespace, measured: dict[str, float]) -> None:
    """Rate, WAL and processor time of deletions by themselves."""
    for copy in (False, True):
        with bench() as scene:
            scene.load(options.rows)
            wal, took, processor, longest, rows = delete_all(scene, options.rows // 2, copy)
            what = "and copied into the audit" if copy else ""
            print(
                f"  {rows:,} of {options.rows:,} deleted {what}: {rows / took:,.0f} a second,"
                f" {wal / rows:.0f} bytes of WAL and {processor / rows * 1e6:.1f} us of processor for each;"
                f" longest batch of {BATCH}: {longest * 1000:.0f} ms"
            )
            suffix = "_copied" if copy else ""
            measured["delete_wal" + suffix] = wal / rows
            measured["delete_cpu" + suffix] = processor / rows
            measured["delete_rate" + suffix] = rows / took


def delete_all(scene: Bench, rows: int, copy: bool) -> tuple[int, float, float, float, int]:
    """Delete the oldest rows as housekeeping does; WAL, seconds, seconds of processor, longest batch, rows."""
    maintenance = Maintenance(scene.store.database)
    with closing(maintenance.link()) as link:
        backend = psutil.Process(link.statement(scene.store.database.sql("SELECT pg_backend_pid()"))[0][0])
        before = maintenance.now(link) - timedelta(days=1)
        wal, used, begun = scene.wal(), sum(backend.cpu_times()[:2]), time.perf_counter()
        deleted, oldest, longest = 0, None, 0.0
        while deleted < rows:
            at = time.perf_counter()
            with link.transaction() as tx:
                done = maintenance.delete(tx, "claims", before, BATCH, oldest, copy)
            longest = max(longest, time.perf_counter() - at)
            deleted, oldest = deleted + done.deleted, done.newest
        took = time.perf_counter() - begun
        return scene.wal() - wal, took, sum(backend.cpu_times()[:2]) - used, longest, deleted


def beside(options: argparse.Namespace, measured: dict[str, float]) -> None:
    """How long commits of claims take without and with deletions at full speed beside them."""
    with bench() as scene:
        scene.load(options.rows)
        with claiming(scene, options.rate) as took:
            time.sleep(15)
            alone = took[100:]
            begun = len(took)
            house = Housekeeping(scene.store, SHAPE, Retention(claims=DAY))
            at = time.perf_counter()
            deleted = sum(each.rows for each in house.clean(vacuum=False).cleaned)
            seconds = time.perf_counter() - at
            together = took[begun:]
        print(f"  claims alone:              {quantiles(alone)}")
        print(f"  while {deleted:,} rows go: {quantiles(together)}; {deleted / seconds:,.0f} rows a second")
        measured["beside_rate"] = deleted / seconds


@contextmanager
def claiming(scene: Bench, rate: int) -> Iterator[list[float]]:
    """Claim and end so many tasks a second, ten in a commit, in a thread; how long the commits took."""
    took: list[float] = []
    stop = threading.Event()
    batch = 10

    def claim() -> None:
        begun = time.perf_counter()
        with closing(scene.store.database.link("claims")) as link:
            for number, seconds in enumerate(scene.commits(link, batch), 1):
                took.append(seconds)
                if stop.wait(max(0.0, begun + number * batch / rate - time.perf_counter())):
                    return

    thread = threading.Thread(target=claim)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()


def quantiles(seconds: list[float]) -> str:
    """Median, 99 % and maximum in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return (
        f"median {cuts[49] * 1e3:.1f}, 99 % {cuts[98] * 1e3:.1f}, longest {max(seconds) * 1e3:.0f} ms ({len(seconds)})"
    )


def vacuum(options: argparse.Namespace, measured: dict[str, float]) -> None:
    """What it costs to take dead rows out of the indexes, which a vacuum reads in full."""
    with bench(autovacuum="off") as scene, closing(scene.store.database.link("claims")) as link:
        scene.load(options.rows)
        tasks = options.rows // 20  # each end leaves a dead row, and each deletion another one
        for _ in itertools.islice(scene.commits(link, 100), tasks // 100):
            pass
        delete_all(scene, tasks, copy=False)
        scene.ask("CHECKPOINT")
        indexes = sum(size for name, size in scene.sizes("claim").items() if name != "sync_claim")
        wal, begun = scene.wal(), time.perf_counter()
        said = Maintenance(scene.store.database).vacuum("claim", 3600.0)
        took, wal = time.perf_counter() - begun, scene.wal() - wal
        print(
            f"  a tenth of {options.rows:,} rows dead: {took:.1f} s for {indexes / 1e6:.0f} MB of indexes,"
            f" {wal / 1e6:.0f} MB of WAL, {wal / tasks / 2:.0f} bytes for each dead row {' '.join(said)}"
        )
        measured["vacuum_wal"] = wal / tasks
        measured["index"] = indexes / options.rows


def steady(options: argparse.Namespace, measured: dict[str, float]) -> None:
    """Whether the table stops growing: with housekeeping's own vacuum, and with autovacuum alone."""
    for own in (True, False):
        with bench(autovacuum_naptime="10s") as scene, ExitStack() as stack:
            took = stack.enter_context(claiming(scene, options.rate))
            house = Housekeeping(scene.store, SHAPE, Retention(claims=options.retention))
            print(f"  {'with its own vacuum' if own else 'with autovacuum alone, every 10 s'}")
            begun, gone = time.perf_counter(), 0
            for turn in range(1, int(options.seconds / options.every) + 1):
                time.sleep(max(0.0, begun + turn * options.every - time.perf_counter()))
                gone += sum(each.rows for each in house.clean(vacuum=own).cleaned)
                if turn % 3 == 0:
                    print_steady(scene, time.perf_counter() - begun, gone, len(took) * 10)
            print(f"  claims: {quantiles(took[100:])}")


def print_steady(scene: Bench, at: float, gone: int, tasks: int) -> None:
    """A line of the steady state."""
    found = scene.sizes("claim")
    table = found.pop("sync_claim")
    print(
        f"    {at:4.0f} s: {tasks:7,} tasks, {gone:7,} deleted, table {table / 1e6:5.1f} MB,"
        f" indexes {sum(found.values()) / 1e6:5.1f} MB",
        flush=True,
    )


def extrapolate(options: argparse.Namespace, measured: dict[str, float]) -> None:
    """What the figures mean for a day; computed, not measured."""
    tasks = options.rate * DAY
    figures = {name: each * tasks / 1e9 for name, each in measured.items()}  # in GB, where they are bytes a task
    print(f"\na day at {options.rate:,} tasks a second, {tasks / 1e6:.1f} million (computed from the above):")
    lines: tuple[tuple[str, Callable[[], str]], ...] = (
        ("claim", lambda: f"claims kept for a day: {figures['claim']:.0f} GB; for two hours: a twelfth of it"),
        ("audit", lambda: f"audit: {figures['audit']:.0f} GB for each day that it is kept"),
        (
            "delete_wal",
            lambda: (
                f"deletions: {figures['delete_wal']:.0f} GB of WAL,"
                f" {measured['delete_cpu'] * tasks / 60:.0f} minutes of one processor;"
                f" with copies into the audit {figures['delete_wal_copied']:.0f} GB"
                f" and {measured['delete_cpu_copied'] * tasks / 60:.0f} minutes"
            ),
        ),
        (
            "index",
            lambda: (
                f"vacuum: {figures['vacuum_wal']:.0f} GB of WAL, whatever the retention; with a day's claims 20 times"
                f" {figures['index']:.0f} GB of indexes are read, with two hours' 240 times a twelfth of it"
            ),
        ),
    )
    for needed, line in lines:
        if needed in measured:
            print(f"  {line()}")
    print(
        "  not measured: task ids are random, so when their index is larger than memory each claim reads pages of it,"
        " and the first change of a page after a checkpoint writes all of it (8 kB) into the WAL. Keep claims for a"
        " day at this rate only if you need to."
    )


PARTS = {"sizes": sizes, "deletes": deletes, "beside": beside, "vacuum": vacuum, "steady": steady}

if __name__ == "__main__":
    main()
