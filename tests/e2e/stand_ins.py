"""Stand in for pytest-celery's containers: processes on this machine, so that no Docker is needed."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from pytest_celery import CeleryTestContainer, CeleryTestSetup, CeleryTestWorker

from e2e.nursery import Nursery, nursery, program
from e2e.waiting import until


class LocalServer(CeleryTestContainer):
    """A private server that a fixture of ours has started."""

    def __init__(self, name: str, url: str) -> None:
        # Not super().__init__: there is no Docker container to wrap.
        self._name, self._url = name, url

    @property
    def id(self) -> str:
        return self._name

    @property
    def name(self) -> str:
        return self._name

    @property
    def status(self) -> str:
        return "running"

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {"url": self._url, "host_url": self._url}

    def ready(self) -> bool:
        return True


class LocalWorker(CeleryTestContainer):
    """A ``celery worker`` process below a guardian, which ends it with the test process whatever ends that."""

    def __init__(
        self, name: str, options: Sequence[str], env: Mapping[str, str], folder: Path, *, forked: bool = True
    ) -> None:
        self._guard = nursery()
        self._forked = forked
        self._pids: list[int] = []
        self._ends: dict[int, int] = {}
        self._name = name
        self._options = list(options)
        self._env = {**os.environ, **env}
        self._folder = folder
        self._log = folder / f"{name}.log"
        self.pid = 0
        self.begin()

    def begin(self) -> None:
        """Start the process, or another one after it has ended."""
        self.pid = self._guard.run(
            [*program(forked=self._forked), "-A", "e2e.app", "worker", "-n", self._name, "-l", "INFO", *self._options],
            env=self._env,
            cwd=self._folder,
            log=self._log,
        )
        self._ends.pop(self.pid, None)
        self._pids.append(self.pid)

    @property
    def id(self) -> str:
        return str(self.pid)

    @property
    def name(self) -> str:
        return self._name

    @property
    def status(self) -> str:
        return "running" if self.exit_code is None else "exited"

    @property
    def exit_code(self) -> int | None:
        """How the process ended; None while it runs."""
        if self.pid not in self._ends and (code := self._guard.exit_code(self.pid)) is not None:
            self._ends[self.pid] = code  # others may get its number
        return self._ends.get(self.pid)

    def reload(self) -> None:
        pass

    def ready(self) -> bool:
        until(lambda: f"{self._name} ready." in self.logs() or self.exit_code is not None, f"{self._name} is ready")
        return self.exit_code is None

    def logs(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """SIGKILL goes to the whole process group, any other signal to the main process."""
        number = _number(signal)
        if number == _number("SIGKILL"):
            self._guard.kill(self.pid)
        else:
            self._guard.signal(self.pid, number)

    def kill_alone(self) -> None:
        """SIGKILL the main process, and leave its pool children to themselves."""
        self._guard.signal(self.pid, _number("SIGKILL"))

    def restart(self, timeout: float = 30) -> None:
        """Start again once the old process has ended."""
        self.wait(timeout)
        self.begin()

    def wait(self, timeout: float = 60) -> int | None:
        """Wait for the end of the process; its exit code."""
        until(lambda: self.exit_code is not None, f"{self._name} has ended", timeout)
        return self.exit_code

    def teardown(self) -> None:
        """End it, and what its earlier lives left behind."""
        if self.exit_code is None:
            self._guard.kill(self.pid)
        if isinstance(self._guard, Nursery):
            left = self._guard.descendants(*self._pids)
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=10)


class Worker(CeleryTestWorker):
    """A worker of the cluster under test."""

    container: LocalWorker

    def hostname(self) -> str:
        return self.container.name

    def stop(self, timeout: float = 60) -> None:
        """SIGTERM, and wait for the end."""
        self.kill("SIGTERM")
        assert self.container.wait(timeout) == 0, self.logs()[-3000:]

    def group(self, number: int) -> None:
        """Send a signal to the main process and its pool children alike."""
        os.killpg(self.container.pid, number)

    def freeze(self, *, group: bool = True) -> None:
        """Stop the main process and, as a hang of the machine would, all its children (``group``)."""
        self.group(signal.SIGSTOP) if group else self.kill(signal.SIGSTOP)

    def thaw(self, *, group: bool = True) -> None:
        """Let it go on."""
        self.group(signal.SIGCONT) if group else self.kill(signal.SIGCONT)


class Setup(CeleryTestSetup):
    """pytest-celery's setup, with what our tests ask of a cluster: see :class:`e2e.site.Site`."""

    site: Any


def _number(name: str | int) -> int:
    return name if isinstance(name, int) else int(getattr(signal, name))
