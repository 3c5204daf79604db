"""The cluster that is measured: three real workers that share partitions, and what is published to them."""

from __future__ import annotations

import tempfile
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from e2e.history import Run, now
from e2e.site import Site
from e2e.stand_ins import Worker
from e2e.waiting import until

from jobsync_celery.servers import PrivatePostgres, PrivateRabbitMQ, PrivateRedis

NAMES = ("w1", "w2", "w3")
Broker = PrivateRedis | PrivateRabbitMQ


@dataclass(frozen=True)
class Message:
    """One published message; ``at`` is from before it was sent."""

    id: str
    key: str
    partition: int
    at: float


@dataclass
class Filled:
    """What one worker has: bodies that run, messages that it fetched, and messages in the queues of its partitions."""

    running: list[Message]
    fetched: list[Message]
    queued: list[Message]
    #: One message behind each running body, of the same key.
    behind: list[Message]

    def ids(self) -> list[str]:
        """All of them."""
        return [each.id for each in (*self.running, *self.fetched, *self.queued, *self.behind)]


class Scene:
    """Three workers on private servers, and the ways to load one of them."""

    def __init__(self, site: Site, broker: Broker, postgres: PrivatePostgres) -> None:
        self.site = site
        self.broker = broker
        self.postgres = postgres
        self._numbers = count()
        self._spare: dict[int, list[str]] = defaultdict(list)

    def start(self) -> None:
        """Start the workers, and wait until they share the partitions."""
        for name in NAMES:
            self.site.worker(name)
        self.site.until_shared(*NAMES)

    def rest(self) -> None:
        """Wait until all workers share again and nothing is left to do; then forget what has run."""
        self.site.until_shared(*NAMES)
        self.site.settled()
        self.site.assert_brokers_are_empty()
        self.site.history.path.write_text("")

    # -- workers ------------------------------------------------------------------------------------------------

    def by_age(self) -> list[Worker]:
        """The leader first."""
        rows = self.site.rows("SELECT name FROM sync_node WHERE state = 'live' ORDER BY incarnation")
        return [self.named(row["name"]) for row in rows]

    def named(self, node: str) -> Worker:
        """The worker of this node name."""
        return next(worker for worker in self.site.workers if worker.hostname() == node)

    def owned(self, node: str) -> list[int]:
        """The partitions that a node owns, by number."""
        return sorted(number for number, owner in self.site.owners().items() if owner == node)

    def shared_evenly(self, node: str) -> bool:
        """Whether this node and the others own all partitions, in numbers that differ by one at most."""
        shares = self.site.shares()
        return node in shares and None not in shares and max(shares.values()) - min(shares.values()) <= 1

    def until_gone(self, node: str) -> float:
        """Wait until every partition is owned by somebody else; when that was seen."""
        until(lambda: not {None, node} & set(self.site.owners().values()), "all is owned elsewhere", every=0.005)
        return now()

    # -- messages -----------------------------------------------------------------------------------------------

    def key(self, partition: int) -> str:
        """A key of this partition that nobody has used yet."""
        while not self._spare[partition]:
            key = f"key{next(self._numbers)}"
            self._spare[self.partition_of(key)].append(key)
        return self._spare[partition].pop()

    def partition_of(self, key: str) -> int:
        """Where the messages of this key lie."""
        return int(self.site.app.jobsync.cluster.tokens.partition_for(key))

    def publish(self, task: str, key: str, how_long: float | str = 0.0) -> Message:
        """One message of ``e2e.step`` or the like."""
        at = now()
        return Message(self.site.call(task, key, 0, how_long).id, key, self.partition_of(key), at)

    def fill(self, worker: Worker, task: str, how_long: float | str) -> Filled:
        """Let bodies run in all of a worker's slots for so long, and give it more than it can fetch."""
        mine = self.owned(worker.hostname())
        running = [self.publish(task, self.key(partition), how_long) for partition in mine[:2]]
        self.site.until_begun(*(each.id for each in running))
        behind = [self.publish("step", each.key) for each in running]
        rest: list[Message] = []
        queued: list[Message] = []
        while len(queued) < len(mine):  # the prefetch window may still be wide from the last round
            rest += [self.publish("step", self.key(partition)) for partition in mine]
            claimed = self._claimed(rest, len(behind))
            queued = [each for each in rest if each.id not in claimed]
        fetched = [each for each in rest if each.id in claimed]
        assert fetched, "nothing was granted ahead of the pool"
        return Filled(running, fetched, queued, behind)

    def _claimed(self, messages: list[Message], held: int) -> set[str]:
        """Which of these are claimed, once all others lie in queues; so many more may be held back for their keys."""
        queues = self.site.queues()

        def claimed() -> set[str] | None:
            found = {claim["task_id"] for claim in self.site.claims(*(each.id for each in messages))}
            known = len(found) + self.site.waiting(*queues)
            return found if len(messages) <= known <= len(messages) + held else None

        return until(claimed, "every message is fetched and granted, or queued", every=0.05) or set()

    def runs(self, messages: Iterable[Message], *, not_on: str | None = None) -> list[Run]:
        """The runs of these messages, in the order in which they began."""
        ids = [each.id for each in messages]
        return [run for run in self.site.history.runs(*ids) if run.host != not_on]


@contextmanager
def scene(kind: str, jobsync: dict[str, object]) -> Iterator[Scene]:
    """Private servers and a cluster on them, all ended with the block."""
    with (
        PrivatePostgres() as postgres,
        (PrivateRedis if kind == "redis" else PrivateRabbitMQ)() as broker,
        tempfile.TemporaryDirectory(prefix="jobsync-recovery-") as folder,
    ):
        site = Site(
            Path(folder), broker.url, "disabled://", postgres.url, f"r{uuid.uuid4().hex[:6]}-",
            jobsync=jobsync, conf={"task_ignore_result": True},
        )  # fmt: skip
        try:
            made = Scene(site, broker, postgres)
            made.start()
            yield made
        finally:
            site.close()


def covering_keys(site: Site, partitions: Collection[int]) -> int:
    """How many of ``key0``, ``key1`` … it takes to have one in every partition."""
    missing, tokens = set(partitions), site.app.jobsync.cluster.tokens
    for number in count():
        missing.discard(tokens.partition_for(f"key{number}"))
        if not missing:
            return number + 1
    raise AssertionError
