from __future__ import annotations

import dataclasses
import logging
import math
import pickle
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from jobsync_celery.core.tokens import HASH_FUNCTIONS
from jobsync_celery.errors import SettingsError
from jobsync_celery.settings import HASH_NAMES, CoordinationConfig

URL = "postgresql+psycopg2://me:pa55@db:5433/jobs"


def config(**settings: object) -> CoordinationConfig:
    return CoordinationConfig(**{"url": URL, **settings})  # type: ignore[arg-type]


def test_the_defaults_are_the_guides() -> None:
    given = config()
    assert (given.total_tokens, given.partitions, given.minimum_nodes) == (10000, 64, 1)
    assert (given.heartbeat_interval_sec, given.heartbeat_timeout_sec) == (5, 15)
    assert (given.rebalance_check_interval_sec, given.wait_on_enter) == (30, 0)
    assert (given.hash_function, given.appname, given.queue_prefix) == ("double_sha256", "sync_", "jobsync-")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().partitions = 3  # type: ignore[misc]


def test_settings_knows_the_hash_functions_of_the_core() -> None:
    assert tuple(HASH_FUNCTIONS) == HASH_NAMES


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("partition", "partitions"),
        ("heartbeat_timeout", "heartbeat_timeout_sec"),
        ("URL", "url"),
        ("xyzzy", ""),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_valid_one(wrong: str, nearest: str) -> None:
    with pytest.raises(SettingsError, match=f"'{wrong}': the nearest valid one is '{nearest}"):
        config(**{wrong: 1})


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"heartbeat_interval_sec": 8}, "at least twice"),
        ({"partitions": 11, "total_tokens": 10}, "must not exceed total_tokens"),
        ({"total_tokens": 0}, "total_tokens must be a whole number, 1"),
        ({"total_tokens": -5}, "total_tokens must be a whole number"),
        ({"total_tokens": 10000.0}, "whole number"),
        ({"partitions": True}, "whole number"),
        ({"partitions": "64"}, "whole number"),
        ({"minimum_nodes": -1}, "minimum_nodes must be"),
        ({"heartbeat_timeout_sec": math.inf}, "finite number"),
        ({"heartbeat_interval_sec": 0}, "heartbeat_interval_sec must be"),
        ({"wait_on_enter": -1}, "wait_on_enter must be"),
        ({"wait_on_enter": math.nan}, "wait_on_enter must be"),
        ({"weight": -0.1}, "weight must be"),
        ({"weight": None}, "weight must be"),
        ({"weight": True}, "weight must be"),
        ({"weight": math.nan}, "weight must be"),
        ({"weight": "2"}, "weight must be a finite number, 0 or more, or \"concurrency\", not '2'"),
        ({"weight": "Concurrency"}, "weight must be"),
        ({"lock_partitions": 0}, "lock_partitions must be a whole number, 1 to 64"),
        ({"lock_partitions": 65}, "lock_partitions must be"),
        ({"lock_partitions": 1.0}, "lock_partitions must be"),
        ({"hold_limit": 0}, "hold_limit must be"),
        ({"claim_retention": 0}, "claim_retention must be a finite number, 1 or more"),
        ({"history_retention": 3599}, "history_retention must be a finite number, 3600"),
        ({"dead_node_retention": 59}, "dead_node_retention must be a finite number, 60"),
        ({"dead_node_retention": 100, "rejoin_grace_sec": 90}, "at least heartbeat_timeout_sec \\+ rejoin_grace_sec"),
        ({"audit_retention": 86399}, "audit_retention must be a finite number, 86400"),
        ({"audit_retention": None}, "audit_retention must be"),
        ({"audit": 1}, "audit must be True or False, not 1"),
        ({"audit": True, "audit_retention": 86400}, "must be more than claim_retention=86400 with audit=True"),
        ({"clear_orphaned_locks": "yes"}, "clear_orphaned_locks must be True or False"),
        ({"mode": "observ"}, "mode must be one of coordinate, observe, not 'observ': the nearest is 'observe'"),
        ({"mode": None}, "mode must be one of coordinate, observe, not None"),
        ({"observation_retention": 3599}, "observation_retention must be a finite number, 3600"),
        ({"hash_function": "nope"}, "one of md5, sha256, double_sha256"),
        ({"appname": "x; drop table y"}, "identifier"),
        ({"appname": "1x"}, "identifier"),
        ({"appname": "x" * 33}, "identifier"),
        ({"appname": "sync_\n"}, "identifier"),
        ({"appname": None}, "identifier"),
        ({"schema": "Public"}, "identifier"),
        ({"queue_prefix": "a b"}, "letters, digits"),
        ({"queue_prefix": "amq.x"}, "amq."),
        ({"queue_prefix": ""}, "letters, digits"),
        ({"node_name": ""}, "1 to 255 characters"),
        ({"node_name": "a b"}, "1 to 255 characters"),
        ({"enabled": "no"}, "True or False"),
        ({"tasks": ["a"]}, "mapping of task name"),
        ({"tasks": {"": "a"}}, "non-empty strings"),
        ({"tasks": {"a": True}}, "name or position"),
        ({"tasks": {"a": -1}}, "name or position"),
        ({"tasks": {"a": "not a name"}}, "name or position"),
        ({"host": "db"}, "by url, or by host, not by both"),
        ({"password": "x", "port": 1}, "by port, password, not by both"),
        ({"url": "embedded"}, "not supported yet"),
        ({"url": "mysql://me@db/jobs"}, "not 'mysql'"),
        ({"url": "postgresql+asyncpg://me@db/jobs"}, "not 'postgresql\\+asyncpg'"),
        ({"url": "db/jobs"}, "begin with a scheme"),
        ({"url": ""}, "url must be"),
        ({"url": 5}, "url must be"),
        ({"url": None}, 'no database is named: write url="postgresql\\+psycopg2://user@host/dbname"'),
        ({"url": None, "host": ""}, "host must be"),
        ({"url": None, "host": "db", "port": 65536}, "port must be"),
        ({"url": None, "host": "db", "port": "5432"}, "port must be"),
    ],
)
def test_an_impossible_setting_is_refused_with_the_rule(settings: dict[str, object], rule: str) -> None:
    with pytest.raises(SettingsError, match=rule):
        config(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"heartbeat_interval_sec": 0.5, "heartbeat_timeout_sec": 1},
        {"partitions": 10, "total_tokens": 10},
        {"schema": "jobs", "appname": "_a1", "queue_prefix": "Jobs.v1_"},
        {"tasks": {"proj.settle": "account_id", "proj.other": 0}},
        {"weight": 0, "node_name": "worker-01", "rejoin_grace_sec": 20.5},
        {"weight": "concurrency", "lock_partitions": 64},
        {"claim_retention": 1, "history_retention": 3600, "dead_node_retention": 60, "audit_retention": 86400},
        {"mode": "observe", "observation_retention": 3600},
        {"audit": True, "clear_orphaned_locks": True, "audit_retention": 86401},
    ],
)
def test_possible_settings_are_taken_as_given(settings: dict[str, object]) -> None:
    given = config(**settings)
    assert {name: getattr(given, name) for name in settings} == settings


