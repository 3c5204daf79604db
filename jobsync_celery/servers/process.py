"""What the private servers have in common: a folder, a port, a guardian, and one life-cycle."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from jobsync_celery.servers import guardian
from jobsync_celery.servers.errors import ServerError, ServerMissing
from jobsync_celery.servers.ports import free_port

T = TypeVar("T")
Self = TypeVar("Self", bound="PrivateServer")  # typing has its own only from Python 3.11 on

_PORT_TAKEN = re.compile(r"address (is )?already in use|eaddrinuse", re.IGNORECASE)
_LOG_TAIL = 2000
_FIRST_TRIES = 5  # each on another port
_AGAIN_TRIES = 25  # on the same port, until what is left of the last run has gone

__all__ = ["Guard", "PrivateServer", "bare_environment", "missing"]


def bare_environment(home: Path) -> dict[str, str]:
    """An environment in which a server finds its libraries and nobody's settings."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    return {"PATH": os.defpath, **environment, "HOME": str(home), "LANG": "C", "LC_ALL": "C"}


class Guard:
    """The holder's side of one guardian process. A forked copy of the holder has no say in it."""

    #: The file itself, isolated and without site packages: nothing of the environment can stop it.
    program: ClassVar[Sequence[str]] = ("-I", "-S", guardian.__file__)

    def __init__(self, remove: Path | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *self.program, str(remove or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at the terminal is the holder's affair
        )
        self._holder = os.getpid()
        self._lock = threading.Lock()

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        user: tuple[int, int] | None = None,
        farewell: int = signal.SIGKILL,
    ) -> int:
        """Start a program and return its process id; ``farewell`` ends it when the holder is gone."""
        return int(
            self._ask(
                do="run",
                argv=[str(argument) for argument in argv],
                env=dict(env),
                cwd=str(cwd),
                log=str(log),
                user=user,
                farewell=int(farewell),
            )["pid"]
        )

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a program that ``run`` started, unless it has ended."""
        self._ask(do="signal", pid=pid, number=int(number))

    def kill(self, pid: int) -> None:
        """SIGKILL a program and everything below it."""
        self._ask(do="kill", pid=pid)

    def exit_code(self, pid: int) -> int | None:
        """How the program ended, negative for a signal; None while it runs."""
        code = self._ask(do="poll", pid=pid)["exit"]
        return None if code is None else int(code)

    def wait(self, pid: int, timeout: float) -> int | None:
        """The exit code, or None when the program still runs after ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while (code := self.exit_code(pid)) is None and time.monotonic() < until:
            time.sleep(0.01)
        return code

    def close(self) -> None:
        """End what still runs, remove the folder, and return when that is done."""
        if os.getpid() != self._holder:
            return
        with self._lock:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process.wait(timeout=15)

    def _ask(self, **request: Any) -> dict[str, Any]:
        if os.getpid() != self._holder:
            raise ServerError("a private server can be used only by the process that started it")
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with self._lock:
            try:
                stdin.write(json.dumps(request).encode() + b"\n")
                stdin.flush()
                line = stdout.readline()
            except (OSError, ValueError) as error:
                raise ServerError("the guardian of a private server is gone") from error
        if not line:
            raise ServerError("the guardian of a private server is gone")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise ServerError(reply["error"])
        return reply


