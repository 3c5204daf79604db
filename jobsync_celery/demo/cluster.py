"""The worker processes: real ``celery worker`` commands, each with its pool children in a session of its own."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from jobsync_celery.demo.stage import Stage
from jobsync_celery.servers.process import Guard

CONCURRENCY = 2
_TAIL_LINES = 15


class Workers:
    """The demo's workers by name. They are below the guard, which ends them when this process is gone."""

    def __init__(self, stage: Stage, guard: Guard) -> None:
        self._stage = stage
        self._guard = guard
        self._pids: dict[str, int] = {}

    def start(self, name: str) -> int:
        """Start a worker under a node name; its process id."""
        command = (
            f"-m celery -A jobsync_celery.demo.app worker --node-name {name} -n {name}@%h"
            f" --pool prefork --concurrency {CONCURRENCY} --loglevel INFO"
            # The broker may be shared with other workers, whom these would talk to.
            " --without-gossip --without-mingle --without-heartbeat"
        )
        self._pids[name] = self._guard.run(
            [sys.executable, *command.split()],
            env=self._stage.environment(),
            cwd=Path(self._stage.folder),
            log=self._log(name),
        )
        return self._pids[name]

    def pid(self, name: str) -> int | None:
        """The id of the worker's main process; None before it was started."""
        return self._pids.get(name)

    def kill(self, name: str) -> None:
        """SIGKILL the worker, pool children included, as the kernel does when memory is short; return when gone."""
        self._guard.kill(self._pids[name])

    def stop(self, name: str) -> None:
        """Send SIGTERM, as a deployment does, and return at once."""
        self._guard.signal(self._pids[name], signal.SIGTERM)

    def exit_code(self, name: str) -> int | None:
        """How the worker ended; None while it runs."""
        return self._guard.exit_code(self._pids[name])

    def stop_all(self, timeout: float) -> list[str]:
        """Stop all that still run, together; the names of those that had to be killed."""
        running = [name for name in self._pids if self.exit_code(name) is None]
        for name in running:
            self.stop(name)
        late = [name for name in running if self._guard.wait(self._pids[name], timeout) is None]
        for name in late:
            self.kill(name)
        return late

    def log_tail(self, name: str) -> str:
        """The last lines that the worker logged."""
        log = self._log(name)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join(lines[-_TAIL_LINES:])

    def _log(self, name: str) -> Path:
        return Path(self._stage.folder) / f"{name}.log"
