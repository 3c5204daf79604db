"""Whether a pooler hands one session of the server to several clients."""

from __future__ import annotations

from contextlib import closing

from jobsync_celery.store.database import Database

#: A pooler with several idle sessions need not hand out the same one at once.
_TRIES = 5


def shares_sessions(database: Database) -> bool:
    """Whether two connections that are both open have one server session, as behind PgBouncer in transaction mode."""
    query = database.sql("SELECT pg_backend_pid()")
    with closing(database.link("jobsync doctor")) as one, closing(database.link("jobsync doctor")) as other:
        sessions: list[set[int]] = [set(), set()]
        for _ in range(_TRIES):
            for link, known in zip((one, other), sessions, strict=True):
                known.add(int(link.statement(query)[0][0]))
        return bool(sessions[0] & sessions[1]) or any(len(known) > 1 for known in sessions)
