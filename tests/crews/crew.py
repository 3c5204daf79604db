"""Processes with a ``Job`` each, on one database: to start, stop, kill and ask, and to judge by their records."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from multiprocessing.connection import Client, Connection
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import psycopg2
from e2e.site import with_port
from e2e.waiting import PATIENCE, until
from faults.proxy import Exchange, Proxy

from crews.record import Record, Stay, contradictions
from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.servers.process import Guard

#: ``JOBSYNC_JOB_LEASE=3,9`` sets other times for whole modules: the interval and the timeout, in seconds.
HEARTBEAT, TIMEOUT = (float(each) for each in os.environ.get("JOBSYNC_JOB_LEASE", "1,3").split(","))
#: What a loaded machine may add to what is promised of an idle one.
SLACK = 2.0
IDS = 64
_NANO = 1_000_000_000
#: An answer is of now if it is no older.
_RECENT = _NANO // 5
#: So much of its time a sampler must have looked, or it has proved nothing.
_LOOKED = 0.5
#: Through a proxy, no second connection for want of encryption.
_PLAIN = "?sslmode=disable&gssencmode=disable"
_TESTS = Path(__file__).resolve().parent.parent


def spread_ids(count: int, total_tokens: int = 10_000, hash_function: str = "double_sha256") -> list[str]:
    """One id in each of so many equal ranges of tokens."""
    tokens = TokenMap(total_tokens, count, hash_function)
    found: dict[int, str] = {}
    number = 0
    while len(found) < count:
        found.setdefault(tokens.partition_for(f"id-{number}"), f"id-{number}")
        number += 1
    return [found[at] for at in range(count)]


def now() -> int:
    """Nanoseconds of the clock that records are kept by."""
    return time.monotonic_ns()


class Member:
    """One process and its record. Only what was started here is ever signalled."""

    def __init__(self, guard: Guard, folder: Path, label: str, way: Proxy, spec: dict[str, Any]) -> None:
        self._guard = guard
        #: How it reaches the database.
        self.way = way
        self.name: str = spec["name"]
        self.label = label
        self._log = folder / f"{label}.log"
        self._socket = str(folder / f"{label}.sock")
        path = folder / f"{label}.record"
        self.record = Record(path, label)
        self._stops: list[int] = []
        self._stopped: list[tuple[int, int]] = []
        self._connection: Connection | None = None
        whole = {**spec, "label": label, "record": str(path), "socket": self._socket}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_TESTS), str(_TESTS.parent)])}
        self.pid = guard.run(
            [sys.executable, "-m", "crews.program", json.dumps(whole)], env=environment, cwd=folder, log=self._log
        )

    # -- its process ------------------------------------------------------------------------------------------------

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._guard.exit_code(self.pid)

    def logs(self) -> str:
        """What it wrote so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def entered(self) -> bool:
        """Whether it is in its block; the test fails if it has ended instead."""
        if self.exit_code is not None:
            raise AssertionError(f"{self.label} has ended:\n{self.logs()[-3000:]}")
        return os.path.exists(self._socket)

    def signal(self, number: int) -> int:
        """Send a signal; the moment before."""
        before = now()
        self._guard.signal(self.pid, number)
        if number == signal.SIGSTOP:
            self._stops.append(before)
        elif number == signal.SIGCONT:
            self._stopped.append((self._stops.pop(), now() + _RECENT))
        return before

    def kill(self) -> int:
        """SIGKILL, and see it gone; the moment before."""
        before = self.signal(signal.SIGKILL)
        self.ended()
        return before

    def leave(self) -> int:
        """SIGTERM, and wait for a good end; the moment before."""
        before = self.signal(signal.SIGTERM)
        assert self.ended() == 0, self.logs()[-3000:]
        return before

    def ended(self) -> int | None:
        """Wait for its end; the exit code."""
        until(lambda: self.exit_code is not None, f"{self.label} has ended")
        return self.exit_code

    # -- its Job ----------------------------------------------------------------------------------------------------

    def ask(self, name: str, *arguments: Any) -> Any:
        """What an attribute or method of its Job says."""
        return self.order("ask", name, *arguments)

    def order(self, name: str, *arguments: Any) -> Any:
        """Have it do something, and wait for the result."""
        self.begin(name, *arguments)
        return self.result()

    def begin(self, name: str, *arguments: Any) -> None:
        """Have it do something meanwhile."""
        until(self.entered, f"{self.label} has entered its block")
        if self._connection is None:
            self._connection = Client(self._socket)
        self._connection.send((name, arguments))

    def result(self, timeout: float = PATIENCE) -> Any:
        """What came of it."""
        assert self._connection is not None
        assert self._connection.poll(timeout), f"{self.label} has not answered for {timeout:.0f} s"
        good, said = self._connection.recv()
        assert good, said
        return said

    # -- its record -------------------------------------------------------------------------------------------------

    def has(self) -> set[int]:
        """The ids of which it says "mine" just now."""
        recent = now() - _RECENT
        return {stay.id for stay in self.record.stays if stay.last[1] > recent}

    def again(self, since: int) -> float:
        """Wait until it says "mine" of an id anew; how many seconds after ``since`` that was."""

        def begun() -> list[int]:
            return [stay.first[1] for stay in self.record.stays if stay.first[0] > since]

        return (min(until(begun, f"{self.label} has ids again")) - since) / _NANO

    def joined_in(self) -> float:
        """How many seconds it took from before it entered its block until it had its first id."""
        entered: int = self.order("entering")
        return self.again(entered)

    def asleep(self) -> list[tuple[int, int]]:
        """When its sampler did not look, though the process had not been stopped."""
        return [
            (since, until)
            for since, until in self.record.sleeps
            if not any(since < end and until > begin for begin, end in self._stopped)
        ]

    def looked(self) -> float:
        """For which part of its time its sampler looked; the whole of it if there was no time."""
        life = self.record.last - self.record.begun
        return 1.0 - sum(until - since for since, until in self.asleep()) / life if life else 1.0

    def last_mine(self, before: int | None = None) -> int:
        """The latest moment by which it had said "mine", of the stays that began before a moment."""
        return max((stay.last[1] for stay in self.record.stays if before is None or stay.first[0] < before), default=0)


