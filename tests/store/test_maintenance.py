"""Old rows: found by the database's clock, deleted in bounded batches, and nothing else with them."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from cluster import Cluster, ending, wanted

from jobsync_celery.store.guard import Guard
from jobsync_celery.store.locks import NewLock
from jobsync_celery.store.maintenance import Batch, Maintenance
from jobsync_celery.store.outcomes import Granted

OLD = "clock_timestamp() - interval '40 days'"
MANY = 10**6


class Keeper:
    """Maintenance of a cluster, each batch in a transaction of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self.maintenance = Maintenance(cluster.database)
        self._link = self.maintenance.link()

    def before(self, days: float = 1.0) -> datetime:
        return self.maintenance.now(self._link) - timedelta(days=days)

    def count(self, kind: str) -> int:
        return self.maintenance.count(self._link, kind, self.before())

    def batch(
        self, kind: str, limit: int = MANY, *, oldest: datetime | None = None, copy: bool = False, alone: bool = False
    ) -> Batch:
        with self._link.transaction() as tx:
            return self.maintenance.delete(tx, kind, self.before(), limit, oldest, copy, alone)

    def delete(self, kind: str, *, copy: bool = False) -> int:
        """Delete what is older than a day, having counted as much."""
        counted = self.count(kind)
        deleted = self.batch(kind, copy=copy).deleted
        assert counted == deleted
        return deleted


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


@pytest.fixture
def keeper(cluster: Cluster) -> Keeper:
    return Keeper(cluster)


def ended(cluster: Cluster, *states: str) -> None:
    incarnation = cluster.join("a", 0)
    wants = [wanted(f"{state}-{number}", f"k{number}") for number, state in enumerate(states)]
    granted = cluster.claim("a", incarnation, *wants)
    cluster.end(*[ending(*each) for each in zip(wants, granted, states, strict=True) if each[2] != "running"])


def age(cluster: Cluster) -> None:
    cluster.rows(f"UPDATE {{claim}} SET created_on = {OLD}, finished_on = {OLD} WHERE state <> 'running'")


def test_ended_claims_go_when_they_have_been_ended_long_and_running_ones_never(
    cluster: Cluster, keeper: Keeper
) -> None:
    ended(cluster, "done", "failed", "retried", "lost", "running")
    cluster.rows(f"UPDATE {{claim}} SET created_on = {OLD}")  # long tasks, ended just now
    assert keeper.delete("claims") == 0
    age(cluster)
    assert keeper.delete("claims") == 4
    assert list(cluster.states().values()) == ["running"]


def test_a_batch_takes_the_oldest_and_the_next_goes_on_where_it_ended(cluster: Cluster, keeper: Keeper) -> None:
    ended(cluster, *["done"] * 5)
    cluster.rows(
        "UPDATE {claim} SET finished_on = timestamptz '2020-01-01' + make_interval(days => right(task_id, 1)::int)"
    )
    first = keeper.batch("claims", 2)
    assert first.deleted == 2 and sorted(cluster.states()) == ["done-2", "done-3", "done-4"]
    second = keeper.batch("claims", 2, oldest=first.newest)
    assert second.deleted == 2 and list(cluster.states()) == ["done-4"]
    assert keeper.batch("claims", 2, oldest=second.newest).deleted == 1
    assert keeper.batch("claims", 2).newest is None


def test_a_row_that_somebody_has_locked_is_left_without_waiting(cluster: Cluster, keeper: Keeper) -> None:
    ended(cluster, "done", "done")
    age(cluster)
    with cluster.database.transaction() as tx:
        tx.execute(cluster.database.sql("SELECT FROM {claim} WHERE task_id = 'done-0' FOR KEY SHARE"))
        assert keeper.batch("claims").deleted == 1
    assert list(cluster.states()) == ["done-0"]
    assert keeper.batch("claims").deleted == 1


