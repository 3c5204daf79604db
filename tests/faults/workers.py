"""One worker of the cluster under fault: a real ``celery worker``, its process group and its two proxies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from jobsync_celery.servers.process import Guard
from tests.faults.proxy import PASS, Proxy
from tests.faults.waiting import until

_STOP_SEC = 90.0
_POOL = 2


class Worker:
    """A worker by its name; it may be started again and again. Only processes started here are ever signalled.

    Arguments:
        database, broker: the proxies through which it reaches its servers.
        env: its environment, settings included.
    """

    def __init__(
        self, guard: Guard, name: str, folder: Path, env: Mapping[str, str], *, database: Proxy, broker: Proxy
    ) -> None:
        self._guard = guard
        self._folder = folder
        self._env = dict(env)
        self.name = name
        self.database, self.broker = database, broker
        self.pid = 0
        self.starts = 0
        #: Whether it is meant to run: an end that nobody meant is a finding.
        self.wanted = False
        self.retired = False

    @property
    def log(self) -> Path:
        """What all its processes have written."""
        return self._folder / f"{self.name}.log"

    @property
    def running(self) -> bool:
        """Whether its main process exists, stopped or not."""
        return self.pid != 0 and self._guard.exit_code(self.pid) is None

    @property
    def exit_code(self) -> int | None:
        """How the main process ended; None while it runs."""
        return self._guard.exit_code(self.pid)

    def start(self, extra: Mapping[str, str] | None = None) -> None:
        """Start the process; it need not be ready yet. ``extra`` is added to its environment, this time only."""
        command = [sys.executable, "-m", "celery", "-A", "tests.faults.app", "worker"]
        options = ["-n", f"{self.name}@faults", "--node-name", self.name, "-c", str(_POOL), "-l", "INFO"]
        self.pid = self._guard.run(
            [*command, *options, "--without-mingle", "--without-gossip"],
            env={**self._env, **(extra or {})},
            cwd=self._folder,
            log=self.log,
        )
        self.starts += 1
        self.wanted = True

    def children(self) -> list[int]:
        """The processes of its pool."""
        try:
            return [child.pid for child in psutil.Process(self.pid).children()]
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: int) -> None:
        """Send a signal to the main process only."""
        self._guard.signal(self.pid, number)

    def signal_child(self, pid: int, number: int) -> bool:
        """Send a signal to one process of the pool; false if it is none (any more)."""
        if pid not in self.children():
            return False
        return _sent(os.kill, pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the main process and its pool alike."""
        if self.running:
            _sent(os.killpg, self.pid, number)

    def kill(self) -> None:
        """SIGKILL the main process and everything below it, and wait until it is gone."""
        self.wanted = False
        if self.pid:
            self._guard.kill(self.pid)
            self.await_end()

    def kill_main(self) -> None:
        """SIGKILL the main process, leave its pool to itself, and wait until the main process is gone."""
        self.wanted = False
        self.signal(signal.SIGKILL)
        self.await_end()

    def stop(self, timeout: float = _STOP_SEC) -> int | None:
        """SIGTERM, and wait for the end; the exit code."""
        self.wanted = False
        self.signal(signal.SIGTERM)
        return self.await_end(timeout)

    def await_end(self, timeout: float = _STOP_SEC) -> int | None:
        """Wait until the main process has ended; its exit code."""
        until(lambda: not self.running, f"worker {self.name} has ended", timeout)
        return self.exit_code

    def heal(self) -> None:
        """Let everything through to its servers again, and let stopped processes go on."""
        self.database.set(PASS)
        self.broker.set(PASS)
        self.signal_group(signal.SIGCONT)

    def close(self) -> None:
        """End it and its proxies."""
        self.kill()
        self.database.close()
        self.broker.close()


def _sent(send: Any, pid: int, number: int) -> bool:
    try:
        send(pid, number)
    except ProcessLookupError:
        return False
    return True
