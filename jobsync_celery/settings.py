"""The settings: taken once, checked as a whole, frozen."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import quote, urlencode

from jobsync_celery.errors import SettingsError

HASH_NAMES = ("md5", "sha256", "double_sha256")
MODES = ("coordinate", "observe")
DATABASE_PARTS = ("host", "port", "dbname", "user", "password")
DRIVER = "postgresql+psycopg2"

_EXAMPLE = 'url="postgresql+psycopg2://user@host/dbname"'
_HIDDEN = "***"


@dataclass(frozen=True, kw_only=True, repr=False)
class CoordinationConfig:
    """All settings of one cluster, the same for its workers, producers and command line.

    Raises SettingsError, with the rule in the message, for an unknown name, a wrong type or value, and
    an impossible combination. Times are in seconds.

    url, or any of host, port, dbname, user, password: the PostgreSQL database.
    total_tokens, partitions, hash_function: how keys map to queues; the cluster's, until it is reshaped.
    minimum_nodes, wait_on_enter: nodes and time to wait for before the first plan.
    heartbeat_interval_sec, heartbeat_timeout_sec: how often a node renews its lease, and its length.
    rebalance_check_interval_sec: how often beat looks whether a plan is missing.
    appname, schema, queue_prefix: prefix of the tables, their schema, prefix of the queues.
    lock_partitions: partitions of each pool of task locks.
    hold_limit: messages a node holds back for keys that are running.
    claim_retention: how long a run recorded done is remembered.
    history_retention, dead_node_retention, audit_retention: how long plans, rows of dead nodes, and completed runs
        in the audit are kept.
    audit: whether tasks that are done are copied into the audit when their claims are deleted.
    clear_orphaned_locks: whether maintenance clears old task locks whose creator is gone.
    max_lost_runs: after so many runs that were lost because a worker or pool child died, the task is failed.
    rejoin_grace_sec: how long the partitions of a node that has gone wait for its name to return.
    node_name, weight: this worker's name (None: Celery's nodename) and its share relative to others
        ("concurrency": the size of its pool).
    tasks: key of each task that producers without its code publish, or that is observed: argument name or position.
    mode: "observe" changes nothing about how tasks run, and records what coordination would prevent.
    observation_retention: how long what was observed is kept.
    enabled: False switches coordination off; no database is needed then.
    """

    url: str | None = None
    host: str | None = None
    port: int | None = None
    dbname: str | None = None
    user: str | None = None
    password: str | None = None
    total_tokens: int = 10000
    partitions: int = 64
    minimum_nodes: int = 1
    wait_on_enter: float = 0
    heartbeat_interval_sec: float = 5
    heartbeat_timeout_sec: float = 15
    rebalance_check_interval_sec: float = 30
    hash_function: str = "double_sha256"
    appname: str = "sync_"
    schema: str | None = None
    queue_prefix: str = "jobsync-"
    lock_partitions: int = 1
    hold_limit: int = 1000
    claim_retention: float = 86400
    history_retention: float = 30 * 86400
    dead_node_retention: float = 7 * 86400
    audit_retention: float = 30 * 86400
    audit: bool = False
    clear_orphaned_locks: bool = False
    max_lost_runs: int = 3
    rejoin_grace_sec: float = 0
    node_name: str | None = None
    weight: float | str = 1.0
    mode: str = "coordinate"
    observation_retention: float = 2 * 86400
    enabled: bool = True
    tasks: Mapping[str, str | int] = field(default_factory=dict, hash=False)

    def __new__(cls, *_: object, **settings: object) -> CoordinationConfig:
        """Refuse unknown names, which the generated __init__ would answer with a bare TypeError."""
        _refuse_unknown(settings)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        _check_each(self)
        _check_combinations(self)
        _check_database(self)
        object.__setattr__(self, "tasks", _checked_tasks(self.tasks))

    def __repr__(self) -> str:
        shown = (f"{name}={_shown(name, getattr(self, name))}" for name in NAMES)
        return f"CoordinationConfig({', '.join(shown)})"

    @classmethod
    def of(cls, source: object) -> CoordinationConfig | None:
        """Return the settings given as a CoordinationConfig, a mapping, or an object with attributes.

        Names may be in any case. An object's private attributes, methods, classes and modules are no
        settings. None for None and for enabled=False: coordination is off.
        """
        if source is None:
            return None
        config = source if isinstance(source, CoordinationConfig) else cls(**_settings_in(source))
        return config if config.enabled else None

    @property
    def observes(self) -> bool:
        """Whether tasks are only observed."""
        return self.mode == "observe"

    def check_visibility(self, seconds: float) -> None:
        """Raise SettingsError if claim_retention is under twice the broker's visibility timeout."""
        if self.claim_retention < 2 * seconds:
            raise SettingsError(
                f"claim_retention={self.claim_retention} must be at least twice the broker's visibility "
                f"timeout ({seconds} s): a message delivered again must still find its run recorded"
            )

    def database_url(self) -> str:
        """Return the database's URL for SQLAlchemy, password included; SettingsError if none is named."""
        if self.url is not None:
            return f"{DRIVER}://{self.url.partition('://')[2]}"
        if not _named_parts(self):
            raise SettingsError(f"no database is named: write {_EXAMPLE}")
        return _url_of_parts(self)

    def weight_for(self, pool_size: int) -> float:
        """Return the weight of a node whose worker runs so many tasks at a time."""
        return pool_size if isinstance(self.weight, str) else self.weight

    @property
    def statement_timeout(self) -> float:
        """Longest time for one statement: a fifth of the lease, 0.2 to 5 seconds."""
        return min(5.0, max(0.2, self.heartbeat_timeout_sec / 5))

    @property
    def lock_timeout(self) -> float:
        """Longest wait for a row lock, in seconds: half a statement's time."""
        return self.statement_timeout / 2

    @property
    def connect_timeout(self) -> float:
        """Longest time to connect to the database, in seconds: as long as a statement."""
        return self.statement_timeout


