"""A true black hole: the kernel drops every packet to and from one port, so that nobody even acknowledges.

A proxy that passes nothing on still has a TCP stack that acknowledges what it gets. Here data is sent again and again
until somebody gives up: ``TCP_USER_TIMEOUT``, keepalives, or the client's own limits.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from jobsync_celery.servers.process import Guard, bare_environment

_MISSING = "a true black hole needs Linux, root and iptables"
_WAIT_SEC = 10.0
_IPTABLES = ("iptables", "-w", "5")
#: A process of its own keeps the rules and removes them when it is told to end, whatever has become of the test.
_KEEPER = """
remove() {{ {remove}; exit 0; }}
trap remove TERM INT HUP
{insert} && echo in force
while :; do sleep 1 & wait; done
"""


@cache
def missing() -> str | None:
    """Why there can be no black hole here; None if there can."""
    able = sys.platform.startswith("linux") and os.geteuid() == 0 and shutil.which("iptables") is not None
    if able and subprocess.run([*_IPTABLES, "-S", "INPUT"], check=False, capture_output=True).returncode == 0:
        return None
    return _MISSING


@contextmanager
def black_hole(port: int) -> Iterator[None]:
    """While the block lasts, no packet to or from this TCP port gets through on the loopback interface."""
    rules = [f"INPUT -i lo -p tcp --{side} {port} -j DROP" for side in ("dport", "sport")]
    script = _KEEPER.format(
        insert=" && ".join(f"{' '.join(_IPTABLES)} -I {rule}" for rule in rules),
        remove="; ".join(f"{' '.join(_IPTABLES)} -D {rule}" for rule in rules),
    )
    folder = Path(tempfile.mkdtemp(prefix="jobsync-black-hole-"))
    log = folder / "log"
    guard = Guard(folder)
    pid = guard.run(["sh", "-c", script], env=bare_environment(folder), cwd=folder, log=log, farewell=signal.SIGTERM)
    try:
        _await_in_force(guard, pid, log)
        yield
    finally:
        guard.signal(pid, signal.SIGTERM)
        guard.wait(pid, _WAIT_SEC)
        guard.close()


def _await_in_force(guard: Guard, pid: int, log: Path) -> None:
    """Wait until all rules are there."""
    for _ in range(round(_WAIT_SEC / 0.05)):
        if "in force" in log.read_text():
            return
        guard.wait(pid, 0.05)
    raise RuntimeError(f"no black hole: {log.read_text()}")