class Crew:
    """All that run on one database; use it as a context manager.

    Arguments:
        config: settings that differ from this module's, the same for all members.
    """

    def __init__(self, database_url: str, **config: Any) -> None:
        self._url = database_url
        self._config = {"heartbeat_interval_sec": HEARTBEAT, "heartbeat_timeout_sec": TIMEOUT, **config}
        self._folder = Path(tempfile.mkdtemp(prefix="jobsync-crew-"))
        self._guard = Guard(self._folder)
        self._exchange: Exchange | None = None
        self._ids = spread_ids(IDS, self._config.get("total_tokens", 10_000))
        self.members: list[Member] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for member in self.members:
                print(f"-- {member.label} ({member.exit_code})\n{member.logs()[-3000:]}")  # noqa: T201 - pytest shows it
        self._guard.close()
        if self._exchange is not None:
            self._exchange.close()

    # -- members ----------------------------------------------------------------------------------------------------

    def start(self, name: str = "", way: Proxy | None = None, **options: Any) -> Member:
        """Start a process, under a name of its own if none is given; it need not have entered its block yet.

        It has its own way to the database, if none is given.
        """
        self._exchange = self._exchange or Exchange()
        way = way or Proxy(self._exchange, urlsplit(self._url).port or 0)
        label = f"{name}-{len(self.members)}" if name else f"member-{len(self.members)}"
        config = {"url": with_port(self._url, way.port) + _PLAIN, **self._config}
        spec = {"name": name or label, "config": config, "options": options, "ids": self._ids}
        self.members.append(Member(self._guard, self._folder, label, way, spec))
        return self.members[-1]

    def settle(self, count: int, **options: Any) -> list[Member]:
        """Have so many members, each with its share: start what is missing, and let the youngest leave."""
        for member in self.living()[count:]:
            member.leave()
        for _ in range(count - len(self.living())):
            self.start(**options)
        self.until_shared()
        return self.living()

    def living(self) -> list[Member]:
        """Whose process has not ended."""
        return [member for member in self.members if member.exit_code is None]

    def leader(self) -> Member:
        """The member that leads."""
        ((name,),) = self.rows("SELECT node FROM sync_leader")
        return next(member for member in self.living() if member.name == name)

    def follower(self) -> Member:
        """The youngest of those that do not lead."""
        leader = self.leader()
        return next(member for member in reversed(self.living()) if member is not leader)

    def others(self, *members: Member) -> list[Member]:
        """All that live but these."""
        return [member for member in self.living() if member not in members]

    # -- the database -----------------------------------------------------------------------------------------------

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query answers."""
        with closing(psycopg2.connect(self._url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return list(cursor.fetchall())

    def execute(self, statements: str) -> None:
        """Change something."""
        with closing(psycopg2.connect(self._url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
            cursor.execute(statements)
            connection.commit()

    def shares(self) -> dict[str, int]:
        """How many partitions each node has; nothing while some are nobody's or on their way."""
        rows = self.rows("SELECT target, owner, count(*) FROM sync_partition GROUP BY 1, 2")
        if any(owner is None or owner != target for target, owner, _ in rows):
            return {}
        return {owner: count for _, owner, count in rows}

    def until_shared(self, among: Iterable[Member] | None = None, timeout: float = PATIENCE) -> float:
        """Return when each of these (all that live, if none are named) has its share, and says so; the moment.

        The shares differ by at most one, and each id is said to be somebody's.
        """
        members = list(self.living() if among is None else among)
        for member in members:
            until(member.entered, f"{member.label} has entered its block", timeout)
        until(lambda: self._even(members), f"{[each.label for each in members]} share evenly", timeout)
        until(lambda: self.vacancies(members) == set(), "each id is somebody's", timeout)
        return now()

    def _even(self, members: Sequence[Member]) -> bool:
        shares = self.shares()
        return shares.keys() == {each.name for each in members} and max(shares.values()) - min(shares.values()) <= 1

    # -- the records ------------------------------------------------------------------------------------------------

    def stays(self) -> list[Stay]:
        """Of all members, those that have ended included."""
        return [stay for member in self.members for stay in member.record.stays]

    def vacancies(self, members: Iterable[Member] | None = None) -> set[int]:
        """The ids of which nobody says "mine" just now."""
        everybody = self.living() if members is None else members
        return set(range(IDS)) - set[int]().union(*[member.has() for member in everybody])

    def held(self) -> dict[str, set[int]]:
        """Which ids each of the living says are its own, once each id is one's."""

        def answers() -> dict[str, set[int]]:
            said = {member.label: member.has() for member in self.living()}
            return said if sorted(itertools.chain(*said.values())) == list(range(IDS)) else {}

        return until(answers, "each id is one's")

    def vacant(self, since: int) -> float:
        """The longest time, in seconds, for which an id was nobody's after ``since`` and then another's, or still is.

        Between two stays in one process nobody else could have it, so they count as one.
        """
        longest = 0
        stays = sorted(
            (stay for stay in self.stays() if stay.last[1] > since - _RECENT), key=lambda stay: (stay.id, stay.first)
        )
        for _, group in itertools.groupby(stays, lambda stay: stay.id):
            had = list(group)
            for one, other in itertools.pairwise(had):
                if one.process != other.process and other.first[1] > since:
                    longest = max(longest, other.first[1] - one.last[0])
            longest = max(longest, now() - _RECENT - max(stay.last[1] for stay in had))
        return longest / _NANO

    def assert_one_owner(self) -> None:
        """No two said "mine" of one id at one instant; and everybody was looked at, unless it was stopped."""
        found = contradictions(self.stays())
        assert not found, "\n".join(map(str, found[:20])) + f"\n{len(found)} in all"
        starved = {member.label: member.looked() for member in self.members if member.looked() < _LOOKED}
        assert not starved, f"not looked at for most of their time: {starved}"
