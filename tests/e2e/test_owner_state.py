"""Caches and connections per key: receivers know exactly when their worker gains and loses partitions.

``JOBSYNC_OWNER_STATE_EVENTS=200`` makes the random test as long as that, ``JOBSYNC_OWNER_STATE_SEED`` another one.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from faults.proxy import PASS, Exchange, Mode, Proxy

from e2e.history import now
from e2e.ledger import Ledger
from e2e.load import load
from e2e.site import TIMEOUT, Site
from e2e.stand_ins import Worker
from e2e.waiting import until

EVENTS = int(os.environ.get("JOBSYNC_OWNER_STATE_EVENTS", "12"))
SEED = int(os.environ.get("JOBSYNC_OWNER_STATE_SEED", "1"))
NAMES = ("w1", "w2", "w3", "w4")


def listening(site: Site, **how: float) -> Site:
    """Let the workers of this site listen, with receivers that sleep."""
    site.listen(site.folder / "calls.jsonl", **{"sleep": 0.2, **how})
    return site


def ledger(site: Site, ended: dict[int, float] | None = None) -> Ledger:
    return Ledger(site.folder / "calls.jsonl", site.history.lines(), ended or {})


class Turmoil:
    """Workers that come, leave and are killed at random; when each killed main process was live for the last time."""

    def __init__(self, site: Site, chance: random.Random) -> None:
        self._site, self._chance = site, chance
        self._workers: dict[str, Worker] = {}
        self._leaving: set[str] = set()
        self.ended: dict[int, float] = {}
        self.story: list[str] = []

    def _living(self) -> list[str]:
        return [name for name, worker in self._workers.items() if worker.container.exit_code is None]

    def staying(self) -> list[str]:
        """Who lives and was not asked to leave."""
        living = self._living()
        self._leaving &= set(living)
        return [name for name in living if name not in self._leaving]

    def step(self) -> None:
        """One event."""
        staying = self.staying()
        absent = [name for name in NAMES if name not in self._living()]
        if absent and (len(staying) < 2 or self._chance.random() < 0.4):
            self.join(self._chance.choice(absent))
        elif len(staying) > 1 and self._chance.random() < 0.5:
            # Before it has a partition, Celery may not have set up how it stops.
            owners = set(self._site.shares())
            self.leave(self._chance.choice([n for n in staying if self._site.node(n) in owners] or [None]))
        elif len(staying) > 1:
            self.kill(self._chance.choice(self._living()))
        time.sleep(self._chance.choice((0.0, 0.3, 1.0, 2.5)))

    def join(self, name: str) -> None:
        self.story.append(f"join {name}")
        if name in self._workers:
            self._workers[name].container.begin()
        else:
            self._workers[name] = self._site.worker(name)

    def leave(self, name: str | None) -> None:
        if name is not None:
            self.story.append(f"leave {name}")
            self._leaving.add(name)
            self._workers[name].kill("SIGTERM")

    def kill(self, name: str) -> None:
        self.story.append(f"kill {name}")
        self.ended[self._workers[name].container.pid] = now()
        self._workers[name].kill("SIGKILL")

    def end(self) -> None:
        """Everybody leaves in good order."""
        self._site.until_shared(*self.staying())
        for name in self.staying():
            self.leave(name)
        for name in self._living():
            self._workers[name].container.wait(120)


@pytest.mark.timeout(180 + 12 * EVENTS)
def test_through_joins_leaves_and_kills_calls_alternate_and_nobody_starts_before_the_former_owner_is_done(
    site: Site, record_property: Any
) -> None:
    listening(site)
    turmoil = Turmoil(site, random.Random(SEED))
    for name in NAMES[:2]:
        turmoil.join(name)
    with load(site, keys=200, sec=0.01, pause=0.03) as stream:
        while len(turmoil.story) < EVENTS + 2:
            turmoil.step()
        site.until_shared(*turmoil.staying(), timeout=120)
    site.until_ended(*stream.ids, timeout=120)
    turmoil.end()
    told = ledger(site, turmoil.ended)
    for kind in ("join", "leave", "kill"):
        record_property(kind, sum(event.startswith(kind) for event in turmoil.story))
    record_property("stays", len(told.stays))
    record_property("lost_stays", sum(stay.lost for stay in told.stays))
    record_property("bodies", len(told.starts))
    assert told.problems() == [], turmoil.story
    open_ended = {stay.worker for stay in told.stays if stay.left == float("inf")}
    assert open_ended <= set(turmoil.ended), "who was not killed revoked everything"
    assert len(told.stays) > EVENTS and len(told.starts) >= len(stream.ids)
    site.assert_serial()


@pytest.mark.parametrize("together", [False, True], ids=["evicted", "resumes"])
def test_a_stopped_worker_owns_nothing_when_it_wakes_and_its_receivers_hear_that_at_once(
    site: Site, together: bool
) -> None:
    """``resumes``: the other one was stopped as well, so nobody evicted it; it has lost its lease all the same."""
    listening(site)
    first, second = site.worker("w1"), site.worker("w2")
    site.until_shared("w1", "w2")
    pid = first.container.pid
    until(lambda: ledger(site).of("owns", pid)[-1]["partitions"], "it owns something, and knows")
    before = ledger(site).of("owns", pid)[-1]["partitions"]
    for worker in (first, second) if together else (first,):
        worker.freeze()
    if together:
        time.sleep(TIMEOUT)
    else:
        site.until_shared("w2")
        keys = [site.key_of(second.hostname(), "taken", n) for n in range(20)]
        assert site.results([site.call("step", key, n) for n, key in enumerate(keys)]) == [*range(20)]
    thawed = now()
    first.thaw()
    until(lambda: [line for line in ledger(site).of("revoked returned", pid) if line["at"] > thawed], "it hears")
    if together:
        second.thaw()
    site.until_shared("w1", "w2")
    told = ledger(site)
    woken = next(line for line in told.of("owns", pid) if line["asked"] > thawed)
    assert woken["partitions"] == [], f"it had {before} when it was stopped"
    revoked = next(line for line in told.of("revoked", pid) if line["at"] > thawed)
    ordinary = {number for number in revoked["partitions"] if number < 8}  # the others carry locked keys
    assert ordinary == set(before) and revoked["lost"] and revoked["at"] - thawed < TIMEOUT
    until(lambda: any(line["at"] > revoked["at"] for line in ledger(site).of("assigned returned", pid)), "and again")
    # A stopped process is not live until it wakes.
    assert [each for each in ledger(site, {pid: 0.0}).problems() if "alternate" in each or "at a time" in each] == []


@pytest.mark.parametrize("broker_url", [pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
def test_a_live_worker_that_is_cut_off_from_the_database_revokes_before_the_next_owner_starts(site: Site) -> None:
    """Its node's thread waits for an answer all the while; the receivers hear of the deadline all the same."""
    listening(site, sleep=0.02)
    url = urlsplit(site.database_url)
    exchange = Exchange()
    way = Proxy(exchange, url.port or 0)
    through = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{way.port}").geturl()
    try:
        site.worker("w1")
        cut = site.worker("w2", jobsync={"url": through})
        site.until_shared("w1", "w2")
        with load(site, keys=200) as stream:
            way.set(Mode("stall"))
            site.until_shared("w1")
            counted = len(stream.results) + 200
            until(lambda: len(stream.results) > counted, "the next owner works")
            way.set(PASS)
            site.until_shared("w1", "w2")
        site.until_ended(*stream.ids)
    finally:
        way.close()
        exchange.close()
    told = ledger(site)
    assert told.problems() == []
    lost = [stay for stay in told.stays if stay.lost and stay.partition < 8]  # the others carry locked keys
    assert {stay.worker for stay in lost} == {cut.container.pid} and len(lost) == 4
    heirs = [
        min(start["at"] for start in told.starts if start["partition"] == stay.partition and start["at"] > stay.revoked)
        for stay in lost
    ]
    assert all(began - stay.revoked < TIMEOUT for began, stay in zip(heirs, lost, strict=True))


