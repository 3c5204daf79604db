"""No room left on the database's disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.nemeses.base import DATABASE, Nemesis, Strike, Surroundings
from tests.faults.waiting import hold

if TYPE_CHECKING:
    from tests.faults.stage import Stage

_PIECE = 1 << 20


class DiskFull(Nemesis):
    """Another file takes all the room there is on the database's disk, and goes away later."""

    name = "disk-full"

    def left_out(self, stage: Stage) -> str | None:
        return None if stage.postgres.small_disk else "a small disk needs root and mount namespaces"

    def run(self, at: Surroundings) -> Strike:
        disk = at.stage.postgres.small_disk
        assert disk is not None
        hit, sec, ballast = len(at.stage.busy()), at.rng.uniform(2.0, 5.0), disk / "ballast"
        try:
            _fill(ballast)
            at.stage.tables.ask("SELECT pg_switch_wal()")  # the next piece of WAL needs room at once
            hold(sec)
        finally:
            ballast.unlink(missing_ok=True)
            if not at.stage.postgres.running:
                at.stage.postgres.start()
        return Strike(DATABASE, f"disk full for {sec:.1f} s", hit)


def _fill(file: Path) -> None:
    """Write until nothing more fits."""
    piece = bytes(_PIECE)
    with file.open("wb", buffering=0) as ballast:
        try:
            while ballast.write(piece) == _PIECE:
                pass
        except OSError as error:
            if error.errno not in (28, 122):  # no space, no quota
                raise
        os.fsync(ballast.fileno())


NEMESES: tuple[Nemesis, ...] = (DiskFull(),)