class PrivateServer(ABC):
    """A server of our own on the loopback address, alive no longer than this process.

    ``stop``, ``kill`` and ``restart`` keep port, password and data; ``close`` (or the end of the
    ``with`` block, or of this process, whatever ends it) removes everything. A ``directory`` given
    by the caller is kept.
    """

    kind: ClassVar[str]
    start_sec: ClassVar[float] = 30.0
    stop_sec: ClassVar[float] = 10.0
    stop_signal: ClassVar[int] = signal.SIGTERM
    farewell: ClassVar[int] = signal.SIGKILL

    def __init__(self, directory: Path | None = None) -> None:
        self._given = directory
        self._directory: Path | None = None
        self._guard: Guard | None = None
        self._pid: int | None = None
        self._port: int | None = None
        self.password = secrets.token_hex(16)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where and how to connect, password included."""

    @property
    def directory(self) -> Path:
        """The folder with the server's data and log."""
        return self._known(self._directory)

    @property
    def port(self) -> int:
        """The port on 127.0.0.1; the same for the whole life of this object once started."""
        return self._known(self._port)

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._known(self._pid)

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._exited() is None and self._pid is not None

    @property
    def log(self) -> str:
        """What the server wrote so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self: Self) -> Self:
        """Start, and return when the server answers. On a started server: nothing."""
        if self.running:
            return self
        if self._guard is None:
            self._open()
        first = self._port is None
        tries = _FIRST_TRIES if first else _AGAIN_TRIES
        for attempt in range(tries):
            if first:
                self._port = free_port()
            seen = len(self.log)
            self._pid = self._launch()
            if self._await_ready():
                return self
            self._pid = None
            said = self.log[seen:]
            if attempt + 1 == tries or not self._try_again(said):
                break
            time.sleep(0.2)
        raise ServerError(f"the private {self.kind} did not start:\n{said[-_LOG_TAIL:]}")

    def stop(self) -> None:
        """Stop in good order; what does not end in time is killed."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """SIGKILL the server and everything below it, as a crash would."""
        if self._guard is not None and self._pid is not None:
            self._guard.kill(self._pid)
            self._guard.wait(self._pid, self.stop_sec)
            self._pid = None

    def restart(self) -> None:
        """Stop if it runs, and start again with the same port and data."""
        self.stop()
        self.start()

    def signal(self, number: int) -> None:
        """Send a signal to the server's main process (SIGSTOP and SIGCONT, for instance)."""
        self._known(self._guard).signal(self.pid, number)

    def close(self) -> None:
        """Stop and remove everything but a folder that the caller gave."""
        if self._given:
            self.stop()
        guard, self._guard = self._guard, None
        if guard is not None:
            self._pid = self._port = self._directory = None
            guard.close()

    def __enter__(self: Self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What a kind of server has to say.

    @abstractmethod
    def _prepare(self) -> None:
        """Fill the new folder, once."""

    @abstractmethod
    def _launch(self) -> int:
        """Start the program on the current port; return its process id."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether *our* server answers, not somebody else's on the same port."""

    def _try_again(self, said: str) -> bool:
        """Whether a failed start, by what the log says, is worth another attempt."""
        return bool(_PORT_TAKEN.search(said))

    def _base(self) -> Path:
        """Where private folders go."""
        return Path(tempfile.gettempdir())

    # Below here: the one life-cycle.

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _open(self) -> None:
        self._directory = self._given or Path(tempfile.mkdtemp(prefix=f"jobsync-{self.kind}-", dir=self._base()))
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            self._guard = Guard(None if self._given else self._directory)
        except BaseException:
            if not self._given:
                shutil.rmtree(self._directory, ignore_errors=True)
            raise
        # An ordinary exit waits until all is removed; any other end leaves that to the guardian.
        weakref.finalize(self, _close, self._guard)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _exited(self) -> int | None:
        if self._guard is None or self._pid is None:
            return None
        return self._guard.exit_code(self._pid)

    def _await_ready(self) -> bool:
        until = time.monotonic() + self.start_sec
        while time.monotonic() < until:
            if self._exited() is not None:
                return False
            if self._ready():
                return self._exited() is None
            time.sleep(0.02)
        self.kill()
        return False

    def _end(self, number: int) -> None:
        if self._guard is not None and self._pid is not None:
            self._guard.signal(self._pid, number)
            if self._guard.wait(self._pid, self.stop_sec) is None:
                self.kill()
            self._pid = None

    def _known(self, value: T | None) -> T:
        if value is None:
            raise ServerError(f"the private {self.kind} is not started")
        return value


def _close(guard: Guard) -> None:
    try:
        guard.close()
    except subprocess.TimeoutExpired:
        pass  # it goes on by itself


def missing(kind: str, how: str) -> ServerMissing:
    """The error for a kind of server that this machine does not have."""
    return ServerMissing(f"no {kind} on this machine: {how}")
