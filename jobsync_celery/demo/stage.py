"""Where the demo plays: its broker, its database and its folder, and how nothing of it is left there."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from jobsync_celery.servers import PrivatePostgres, PrivateRedis
from jobsync_celery.servers.process import Guard

_VARIABLE = "JOBSYNC_DEMO_STAGE"
#: What would point the demo's Celery or its programs somewhere else.
_FOREIGN = ("APP", "BROKER_URL", "RESULT_BACKEND", "LOADER", "CONFIG_MODULE", _VARIABLE)


@dataclass(frozen=True)
class Stage:
    """All that a process of the demo needs to know.

    ``appname`` begins the tables' names, ``prefix`` those of the queues; both are the demo's own.
    """

    broker: str
    database: str
    appname: str
    prefix: str
    folder: str
    heartbeat_interval_sec: float = 0.5
    heartbeat_timeout_sec: float = 2.0

    @property
    def on_redis(self) -> bool:
        """Whether the broker is a Redis."""
        return self.broker.startswith("redis")

    @property
    def history(self) -> Path:
        """The file of records."""
        return Path(self.folder) / "history.jsonl"

    def environment(self) -> dict[str, str]:
        """The environment of a worker process: what is here, without other people's Celery settings."""
        kept = {name: value for name, value in os.environ.items() if not _foreign(name)}
        return {**kept, "TMPDIR": self.folder, _VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Stage:
        """The stage that the demo gave its worker."""
        return cls(**json.loads(os.environ[_VARIABLE]))


@dataclass(frozen=True)
class Choices:
    """Whether the servers and the folder of records are the user's. None, None, False: all is private."""

    broker: str | None = None
    database: str | None = None
    keep: bool = False


@contextmanager
def prepared(choices: Choices, check: Callable[[], None]) -> Iterator[tuple[Stage, Guard]]:
    """Servers that answer, and a guard for worker processes; whatever ends this process ends them all.

    ``check`` is called between the steps, and may raise to give up.
    """
    for name in [name for name in os.environ if _foreign(name)]:
        del os.environ[name]  # Celery prefers CELERY_BROKER_URL to what an app says
    with ExitStack() as stack:
        name = f"demo-{secrets.token_hex(3)}"
        database = choices.database
        if database is None:
            # Nothing here is to outlive the demo, so nothing needs to survive the machine's crash.
            database = stack.enter_context(PrivatePostgres(fsync=False)).url
        check()
        broker = choices.broker or stack.enter_context(PrivateRedis()).url
        check()
        folder = tempfile.mkdtemp(prefix=f"jobsync-{name}-")
        guard = Guard(None if choices.keep else Path(folder))
        stack.callback(guard.close)
        yield Stage(broker, database, f"{name.replace('-', '_')}_", f"{name}-", folder), guard


def _foreign(name: str) -> bool:
    return name in _FOREIGN or name.startswith("CELERY_")
