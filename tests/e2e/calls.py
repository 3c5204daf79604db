"""How long a worker's calls to the coordination database take: it writes down when each begins and ends."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from e2e.history import now
from jobsync_celery.store.database import Database

_numbers = count()


def record(path: str) -> None:
    """From now on every connect and every statement of this process leaves a line when it begins and when it ends."""
    for name in ("_open", "_execute_watched"):
        setattr(Database, name, _recorded(getattr(Database, name), name, path))


def _recorded(method: Callable[..., Any], name: str, path: str) -> Callable[..., Any]:
    def recorded(*arguments: Any, **options: Any) -> Any:
        call = [os.getpid(), next(_numbers), name]
        _append(path, [*call, now()])
        try:
            return method(*arguments, **options)
        finally:
            _append(path, [*call, now()])

    return recorded


def _append(path: str, line: list[Any]) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
    finally:
        os.close(file)


def longest(path: Path) -> float:
    """Seconds of the longest call; one that has not ended counts until now."""
    whole = path.read_text().rpartition("\n")[0]
    began: dict[tuple[Any, ...], float] = {}
    durations = [0.0]
    for *call, at in map(json.loads, whole.split("\n")):
        if tuple(call) in began:
            durations.append(at - began.pop(tuple(call)))
        else:
            began[tuple(call)] = at
    return max(*durations, *(now() - at for at in began.values()), 0.0)