NAMES = tuple(each.name for each in fields(CoordinationConfig))


@dataclass(frozen=True)
class _Number:
    low: float
    high: float = math.inf
    whole: bool = False
    word: str | None = None

    def admits(self, value: object) -> bool:
        if isinstance(value, str):
            return value == self.word
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return math.isfinite(value) and self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        limits = f"{self.low} or more" if self.high == math.inf else f"{self.low} to {self.high}"
        return f"{kind}, {limits}" + (f', or "{self.word}"' if self.word else "")


@dataclass(frozen=True)
class _Text:
    pattern: str
    rule: str

    def admits(self, value: object) -> bool:
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return f"a string: {self.rule}"


_RULES: Mapping[str, _Number | _Text] = {
    "url": _Text(r"[^\0]+", f"as in {_EXAMPLE}"),
    "host": _Text(r"[^\s\0]+", "not empty, without spaces"),
    "port": _Number(1, 65535, whole=True),
    "dbname": _Text(r"[^\0]+", "not empty"),
    "user": _Text(r"[^\0]+", "not empty"),
    "password": _Text(r"[^\0]*", "without NUL"),
    "total_tokens": _Number(1, 2**31 - 1, whole=True),
    "partitions": _Number(1, 65536, whole=True),
    "minimum_nodes": _Number(1, whole=True),
    "wait_on_enter": _Number(0),
    "heartbeat_interval_sec": _Number(0.1),
    "heartbeat_timeout_sec": _Number(0.2),
    "rebalance_check_interval_sec": _Number(0.1),
    "hash_function": _Text("|".join(HASH_NAMES), f"one of {', '.join(HASH_NAMES)}"),
    "appname": _Text(r"[a-z_][a-z0-9_]{0,31}", "an identifier of at most 32 of a-z, 0-9 and _"),
    "schema": _Text(r"[a-z_][a-z0-9_]{0,62}", "an identifier of at most 63 of a-z, 0-9 and _"),
    "queue_prefix": _Text(
        r"(?!amq\.)[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}",
        "at most 64 letters, digits and _ . -, beginning with none of . - amq.",
    ),
    "lock_partitions": _Number(1, 64, whole=True),
    "hold_limit": _Number(1, whole=True),
    "claim_retention": _Number(1),
    "history_retention": _Number(3600),  # status counts the plans of the last hour
    "dead_node_retention": _Number(60),
    "audit_retention": _Number(86400),  # today's is asked for until the day is over
    "observation_retention": _Number(3600),
    "max_lost_runs": _Number(1, whole=True),
    "rejoin_grace_sec": _Number(0),
    "node_name": _Text(r"[^\s\0]{1,255}", "1 to 255 characters without spaces"),
    "weight": _Number(0, word="concurrency"),
}

_OPTIONAL = frozenset(("url", "schema", "node_name", *DATABASE_PARTS))
_SWITCHES = ("enabled", "audit", "clear_orphaned_locks")


def _refuse_unknown(settings: Mapping[str, object]) -> None:
    for name in settings:
        if name not in NAMES:
            nearest = difflib.get_close_matches(str(name).lower(), NAMES, n=1, cutoff=0.0)[0]
            raise SettingsError(f"unknown setting {name!r}: the nearest valid one is {nearest!r}")


def _check_each(config: CoordinationConfig) -> None:
    _check_mode(config.mode)
    for name in _SWITCHES:
        if not isinstance(getattr(config, name), bool):
            raise SettingsError(f"{name} must be True or False, not {getattr(config, name)!r}")
    for name, rule in _RULES.items():
        value = getattr(config, name)
        optional = value is None and name in _OPTIONAL
        if not optional and not rule.admits(value):
            raise SettingsError(f"{name} must be {rule}, not {_shown(name, value)}")


def _check_mode(mode: object) -> None:
    if mode not in MODES:
        nearest = difflib.get_close_matches(str(mode).lower(), MODES, n=1, cutoff=0.0)[0]
        raise SettingsError(f"mode must be one of {', '.join(MODES)}, not {mode!r}: the nearest is {nearest!r}")


