"""PgBouncer in transaction mode between the workers and their database, and then not."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from jobsync_celery.servers.ports import HOST, free_port
from jobsync_celery.servers.postgres import unprivileged_user
from jobsync_celery.servers.process import bare_environment
from tests.faults.nemeses.base import Nemesis, Strike, Surroundings
from tests.faults.waiting import hold, until

if TYPE_CHECKING:
    from tests.faults.stage import Stage

_VARIABLE = "JOBSYNC_FAULTS_PGBOUNCER"
_SETTINGS = """\
[databases]
* = host={host} port={server} user={user} password={password}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 8
max_client_conn = 100
ignore_startup_parameters = extra_float_digits,options
server_tls_sslmode = disable
"""


class Pooler(Nemesis):
    """All workers reach the database through PgBouncer for a while, which is killed at the end."""

    name = "pgbouncer"

    def left_out(self, stage: Stage) -> str | None:
        return None if _program() else "PgBouncer is not installed (Debian, Ubuntu: apt-get install pgbouncer)"

    def run(self, at: Surroundings) -> Strike:
        stage, port, hit, sec = at.stage, free_port(), len(at.stage.busy()), at.rng.uniform(4.0, 8.0)
        pid = self._start(stage, port)
        try:
            until(lambda: _answers(port), "PgBouncer answers", 10.0)
            stage.redirect_database(port)
            hold(sec)
            hit += len(stage.busy())
        finally:
            stage.guard.kill(pid)
            stage.redirect_database(stage.postgres.port)
        return Strike("pgbouncer", f"all through it for {sec:.1f} s, then it was killed", hit)

    def _start(self, stage: Stage, port: int) -> int:
        settings = stage.folder / f"pgbouncer-{port}.ini"
        settings.touch(mode=0o600)
        user, password = stage.postgres.url.partition("://")[2].partition("@")[0].split(":")
        settings.write_text(
            _SETTINGS.format(host=HOST, server=stage.postgres.port, port=port, user=user, password=password)
        )
        runs_as = unprivileged_user() if os.geteuid() == 0 else None
        if runs_as is not None:
            os.chown(settings, *runs_as)
        return stage.guard.run(
            [str(_program()), str(settings)],
            env=bare_environment(stage.folder),
            cwd=stage.folder,
            log=stage.folder / "pgbouncer.log",
            user=runs_as,
        )


def _program() -> Path | None:
    named = os.environ.get(_VARIABLE) or shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    return Path(named) if os.access(named, os.X_OK) else None


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


NEMESES: tuple[Nemesis, ...] = (Pooler(),)
