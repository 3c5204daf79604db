"""Guarded transactions in random order with evictions, take-overs and commits: none commits late (S5).

The database itself says what came first. When a claim is marked lost, a trigger notes which transactions were
committed at that moment, while the claim's row is locked; every effect of that claim has to be among them.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
from cluster import Cluster, ending, identity, wanted
from hands import ISOLATIONS, KINDS, Hand, is_serialization_failure

from jobsync_celery.errors import Fenced
from jobsync_celery.store.database import Link
from jobsync_celery.store.guard import Guard
from jobsync_celery.store.outcomes import Granted, Known, Wanted

RECORDS = """
CREATE TABLE effect (task_id text, fence bigint, completes boolean, xid xid8 DEFAULT pg_current_xact_id());
CREATE TABLE mark (task_id text, fence bigint, committed pg_snapshot);
CREATE FUNCTION note_mark() RETURNS trigger LANGUAGE plpgsql VOLATILE AS $$ BEGIN
    INSERT INTO mark VALUES (OLD.task_id, OLD.fence, pg_current_snapshot());
    RETURN NULL;
END $$;
CREATE TRIGGER note_mark AFTER UPDATE ON {claim} FOR EACH ROW
    WHEN (OLD.state = 'running' AND NEW.state = 'lost') EXECUTE FUNCTION note_mark()
"""
LATE = """
SELECT effect.task_id, effect.fence FROM effect JOIN mark USING (task_id, fence)
WHERE NOT pg_visible_in_snapshot(effect.xid, mark.committed)
"""
COMPLETED_TWICE = "SELECT task_id FROM effect WHERE completes GROUP BY task_id HAVING count(*) > 1"
OURS = "SELECT FROM {claim} WHERE task_id = %(task_id)s AND fence = %(fence)s AND state = 'running'"
EFFECT = "INSERT INTO effect VALUES (%(task_id)s, %(fence)s, %(completes)s)"

NODES = {"a": "SQLAlchemy Session", "b": "Django", "c": "psycopg2", "d": "psycopg 3"}
PARTITIONS = 8  # with one key each
WANTED_COMMITS, WANTED_FENCED, LONGEST_SEC = 400, 60, 25.0


class ChangedMyMind(Exception):
    """A body rolls back what it has guarded."""


class Drama:
    """Nodes that run bodies, and somebody who declares them dead in the midst of it."""

    def __init__(self, cluster: Cluster, url: str, seed: int) -> None:
        self.cluster = cluster
        self.url = url
        self.seed = seed
        self.guard = Guard(cluster.database.tables.claim, database=cluster.database)
        self.events: Counter[str] = Counter()
        self.over = threading.Event()
        self.runs = [0] * PARTITIONS
        self.owners = {number: list(NODES)[number % len(NODES)] for number in range(PARTITIONS)}
        self.incarnations = {name: cluster.join(name, *self._owned(name)) for name in NODES}

    def play(self) -> None:
        """Until there was enough of everything."""
        actors: list[Callable[[], None]] = [self._evict_until_over]
        actors += [lambda name=name: self._work_until_over(name) for name in NODES]  # type: ignore[misc]
        playing = [self.cluster.meanwhile(actor) for actor in actors]
        end = time.monotonic() + LONGEST_SEC
        try:
            while not self._enough() and time.monotonic() < end and not any(each.done() for each in playing):
                time.sleep(0.05)
        finally:
            self.over.set()
        for each in playing:
            each.result(10)

    def _enough(self) -> bool:
        return self.events["committed"] >= WANTED_COMMITS and self.events["fenced"] >= WANTED_FENCED

    def _owned(self, name: str) -> list[int]:
        return [number for number, owner in self.owners.items() if owner == name]

    def _work_until_over(self, name: str) -> None:
        rng = random.Random(f"{self.seed} {name}")
        with ExitStack() as stack:
            hands = [stack.enter_context(closing(KINDS[NODES[name]](self.url, isolation))) for isolation in ISOLATIONS]
            link = stack.enter_context(closing(self.cluster.link(name)))
            while not self.over.is_set():
                if owned := self._owned(name):
                    self._claim_and_run(name, rng.choice(owned), link, hands, rng)
                else:
                    time.sleep(0.005)

    def _claim_and_run(self, name: str, number: int, link: Link, hands: list[Hand], rng: random.Random) -> None:
        claims = self.cluster.store.claims
        want = wanted(f"{number}-{self.runs[number]}", f"key{number}", number)
        outcome = claims.commit(link, name, self.incarnations[name], [], [want]).outcomes[want.run]
        if isinstance(outcome, Known):
            self.runs[number] += 1
        elif isinstance(outcome, Granted):
            self.events["taken over"] += outcome.attempt > 1
            for _ in range(rng.randint(1, 3)):
                self._transact(rng.choice(hands), want, outcome.fence, rng)
            if rng.random() < 0.5:
                claims.commit(link, name, 0, [ending(want, outcome)], [])

    def _transact(self, hand: Hand, want: Wanted, fence: int, rng: random.Random) -> None:
        """A transaction that guards before or after its effect, and dawdles in between."""
        completes = rng.random() < 0.2
        check = self.guard.complete if completes else self.guard.hold
        effect = {"task_id": want.run.task_id, "fence": fence, "completes": completes}
        steps: list[Callable[[], Any]] = [
            lambda: check(hand.handle, want.run, fence),
            lambda: hand.execute(EFFECT, effect),
        ]
        rng.shuffle(steps)
        try:
            with hand.transaction():
                for step in steps:
                    step()
                    time.sleep(rng.choice((0.0, rng.uniform(0.0, 0.02))))
                if rng.random() < 0.1:
                    raise ChangedMyMind
            self.events["committed"] += 1
        except Fenced:
            self.events["fenced"] += 1
            with hand.transaction():
                assert hand.execute(OURS.format(claim=self.cluster.database.tables.claim), effect) == [], (
                    "wrongly fenced"
                )
        except ChangedMyMind:
            self.events["rolled back"] += 1
        except Exception as error:
            if not is_serialization_failure(error):
                raise
            self.events["to be tried again"] += 1

    def _evict_until_over(self) -> None:
        rng = random.Random(f"{self.seed} eviction")
        with closing(self.cluster.link("leader")) as link:
            while not self.over.wait(rng.uniform(0.0, 0.03)):
                self._evict(rng.choice(list(NODES)), link, rng)

    def _evict(self, name: str, link: Link, rng: random.Random) -> None:
        """One pass of a leader, and its node's return; what is under guard is left to a later pass."""
        nodes, partitions, claims = self.cluster.store.nodes, self.cluster.store.partitions, self.cluster.store.claims
        heirs = {number: rng.choice([each for each in NODES if each != name]) for number in self._owned(name)}
        with link.transaction() as tx:
            assert nodes.declare_dead(tx, name, self.incarnations[name], None)
            partitions.free_orphans(tx)
            partitions.assign(tx, dict(heirs))
        time.sleep(rng.choice((0.0, 0.01)))
        with link.transaction() as tx:
            for number, heir in heirs.items():
                assert partitions.take(tx, [number], heir, self.incarnations[heir])
        self.owners.update(heirs)
        with link.transaction() as tx:
            claims.settle(tx)
        with link.transaction() as tx:
            incarnation = nodes.register(tx, identity(name))
        assert incarnation is not None
        self.incarnations[name] = incarnation
        self.events["evicted"] += 1


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    cluster = Cluster(database_url)
    cluster.rows(RECORDS)
    return cluster


