"""Checks of the database server and the way to it."""

from __future__ import annotations

from collections.abc import Iterator

from jobsync_celery.doctor.case import Case
from jobsync_celery.doctor.finding import Checks, Finding, problem, risk
from jobsync_celery.doctor.words import listed, many, span

checks = Checks()

_NEARLY_FULL = 0.9
#: So much later than it might, maintenance may come.
_OVERDUE_SEC = 3600.0


@checks("transaction-pooling", "cluster")
def transaction_pooling(case: Case) -> Iterator[Finding]:
    """Between us and PostgreSQL is a pooler in transaction mode."""
    if case.seen.pooled:
        yield problem(
            "the database is reached through a pooler in transaction mode",
            "two connections that were open at once had one server session",
            cause="PgBouncer or the like with pool_mode = transaction (or statement)",
            fix="connect to PostgreSQL itself, or through a pool with pool_mode = session: limits and notifications"
            " belong to a session, and without them hand-overs take seconds, and a stuck session holds others up",
        )


@checks("database-read-only", "cluster")
def database_read_only(case: Case) -> Iterator[Finding]:
    """The URL leads to a standby."""
    if case.seen.examination.server.recovering:
        yield problem(
            "the database is a standby, which takes no changes",
            "pg_is_in_recovery() is true",
            cause="the URL names a standby, or the primary was demoted",
            fix="name the primary; with several hosts in the URL add target_session_attrs=read-write",
        )


@checks("asynchronous-standby", "cluster")
def asynchronous_standby(case: Case) -> Iterator[Finding]:
    """There are standbys, and none is synchronous: a failover may lose commits."""
    standbys = case.seen.examination.server.standbys
    visible = [(name, state) for name, state in standbys if state is not None]
    if visible and not any(state in ("sync", "quorum") for _, state in visible):
        yield risk(
            "a failover of the database may lose claims",
            f"{many(len(visible), 'standby', 'standbys')} ({listed(name or 'unnamed' for name, _ in visible)}), none"
            " synchronous",
            cause="with asynchronous replication the latest commits are not on the standby that takes over, so a task"
            " may run again whose end, or whose claim, was among them",
            fix="name one in synchronous_standby_names; fences keep growing over a failover either way",
        )


@checks("not-durable", "cluster")
def not_durable(case: Case) -> Iterator[Finding]:
    """The server may lose commits when it crashes."""
    server = case.seen.examination.server
    if not server.fsync:
        yield problem(
            "the database may be corrupt after a crash of its machine",
            "fsync is off",
            cause="somebody switched it off, for speed",
            fix="switch it on: claims are promises",
        )
    if server.synchronous_commit == "off":
        yield risk(
            "the database answers before commits are durable",
            "synchronous_commit is off by default",
            cause="somebody switched it off, for speed. Our own sessions switch it on; yours, in which"
            " claim.complete(session) commits, do not",
            fix="switch it on, at least for the sessions that use claim.guard and claim.complete",
        )


@checks("connections-exhausted", "cluster")
def connections_exhausted(case: Case) -> Iterator[Finding]:
    """The server is nearly out of connections."""
    server = case.seen.examination.server
    if server.connections >= _NEARLY_FULL * server.most_connections:
        yield risk(
            "the database is nearly out of connections",
            f"{server.connections} of {server.most_connections} are in use",
            cause="each worker holds two and now and then a third; the rest are other clients",
            fix="raise max_connections, or have others go through a pooler",
        )


@checks("tables-held", "cluster")
def tables_held(case: Case) -> Iterator[Finding]:
    """A session holds our tables, and others wait for it or will."""
    for each in case.seen.examination.blockers:
        who = f"session {each.pid} ({each.application or 'unnamed'}, role {each.role})"
        make = problem if each.waiting else risk
        yield make(
            f"{who} holds our tables",
            f"for {span(each.seconds)}, {each.state}; {many(each.waiting, 'session')} wait for it",
            cause="a transaction was left open, as in a psql session, or a maintenance statement takes its time",
            fix=f"have it commit; or SELECT pg_terminate_backend({each.pid})",
        )


@checks("maintenance-missing", "cluster")
def maintenance_missing(case: Case) -> Iterator[Finding]:
    """Rows are long past their retention: nobody deletes them."""
    oldest = case.seen.examination.oldest_ended
    kept = [
        float(retention)
        for profile in case.seen.profiles.values()
        if (retention := profile.get("settings", {}).get("claim_retention"))
    ]
    if oldest is not None and kept and oldest > max(kept) + _OVERDUE_SEC:
        yield risk(
            "finished claims are not deleted",
            f"the oldest ended {span(oldest)} ago, and claim_retention is {span(max(kept))}",
            cause="no beat runs, so nobody sends jobsync.maintenance; or it fails",
            fix="run one celery beat, or jobsync cleanup once a day",
        )
