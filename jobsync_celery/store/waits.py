"""Names that are waited for: a node that went keeps its targets until it returns under its name, or its time is over.

When that is, the node's row says, which stays so long, as ``left`` or ``dead``. Times are the database's; nothing but
affinity depends on them.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy.engine import Connection

from jobsync_celery.store.database import Database


class Waits:
    """The column ``awaited_until`` of ``sync_node``."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._awaited = sql(
            "SELECT name, extract(epoch FROM awaited_until - clock_timestamp())::float8 AS seconds"
            " FROM {node} WHERE awaited_until > clock_timestamp()"
        )
        self._end = sql(
            "UPDATE {node} SET awaited_until = NULL WHERE awaited_until IS NOT NULL"
            " AND (:everybody OR awaited_until <= clock_timestamp()"
            " OR extract(epoch FROM awaited_until)::float8 <= CAST(:until AS float8)) RETURNING name"
        )
        self._forget = sql("DELETE FROM {node} WHERE state = 'left' AND awaited_until IS NULL")

    def awaited(self, tx: Connection) -> dict[str, float]:
        """The names that are waited for, and for how many seconds yet."""
        return {row.name: row.seconds for row in tx.execute(self._awaited)}

    def end_overdue(self, tx: Connection, until: float | None = None) -> Collection[str]:
        """Wait no more for those whose time is over; their names. Who left in good order has no row any more then.

        Arguments:
            until: the time that is over whatever the database's clock says now, for it may have been set back.
        """
        return self._ended(tx, everybody=False, until=until)

    def end_all(self, tx: Connection) -> Collection[str]:
        """Wait for nobody any more; the names."""
        return self._ended(tx, everybody=True)

    def _ended(self, tx: Connection, *, everybody: bool, until: float | None = None) -> Collection[str]:
        names = [row.name for row in tx.execute(self._end, {"everybody": everybody, "until": until})]
        if names:
            tx.execute(self._forget)
        return names