def test_a_claim_under_guard_or_being_completed_stays(cluster: Cluster, keeper: Keeper) -> None:
    incarnation = cluster.join("a", 0)
    wants = [wanted("held", "k1"), wanted("completed", "k2")]
    fences = [one.fence for one in cluster.claim("a", incarnation, *wants) if isinstance(one, Granted)]
    cluster.rows(f"UPDATE {{claim}} SET created_on = {OLD}")
    guard = Guard(cluster.database.tables.claim)
    with cluster.database.transaction("users") as tx:
        guard.hold(tx, wants[0].run, fences[0])
        guard.complete(tx, wants[1].run, fences[1])
        assert keeper.delete("claims") == 0
    assert cluster.states() == {"held": "running", "completed": "done"}


def test_a_lost_run_that_is_taken_over_just_now_stays(cluster: Cluster, keeper: Keeper) -> None:
    ended(cluster, "lost")
    age(cluster)
    with cluster.database.transaction("taker") as tx:
        tx.execute(cluster.database.sql("UPDATE {claim} SET state = 'running', finished_on = NULL"))
        assert keeper.batch("claims").deleted == 0
    assert keeper.batch("claims").deleted == 0
    assert cluster.states() == {"lost-0": "running"}


def test_done_runs_are_copied_into_the_audit_once_by_the_day_on_which_they_ended(
    cluster: Cluster, keeper: Keeper
) -> None:
    ended(cluster, "done", "failed", "done", "lost", "retried")
    late = "timestamptz '2020-02-29 23:30+00'"
    cluster.rows(f"UPDATE {{claim}} SET finished_on = {late}")
    cluster.rows("INSERT INTO {audit} (date, task_id, node) VALUES ('2020-02-29', 'done-2', 'b')")
    batch = keeper.batch("claims", copy=True)
    assert (batch.deleted, batch.audited) == (5, 1)
    assert cluster.rows(
        "SELECT date::text, task_id, node, task_name, created_on < now() - interval '1 year' FROM {audit} ORDER BY 2"
    ) == [
        ("2020-02-29", "done-0", "a", "proj.task", True),
        ("2020-02-29", "done-2", "b", None, False),
    ]


def observers(cluster: Cluster) -> set[str]:
    return {node for (node,) in cluster.rows("SELECT node FROM {observer}")}


def observe(cluster: Cluster) -> None:
    """Observers that were last seen in the past, and what they observed."""
    for node, seen, left, began in (
        ("left", "3 days", "3 days", "4 days"),
        ("just left", "3 days", "1 hour", "4 days"),
        ("killed", "3 days", None, "4 days"),
        ("cut off", "30 hours", None, "31 hours"),
        ("killed with a last run", "3 days", None, "86395 s"),
        ("there", "1 s", None, "4 days"),
        ("idle", "3 days", "3 days", None),
    ):
        ago = [None if each is None else f"clock_timestamp() - interval '{each}'" for each in (seen, left, began)]
        cluster.rows(
            f"INSERT INTO {{observer}} (node, seen_on, left_on) VALUES ('{node}', {ago[0]}, {ago[1] or 'NULL'})"
        )
        if began is not None:
            cluster.rows(
                "INSERT INTO {observation} (began_on, number, observer_id, error_sec, state, task_id, task_name)"
                f" SELECT {ago[2]}, 1, observer_id, 0, 'ended', '{node}', 'proj.task' FROM {{observer}}"
                f" WHERE node = '{node}'"
            )


def test_with_the_last_old_observations_go_observers_that_left_or_were_not_seen_for_long(
    cluster: Cluster, keeper: Keeper
) -> None:
    observe(cluster)
    everybody = observers(cluster)
    assert keeper.batch("observations", 2).deleted == 2
    assert observers(cluster) == everybody  # there may be more
    assert keeper.batch("observations").deleted == 3
    assert observers(cluster) == {"just left", "cut off", "killed with a last run", "there"}


def test_an_observer_stays_as_long_as_something_that_it_observed(cluster: Cluster, keeper: Keeper) -> None:
    observe(cluster)
    with cluster.database.transaction() as tx:
        tx.execute(cluster.database.sql("SELECT FROM {observation} WHERE task_id = 'left' FOR UPDATE"))
        assert keeper.batch("observations").deleted == 4
    assert "left" in observers(cluster)
    assert keeper.batch("observations").deleted == 1
    assert "left" not in observers(cluster)


