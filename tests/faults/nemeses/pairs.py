"""Two faults at once: which may strike while which other lasts."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from random import Random

from tests.faults.nemeses.base import Nemesis

#: How often a fault that lasts has company.
SHARE = 0.25
_ANYWHERE = ("kill-child", "connections-reset")
#: What lasts, and what may strike meanwhile. Never two that restart one server or need the same one, nor a kill of a
#: main process whose pool the other has stopped: nobody would let those processes go on.
PAIRS: dict[str, tuple[str, ...]] = {
    "database-slow": (*_ANYWHERE, "kill-main", "duplicates", "database-sessions-ended"),
    "database-read-only": (*_ANYWHERE, "kill-main", "duplicates", "database-sessions-ended"),
    "database-stopped": (*_ANYWHERE, "kill-main", "duplicates"),
    "clock-database": (*_ANYWHERE, "kill-main", "duplicates", "database-sessions-ended"),
    "broker-stopped": (*_ANYWHERE, "kill-main", "database-sessions-ended"),
    "broker-hangs": (*_ANYWHERE, "kill-main", "database-sessions-ended"),
    "cut-*": (*_ANYWHERE, "kill-main", "duplicates", "database-sessions-ended"),
    "locks-change": (*_ANYWHERE, "kill-main", "duplicates"),
    "pause-parent": (*_ANYWHERE, "kill-main", "duplicates", "database-sessions-ended"),
    "pause-group": (*_ANYWHERE, "duplicates", "database-sessions-ended"),
    "pause-child": (*_ANYWHERE, "duplicates", "database-sessions-ended"),
}


def company(first: Nemesis, among: Sequence[Nemesis], rng: Random, share: float = SHARE) -> Nemesis | None:
    """One of these that is to strike while the first lasts; None, mostly, if it is to be alone."""
    names = [name for lasting, names in PAIRS.items() if fnmatchcase(first.name, lasting) for name in names]
    fitting = sorted((each for each in among if each.name in names), key=lambda each: each.name)
    return rng.choice(fitting) if rng.random() < share and fitting else None
