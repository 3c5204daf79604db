"""An asynchronous failover: a standby that lacks the last commits is promoted, and the primary is gone."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from tests.faults.nemeses.base import DATABASE, Nemesis, Strike, Surroundings
from tests.faults.proxy import PASS, Mode, Proxy
from tests.faults.servers import Standby, can_stand_by
from tests.faults.tables import Tables
from tests.faults.waiting import hold, now, until

if TYPE_CHECKING:
    from tests.faults.stage import Stage

_LSN = "SELECT pg_current_wal_lsn()::text AS lsn"
_HAS = "SELECT pg_wal_lsn_diff(coalesce(pg_last_wal_receive_lsn(), '0/0'), %s) >= 0 AS has"


class Failover(Nemesis):
    """Replication is cut, commits go on for a while, the primary dies, the standby takes its place."""

    name = "promoted-standby"

    def left_out(self, stage: Stage) -> str | None:
        return None if can_stand_by() else "this PostgreSQL has no pg_basebackup"

    def run(self, at: Surroundings) -> Strike:
        stage, sec, away = at.stage, at.rng.uniform(0.1, 1.5), at.rng.choice((0.0, 1.0, 4.0))
        with closing(Proxy(stage.exchange, stage.postgres.port)) as link:
            standby = stage.new_standby(link.port)
            try:
                began = self._caught_up(stage, standby)
                link.set(Mode("refuse"))
                hit = len(stage.busy())
                hold(sec)
                stage.postgres.kill()
                hold(away)
                stage.fail_over(standby)
            except BaseException:
                link.set(PASS)
                if stage.postgres is not standby:
                    standby.remove()
                raise
        return Strike(DATABASE, f"lost the commits of {sec:.1f} s, away for {away:.1f} s", hit, began)

    def _caught_up(self, stage: Stage, standby: Standby) -> float:
        """Wait until the standby has all that was committed until a moment; that moment."""
        with closing(Tables(lambda: standby.dsn, "faults standby")) as tables:
            began = now()
            lsn = stage.tables.rows(_LSN)[0]["lsn"]
            until(lambda: tables.rows(_HAS, lsn)[0]["has"], "the standby has what the primary has", 20.0)
            return began


NEMESES: tuple[Nemesis, ...] = (Failover(),)
