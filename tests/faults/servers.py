"""The private servers of a run, such that faults can be done to them and what they were told outlives a stop."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2

from jobsync_celery.servers import PrivatePostgres, PrivateRabbitMQ, PrivateRedis, ServerError
from jobsync_celery.servers.postgres import find_programs
from jobsync_celery.servers.process import bare_environment

#: Few, so that a fault can use them up; enough for six workers and the harness.
CONNECTIONS = 60
_SETTINGS = {"max_connections": str(CONNECTIONS), "max_wal_size": "64MB", "min_wal_size": "32MB"}
_DISK_MB = 512
_numbers = itertools.count(1)
_CLONE_NEWNS = 0x00020000
_CLOCK_SOURCE = Path(__file__).with_name("wall_clock.c")

Broker = PrivateRedis | PrivateRabbitMQ


class Postgres(PrivatePostgres):
    """A PostgreSQL whose disk may be small and whose clock may step, where this machine can do that.

    Arguments:
        small_disk: an empty folder on a small disk of its own; its data goes there.
        clock: what it runs by.
    """

    def __init__(self, small_disk: Path | None, clock: WallClock | None) -> None:
        folder = small_disk and small_disk / f"postgres-{next(_numbers)}"
        super().__init__(folder, fsync=False, settings=_SETTINGS)
        self.small_disk = small_disk
        self.clock = clock

    @property
    def dsn(self) -> str:
        """Where and how psycopg2 connects, directly."""
        return self.url_of("postgres", "postgresql")

    def remove(self) -> None:
        """End it, and remove its data for good."""
        folder = self.directory
        self.close()
        shutil.rmtree(folder, ignore_errors=True)

    def _run(self, argv: list[str | Path]) -> int:
        return self._known(self._guard).run(
            argv,
            env={**bare_environment(self.directory), **(self.clock.environment() if self.clock else {})},
            cwd=self.directory,
            log=self._log,
            user=self._user,
            farewell=self.farewell,
        )


class Standby(Postgres):
    """A copy that follows a primary and can take its place.

    Arguments:
        port: by which it reaches the primary.
    """

    def __init__(self, primary: Postgres, port: int) -> None:
        super().__init__(primary.small_disk, primary.clock)
        self.password = primary.password
        self._source = urlsplit(primary.dsn)._replace(query="sslmode=disable")
        self._source = self._source._replace(netloc=f"{self._source.netloc.rpartition(':')[0]}:{port}")

    def promote(self) -> None:
        """Follow no longer, and take writes."""
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_promote(true, 30)")

    def _initdb(self) -> None:
        options = ["-X", "stream", "-c", "fast", "-R", "-d", self._source.geturl()]
        guard = self._known(self._guard)
        code = guard.wait(self._run([self._programs / "pg_basebackup", "-D", self._data, *options]), self.start_sec)
        if code != 0:
            raise ServerError(f"pg_basebackup failed ({code}):\n{self.log}")

    def _ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._pid) and lines[7].strip() in ("standby", "ready")


def can_stand_by() -> bool:
    """Whether there is a program that copies a running server."""
    return (find_programs() / "pg_basebackup").exists()


def broker_of(kind: str) -> Broker:
    """The broker, not yet started; what it has accepted survives a stop and a kill."""
    return PrivateRedis(persist=True) if kind == "redis" else PrivateRabbitMQ()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A small disk that only this process and those below it see, so that the kernel removes it; None without root."""
    place = folder / "disk"
    place.mkdir()
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        yield None
        return
    commands = [
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m,mode=0755", "none", str(place)],
    ]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)


def clock_library(folder: Path) -> Path | None:
    """Build what shifts the wall clock of one process, and nothing else; None without a C compiler.

    libfaketime breaks sleeping on the monotonic clock (it makes Python's ``time.sleep`` fail), so it is not used.
    """
    compiler, library = shutil.which("cc"), folder / "wall_clock.so"
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(_CLOCK_SOURCE)]
    return library if subprocess.run(command, check=False, capture_output=True).returncode == 0 else None


@dataclass(frozen=True)
class WallClock:
    """A wall clock that can be set wrong for the processes that run by it."""

    library: Path
    file: Path

    def set(self, seconds: int) -> None:
        """From now on it is off by so much."""
        self.file.write_text(f"{seconds}\n")

    def environment(self) -> dict[str, str]:
        """What a process needs to run by this clock."""
        return {"LD_PRELOAD": str(self.library), "WALL_CLOCK_FILE": str(self.file)}