def _check_combinations(config: CoordinationConfig) -> None:
    if config.heartbeat_timeout_sec < 2 * config.heartbeat_interval_sec:
        raise SettingsError(
            f"heartbeat_timeout_sec={config.heartbeat_timeout_sec} must be at least twice "
            f"heartbeat_interval_sec={config.heartbeat_interval_sec}: one lost heartbeat is no death"
        )
    if config.partitions > config.total_tokens:
        raise SettingsError(
            f"partitions={config.partitions} must not exceed total_tokens={config.total_tokens}: "
            "every partition holds a token"
        )
    if config.dead_node_retention < config.heartbeat_timeout_sec + config.rejoin_grace_sec:
        raise SettingsError(
            f"dead_node_retention={config.dead_node_retention} must be at least heartbeat_timeout_sec + "
            f"rejoin_grace_sec ({config.heartbeat_timeout_sec + config.rejoin_grace_sec} s): "
            "a name that may still return is known by its row"
        )
    if config.audit and config.audit_retention <= config.claim_retention:
        raise SettingsError(
            f"audit_retention={config.audit_retention} must be more than claim_retention={config.claim_retention} "
            "with audit=True: a run is copied when its claim is deleted, and both count from its end"
        )


def _check_database(config: CoordinationConfig) -> None:
    parts = _named_parts(config)
    if config.url is not None:
        if parts:
            raise SettingsError(f"name the database once: by url, or by {', '.join(parts)}, not by both")
        _check_url(config.url)
    elif config.enabled and not parts:
        raise SettingsError(f"no database is named: write {_EXAMPLE}, or host, or enabled=False")


def _check_url(url: str) -> None:
    if url == "embedded":
        raise SettingsError(f'url="embedded" is not supported yet: name a PostgreSQL server, {_EXAMPLE}')
    scheme = re.match(r"[A-Za-z][\w+.]*(?=://)", url)
    if scheme is None:
        # Not shown: without a scheme nobody can tell where a password would begin.
        raise SettingsError(f"url must begin with a scheme: write {_EXAMPLE}")
    if scheme[0] not in ("postgresql", "postgres", DRIVER):
        raise SettingsError(f"url must be PostgreSQL through psycopg2, not {scheme[0]!r}: write {_EXAMPLE}")


def _checked_tasks(tasks: object) -> dict[str, str | int]:
    if not isinstance(tasks, Mapping):
        raise SettingsError(f"tasks must be a mapping of task name to key, not {type(tasks).__name__}")
    for task, key in tasks.items():
        if not isinstance(task, str) or not task:
            raise SettingsError(f"tasks must be named by non-empty strings, not {task!r}")
        position = isinstance(key, int) and not isinstance(key, bool) and key >= 0
        if not position and not (isinstance(key, str) and key.isidentifier()):
            rule = "an argument's name or position (0, 1 …)"
            raise SettingsError(f"tasks[{task!r}] must be {rule}, not {key!r}")
    return dict(tasks)


def _named_parts(config: CoordinationConfig) -> list[str]:
    return [name for name in DATABASE_PARTS if getattr(config, name) is not None]


def _url_of_parts(config: CoordinationConfig) -> str:
    login = quote(config.user or "postgres", safe="")
    if config.password is not None:
        login += f":{quote(config.password, safe='')}"
    host, port = config.host or "localhost", config.port or 5432
    dbname = quote(config.dbname or "jobsync", safe="")
    if host.startswith("/"):  # the directory of a Unix socket
        return f"{DRIVER}://{login}@/{dbname}?{urlencode({'host': host, 'port': port})}"
    server = f"[{host}]" if ":" in host else host
    return f"{DRIVER}://{login}@{server}:{port}/{dbname}"


def _settings_in(source: object) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in _pairs(source):
        lowered = str(name).lower()
        if lowered in settings:
            raise SettingsError(f"{lowered!r} is set twice, in different case")
        settings[lowered] = value
    return settings


def _pairs(source: object) -> Iterable[tuple[object, object]]:
    if isinstance(source, Mapping):
        return source.items()
    if isinstance(source, (str, bytes, bool, int, float, list, tuple, set)):
        raise SettingsError(
            "jobsync must be a CoordinationConfig, a mapping, an object with attributes, or None for off, "
            f"not {type(source).__name__}"
        )
    public = ((name, getattr(source, name)) for name in dir(source) if not name.startswith("_"))
    return [(name, value) for name, value in public if not (callable(value) or inspect.ismodule(value))]


def _shown(name: str, value: object) -> str:
    """Show a value, without the secrets that it may hold."""
    if value is None or name not in ("url", "password"):
        return repr(value)
    if name == "password" or not isinstance(value, str):
        return f"<{type(value).__name__}>"
    # To the last @, since a password that was not encoded may hold one: rather too much than too little.
    masked = re.sub(r"(://[^:@]*):.*@", rf"\1:{_HIDDEN}@", value, flags=re.DOTALL)
    masked = re.sub(r"(?i)(password=)[^&]*", rf"\1{_HIDDEN}", masked)
    return repr(masked if "://" in value else _HIDDEN)
