"""The small process between a private server and the program that holds it.

The holder starts it as a script of its own (standard library only, so it is up in an instant) and
talks to it over a pipe, one JSON object a line: run a program, send it a signal, tell how it ended.
When the pipe closes or the holder is gone, whatever the reason, the guardian ends everything it
started and removes the private folder. SIGKILL of the holder therefore leaves nothing behind.

On Linux it adopts the orphans of what it started, so a daemon that detaches itself ends as well; and
should the guardian itself be killed, the kernel ends the servers.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LOOK_SEC = 0.25  # how often to see whether the holder still lives; the pipe usually tells at once
_FAREWELL_SEC = 1.0  # how long an abandoned server may take to end by itself
_KILL_SEC = 5.0  # how long a killed process may take to be gone
_LINUX = sys.platform.startswith("linux")


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _descendants(pid: int) -> list[int]:
    """All processes below ``pid``, children before their own children (Linux; elsewhere none)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it ended while we looked
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for child in found:
        found.extend(children.get(child, []))
    return found


def _send(pid: int, number: int, *, group: bool = False) -> None:
    try:
        os.killpg(pid, number) if group else os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # gone, or (macOS) a group of zombies


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Guardian:
    """Runs programs for its holder and ends them all with it."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.holder = os.getppid()
        self.farewells: dict[int, int] = {}
        self.exits: dict[int, int] = {}

    def serve(self) -> None:
        """Answer the holder until it closes the pipe or dies."""
        unread = b""
        while os.getppid() == self.holder:
            self._reap()
            if not select.select([0], [], [], _LOOK_SEC)[0]:
                continue
            received = os.read(0, 65536)
            if not received:
                return
            *requests, unread = (unread + received).split(b"\n")
            for request in requests:
                self._reply(self._answer(json.loads(request)))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self._reap()
        if request["do"] == "run":
            return self._run(request)
        pid = request["pid"]
        if request["do"] == "signal" and pid not in self.exits:
            _send(pid, request["number"])
        elif request["do"] == "kill" and pid not in self.exits:
            self._kill_tree(pid)
        return {"exit": self.exits.get(pid)}

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        user: dict[str, Any] = {}
        if request["user"] is not None:
            uid, gid = request["user"]
            user = {"user": uid, "group": gid, "extra_groups": []}
        try:
            with open(request["log"], "ab") as log:
                child = subprocess.Popen(
                    request["argv"],
                    env=request["env"],
                    cwd=request["cwd"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    # Runs after the change of user, which would clear it; this process has one thread.
                    preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, request["farewell"]),
                    **user,
                )
        except (OSError, subprocess.SubprocessError) as error:
            return {"error": str(error)}
        self.begun(child.pid, request["farewell"])
        child.returncode = 0  # the guardian reaps all its children itself
        return {"pid": child.pid}

    def begun(self, pid: int, farewell: int) -> None:
        """A program runs under this number, which an earlier one may have had."""
        self.exits.pop(pid, None)
        self.farewells[pid] = farewell

    def _reply(self, reply: dict[str, Any]) -> None:
        try:
            os.write(1, json.dumps(reply).encode() + b"\n")
        except OSError:
            pass  # the holder has gone; the next look ends the loop

    def _reap(self) -> bool:
        """Collect what ended; false when no child is left."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid in self.farewells:
                    self.exits[pid] = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            return False

    def _kill_tree(self, pid: int) -> None:
        tree = [pid, *_descendants(pid)]
        for member in tree:
            _send(member, signal.SIGKILL)
        _send(pid, signal.SIGKILL, group=True)
        until = time.monotonic() + _FAREWELL_SEC
        # A member that is still leaving may hold the port open.
        while self._reap() and any(map(_exists, tree)) and time.monotonic() < until:
            time.sleep(0.005)

    def _running(self) -> list[int]:
        return [pid for pid in self.farewells if pid not in self.exits]

    def end(self) -> None:
        """End every process below this one, then remove the private folder."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for pid in self._running():
            _send(pid, self.farewells[pid])
        until = time.monotonic() + _FAREWELL_SEC
        while self._reap() and time.monotonic() < until:
            time.sleep(0.01)
        until = time.monotonic() + _KILL_SEC
        while self._reap() and time.monotonic() < until:
            for pid in self._running():
                self._kill_tree(pid)
            for pid in _descendants(os.getpid()):
                _send(pid, signal.SIGKILL)
            time.sleep(0.01)
        if self.directory:
            shutil.rmtree(self.directory, ignore_errors=True)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main(make: Callable[[str], Guardian] = Guardian) -> None:
    """Serve the holder at the other end of standard input; the argument is the folder to remove."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guardian = make(sys.argv[1])
    try:
        guardian.serve()
    finally:
        guardian.end()


if __name__ == "__main__":
    main()
