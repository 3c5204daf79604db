"""The node's loop: three nodes in one process on one real database, through joins, deaths and outages."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from node_stage import INTERVAL, TIMEOUT, Cluster, Worker
from sqlalchemy import text
from stage import SHAPE, Outage, counts, eventually, rows

from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.runtime.task_locks import LockRequest, TaskLocks
from jobsync_celery.servers import PrivatePostgres
from jobsync_celery.store.database import Link
from jobsync_celery.store.nodes import Nodes, Renewal


@pytest.fixture
def cluster(database_url: str) -> Iterator[Cluster]:
    cluster = Cluster(database_url)
    yield cluster
    cluster.close()


def test_three_nodes_that_start_together_share_the_partitions_within_a_second_or_so(cluster: Cluster) -> None:
    cluster.start("a", "b", "c")
    assert eventually(cluster.balanced) < 5
    assert len(rows(cluster.store, "SELECT FROM {rebalance}")) <= 3  # two of them joined within half a second
    assert all(worker.lease.trusted for worker in cluster.workers.values())


def test_a_node_that_joins_has_its_share_soon_and_only_its_share_moves(cluster: Cluster) -> None:
    cluster.start("a", "b")
    eventually(cluster.balanced)
    before = {name: set(worker.surface.consumed) for name, worker in cluster.workers.items()}
    cluster.start("c")
    eventually(cluster.balanced)
    for name, had in before.items():
        assert cluster.workers[name].surface.consumed < had
    assert rows(cluster.store, "SELECT tokens_moved FROM {rebalance} ORDER BY id DESC LIMIT 1")[0][0] in (210, 220)


def test_a_node_that_drains_and_leaves_hands_over_at_once(cluster: Cluster) -> None:
    cluster.start("a", "b", "c")
    eventually(cluster.balanced)
    leaver = cluster.workers.pop("a")  # the leader
    leaver.node.drain()
    assert leaver.node.drained.wait(5)
    assert not leaver.surface.consumed
    assert eventually(cluster.balanced) < TIMEOUT
    assert leaver.node.leave(5) and leaver.node.left.is_set()
    assert rows(cluster.store, "SELECT count(*) FROM {node}") == [(2,)]
    assert cluster.balanced()
    assert rows(cluster.store, "SELECT count(*) FROM {node} WHERE state = 'dead'") == [(0,)]


@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_a_killed_node_is_evicted_and_replaced_within_its_lease_and_a_second(cluster: Cluster, victim: str) -> None:
    cluster.start("a")
    eventually(cluster.balanced)
    cluster.start("b", "c")
    eventually(cluster.balanced)
    killed = cluster.workers.pop("a" if victim == "leader" else "c")
    killed.kill()
    killed.surface.consumed.clear()
    assert eventually(cluster.balanced) < 2 * TIMEOUT
    assert rows(cluster.store, "SELECT name FROM {node} WHERE state = 'dead'") == [(killed.name,)]
    assert all(worker.surface.recovered for worker in cluster.workers.values())


def test_a_frozen_node_is_evicted_and_comes_back_as_a_new_incarnation(cluster: Cluster) -> None:
    cluster.start("a", "b")
    eventually(cluster.balanced)
    frozen = cluster.workers["a"]
    first = frozen.lease.incarnation
    go = frozen.freeze()
    eventually(lambda: counts(cluster.store) == {"b": 64})
    assert not frozen.lease.trusted  # its children see that, though it stands still
    go.set()
    eventually(cluster.balanced)
    assert frozen.lease.incarnation > first
    assert frozen.facts.of("lease_lost")


def test_an_outage_longer_than_the_lease_suspends_and_resumes_without_an_eviction(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.start("a", "b", "c")
    eventually(cluster.balanced)
    plans = len(rows(cluster.store, "SELECT FROM {rebalance}"))
    links = [worker.node._link for worker in cluster.workers.values()]
    with Outage(links[0], monkeypatch), Outage(links[1], monkeypatch), Outage(links[2], monkeypatch):
        for link in links:
            monkeypatch.setattr(link, "_read_pending", lambda: None)
        eventually(lambda: not any(worker.lease.trusted for worker in cluster.workers.values()))
        eventually(lambda: not any(worker.surface.consumed for worker in cluster.workers.values()))
    eventually(cluster.balanced)
    assert rows(cluster.store, "SELECT count(*) FROM {node} WHERE state = 'live'") == [(3,)]
    assert len(rows(cluster.store, "SELECT FROM {rebalance}")) == plans
    assert all(worker.facts.of("store_available") for worker in cluster.workers.values())


def test_sessions_that_are_all_terminated_are_made_again(cluster: Cluster) -> None:
    cluster.start("a", "b", "c")
    eventually(cluster.balanced)
    for _ in range(3):
        with cluster.store.database.transaction() as tx:
            tx.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
    cluster.all_hear()
    cluster.start("d")
    eventually(cluster.balanced)
    assert rows(cluster.store, "SELECT count(*) FROM {node} WHERE state = 'live'") == [(4,)]


def test_a_database_that_restarts_evicts_nobody() -> None:
    with PrivatePostgres(fsync=False) as server:
        cluster = Cluster(server.url)
        try:
            cluster.start("a", "b", "c")
            eventually(cluster.balanced)
            server.restart()
            cluster.all_hear()
            eventually(cluster.balanced)
            assert rows(cluster.store, "SELECT count(*) FROM {node} WHERE state = 'live'") == [(3,)]
            assert len({row[0] for row in rows(cluster.store, "SELECT incarnation FROM {node}")}) == 3
        finally:
            cluster.close()


def test_a_database_that_is_not_there_at_the_start_is_waited_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = cluster.workers["a"] = Worker(cluster.url, "a")
    with Outage(worker.node._link, monkeypatch):
        worker.start()
        eventually(lambda: worker.facts.of("store_unavailable"))
        threading.Event().wait(INTERVAL)
        assert len(worker.facts.of("store_unavailable")) == 1  # said once
    eventually(cluster.balanced)
    assert worker.facts.of("store_available")


def test_an_idle_node_sends_at_most_one_statement_per_heartbeat_and_leads_for_free(cluster: Cluster) -> None:
    cluster.start("a", "b")
    eventually(cluster.balanced)
    beats = dict.fromkeys(cluster.workers, 0)

    def counted(worker: Worker) -> None:
        observe = worker.node.leadership.observe

        def count(answer: Renewal, sent_at: float, received_at: float) -> None:
            beats[worker.name] += 1
            observe(answer, sent_at, received_at)

        worker.node.leadership.observe = count  # type: ignore[method-assign] # counts and passes on

    threading.Event().wait(2 * INTERVAL)  # what the last plan woke is done
    for worker in cluster.workers.values():
        counted(worker)
        worker.statements = 0
    eventually(lambda: min(beats.values()) >= 8)
    for worker in cluster.workers.values():
        assert worker.statements <= beats[worker.name] + 1, worker.name  # one may be under way
        assert worker.surface.rechecked >= 8


def test_a_node_tells_its_surface_of_every_change_of_the_task_locks(cluster: Cluster) -> None:
    cluster.start("a")
    told = cluster.workers["a"].surface.locked
    eventually(lambda: told == [{}])
    locks = TaskLocks(cluster.store, SHAPE)
    with cluster.store.database.transaction() as tx:
        locks.set(tx, [LockRequest("key", ("a%",), None, None)], "script")
    pool = SHAPE.partitions  # the first number behind the ordinary ones
    eventually(lambda: told[-1] == {"key": pool})
    with cluster.store.database.transaction() as tx:
        locks.clear(tx, ["key"])
    eventually(lambda: told == [{}, {"key": pool}, {}])


def test_a_node_that_drains_in_an_outage_does_not_wait_for_it_and_says_so_afterwards(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.start("a", "b")
    eventually(cluster.balanced)
    leaver = cluster.workers.pop("a")
    with Outage(leaver.node._link, monkeypatch):
        leaver.node.drain()
        assert leaver.node.drained.wait(5)
        assert not leaver.surface.consumed
    eventually(cluster.balanced)  # though tasks may still run there, and it has not left
    assert rows(cluster.store, "SELECT state FROM {node} WHERE name = 'a'") == [("draining",)]
    leaver.close()


def test_a_node_that_drains_without_a_lease_takes_nothing_when_it_registers_again(cluster: Cluster) -> None:
    cluster.start("a")
    eventually(cluster.balanced)
    worker = cluster.workers.pop("a")
    go = worker.freeze()
    rows(cluster.store, "UPDATE {node} SET state = 'dead'")
    rows(cluster.store, "UPDATE {partition} SET owner = NULL, owner_incarnation = NULL")
    worker.node.drain()
    worker.surface.calls.clear()
    go.set()
    eventually(lambda: len(worker.facts.of("node_registered")) == 2 or worker.node.membership.incarnation is None)
    eventually(lambda: worker.node.drained.is_set())
    threading.Event().wait(2 * INTERVAL)
    assert "start" not in [name for name, _ in worker.surface.calls]
    worker.close()


def test_waking_a_node_that_has_left_writes_into_nobody_elses_file(cluster: Cluster) -> None:
    cluster.start("a")
    eventually(cluster.balanced)
    worker = cluster.workers.pop("a")
    freed = worker.node._writer
    assert worker.node.leave(10)
    pipes = [os.pipe() for _ in range(8)]  # one of them is given the number that the node has closed
    assert any(freed in pair for pair in pipes) or freed < 0
    worker.node.wake()
    for reading, writing in pipes:
        os.set_blocking(reading, False)
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
        os.close(reading)
        os.close(writing)


def test_a_listener_that_fails_does_not_end_the_loop(cluster: Cluster) -> None:
    worker = cluster.workers["a"] = Worker(cluster.url, "a")

    def fail(*_: object) -> None:
        raise RuntimeError("a user's")

    worker.facts.events.listen(fail)
    worker.start()
    eventually(cluster.balanced)


def test_a_node_whose_first_heartbeat_fails_leads_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew, failed = Nodes.renew, list[int]()

    def first_fails(self: Nodes, link: Link, name: str, incarnation: int, curious: bool) -> Renewal | None:
        if not failed:
            failed.append(incarnation)
            raise StoreUnavailable("the database was away for a moment")
        return renew(self, link, name, incarnation, curious)

    monkeypatch.setattr(Nodes, "renew", first_fails)
    cluster.start("a")
    eventually(cluster.balanced)
    assert failed
    assert cluster.workers["a"].node.leadership.leading
