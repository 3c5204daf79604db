"""Housekeeping: what a retention allows goes, claims go on meanwhile, and what somebody holds is not waited for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import make_url, text
from stage import SHAPE, eventually, join, rows, store_at

from jobsync_celery.core.model import Run
from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.runtime import housekeeping
from jobsync_celery.runtime.housekeeping import Cleaned, Housekeeping, Retention, Tidied
from jobsync_celery.runtime.task_locks import LockRequest, TaskLocks
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.database import Database
from jobsync_celery.store.outcomes import Ending, Granted, Wanted
from jobsync_celery.store.store import Store

DAY = 86400.0
KEPT = Retention(claims=DAY, audit=DAY, history=DAY, dead_nodes=DAY, observations=DAY)
TOKENS = TokenMap(SHAPE.total_tokens, SHAPE.partitions, SHAPE.hash_function)
OLD = "clock_timestamp() - interval '40 days'"
AT_ONCE_SEC = 5.0
MANY = int(os.environ.get("JOBSYNC_CLEANUP_ROWS", "40000"))


@pytest.fixture
def store(database_url: str) -> Store:
    return store_at(database_url)


def keeping(store: Store, retention: Retention = KEPT) -> Housekeeping:
    return Housekeeping(store, SHAPE, retention)


def counts(tidied: Tidied) -> dict[str, int]:
    return {each.what: each.rows for each in tidied.cleaned if each.rows}


def ended(store: Store, number: int, state: str = "done", age: str = "40 days") -> None:
    rows(
        store,
        "INSERT INTO {claim} (incarnation, finished_on, token_id, partition_id, task_id, origin, task_key, node, state)"
        " SELECT 1, clock_timestamp() - CAST(:age AS interval), 0, 0, n, md5(random()::text), n, 'a', :state"
        " FROM generate_series(1, :number) AS n",
        number=number,
        state=state,
        age=age,
    )


def lock(store: Store, *keys: str, by: str = "script", expires_in: float | None = None) -> None:
    with store.database.transaction() as tx:
        TaskLocks(store, SHAPE).set(tx, [LockRequest(key, ("gpu-%",), None, expires_in) for key in keys], by)


def everything_old(store: Store) -> dict[str, int]:
    """Rows of every kind, and how many of each are to go."""
    for name in ("dead", "live"):
        join(store, name)
    lock(store, "expired", expires_in=0.001)
    lock(store, "expired-script's", by="script2", expires_in=0.001)
    lock(store, "expired-orphan", by="gone", expires_in=0.001)
    lock(store, "kept1", "kept2")
    lock(store, "dead-node's", by="dead")
    lock(store, "orphan1", "orphan2", by="gone")
    lock(store, "by-nobody", by="nobody")
    rows(store, "UPDATE {lock} SET created_by = NULL WHERE task_id = 'by-nobody'")
    rows(store, f"UPDATE {{node}} SET created_on = {OLD} WHERE name IN ('nobody', 'script', 'script2')")
    rows(store, f"UPDATE {{node}} SET state = 'dead', last_heartbeat = {OLD} WHERE name = 'dead'")
    rows(store, "DELETE FROM {node} WHERE name = 'gone'")
    rows(store, f"UPDATE {{lock}} SET created_at = {OLD}")
    rows(store, f"INSERT INTO {{rebalance}} (triggered_at) VALUES ({OLD}), ({OLD})")
    rows(store, f"INSERT INTO {{audit}} (date, task_id, node, created_on) VALUES ('2020-01-01', 'x', 'a', {OLD})")
    ended(store, 7)
    ended(store, 2, age="1 minute")
    rows(store, f"INSERT INTO {{observer}} (node, seen_on) VALUES ('w', {OLD}), ('w', clock_timestamp())")
    for age in (OLD, OLD, "clock_timestamp()"):
        rows(
            store,
            "INSERT INTO {observation} (began_on, number, observer_id, error_sec, state, task_id, task_name)"
            f" SELECT {age}, count(*), 1, 0, 'running', 'id', 't' FROM {{observation}}",
        )
    return {
        "dead_nodes": 1,
        "expired_locks": 3,
        "orphaned_locks": 2,
        "lock_creators": 1,
        "history": 2,
        "audit": 1,
        "claims": 7,
        "observations": 2,
        "observers": 1,
    }


def snapshot(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    tables = ("cluster", "node", "partition", "claim", "lock", "leader", "rebalance", "audit", "observation")
    return {table: rows(store, f"SELECT xmin::text, xmax::text, t.* FROM {{{table}}} t") for table in tables}


def test_counting_changes_nothing_and_counts_what_then_is_deleted(store: Store) -> None:
    expected = everything_old(store)
    house = keeping(store, replace(KEPT, orphaned_locks=0.0))
    before = snapshot(store)
    assert counts(house.count()) == expected
    assert snapshot(store) == before
    tidied = house.clean()
    assert counts(tidied) == expected and tidied.complete
    # What is without a creator, or without locks, only since then goes the next time.
    assert counts(house.count()) == counts(house.clean()) == {"orphaned_locks": 1, "lock_creators": 1}
    assert counts(house.clean()) == {}
    assert sorted(key for (key,) in rows(store, "SELECT task_id FROM {lock}")) == ["by-nobody", "kept1", "kept2"]
    assert sorted(name for (name,) in rows(store, "SELECT name FROM {node}")) == ["live", "script"]


def test_orphaned_locks_go_only_when_asked_and_when_they_are_old_enough(store: Store) -> None:
    lock(store, "old", "new", by="gone")
    rows(store, "DELETE FROM {node}")
    rows(store, f"UPDATE {{lock}} SET created_at = {OLD} WHERE task_id = 'old'")
    assert counts(keeping(store).clean()) == {}
    assert counts(keeping(store, replace(KEPT, orphaned_locks=DAY)).clean()) == {"orphaned_locks": 1}
    assert counts(keeping(store, replace(KEPT, orphaned_locks=0.0)).clean()) == {"orphaned_locks": 1}


def test_what_is_kept_without_limit_is_neither_counted_nor_touched(store: Store) -> None:
    everything_old(store)
    nothing = Retention(history=None, dead_nodes=None)
    house = keeping(store, nothing)
    assert counts(house.count()) == {"expired_locks": 3}
    assert counts(house.clean()) == {"expired_locks": 3}
    assert Cleaned("claims", None) in house.clean().cleaned


def test_a_retention_longer_than_history_deletes_nothing(store: Store) -> None:
    ended(store, 3)
    assert counts(keeping(store, replace(KEPT, claims=1e15)).clean()) == {}


def test_who_changes_locks_is_not_waited_for_and_holds_up_nothing_else(store: Store) -> None:
    expected = everything_old(store)
    house = keeping(store, replace(KEPT, orphaned_locks=0.0))
    with store.database.transaction("operator") as tx:
        tx.execute(store.database.sql("DELETE FROM {lock} WHERE task_id = 'kept1'"))
        begun = time.monotonic()
        tidied = house.clean()
        assert time.monotonic() - begun < AT_ONCE_SEC
    assert {each.what for each in tidied.cleaned if each.left} == {"expired_locks", "orphaned_locks", "lock_creators"}
    assert counts(tidied) == {what: n for what, n in expected.items() if "lock" not in what}
    later = counts(house.clean())
    assert later == {**{what: n for what, n in expected.items() if "lock" in what}, "orphaned_locks": 3}


@pytest.mark.parametrize(
    ("held", "left"),
    [
        ("SELECT FROM {lock} WHERE task_id = 'key1' FOR SHARE", set()),
        ("SELECT FROM {partition} FOR SHARE", {"expired_locks"}),
        ("LOCK TABLE {rebalance} IN SHARE MODE", {"history"}),
    ],
)
def test_what_is_locked_by_hand_is_left_for_the_next_time(store: Store, held: str, left: set[str]) -> None:
    lock(store, "key1", "key2", expires_in=0.001)
    rows(store, f"INSERT INTO {{rebalance}} (triggered_at) VALUES ({OLD})")
    ended(store, 3)
    with store.database.transaction("operator") as tx:
        tx.execute(store.database.sql(held))
        begun = time.monotonic()
        tidied = keeping(store).clean()
        assert time.monotonic() - begun < AT_ONCE_SEC
    assert {each.what for each in tidied.cleaned if each.left} == left
    done, rest = counts(tidied), counts(keeping(store).clean())
    assert {what: done.get(what, 0) + rest.get(what, 0) for what in {*done, *rest}} == {
        "expired_locks": 2,
        "history": 1,
        "claims": 3,
    }
    assert done["claims"] == 3


def test_batches_are_bounded_and_follow_each_other(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 3)
    monkeypatch.setattr(housekeeping, "LOCKS_BATCH", 2)
    ended(store, 10)
    lock(store, *"abcde", expires_in=0.001)
    house = keeping(store)
    seen: list[tuple[str, int]] = []
    original = house._maintenance.delete

    def watched(tx: Any, kind: str, *how: Any, **named: Any) -> Any:
        batch = original(tx, kind, *how, **named)
        seen.append((kind, batch.deleted))
        return batch

    monkeypatch.setattr(house._maintenance, "delete", watched)
    version = rows(store, "SELECT locks_version FROM {cluster}")[0][0]
    assert counts(house.clean()) == {"claims": 10, "expired_locks": 5}
    assert [deleted for kind, deleted in seen if kind == "claims"] == [3, 3, 3, 1]
    assert rows(store, "SELECT locks_version FROM {cluster}")[0][0] == version + 3  # one for each transaction


def test_no_batch_begins_when_the_time_is_over(store: Store) -> None:
    ended(store, 3)
    tidied = keeping(store).clean(longest=0)
    assert counts(tidied) == {} and not tidied.complete


def test_done_runs_go_into_the_audit_when_that_is_wished(store: Store) -> None:
    ended(store, 4)
    ended(store, 3, "failed")
    tidied = keeping(store, replace(KEPT, copy=True, audit=None)).clean()
    assert [each.audited for each in tidied.cleaned if each.what == "claims"] == [4]
    assert rows(store, "SELECT count(*) FROM {audit}") == [(4,)]


def test_two_who_clean_up_at_once_share_the_work(store: Store) -> None:
    ended(store, 20_000)
    retention = replace(KEPT, copy=True, audit=None)
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda _: keeping(store, retention).clean(vacuum=False), range(2)))
    assert sum(counts(each).get("claims", 0) for each in done) == 20_000
    assert rows(store, "SELECT count(*) FROM {audit}") == [(20_000,)]
    assert not [each for one in done for each in one.cleaned if each.what == "claims" and each.left]


def test_the_settings_say_how_long() -> None:
    config = CoordinationConfig(url="postgresql://nobody@localhost/none", audit=True, clear_orphaned_locks=True)
    assert Retention.of(config, "celery") == Retention(
        claims=DAY,
        audit=30 * DAY,
        history=30 * DAY,
        dead_nodes=7 * DAY,
        orphaned_locks=7 * DAY,
        copy=True,
        observations=2 * DAY,
    )
    assert not Retention.of(config, "job").copy, "Jobs write the audit themselves"
    assert Retention.of(CoordinationConfig(url="postgresql://nobody@localhost/none"), "celery").orphaned_locks is None


@contextmanager
def claiming(store: Store, batch: int = 10) -> Iterator[list[float]]:
    """Claim and end runs on a node as fast as it goes; how long each commit took."""
    incarnation = join(store, "claimer")
    with store.database.transaction() as tx:
        store.partitions.assign(tx, dict.fromkeys(range(SHAPE.partitions), "claimer"))
        store.partitions.take(tx, range(SHAPE.partitions), "claimer", incarnation)
    took: list[float] = []
    failed: list[BaseException] = []
    stop = threading.Event()

    def claim() -> None:
        endings: Sequence[Ending] = ()
        with closing(store.database.link("claimer")) as link:
            while not stop.is_set():
                turn = len(took)
                keys = [f"{turn}-{number}" for number in range(batch)]
                wants = [Wanted(Run(k, "o", 0), "t", k, TOKENS.token(k), TOKENS.partition_for(k)) for k in keys]
                begun = time.monotonic()
                done = store.claims.commit(link, "claimer", incarnation, endings, wants)
                took.append(time.monotonic() - begun)
                granted = {want: done.outcomes[want.run] for want in wants}
                endings = [Ending(w.run, o.fence, "done", w.partition) for w, o in granted.items() if _won(o)]
                assert len(endings) == batch and len(done.recorded) in (0, batch)

    def guarded() -> None:
        try:
            claim()
        except BaseException as error:  # noqa: BLE001 - the test's own thread shows it
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join(30)
    assert not failed


def _won(outcome: object) -> bool:
    assert isinstance(outcome, Granted)
    return True


def test_claims_go_on_while_many_rows_are_deleted(store: Store) -> None:
    ended(store, MANY)
    with claiming(store) as took:
        assert eventually(lambda: len(took) > 20)
        before = len(took)
        tidied = keeping(store).clean(vacuum=False)
        during = took[before:]
    assert counts(tidied) == {"claims": MANY}
    assert len(during) >= MANY // 10_000 and max(during) < AT_ONCE_SEC


def test_a_table_that_lost_much_is_vacuumed_and_one_that_lost_little_is_not(store: Store) -> None:
    ended(store, 3000)
    rows(store, f"INSERT INTO {{rebalance}} (triggered_at) SELECT {OLD} FROM generate_series(1, 100)")
    assert keeping(store).clean().vacuumed == ("sync_claim",)

    def vacuumed() -> bool:
        query = "SELECT relname FROM pg_stat_user_tables WHERE vacuum_count > 0 AND analyze_count > 0"
        return rows(store, query) == [("sync_claim",)]

    assert eventually(vacuumed)
    ended(store, 3000)
    assert keeping(store).clean(vacuum=False).vacuumed == ()


def test_a_small_part_of_a_large_table_is_left_to_autovacuum(store: Store) -> None:
    ended(store, 30_000, age="1 minute")
    ended(store, 1500)
    rows(store, "ANALYZE {claim}")
    tidied = keeping(store).clean()
    assert counts(tidied) == {"claims": 1500} and tidied.vacuumed == ()


def test_a_table_that_somebody_has_locked_is_not_vacuumed_and_the_reason_is_told(store: Store) -> None:
    ended(store, 2000)
    with store.database.transaction("operator") as tx:
        tx.execute(store.database.sql("LOCK TABLE {claim} IN SHARE UPDATE EXCLUSIVE MODE"))
        begun = time.monotonic()
        tidied = keeping(store).clean()
        assert time.monotonic() - begun < AT_ONCE_SEC
    assert tidied.complete and tidied.vacuumed == ()
    assert "sync_claim" in tidied.remarks[0]


def test_a_role_that_does_not_own_the_tables_cleans_up_and_is_told_that_it_may_not_vacuum(
    store: Store, database_url: str
) -> None:
    ended(store, 2000)
    role = f"keeper_{make_url(database_url).database}"
    for command in (
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
    ):
        rows(store, command)
    try:
        url = make_url(database_url).set(username=role, password="x").render_as_string(False)
        tidied = keeping(Store(Database(url))).clean()
        assert counts(tidied) == {"claims": 2000} and tidied.vacuumed == ()
        assert "sync_claim" in tidied.remarks[0]
    finally:
        with closing(store.database.link("admin")) as link:
            link.statement(text(f"DROP OWNED BY {role}"))
            link.statement(text(f"DROP ROLE {role}"))
