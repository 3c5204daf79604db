"""A private RabbitMQ, from an installed rabbitmq-server."""

import os
import secrets
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from jobsync_celery.servers.errors import ServerError
from jobsync_celery.servers.ports import HOST, free_port
from jobsync_celery.servers.process import PrivateServer, bare_environment, missing

_USER = "jobsync"
_LOOPBACK_ONLY = "-kernel inet_dist_use_interface {127,0,0,1}"
_SETTINGS = """\
listeners.tcp.private = {host}:{port}
default_user = {user}
default_pass = {password}
cluster_name = {node}
disk_free_limit.absolute = 10MB
"""
_AMQP_HEADER = b"AMQP\x00\x00\x09\x01"


class PrivateRabbitMQ(PrivateServer):
    """A RabbitMQ node of its own, without plugins, with its own name service (epmd)."""

    kind: ClassVar[str] = "rabbitmq"
    start_sec: ClassVar[float] = 60.0
    stop_sec: ClassVar[float] = 20.0

    def __init__(self, directory: Path | None = None) -> None:
        super().__init__(directory)
        self._scripts = find_scripts()
        self._epmd = find_epmd()
        self._node = f"jobsync-{secrets.token_hex(6)}@localhost"
        self._dist_port = 0
        self._epmd_port = 0
        self._epmd_pid: int | None = None

    @property
    def url(self) -> str:
        """The URL that Celery takes as broker."""
        return f"amqp://{_USER}:{self.password}@{HOST}:{self.port}//"

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node and return what it printed."""
        # Below the guardian as well: Erlang leaves small processes that outlive it by a second.
        guard = self._known(self._guard)
        said = self.directory / f"ctl-{secrets.token_hex(4)}.log"
        pid = guard.run(
            [self._scripts / "rabbitmqctl", "--quiet", "--node", self._node, *arguments],
            env=self._environment(),
            cwd=self.directory,
            log=said,
        )
        code = guard.wait(pid, self.start_sec)
        if code is None:
            guard.kill(pid)
        output = said.read_text(errors="replace")
        said.unlink()
        if code != 0:
            raise ServerError(f"rabbitmqctl {' '.join(arguments)} ({code}): {output}")
        return output

    def _prepare(self) -> None:
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq-env.conf").touch()

    def _launch(self) -> int:
        guard = self._known(self._guard)
        if self._epmd_pid is None or guard.exit_code(self._epmd_pid) is not None:
            self._start_epmd()
        settings = self.directory / "rabbitmq.conf"
        settings.touch(mode=0o600)
        settings.write_text(
            _SETTINGS.format(host=HOST, port=self.port, user=_USER, password=self.password, node=self._node)
        )
        return guard.run(
            [self._scripts / "rabbitmq-server"],
            env=self._environment(),
            cwd=self.directory,
            log=self._log,
            farewell=self.farewell,
        )

    def _start_epmd(self) -> None:
        # Our own child and in the foreground: the one Erlang starts would detach itself.
        self._dist_port, self._epmd_port = free_port(), free_port()
        self._epmd_pid = self._known(self._guard).run(
            [self._epmd, "-address", HOST, "-port", str(self._epmd_port)],
            env=bare_environment(self.directory),
            cwd=self.directory,
            log=self._log,
            farewell=signal.SIGKILL,
        )

    def _ready(self) -> bool:
        # The first frame of the handshake names the cluster, which we named at random.
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(_AMQP_HEADER)
                return self._node.encode() in connection.recv(4096)
        except OSError:
            return False

    def _environment(self) -> dict[str, str]:
        folder = self.directory
        return {
            **bare_environment(folder),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            # Makes the script become the server instead of waiting for it as a shell.
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _LOOPBACK_ONLY,
            "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK_ONLY,
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(folder / "feature_flags"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "config"),
            "RABBITMQ_SCHEMA_DIR": str(folder / "schema"),
            "RABBITMQ_PLUGINS_EXPAND_DIR": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
        }


def find_scripts() -> Path:
    """The folder of the real rabbitmq-server script, not of a wrapper that wants to be a service."""
    for place in _places():
        script = place / "rabbitmq-server"
        if os.access(script, os.X_OK) and "wrapper" not in script.resolve().name:
            return script.resolve().parent
    raise missing("RabbitMQ", "install rabbitmq-server (Debian, Ubuntu: apt-get install rabbitmq-server)")


def _places() -> Iterator[Path]:
    yield Path("/usr/lib/rabbitmq/bin")
    yield from sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"), reverse=True)
    yield from (Path(folder) for folder in os.get_exec_path())
    yield from map(Path, ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/rabbitmq/sbin"))


def find_epmd() -> Path:
    """Erlang's name service."""
    found = shutil.which("epmd")
    places = [Path(found)] if found else sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"), reverse=True)
    if not places:
        raise missing("RabbitMQ", "Erlang's epmd is not installed")
    return places[0]