def test_a_weight_is_the_number_given_or_the_size_of_the_pool() -> None:
    assert config(weight=2.5).weight_for(8) == 2.5
    assert config(weight="concurrency").weight_for(8) == 8


def test_a_host_alone_is_completed_with_the_guides_defaults() -> None:
    url = CoordinationConfig(host="db.example.org").database_url()
    assert url == "postgresql+psycopg2://postgres@db.example.org:5432/jobsync"


def test_any_part_names_the_database() -> None:
    url = CoordinationConfig(dbname="jobs").database_url()
    assert url == "postgresql+psycopg2://postgres@localhost:5432/jobs"


@pytest.mark.parametrize("host", ["db", "10.0.0.1", "::1", "/var/run/postgresql"])
@settings(deadline=None)
@given(password=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
def test_sqlalchemy_reads_back_every_part(host: str, password: str) -> None:
    given = CoordinationConfig(host=host, port=5433, user="a:b@c/d", password=password, dbname="j s/x")
    url = make_url(given.database_url())
    assert (url.username, url.password or "", url.drivername) == ("a:b@c/d", password, "postgresql+psycopg2")
    assert (url.host or url.query["host"], str(url.port or url.query["port"])) == (host, "5433")
    assert url.database in ("j s/x", "j%20s%2Fx")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_every_spelling_of_postgresql_means_psycopg2(scheme: str) -> None:
    given = config(url=f"{scheme}://me:pa55@db:5433/jobs?sslmode=require")
    assert given.database_url() == f"{URL}?sslmode=require"


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "postgresql://me:s3cret@db/jobs"},
        {"url": "postgresql://me:s3cr@s3cret/s3cret@db/jobs"},
        {"url": "postgresql://:s3cret@db/jobs"},
        {"url": "postgresql://db/jobs?user=me&password=s3cret&sslmode=require"},
        {"url": "mysql://me:s3cret@db/jobs"},
        {"url": "me:s3cret@db/jobs"},
        {"url": "postgresql://me:s3cret\0@db/jobs"},
        {"url": None, "host": "db", "password": "s3cret"},
        {"url": None, "host": "db", "password": "s3cret\0"},
        {"url": None, "host": "db", "password": b"s3cret"},
        {"host": "db", "password": "s3cret"},
    ],
)
def test_no_text_shows_a_password(settings: dict[str, object]) -> None:
    try:
        shown = repr(config(**settings))
    except SettingsError as error:
        shown = str(error)
    assert "s3cret" not in shown


