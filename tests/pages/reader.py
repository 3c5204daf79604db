"""Somebody who follows a page: makes its files, types its commands, starts its workers, asks its questions."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg2
from e2e.waiting import until

from jobsync_celery.servers.process import Guard
from pages import typed
from pages.left_out import entry_of
from pages.snippets import Snippet

_BIN = Path(sys.executable).parent
#: What would lead the reader's programs elsewhere.
_FOREIGN = {"APP", "BROKER_URL", "DATABASE_URL", "REDIS_URL", "APPNAME", "CELERY_BROKER_URL"}
_TROUBLE = re.compile(r"Traceback|: ERROR/|: CRITICAL/")

#: Says of a command that it starts a node.
NODE = "a node"

Rows = list[dict[str, Any]]


class Reader:
    """A folder, a database and a broker of one reader's own.

    Arguments:
        addresses: what stands for the servers in the pages -> where ours are.
        long: beginning of a command that does not end by itself -> what its log says when it is up, or NODE for a
            worker: the cluster's tables show it.
        statuses: command -> with what it exits, if not with 0.
    """

    def __init__(
        self,
        folder: Path,
        addresses: Mapping[str, str],
        database: str,
        *,
        long: Mapping[str, str] | None = None,
        statuses: Mapping[str, int] | None = None,
    ) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN} | {
            "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
            "C_FORCE_ROOT": "1",  # Celery asks for it where tests run as root
            "PYTHONWARNINGS": "ignore",
        }
        self._addresses = addresses
        self._database = database
        self._long = long or {}
        self._statuses = statuses or {}
        self._guard = Guard(None)
        self._running: dict[int, tuple[str, Path]] = {}
        self._nodes: set[int] = set()
        self._python: subprocess.Popen[str] | None = None
        self._connection: Any = None

    # -- files and Python ---------------------------------------------------------------------------------------

    def localised(self, text: str) -> str:
        """A text with the addresses of our servers."""
        for theirs, ours in self._addresses.items():
            text = text.replace(theirs, ours)
        return text

    def write(self, snippets: Iterable[Snippet], before: Mapping[str, str] | None = None) -> None:
        """Make the files that these snippets are parts of; ``before``: what is in them already."""
        texts = dict(before or {})
        for snippet in snippets:
            if snippet.file is not None:
                texts[snippet.file] = f"{texts.get(snippet.file, '')}\n\n{snippet.text}"
        for name, text in texts.items():
            (self.folder / name).write_text(self.localised(text))

    def python(self, code: str, name: str = "<test>") -> None:
        """Type something into the reader's Python."""
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, typed.__file__],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(self.folder / "python.log").open("w"),
                text=True,
            )
        stdin, stdout = self._python.stdin, self._python.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"name": name, "code": self.localised(code)}) + "\n")
        stdin.flush()
        answer = stdout.readline()
        printed = (self.folder / "python.log").read_text()
        assert answer, f"{name}: Python has ended\n{printed}"
        failure = json.loads(answer)
        assert failure is None, f"{name}\n{failure}\n{printed}"

    # -- the shell ----------------------------------------------------------------------------------------------

    def type(self, snippet: Snippet) -> None:
        """Type the commands of a shell snippet; those that do not end are seen to come up, all together."""
        self.settle()
        started: list[tuple[int, str]] = []
        for command in snippet.commands:
            if entry_of(snippet, command) is not None:
                continue
            up = next((said for start, said in self._long.items() if command.startswith(start)), None)
            if up is not None:
                started.append((self.start(["sh", "-c", f"exec {self.localised(command)}"], command), up))
            else:
                self._finish(started)
                self.run(["sh", "-c", self.localised(command)], str(snippet), self._statuses.get(command, 0))
                self._await_daemons(command)
        self._finish(started)

    def run(self, command: Sequence[str], name: str = "", status: int = 0) -> str:
        """Run something that ends, with the status that is expected; what it prints."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == status, f"{name} {command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, command: Sequence[str], name: str) -> int:
        """Start something that does not end by itself; its process."""
        log = self.folder / f"running-{len(self._running)}.log"
        pid = self._guard.run(command, env=self.environment, cwd=self.folder, log=log)
        self._running[pid] = (name, log)
        return pid

    def begin(self, command: Sequence[str]) -> int:
        """Start a worker, and wait until it has its share; its process."""
        pid = self.start(command, " ".join(command))
        self._nodes.add(pid)
        self.settle()
        return pid

    def see(self, pid: int, pattern: str) -> None:
        """Wait until a running program has logged this."""
        name, log = self._running[pid]

        def seen() -> bool:
            assert self._guard.exit_code(pid) is None, f"{name} has ended\n{log.read_text()}"
            return re.search(pattern, log.read_text()) is not None

        until(seen, f"{name} says {pattern}")

    def stop(self, *pids: int) -> None:
        """SIGTERM these programs, or all, and see them end well."""
        for pid in pids or list(self._running):
            self._guard.signal(pid, signal.SIGTERM)
        for pid in pids or list(self._running):
            name, log = self._running.pop(pid)
            self._nodes.discard(pid)
            said = log.read_text
            assert self._guard.wait(pid, 60) == 0, f"{name}\n{said()}"
            assert not _TROUBLE.search(said()), f"{name}\n{said()}"

    def _finish(self, started: list[tuple[int, str]]) -> None:
        for pid, up in started:
            if up == NODE:
                self._nodes.add(pid)
            else:
                self.see(pid, up)
        if started:
            self.settle()
        started.clear()

    def _await_daemons(self, command: str) -> None:
        """What ``celery multi`` has started comes up, too."""
        if command.startswith("celery multi start "):
            for name in itertools.takewhile(lambda word: not word.startswith("-"), command.split()[3:]):
                log = self.folder / f"{name}.log"
                until(lambda log=log: "took partitions" in log.read_text(), f"{name} takes part")

    # -- the database -------------------------------------------------------------------------------------------

    def ask(self, statement: str) -> Rows:
        """What a statement answers; no rows for one that answers nothing."""
        if self._connection is None:
            self._connection = psycopg2.connect(self._database)
            self._connection.autocommit = True
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor] if names else []

    def settle(self) -> None:
        """Wait until all nodes that were started are there, and have what the plan gives them."""
        shares = "SELECT COUNT(DISTINCT owner) AS nodes, bool_and(owner = target) AS well FROM sync_partition"

        def settled() -> bool:
            gone = {self._running[pid]: code for pid in self._nodes if (code := self._guard.exit_code(pid)) is not None}
            assert not gone, [(name, code, log.read_text()) for (name, log), code in gone.items()]
            there = self.ask("SELECT to_regclass('sync_partition') AS it")[0]["it"]
            return bool(there and self.ask(shares) == [{"nodes": len(self._nodes), "well": True}])

        if self._nodes:
            until(settled, f"{len(self._nodes)} nodes share the partitions", every=0.1)

    def until(self, statement: str, judge: Callable[[Rows], bool]) -> None:
        """Wait until the answer to a statement is as it should be."""
        until(lambda: judge(self.ask(statement)), f"{statement}: {judge.__doc__ or judge}", every=0.1)

    # -- all of it ----------------------------------------------------------------------------------------------

    def follow(self, snippets: Iterable[Snippet], answers: Callable[[str, Rows], None] | None = None) -> None:
        """Do what the snippets say, in order; what belongs to a file is in it already.

        Arguments:
            answers: judges the answer to each SQL statement.
        """
        for snippet in snippets:
            if snippet.kind == "sh":
                self.type(snippet)
            elif snippet.kind == "sql":
                for statement in snippet.statements:
                    rows = self.ask(statement)
                    if answers is not None:
                        answers(statement, rows)
            elif snippet.kind == "python" and snippet.file is None:
                self.python(snippet.text, str(snippet))

    def close(self) -> None:
        """End everything."""
        if self._connection is not None:
            self._connection.close()
        self._guard.close()
        if self._python is not None:
            try:
                self._python.communicate(timeout=20)  # which closes its input
            except subprocess.TimeoutExpired:
                self._python.kill()
                self._python.communicate()
        for file in self.folder.glob("*.pid"):  # daemons, if the test did not come to their end
            try:
                os.killpg(os.getpgid(int(file.read_text())), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                pass