def test_a_receiver_that_hangs_holds_up_its_partitions_and_is_named_and_the_others_move(site: Site) -> None:
    listening(site, hang=7.0)
    site.worker("w1")
    site.until_shared("w1")
    began = now()
    site.worker("w2")
    first = site.workers[0]
    until(lambda: ledger(site).of("revoked"), "half of it is to move")
    moving = set(ledger(site).of("revoked")[0]["partitions"])
    staying = [key for n in range(4) if (key := site.key_of(first.hostname(), "stays", n))]
    tokens = site.app.jobsync.cluster.tokens
    here = [site.call("step", key, n) for n, key in enumerate(staying) if tokens.partition_for(key) not in moving]
    site.results(here)  # while the receiver hangs
    assert now() - ledger(site).of("revoked")[0]["at"] < 6.5
    assert {number for number, owner in site.owners().items() if owner == first.hostname()} >= moving
    site.until_shared("w1", "w2")
    assert now() - began > 7.0
    assert "a receiver of partitions_revoked has not returned for 5 s" in first.logs()
    assert "listen.<locals>.revoked" in first.logs()
    assert ledger(site).problems() == []


@pytest.mark.parametrize("broker_url", [pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
@pytest.mark.parametrize(
    "options", [("-c", "2"), ("-P", "threads", "-c", "3"), ("-P", "solo")], ids=["prefork", "threads", "solo"]
)
def test_every_process_that_runs_tasks_knows_its_worker_s_tenures_before_the_body(
    site: Site, options: tuple[str, ...]
) -> None:
    listening(site, sleep=0.05)
    site.worker("w1", *options)
    site.until_shared("w1")
    site.results(site.many(30, 30))
    site.worker("w2", *options)
    site.until_shared("w1", "w2")
    site.results(site.many(30, 30))
    site.workers[1].stop()
    site.until_shared("w1")
    site.results(site.many(30, 30))
    told = ledger(site)
    assert told.problems() == []
    looks = told.of("tenures")
    for start in told.starts:
        seen = [look for look in looks if look["pid"] == start["pid"] and look["at"] < start["at"]][-1]
        assert start["tenure"] > 0 and seen["tenures"][str(start["partition"])] == start["tenure"]
    before = {start["partition"]: start["tenure"] for start in told.starts[:30]}
    after = {start["partition"]: start["tenure"] for start in told.starts[-30:]}
    moved = {stay.partition for stay in told.stays if stay.worker == site.workers[1].container.pid}
    assert moved and {number for number in before if after[number] > before[number]} == moved & set(before)


def test_a_worker_hears_of_others_of_its_lease_and_of_the_leader(site: Site) -> None:
    listening(site)
    for name in NAMES:
        site.worker(name)
    site.until_shared(*NAMES)
    by_age = [row["name"] for row in site.rows("SELECT name FROM sync_node ORDER BY incarnation")]
    oldest, *_, leaver, youngest = (next(w for w in site.workers if w.hostname() == name) for name in by_age)
    pid = youngest.container.pid

    def heard(event: str) -> list[dict[str, Any]]:
        return [line["told"] for line in ledger(site).of(event, pid)]

    until(lambda: {told["name"] for told in heard("node_joined")} == set(by_age[:-1]), "it knows the three others")
    assert [(told["name"], told["me"]) for told in heard("leader_changed")][-1] == (by_age[0], False)
    leaver.stop()
    until(lambda: [(told["name"], told["reason"]) for told in heard("node_left")] == [(by_age[2], "left")], "it left")
    oldest.kill("SIGKILL")
    until(lambda: (by_age[0], "dead") in [(told["name"], told["reason"]) for told in heard("node_left")], "it died")
    until(lambda: heard("leader_changed")[-1]["name"] == by_age[1], "the next oldest leads")
    assert heard("leader_changed")[-1]["previous"] == by_age[0]
    assert {told["node"] for told in heard("node_left")} == {youngest.hostname()}
    youngest.freeze()
    site.until_shared("w1" if by_age[1].startswith("w1") else by_age[1].partition("@")[0])
    youngest.thaw()
    until(lambda: [told["final"] for told in heard("lease_lost")][-1:] == [True], "its lease is lost for good")
