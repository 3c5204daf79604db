"""What happened, in an append-only file that knows nothing of the plugin: the evidence for the verdict."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

What = Literal["published", "start", "done", "fenced", "kill", "gone"]


@dataclass(frozen=True, slots=True)
class Record:
    """One line. Times are of the boot clock, the same in every process of this machine.

    published: task ``n`` of ``key`` was accepted by the broker. start: its body began. done: its effect was
    committed, and ``at`` is the moment before that commit. fenced: it gave up, its claim was lost. kill: SIGKILL
    was about to be sent to ``node``, the owner of ``partitions``. gone: none of its processes is left.
    """

    what: What
    at: float
    n: int = -1
    key: str = ""
    node: str = ""
    fence: int = 0
    pid: int = 0
    partition: int = -1
    partitions: tuple[int, ...] = ()


_DEFAULTS = {field.name: field.default for field in fields(Record)}


class History:
    """The file. Each line is one write to a descriptor in append mode, so lines of many processes never mix."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._read = 0

    def append(self, record: Record) -> None:
        """Add one line; it is there, whole, when this returns."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(self._descriptor, line_of(record).encode())

    def follow(self) -> list[Record]:
        """The lines that were added since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        return list(records_in(whole.decode()))

    def close(self) -> None:
        """Close the descriptor, if one is open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def line_of(record: Record) -> str:
    """A record as its line of JSON, without what it leaves at its default."""
    said = {name: value for name, value in asdict(record).items() if value != _DEFAULTS[name]}
    return json.dumps(said, separators=(",", ":")) + "\n"


def records_in(text: str) -> Iterator[Record]:
    """The records that whole lines of JSON hold."""
    for line in text.splitlines():
        said: dict[str, Any] = json.loads(line)
        yield Record(**{**said, "partitions": tuple(said.get("partitions", ()))})
