"""The database: its address, its names, and what its errors tell."""

from __future__ import annotations

import time
import traceback

import pytest
from sqlalchemy import make_url, text

from jobsync_celery.errors import SettingsError, StoreError, StoreUnavailable
from jobsync_celery.store.database import Database, Link, Timeouts

ONE = text("SELECT 1")


def test_a_session_has_a_name_timeouts_and_durable_commits(database_url: str) -> None:
    admin = Database(database_url).link("admin")
    name = make_url(database_url).database
    admin.statement(text(f'ALTER DATABASE "{name}" SET synchronous_commit = off'))
    admin.statement(text(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'"))
    admin.close()
    link = Database(database_url, timeouts=Timeouts(statement=1.5, lock=0.5, idle_in_transaction=2.5)).link("me")
    expected = {
        "application_name": "me",
        "statement_timeout": "1500ms",
        "lock_timeout": "500ms",
        "idle_in_transaction_session_timeout": "2500ms",
        "synchronous_commit": "on",
        "transaction_isolation": "read committed",
    }
    assert {name: link.statement(text(f"SHOW {name}"))[0][0] for name in expected} == expected
    link.close()


def test_a_link_may_have_limits_of_its_own_on_the_client_s_side_too(database_url: str) -> None:
    database = Database(database_url, timeouts=Timeouts(statement=0.2, tcp_user=0.1))
    link = database.link("patient", Timeouts(statement=20.0, lock=0.7))
    expected = {"statement_timeout": "20s", "lock_timeout": "700ms"}
    assert {name: link.statement(text(f"SHOW {name}"))[0][0] for name in expected} == expected
    link.statement(text("SELECT pg_sleep(1.5)"))
    link.close()


def test_no_server_is_unavailable(database_url: str) -> None:
    url = make_url(database_url).set(host="127.0.0.1", port=1, query={}).render_as_string(False)
    link = Database(url).link("nobody")
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        link.statement(ONE)
    with pytest.raises(StoreUnavailable), link.transaction():
        pass
    assert link.wait(0.01) == []


@pytest.mark.parametrize(
    "change",
    [
        {"host": "127.0.0.1", "port": 1, "query": {}},
        {"host": "nowhere.invalid", "port": 5432, "query": {}},
        {"database": "no_such_database"},
        {"username": "no_such_role"},
        {"query": {"sslmode": "nonsense"}},
        {"query": {"nonsense": "1"}},
    ],
)
def test_a_password_never_appears_in_an_error(database_url: str, change: dict[str, object]) -> None:
    url = make_url(database_url)
    query = {**url.query, **change.get("query", {})} if "host" not in change else {}  # type: ignore[dict-item]
    url = url.set(password="hunter22").set(**{**change, "query": query})  # type: ignore[arg-type]
    database = Database(url.render_as_string(False))
    link = database.link("secretive")
    with pytest.raises(StoreError) as caught:
        link.statement(ONE)
    assert "hunter22" not in "".join(traceback.format_exception(caught.value))
    assert "hunter22" not in f"{database!r} {link!r}"


@pytest.mark.parametrize(
    "url",
    [
        "hunter22",
        "mysql://a:hunter22@h/d",
        "postgresql+asyncpg://a:hunter22@h/d",
        "postgresql://a:x@hunter22@h/d",
        "postgresql://a:b@h:hunter22/d",
    ],
)
def test_an_unusable_url_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Database(url)
    assert "hunter22" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("prefix", ["", "1_", 'a"b', "a b", "a;b", "Sync_", "x" * 60])
def test_a_prefix_that_is_no_identifier_is_refused(database_url: str, prefix: str) -> None:
    with pytest.raises(SettingsError, match="appname"):
        Database(database_url, prefix=prefix)


def test_channels_differ_by_schema_and_prefix_and_fit(database_url: str) -> None:
    names = [("sync_", None), ("sync_", "a"), ("b_sync_", "a"), ("sync_", "a_b"), ("x" * 40, "y" * 60)]
    channels = [Database(database_url, prefix=prefix, schema=schema).channel for prefix, schema in names]
    assert len(set(channels)) == len(channels)
    assert all(channel.isidentifier() and len(channel) <= 63 for channel in channels)


def test_a_short_lived_transaction_leaves_no_connection(database: Database, link: Link) -> None:
    with database.transaction("jobsync report") as tx:
        assert tx.execute(ONE).scalar() == 1
    query = text("SELECT FROM pg_stat_activity WHERE application_name = 'jobsync report'")
    deadline = time.monotonic() + 2
    while link.statement(query) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert link.statement(query) == []
