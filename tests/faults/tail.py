"""What the bodies do right now, from the end of the history; to aim at, not to judge by."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.history import OVER
from tests.faults.waiting import now

#: A body that runs gives a sign every 50 ms.
_FRESH_SEC = 0.5
#: After these lines nothing more is to be done for a task. Who completed it may still stay a little.
_DONE = ("end", "completed", "failed")


@dataclass(frozen=True)
class Body:
    """A body that has started and not ended."""

    n: int
    id: str
    key: str
    node: str
    pid: int
    seen: float


class Tail:
    """Follows the file; each question first reads what has come. Usable from several threads."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._path = path
        self._read = 0
        self._rest = b""
        self._open: dict[tuple[int, str, int], Body] = {}
        self._lock = threading.Lock()
        self.ended: set[int] = set()
        self.started = 0
        #: Which task has begun on which node, ever.
        self.begun: set[tuple[int, str]] = set()
        #: When the last line was written.
        self.last = now()

    def running(self, node: str | None = None) -> list[Body]:
        """The bodies that gave a sign just now, of one node or of all."""
        with self._lock:
            self._follow()
            fresh = now() - _FRESH_SEC
            return [body for body in self._open.values() if body.seen > fresh and node in (None, body.node)]

    def done(self) -> int:
        """How many of the published tasks have ended."""
        with self._lock:
            self._follow()
            return len(self.ended)

    def missing(self, among: Collection[int]) -> set[int]:
        """Of these tasks, those that have not ended."""
        with self._lock:
            self._follow()
            return set(among) - self.ended

    def _follow(self) -> None:
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line:
                self._note(json.loads(line))

    def _note(self, line: dict[str, Any]) -> None:
        mark = (line["pid"], line["id"], line["attempt"])
        self.last = line["at"]
        self.begun.add((line["n"], line["node"]))
        if line["event"] in _DONE:
            self.ended.add(line["n"])
        if line["event"] in OVER:
            self._open.pop(mark, None)
            return
        self.started += line["event"] == "start"
        if line["event"] == "start" or mark in self._open:
            self._open[mark] = Body(line["n"], line["id"], line["key"], line["node"], line["pid"], line["at"])