def test_the_repr_shows_everything_else() -> None:
    shown = repr(config(partitions=7))
    assert "url='postgresql+psycopg2://me:***@db:5433/jobs'" in shown
    assert "partitions=7" in shown


def test_nothing_switches_coordination_off() -> None:
    assert CoordinationConfig.of(None) is None


@pytest.mark.parametrize("source", [{"enabled": False}, {"ENABLED": False, "url": URL}])
def test_disabled_settings_switch_it_off_and_need_no_database(source: dict[str, object]) -> None:
    assert CoordinationConfig.of(source) is None
    assert CoordinationConfig.of(CoordinationConfig(enabled=False)) is None


def test_disabled_settings_name_no_database() -> None:
    with pytest.raises(SettingsError, match="no database is named"):
        CoordinationConfig(enabled=False).database_url()


def test_settings_are_taken_as_they_are() -> None:
    given = config()
    assert CoordinationConfig.of(given) is given


class Plain:
    url = URL
    PARTITIONS = 7
    _private = 1

    class Nested:
        pass

    def method(self) -> None: ...


def module() -> types.ModuleType:
    made = types.ModuleType("jobsync_settings", "Settings of a project.")
    vars(made).update(URL=URL, PARTITIONS=7, logging=logging)
    return made


@pytest.mark.parametrize(
    "source",
    [
        {"url": URL, "partitions": 7},
        {"URL": URL, "Partitions": 7},
        types.MappingProxyType({"url": URL, "partitions": 7}),
        types.SimpleNamespace(url=URL, partitions=7),
        Plain,
        Plain(),
        module(),
    ],
)
def test_settings_come_from_mappings_and_objects_in_any_case(source: object) -> None:
    assert CoordinationConfig.of(source) == config(partitions=7)


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ({"HEARTBEAT_TIMEOUT": 3}, "nearest valid one is 'heartbeat_timeout_sec'"),
        (types.SimpleNamespace(url=URL, partition=3), "nearest valid one is 'partitions'"),
        ({"url": URL, "URL": URL}, "set twice"),
        ({1: 2}, "unknown setting '1'"),
        ({}, "no database is named"),
        (URL, "must be a CoordinationConfig, a mapping"),
        (False, "must be a CoordinationConfig, a mapping"),
    ],
)
def test_wrong_sources_are_refused_with_the_rule(source: object, rule: str) -> None:
    with pytest.raises(SettingsError, match=rule):
        CoordinationConfig.of(source)


def test_retention_under_twice_the_visibility_timeout_is_refused() -> None:
    config(claim_retention=7200).check_visibility(3600)
    with pytest.raises(SettingsError, match="at least twice the broker's visibility timeout"):
        config(claim_retention=7199).check_visibility(3600)


@pytest.mark.parametrize(("timeout", "statement"), [(15, 3), (60, 5), (0.5, 0.2)])
def test_database_timeouts_stay_well_under_the_lease(timeout: float, statement: float) -> None:
    given = config(heartbeat_timeout_sec=timeout, heartbeat_interval_sec=timeout / 3)
    assert given.statement_timeout == given.connect_timeout == statement
    assert given.lock_timeout == statement / 2


def test_settings_survive_pickling_and_can_be_members_of_sets() -> None:
    given = config(tasks={"proj.settle": "account_id"})
    assert pickle.loads(pickle.dumps(given)) == given
    assert len({given, pickle.loads(pickle.dumps(given))}) == 1
    assert dataclasses.replace(given, partitions=3).partitions == 3


def test_the_tasks_given_can_change_without_changing_the_settings() -> None:
    tasks = {"proj.settle": "account_id"}
    given = config(tasks=tasks)
    tasks.clear()
    assert given.tasks == {"proj.settle": "account_id"}