def test_by_hand_observers_are_counted_and_deleted_apart(cluster: Cluster, keeper: Keeper) -> None:
    observe(cluster)
    cluster.rows("DELETE FROM {observation} WHERE task_id = 'killed with a last run'")
    cluster.rows("DELETE FROM {observer} WHERE node = 'killed with a last run'")
    counted = keeper.count("observers")
    assert keeper.batch("observations", alone=True).deleted == 5
    assert keeper.delete("observers") == counted == 3
    assert observers(cluster) == {"just left", "cut off", "there"}


def test_without_being_asked_nothing_is_copied(cluster: Cluster, keeper: Keeper) -> None:
    ended(cluster, "done")
    age(cluster)
    assert keeper.delete("claims") == 1
    assert cluster.rows("SELECT FROM {audit}") == []


def test_the_audit_goes_by_the_time_of_its_rows_whatever_day_they_are_of(cluster: Cluster, keeper: Keeper) -> None:
    cluster.rows(
        "INSERT INTO {audit} (date, task_id, node, created_on) VALUES"
        f" ('1999-01-01', 'new', 'a', clock_timestamp()), ('2999-01-01', 'old', 'a', {OLD})"
    )
    assert keeper.delete("audit") == 1
    assert cluster.rows("SELECT task_id FROM {audit}") == [("new",)]


def test_long_dead_nodes_go_and_live_ones_stay_however_silent(cluster: Cluster, keeper: Keeper) -> None:
    for name in ("dead", "fresh", "live"):
        incarnation = cluster.join(name)
        if name != "live":
            cluster.bury(name, incarnation)
    cluster.rows(f"UPDATE {{node}} SET last_heartbeat = {OLD} WHERE name <> 'fresh'")
    assert keeper.delete("dead_nodes") == 1
    assert sorted(cluster.rows("SELECT name FROM {node}")) == [("fresh",), ("live",)]


def test_scripts_go_when_they_have_no_locks_any_more(cluster: Cluster, keeper: Keeper) -> None:
    with cluster.database.transaction() as tx:
        for name in ("idle", "locking", "new"):
            cluster.store.locks.introduce(tx, name, "celery")
        [partition] = cluster.store.partitions.add_pool(tx, '["x"]', [(0, 79)])
        cluster.store.locks.set(tx, [NewLock("k", '["x"]', partition)], "locking")
    cluster.rows(f"UPDATE {{node}} SET created_on = {OLD} WHERE name <> 'new'")
    assert keeper.delete("lock_creators") == 1
    assert sorted(cluster.rows("SELECT name FROM {node}")) == [("locking",), ("new",)]
    cluster.rows("DELETE FROM {lock}")
    assert keeper.delete("lock_creators") == 1


def test_old_plans_go(cluster: Cluster, keeper: Keeper) -> None:
    cluster.rows(f"INSERT INTO {{rebalance}} (triggered_at) VALUES ({OLD}), ({OLD}), (clock_timestamp())")
    assert keeper.delete("history") == 2
    assert cluster.rows("SELECT count(*) FROM {rebalance}") == [(1,)]


def test_old_claims_are_found_by_an_index(cluster: Cluster, keeper: Keeper) -> None:
    ended(cluster, "done")
    cluster.rows(
        "INSERT INTO {claim} (incarnation, finished_on, token_id, partition_id, task_id, task_key, node, state)"
        " SELECT 1, clock_timestamp() - make_interval(secs => n), 0, 0, n, n, 'a', 'done'"
        " FROM generate_series(1, 5000) AS n"
    )
    cluster.rows("ANALYZE {claim}")
    with cluster.database.transaction() as tx:
        values = {"before": keeper.before(), "limit": 10, "oldest": "-infinity"}
        deletion = keeper.maintenance._delete["claims"].text
        plan = "\n".join(tx.execute(cluster.database.sql(f"EXPLAIN {deletion}"), values).scalars())
    assert f"Index Scan using {cluster.database.prefix}claim_finished_on" in plan, plan
