"""Links: connecting, waiting, failing and recovering, on a real server."""

from __future__ import annotations

import os
import statistics
import threading
import time
from contextlib import suppress

import pytest
from relay import Relay
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from jobsync_celery.errors import SchemaOutdated, StoreError, StoreUnavailable
from jobsync_celery.store.database import Database, Link, Timeouts

ONE = text("SELECT 1")


def sqlstate(error: BaseException) -> object:
    return vars(error)["sqlstate"]


def backend(link: Link) -> int:
    return int(link.statement(text("SELECT pg_backend_pid() AS pid"))[0].pid)


def terminate(other: Link, pid: int) -> None:
    other.statement(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    while other.statement(text("SELECT FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid}):
        time.sleep(0.01)
    time.sleep(0.05)


def insert(tx: Connection, *numbers: int, error: Exception | None = None) -> None:
    for number in numbers:
        tx.execute(text("INSERT INTO t VALUES (:number)"), {"number": number})
    if error:
        raise error


def test_a_link_connects_at_its_first_use(link: Link) -> None:
    assert not link.connected
    assert link.statement(ONE) == [(1,)]
    assert link.connected


def test_a_statement_is_one_round_trip_and_connecting_again_is_one_too(relay: Relay) -> None:
    link = Database(relay.url).link("counted")
    link.statement(ONE)
    link.close()
    relay.queries.clear()
    link.statement(ONE)
    assert len(relay.queries) == 2  # the session's settings, and the statement
    for _ in range(3):
        link.statement(text("SELECT :number"), {"number": 2})
    assert relay.queries[2:] == [b"SELECT 2"] * 3
    link.close()


def test_a_transaction_is_begin_its_statements_and_commit(relay: Relay) -> None:
    link = Database(relay.url).link("counted")
    link.statement(ONE)
    relay.queries.clear()
    with link.transaction() as tx:
        tx.execute(ONE)
    link.statement(ONE)
    assert relay.queries == [b"BEGIN ISOLATION LEVEL READ COMMITTED", b"SELECT 1", b"COMMIT", b"SELECT 1"]
    link.close()


def test_a_transaction_commits_at_its_end_and_rolls_back_on_any_exception(link: Link, other: Link) -> None:
    link.statement(text("CREATE TABLE t (n int PRIMARY KEY)"))
    with link.transaction() as tx:
        tx.execute(text("INSERT INTO t VALUES (1)"))
        assert other.statement(text("SELECT n FROM t")) == []
    with pytest.raises(KeyError), link.transaction() as tx:
        insert(tx, 2, error=KeyError())
    with pytest.raises(StoreError) as caught, link.transaction() as tx:
        insert(tx, 3, 1)
    assert sqlstate(caught.value) == "23505"
    assert not isinstance(caught.value, StoreUnavailable)
    assert caught.value.__cause__ is not None
    assert other.statement(text("SELECT n FROM t")) == [(1,)]
    assert link.connected


def test_a_transaction_with_a_swallowed_error_does_not_pretend_to_have_committed(link: Link) -> None:
    with pytest.raises(StoreError, match="rolled back"), link.transaction() as tx, suppress(SQLAlchemyError):
        tx.execute(text("SELECT 1/0"))
    assert link.statement(ONE) == [(1,)]


def test_a_savepoint_loses_only_its_own_part(link: Link) -> None:
    link.statement(text("CREATE TABLE t (n int PRIMARY KEY)"))
    with link.transaction() as tx:
        tx.execute(text("INSERT INTO t VALUES (1)"))
        with pytest.raises(Exception, match="duplicate"), tx.begin_nested():
            tx.execute(text("INSERT INTO t VALUES (1)"))
        tx.execute(text("INSERT INTO t VALUES (2)"))
    assert link.statement(text("SELECT n FROM t ORDER BY n")) == [(1,), (2,)]


def test_a_notification_wakes_a_waiting_link_within_100_ms(database: Database, link: Link, other: Link) -> None:
    link.listen(database.channel)
    other.connect()
    sent: list[float] = []
    heard: list[float] = []

    def notify() -> None:
        sent.append(time.monotonic())
        other.statement(text("SELECT pg_notify(:channel, 'plan 7')"), {"channel": database.channel})

    for _ in range(5):
        timer = threading.Timer(0.1, notify)
        timer.start()
        assert link.wait(5) == ["plan 7"]
        heard.append(time.monotonic())
        timer.join()
    assert statistics.median(later - earlier for earlier, later in zip(sent, heard, strict=True)) < 0.1


def test_a_notification_that_came_with_a_statement_is_not_slept_over(
    database: Database, link: Link, other: Link
) -> None:
    link.listen(database.channel)
    other.statement(text(f"NOTIFY {database.channel}, 'early'"))
    link.statement(ONE)
    start = time.monotonic()
    assert link.wait(5) == ["early"]
    assert time.monotonic() - start < 4
    assert link.wait(0) == []


@pytest.mark.parametrize("connected", [True, False])
def test_waiting_ends_at_the_timeout_or_when_the_wake_descriptor_is_readable(link: Link, connected: bool) -> None:
    if connected:
        link.connect()
    reading, writing = os.pipe()
    try:
        start = time.monotonic()
        assert link.wait(0.2, reading) == []
        assert time.monotonic() - start > 0.19
        os.write(writing, b"x")
        assert link.wait(60, reading) == []
        assert os.read(reading, 10) == b"x"
    finally:
        os.close(reading)
        os.close(writing)


def test_waiting_on_a_connection_that_breaks_ends_without_an_error(link: Link, other: Link) -> None:
    pid = backend(link)
    timer = threading.Timer(0.1, terminate, (other, pid))
    timer.start()
    assert link.wait(60) == []
    assert not link.connected
    timer.join()


def test_a_link_connects_and_listens_again_after_its_backend_was_terminated(
    database: Database, link: Link, other: Link
) -> None:
    link.listen(database.channel)
    terminate(other, backend(link))
    assert link.statement(ONE) == [(1,)]
    terminate(other, backend(link))
    with link.transaction() as tx:
        tx.execute(ONE)
    other.statement(text(f"NOTIFY {database.channel}, 'again'"))
    assert link.wait(2) == ["again"]


def test_a_backend_terminated_within_a_transaction_is_unavailable_and_then_replaced(link: Link) -> None:
    pid = backend(link)
    with pytest.raises(StoreUnavailable), link.transaction() as tx:
        tx.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert not link.connected
    assert backend(link) != pid


def test_a_statement_that_takes_too_long_is_unavailable(link: Link) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        link.statement(text("SELECT pg_sleep(10)"))
    assert sqlstate(caught.value) == "57014"
    assert link.statement(ONE) == [(1,)]


def test_a_lock_that_is_not_granted_is_unavailable(link: Link, other: Link) -> None:
    link.statement(text("CREATE TABLE t (n int)"))
    with other.transaction() as tx:
        tx.execute(text("LOCK TABLE t"))
        with pytest.raises(StoreUnavailable) as caught:
            link.statement(text("SELECT * FROM t"))
    assert sqlstate(caught.value) == "55P03"


def test_a_missing_table_is_an_outdated_schema(database: Database, link: Link) -> None:
    with pytest.raises(SchemaOutdated, match="sync_node"):
        link.statement(database.sql("SELECT * FROM {node}"))


def test_a_read_only_server_is_unavailable_and_left_at_once(database_url: str, link: Link) -> None:
    name = make_url(database_url).database
    link.statement(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
    link.close()
    with pytest.raises(StoreUnavailable) as caught:
        link.statement(text("CREATE TABLE t (n int)"))
    assert sqlstate(caught.value) == "25006"
    assert not link.connected  # the next connection may find the new primary


def test_a_server_that_stops_answering_is_unavailable_in_time(relay: Relay) -> None:
    link = Database(relay.url, timeouts=Timeouts(statement=0.3, tcp_user=0.3)).link("frozen")
    link.statement(ONE)
    relay.stop_answering()
    start = time.monotonic()
    with pytest.raises(StoreUnavailable):
        link.statement(ONE)
    assert time.monotonic() - start < 2.5
    relay.answer_again()
    assert link.statement(ONE) == [(1,)]
    link.close()


def test_a_child_that_discards_its_links_leaves_the_parents_connection_usable(database: Database, link: Link) -> None:
    link.listen(database.channel)
    before = backend(link)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            database.discard_after_fork()
            own = backend(link)  # a new connection, of the child's own
            link.close()
            status = 0 if own != before else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert backend(link) == before


def test_a_command_tells_what_the_server_remarked(link: Link) -> None:
    assert link.command(text("DO $$ BEGIN RAISE WARNING 'mind the gap'; END $$")) == ["mind the gap"]
    assert link.command(text("SELECT 1")) == []
