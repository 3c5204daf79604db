"""Workers come, go, hang and die: every task runs, none that finished runs again, no key runs twice at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery.result import AsyncResult

from e2e.history import now, overlaps, revived
from e2e.site import TIMEOUT, Site
from e2e.waiting import until

#: What a loaded machine may add to a promised time.
SLACK = 3.0
THREE = ("w1", "w2", "w3")


class Stream:
    """Tasks published at a steady rate in the background."""

    def __init__(self, site: Site, keys: int, sec: float, pause: float) -> None:
        self._site, self._keys, self._sec, self._pause = site, keys, sec, pause
        self._over = threading.Event()
        self.results: list[AsyncResult] = []
        self._thread = threading.Thread(target=self._publish, daemon=True)

    def _publish(self) -> None:
        while not self._over.wait(self._pause):
            n = len(self.results)
            self.results.append(self._site.call("step", f"key{n % self._keys}", n, self._sec))

    @property
    def ids(self) -> list[str]:
        return [result.id for result in self.results]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def load(site: Site, keys: int = 60, sec: float = 0.02, pause: float = 0.01) -> Iterator[Stream]:
    """Publish for as long as the block lasts."""
    stream = Stream(site, keys, sec, pause)
    stream.start()
    try:
        until(lambda: len(site.history.runs()) > 20, "the load is on")
        yield stream
    finally:
        stream.stop()


def partitions_of(site: Site, node: str) -> set[int]:
    return {number for number, owner in site.owners().items() if owner == node}


@pytest.mark.cluster(*THREE, jobsync={"partitions": 12})
def test_sigterm_hands_over_within_a_second_and_nothing_runs_twice(
    celery_setup: Any, site: Site, record_property: Any
) -> None:
    leaver = celery_setup.worker_cluster[1]
    lost = partitions_of(site, leaver.hostname())
    long = site.call("step", site.key_of(leaver.hostname(), "long"), 0, 2.0)
    site.until_begun(long.id)
    with load(site) as stream:
        stopped = now()
        leaver.kill("SIGTERM")
        until(lambda: None not in (owners := site.owners()).values() and leaver.hostname() not in owners.values())
        record_property("handover_sec", round(now() - stopped, 3))
        assert now() - stopped < 1.0 + SLACK
        behind = site.call("step", site.history.runs(long.id)[0].key, 1)
        assert leaver.container.wait() == 0
    site.until_ended(*stream.ids, long.id, behind.id)
    site.assert_once([*stream.ids, long.id, behind.id])
    moved = site.rows("SELECT partition_id FROM sync_partition WHERE last_owner = %s", leaver.hostname())
    assert {row["partition_id"] for row in moved} <= lost
    assert {row["name"] for row in site.rows("SELECT name FROM sync_node")} == {site.node("w1"), site.node("w3")}
    assert max(site.shares().values()) - min(site.shares().values()) == 0
    site.assert_brokers_are_empty()


@pytest.mark.parametrize("victim", [2, 0], ids=["follower", "leader"])
@pytest.mark.cluster(*THREE, jobsync={"partitions": 12})
def test_after_sigkill_fetched_and_queued_messages_start_elsewhere_in_time(
    celery_setup: Any, site: Site, victim: int, record_property: Any
) -> None:
    by_age = site.rows("SELECT name FROM sync_node ORDER BY incarnation")
    dead = next(w for w in celery_setup.worker_cluster if w.hostname() == by_age[victim]["name"])
    keys = [site.key_of(dead.hostname(), "own", n) for n in range(6)]
    # Two run, the others are fetched and wait for a slot.
    fetched = [site.call("step", key, n, 20 if n < 2 else 0) for n, key in enumerate(keys)]
    site.until_begun(*(result.id for result in fetched[:2]))
    killed = now()
    dead.kill("SIGKILL")
    queued = [site.call("step", key, 10 + n) for n, key in enumerate(keys[2:])]
    waiting = [result.id for result in (*fetched[2:], *queued)]
    site.until_begun(*waiting, *(result.id for result in fetched[:2]))
    until(lambda: len(site.history.runs(*(result.id for result in fetched[:2]))) == 4, "the killed two run again")
    again = site.history.runs(*(result.id for result in fetched[:2]))[2:]
    began = [run.began for run in (*site.history.runs(*waiting), *again)]
    record_property("failover_first_sec", round(min(began) - killed, 3))
    record_property("failover_last_sec", round(max(began) - killed, 3))
    assert max(began) - killed < TIMEOUT + 1 + SLACK
    assert {run.node for run in again} <= {w.hostname() for w in celery_setup.worker_cluster if w is not dead}
    assert [run.attempt for run in again] == [2, 2]
    site.assert_once(waiting)
    states = {row["name"]: row["state"] for row in site.rows("SELECT name, state FROM sync_node")}
    assert states[dead.hostname()] == "dead"
    leader = site.rows("SELECT node FROM sync_leader")[0]["node"]
    assert leader != dead.hostname() and states[leader] == "live"


@pytest.mark.cluster("w1", "w2", jobsync={"partitions": 12})
def test_a_joining_worker_has_its_share_soon_and_moves_are_minimal(
    celery_setup: Any, site: Site, record_property: Any
) -> None:
    before = site.owners()
    with load(site) as stream:
        joined = site.worker("w3")
        joined.ready()
        ready = now()
        site.until_shared(*THREE)
        record_property("join_sec", round(now() - ready, 3))
        assert now() - ready < 1 + SLACK
        until(lambda: any(run.node == joined.hostname() for run in site.history.runs()), "the newcomer works")
    after = site.owners()
    assert sum(before[number] != after[number] for number in before) == 4
    site.until_ended(*stream.ids)
    site.assert_once(stream.ids)


@pytest.mark.cluster(*THREE, jobsync={"partitions": 12})
def test_a_rolling_restart_under_load_loses_and_doubles_nothing(celery_setup: Any, site: Site) -> None:
    with load(site, keys=100, sec=0.005, pause=0.002) as stream:
        for worker in celery_setup.worker_cluster:
            worker.stop()
            worker.container.begin()
            site.until_shared(*THREE)
        until(lambda: len(stream.results) >= 1500, "enough was published")
    site.until_ended(*stream.ids)
    site.assert_once(stream.ids)
    site.assert_brokers_are_empty()


@pytest.mark.cluster(*THREE, jobsync={"partitions": 12})
def test_sigkill_under_load_loses_nothing_and_revives_nothing(celery_setup: Any, site: Site) -> None:
    with load(site, sec=0.05) as stream:
        dead = celery_setup.worker_cluster[0]
        dead.kill("SIGKILL")
        site.until_shared("w2", "w3")
        dead.container.begin()
        site.until_shared(*THREE)
        # This time the main process alone: its children find out by themselves.
        alone = celery_setup.worker_cluster[1]
        alone.container.kill_alone()
        site.until_shared("w1", "w3")
    site.until_ended(*stream.ids)
    runs = site.history.runs(*stream.ids)
    assert overlaps(runs) == []
    assert revived(runs) == []
    site.assert_serial()
    assert {claim["state"] for claim in site.settled(*stream.ids)} == {"done"}
    site.assert_brokers_are_empty()
