"""Everything that can be broken, by name; each family is a file."""

from __future__ import annotations

from fnmatch import fnmatchcase

from tests.faults.nemeses import (
    broker,
    clocks,
    database,
    deploy,
    disk,
    failover,
    kill,
    locks,
    network,
    pause,
    pooler,
    races,
)
from tests.faults.nemeses.base import Nemesis, Strike, Surroundings

__all__ = ["FAMILIES", "Nemesis", "Strike", "Surroundings", "chosen", "everything"]

FAMILIES = (kill, pause, deploy, database, broker, network, clocks, disk, failover, pooler, races, locks)


def everything() -> list[Nemesis]:
    """All there are, in the order of the families."""
    return [nemesis for family in FAMILIES for nemesis in family.NEMESES]


def chosen(patterns: list[str]) -> list[Nemesis]:
    """Those whose name begins with, or matches, one of these; all if there is none. KeyError names an idle pattern."""
    found = []
    for pattern in patterns or ["*"]:
        fitting = [each for each in everything() if fnmatchcase(each.name, pattern) or each.name.startswith(pattern)]
        if not fitting:
            raise KeyError(pattern)
        found += [nemesis for nemesis in fitting if nemesis not in found]
    return found
