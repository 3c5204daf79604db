"""The moments for which single protections are there, met on purpose. Builds without these protections break there.

Nothing here depends on the build: whoever has all protections gets through the same schedule.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from typing import TYPE_CHECKING

from tests.faults.nemeses.base import DATABASE, Nemesis, Strike, Surroundings, strike
from tests.faults.proxy import PASS, TO_SERVER, Mode
from tests.faults.publisher import is_hot
from tests.faults.waiting import happens, hold, until
from tests.faults.workers import Worker

if TYPE_CHECKING:
    from tests.faults.stage import Stage

_SOON_SEC = 0.5
#: A process that has a job begins it within this.
_REST_SEC = 0.2
#: A body that outlives the lease of its node; its second run has to outlive the end of the first.
_LONG_SEC = 4.0
_CLAIMED = "SELECT task_id, task_key FROM sync_claim WHERE state = 'running' AND node = %s"


class LateEnd(Nemesis):
    """A node wakes up with the end of a run that another took over meanwhile; then that one is killed.

    The late end must not count: the run is done only when it has been run again.
    """

    name = "late-end"

    def run(self, at: Surroundings) -> Strike:
        stage, victim = at.stage, at.rng.choice(at.stage.wanted)
        others = [worker for worker in stage.wanted if worker is not victim]
        n = at.publisher.send(next(_keys_of(at, victim)), _LONG_SEC)
        until(lambda: _runner_of(at, n, [victim]), f"{n} runs on {victim.name}")
        bodies = stage.busy(victim)
        try:
            victim.signal(signal.SIGSTOP)
            heir = until(lambda: _runner_of(at, n, others), f"{n} was taken over")
            until(lambda: stage.tail.done() and n in stage.tail.ended, f"{n} has ended on {victim.name}")
        finally:
            victim.signal(signal.SIGCONT)
        task_id = at.publisher.messages[n].task_id
        done = "SELECT FROM sync_claim WHERE task_id = %s AND state = 'done'"
        happens(lambda: stage.tables.ask(done, task_id), 2 * _SOON_SEC)
        try:
            heir.kill()
        finally:
            heir.start()
        return strike([victim, heir], f"{victim.name} woke up late, then {heir.name} was killed", bodies)


class PoolStopped(Nemesis):
    """The pool is stopped with jobs in its pipes that it has not begun, and goes on when others have these keys."""

    name = "pool-stopped-past-lease"

    def run(self, at: Surroundings) -> Strike:
        stage, victim = at.stage, at.rng.choice(at.stage.wanted)
        pool = victim.children()
        try:
            until(lambda: self._stopped_idle(stage, victim, pool), f"the pool of {victim.name} is stopped between jobs")
            for key in islice(_keys_of(at, victim), len(pool)):
                at.publisher.send(key, 0.0)
            waiting = until(lambda: self._waiting(at, victim), f"{victim.name} has given its pool something to do")
            stage.cut([victim], [DATABASE], Mode("refuse"))
            stage.until_lost(victim)
            others = [worker for worker in stage.wanted if worker is not victim]
            # Behind what waits of a hot key already, another task would come too late.
            heirs: dict[str, list[int]] = {key: [] for key in waiting.values() if not is_hot(key)}
            until(lambda: self._taken(at, heirs, others), "others run tasks of these keys", every=0.2)
            self._before_it_goes_on(stage, victim)
        finally:
            for pid in pool:
                victim.signal_child(pid, signal.SIGCONT)
        # Before the database is back, and with it another incarnation.
        happens(lambda: any(_runner_of(at, n, [victim]) for n in waiting), _SOON_SEC)
        stage.cut([victim], [DATABASE], PASS)
        return strike(victim, f"{len(waiting)} claims waited for its pool", stage.tail.running(victim.name))

    def _before_it_goes_on(self, stage: Stage, victim: Worker) -> None:
        """What else happens while the pool is stopped."""

    def _stopped_idle(self, stage: Stage, victim: Worker, pool: list[int]) -> bool:
        """Stop the pool between jobs; false if a body ran for too long. Without its parent it gets no other job."""
        victim.signal(signal.SIGSTOP)
        try:
            idle = happens(lambda: not stage.tail.running(victim.name), _SOON_SEC)
            begun = _begun_on(stage, victim)
            hold(_REST_SEC)
            # Nothing began meanwhile: no process was stopped between its look at the lease and its body's first line.
            idle = idle and not stage.tail.running(victim.name) and begun == _begun_on(stage, victim)
            for pid in pool if idle else ():
                victim.signal_child(pid, signal.SIGSTOP)
        finally:
            victim.signal(signal.SIGCONT)
        return idle

    def _waiting(self, at: Surroundings, victim: Worker) -> dict[int, str]:
        """The tasks, and their keys, that the victim has claimed and not begun, once each process can have one."""
        numbers = {message.task_id: message.n for message in list(at.publisher.messages.values())}
        rows = at.stage.tables.ask(_CLAIMED, victim.name) or []
        at.stage.tail.done()  # reads on
        waiting = {numbers[row["task_id"]]: row["task_key"] for row in rows if row["task_id"] in numbers}
        waiting = {n: key for n, key in waiting.items() if (n, victim.name) not in at.stage.tail.begun}
        return waiting if len(waiting) >= len(victim.children()) else {}

    def _taken(self, at: Surroundings, heirs: dict[str, list[int]], others: list[Worker]) -> bool:
        """Whether others run tasks of all these keys; sends more, as the victim may still take some from the queue."""
        left = [key for key, sent in heirs.items() if not any(_runner_of(at, n, others) for n in sent)]
        for key in left:
            heirs[key].append(at.publisher.send(key, 0.0))
        return not left


class PoolStoppedForLong(PoolStopped):
    """The same, and the node has come back as another incarnation before its pool goes on."""

    name = "pool-stopped-past-return"

    def _before_it_goes_on(self, stage: Stage, victim: Worker) -> None:
        stage.cut([victim], [DATABASE], PASS)
        stage.until_ready(victim)


class KilledWithFetched(Nemesis):
    """Main process and pool are killed with a message that runs, and others fetched that are held back for its key."""

    name = "fetched-and-killed"

    def run(self, at: Surroundings) -> Strike:
        stage, victim = at.stage, at.rng.choice(at.stage.wanted)
        key = next(_keys_of(at, victim))
        n = at.publisher.send(key, 2 * _SOON_SEC)
        for _ in range(3):
            at.publisher.send(key, 0.0)
        until(lambda: _runner_of(at, n, [victim]), f"{n} runs on {victim.name}", every=0.01)
        bodies = stage.tail.running(victim.name)
        try:
            victim.kill()
            stage.until_lost(victim)
        finally:
            victim.start()
        return strike(victim, "and started again after the take-over", bodies)


class ClaimsAtEviction(Nemesis):
    """A node's heartbeats fail, and what it claims before its deadline comes late and takes long: it is dead by then.

    The network holds its claims back until its lease is nearly over. Then they take their time between the look at the
    owner and the insert, but no longer than until the owner changes.
    """

    name = "claims-at-eviction"

    #: From well before the node's own deadline, at nine tenths of the lease, until shortly before the others may act.
    _FROM_SEC, _TO_SEC = 1.6, 1.9
    _SLOW = """
        WHILE holder = '{name}' AND clock_timestamp() < statement_timestamp() + interval '250 ms'
            AND wanted::text LIKE '%%"aimed%%'
            AND EXISTS (SELECT FROM sync_partition WHERE owner_incarnation = holder_incarnation) LOOP
            PERFORM pg_sleep(0.005);
        END LOOP;
    """
    _MUTE = """
        CREATE OR REPLACE FUNCTION faults_mute() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'this heartbeat was to fail' USING ERRCODE = 'query_canceled'; END $$;
        CREATE TRIGGER faults_mute BEFORE UPDATE ON sync_node FOR EACH ROW
            WHEN (OLD.incarnation = {incarnation} AND NEW.renewals > OLD.renewals) EXECUTE FUNCTION faults_mute();
    """
    _AGE = "SELECT extract(epoch FROM clock_timestamp() - last_heartbeat)::float8 AS age FROM sync_node WHERE name = %s"
    #: What follows when the owner was looked at, up to the insert.
    _INSERT = "    IF NOT EXISTS (SELECT FROM"

    def run(self, at: Surroundings) -> Strike:
        stage, victim = at.stage, at.rng.choice(at.stage.wanted)
        keys, sent = _keys_of(at, victim), 0
        with self._slow_claims(stage, victim), self._without_heartbeats(stage, victim):
            until(lambda: self._age(stage, victim) > self._FROM_SEC, f"the lease of {victim.name} ends", every=0.005)
            bodies = stage.tail.running(victim.name)
            try:
                stage.cut([victim], [DATABASE], Mode("stall", directions=(TO_SERVER,)))
                while self._age(stage, victim) < self._TO_SEC:
                    at.publisher.send(next(keys), 0.0)
                    sent += 1
            finally:
                stage.cut([victim], [DATABASE], PASS)
            stage.until_lost(victim)
        return strike(victim, f"{sent} messages came when its lease was about to end", bodies)

    def _age(self, stage: Stage, victim: Worker) -> float:
        return float(stage.tables.rows(self._AGE, victim.name)[0]["age"])

    @contextmanager
    def _slow_claims(self, stage: Stage, victim: Worker) -> Iterator[None]:
        [row] = stage.tables.rows("SELECT pg_get_functiondef('sync_commit_claims'::regproc) AS was")
        was = row["was"].replace("%", "%%")
        before, insert, after = was.partition(self._INSERT)
        assert insert, "the function has changed: say where its claims are to be slow"
        stage.tables.rows(f"{before}{self._SLOW.format(name=victim.name)}{insert}{after}")
        try:
            yield
        finally:
            stage.tables.rows(was)

    @contextmanager
    def _without_heartbeats(self, stage: Stage, victim: Worker) -> Iterator[None]:
        [row] = stage.tables.rows("SELECT incarnation FROM sync_node WHERE name = %s", victim.name)
        stage.tables.rows(self._MUTE.format(incarnation=row["incarnation"]))
        try:
            yield
        finally:
            stage.tables.rows("DROP TRIGGER faults_mute ON sync_node")


def _keys_of(at: Surroundings, worker: Worker) -> Iterator[str]:
    """New keys, without end, of partitions that a worker owns now."""

    def asked() -> dict[int, str | None] | None:
        owners = at.stage.owners()
        return owners if owners and worker.name in owners.values() else None

    owners = until(asked, f"{worker.name} has partitions") or {}
    mark = f"aimed{at.rng.randrange(16**8):08x}"
    names = (f"{mark}-{number}" for number in count())
    return (name for name in names if owners.get(at.publisher.partition_of(name)) == worker.name)


def _begun_on(stage: Stage, worker: Worker) -> int:
    """How many tasks have begun on a worker."""
    stage.tail.done()  # reads on
    return sum(node == worker.name for _, node in tuple(stage.tail.begun))


def _runner_of(at: Surroundings, n: int, workers: list[Worker]) -> Worker | None:
    """Which of these workers has begun this task."""
    at.stage.tail.done()  # reads on
    return next((worker for worker in workers if (n, worker.name) in at.stage.tail.begun), None)


NEMESES: tuple[Nemesis, ...] = (
    LateEnd(),
    PoolStopped(),
    PoolStoppedForLong(),
    KilledWithFetched(),
    ClaimsAtEviction(),
)
