"""A guardian whose workers are forks of itself.

What ``celery worker`` imports takes more than a second of processor time, in each of hundreds of workers. Here it is
imported once in each test process. Each worker is a process of its own in a session of its own, with its own arguments,
environment and log, and ends as an interpreter does. Other than with the program ``celery``: all workers of a test
process hash strings alike, variables for the interpreter itself have no effect, and what is imported here cannot be
shadowed. The tests of the examples, the pages and the demo start that program itself; so does this where there is no
Linux, and for a worker with imports of its own.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from jobsync_celery.servers import guardian
from jobsync_celery.servers.process import Guard
from jobsync_celery.store.revisions import script

_COMMON = (
    "alembic.context",
    "alembic.op",
    "alembic.operations",
    "alembic.runtime.migration",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.fixups.django",
    "celery.worker.autoscale",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "encodings.idna",
    "jobsync_celery.plugin.install",
    "jobsync_celery.plugin.redis_broker",
    "jobsync_celery.plugin.worker",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "psycopg2.extras",
    "sqlalchemy.dialects.postgresql.psycopg2",
)
_LINUX = sys.platform.startswith("linux")


class Nursery(Guard):
    """The holder's side."""

    program = (__file__,)

    def descendants(self, *groups: int) -> list[psutil.Process]:
        """The processes of these process groups that still run, though whoever started them may not."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if os.getpgid(process.pid) in groups:
                    found.append(process)
            except ProcessLookupError:
                continue
        return found


@cache
def nursery() -> Guard:
    """The one of this test process; it ends with it."""
    return Nursery(None) if _LINUX else Guard(None)


def program(*, forked: bool) -> list[str]:
    """How ``celery`` is asked for: a fork of the guardian, or, in any guardian, a program started anew."""
    folder = Path(sys.executable).parent
    return [str(folder / "celery")] if forked else [sys.executable, str(folder / "celery")]


class _Born(BaseException):
    """Raised in the fork, to leave what only the guardian does."""

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__()
        self.request = request


class _Forking(guardian.Guardian):
    """Forks for ``celery``; everything else it starts as others do."""

    _born = False

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        if os.path.basename(request["argv"][0]) != "celery":
            return super()._run(request)
        try:
            pid = os.fork()
        except OSError as error:
            return {"error": str(error)}
        if pid:
            self.begun(pid, request["farewell"])
            return {"pid": pid}
        self._born = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        guardian._prctl(guardian._PR_SET_PDEATHSIG, request["farewell"])
        raise _Born(request)

    def end(self) -> None:
        if not self._born:
            super().end()


def _become(request: dict[str, Any]) -> None:
    """Make this fork what the program would have been."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.argv[:] = request["argv"]
    paths = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [os.path.dirname(sys.argv[0]), *paths]


def _import() -> None:
    """What every worker imports, and nothing of a test's."""
    for name in _COMMON:
        import_module(name)
    script()  # what creates the tables loads this at the first start of a cluster


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]
    sys.path.insert(0, "")
    _import()
    gc.freeze()  # what is common stays so: a collection would copy it into each fork
    try:
        guardian.main(_Forking)
    except _Born as born:
        task = born.request
    else:
        sys.exit()
    gc.unfreeze()
    _become(task)
    from celery.__main__ import main

    sys.exit(main())