@contextmanager
def open_effect(cluster: Cluster, url: str, fence: int) -> Iterator[None]:
    """A transaction with an effect but no guard, open for the length of the block."""
    with closing(KINDS["psycopg2"](url)) as hand, hand.transaction():
        hand.execute(EFFECT, {"task_id": "t", "fence": fence, "completes": False})
        yield


@pytest.mark.parametrize("seed", [1, 2])
def test_no_guarded_transaction_commits_after_its_claim_was_marked_lost(
    cluster: Cluster, database_url: str, seed: int
) -> None:
    drama = Drama(cluster, database_url, seed)
    drama.play()
    ((effects,),) = cluster.rows("SELECT count(*) FROM effect")
    ((marks,),) = cluster.rows("SELECT count(*) FROM mark")
    told = f"seed {seed}: {effects} effects, {marks} claims marked lost, {dict(drama.events)}"
    print(told)  # noqa: T201 - shown by pytest when the test fails, and with -s
    assert cluster.rows(LATE) == [], told
    assert cluster.rows(COMPLETED_TWICE) == [], told
    assert effects == drama.events["committed"] >= 300, told
    assert min(marks, drama.events["fenced"], drama.events["taken over"]) >= 30, told


def test_the_records_tell_an_unguarded_effect_that_committed_late_from_one_in_time(
    cluster: Cluster, database_url: str
) -> None:
    incarnation = cluster.join("a", 0)
    (granted,) = cluster.claim("a", incarnation, wanted("t"))
    assert isinstance(granted, Granted)
    with open_effect(cluster, database_url, granted.fence):
        pass
    with open_effect(cluster, database_url, granted.fence):
        cluster.bury("a", incarnation)
        cluster.within(cluster.store.claims.settle)
    assert cluster.rows("SELECT count(*) FROM effect") == [(2,)]
    assert cluster.rows(LATE) == [("t", granted.fence)]
