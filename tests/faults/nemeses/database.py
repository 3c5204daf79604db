"""What a database does to its clients: ends their sessions, stops, has no room, takes no writes, is slow."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg2

from tests.faults.nemeses.base import DATABASE, Nemesis, Strike, Surroundings
from tests.faults.proxy import PASS, TO_SERVER, Mode
from tests.faults.servers import CONNECTIONS
from tests.faults.tables import connected
from tests.faults.waiting import hold

if TYPE_CHECKING:
    from tests.faults.stage import Stage

_END_SESSIONS = (
    "SELECT count(pg_terminate_backend(pid)) AS ended FROM pg_stat_activity"
    " WHERE application_name LIKE 'jobsync%%' AND pid <> pg_backend_pid()"
)


class SessionsEnded(Nemesis):
    """Every session of the workers is terminated, some times in a row."""

    name = "database-sessions-ended"

    def run(self, at: Surroundings) -> Strike:
        hit, ended = 0, 0
        for _ in range(at.rng.randint(1, 4)):
            hit += len(at.stage.busy())
            ended += at.stage.tables.rows(_END_SESSIONS)[0]["ended"]
            hold(at.rng.uniform(0.05, 0.8))
        return Strike(DATABASE, f"{ended} sessions terminated", hit)


class DatabaseStopped(Nemesis):
    """PostgreSQL is stopped at once, without a checkpoint, stays away, and recovers."""

    name = "database-stopped"

    def run(self, at: Surroundings) -> Strike:
        hit, sec = len(at.stage.busy()), at.rng.choice((0.0, 0.8, 2.5, 6.0))
        try:
            if at.rng.random() < 0.5:
                at.stage.postgres.stop(immediate=True)
                how = "immediate"
            else:
                at.stage.postgres.kill()
                how = "SIGKILL"
            hold(sec)
        finally:
            at.stage.postgres.start()
        return Strike(DATABASE, f"{how}, away for {sec:.1f} s", hit)


class OutOfConnections(Nemesis):
    """All connections are taken, and the workers' sessions are ended, so that they need new ones."""

    name = "database-full"

    def run(self, at: Surroundings) -> Strike:
        hit, taken = len(at.stage.busy()), list[Any]()
        sec = at.rng.uniform(1.0, 5.0)
        at.stage.tables.rows("SELECT 1")  # connected, before there is no more room
        try:
            self._take(at.stage, taken)
            at.stage.tables.rows(_END_SESSIONS)
            self._take(at.stage, taken)
            hold(sec)
        finally:
            for connection in taken:
                connection.close()
        return Strike(DATABASE, f"no connection to be had for {sec:.1f} s, {len(taken)} taken", hit)

    def _take(self, stage: Stage, taken: list[Any]) -> None:
        with suppress(psycopg2.OperationalError):  # that was the last one
            while len(taken) < CONNECTIONS:
                taken.append(connected(stage.dsn, "faults taken"))


class ReadOnly(Nemesis):
    """The database takes no writes, as a demoted primary would not."""

    name = "database-read-only"

    def run(self, at: Surroundings) -> Strike:
        hit, sec = len(at.stage.busy()), at.rng.uniform(0.5, 5.0)
        try:
            self._set(at.stage, "on")
            hold(sec)
        finally:
            self._set(at.stage, "off")
        return Strike(DATABASE, f"read-only for {sec:.1f} s", hit)

    def _set(self, stage: Stage, value: str) -> None:
        stage.tables.rows(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        stage.tables.rows("SELECT pg_reload_conf()")


class Slow(Nemesis):
    """Each statement takes two seconds more, for all workers or for one."""

    name = "database-slow"

    def run(self, at: Surroundings) -> Strike:
        workers = at.stage.wanted if at.rng.random() < 0.5 else [at.rng.choice(at.stage.wanted)]
        delay, sec = at.rng.choice((0.1, 0.3, 2.0)), at.rng.uniform(2.0, 6.0)
        hit = len(at.stage.busy(*workers))
        try:
            at.stage.cut(workers, [DATABASE], Mode("delay", delay, (TO_SERVER,)))
            hold(sec)
        finally:
            at.stage.cut(workers, [DATABASE], PASS)
        names = ",".join(worker.name for worker in workers)
        return Strike(names, f"{delay:.1f} s more for each statement, for {sec:.1f} s", hit)


NEMESES: tuple[Nemesis, ...] = (SessionsEnded(), DatabaseStopped(), OutOfConnections(), ReadOnly(), Slow())
