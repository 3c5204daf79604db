"""A real PostgreSQL whose clock, notifications and history belong to the simulation; the product's SQL is untouched.

Everything lives in the schema ``sim``, which stands before ``pg_catalog`` in every session's search path, so that

- ``clock_timestamp()`` is a function of ours. It reads a sequence: outside transactions, so that every session sees
  a step at once, statements that have been waiting included;
- ``pg_notify()`` writes what it is given into the journal with its transaction. The simulation hands it out, so that
  the moment of arrival is chosen and not found out;
- deferred triggers write every change of nodes, partitions, claims and effects into the journal *at commit*. Row locks
  are held until after that, so the journal's order is the order of commits wherever two transactions conflict.
"""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

import psycopg2

EPOCH = 2_000_000_000  # the database's time in seconds when a simulation begins
OPTIONS = "-csearch_path=sim,pg_catalog -cdeadlock_timeout=20ms"

_FRAME = """
CREATE SCHEMA sim;
CREATE SEQUENCE sim.microseconds MINVALUE 0;
CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT pg_catalog.to_timestamp(last_value / 1e6::float8) FROM sim.microseconds';
CREATE TABLE sim.journal (id bigserial, tx bigint, session text, source text, before jsonb, after jsonb);
CREATE FUNCTION sim.pg_notify(channel text, payload text) RETURNS void LANGUAGE sql
    AS 'INSERT INTO sim.journal (source, after) VALUES (''notice'', to_jsonb(payload))';
CREATE TABLE sim.effect (task_id text, origin text, retries int, fence bigint);
CREATE FUNCTION sim.record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_ARGV[0] = 'node' AND TG_OP = 'UPDATE' THEN
        IF OLD.state = NEW.state AND OLD.incarnation = NEW.incarnation THEN
            RETURN NULL;
        END IF;
    END IF;
    INSERT INTO sim.journal (tx, session, source, before, after)
    VALUES (pg_current_xact_id()::text::bigint, current_setting('application_name'), TG_ARGV[0],
        to_jsonb(OLD), to_jsonb(NEW));
    RETURN NULL;
END $$;
"""
_RECORDED = {"node": "sync_node", "partition": "sync_partition", "claim": "sync_claim", "effect": "effect"}
_EMPTY = """
TRUNCATE sim.sync_node, sim.sync_claim, sim.sync_rebalance, sim.effect, sim.journal;
UPDATE sim.sync_leader SET node = NULL, incarnation = NULL, term = 0, since = NULL;
UPDATE sim.sync_partition SET target = NULL, owner = NULL, owner_incarnation = NULL, last_owner = NULL, version = 0,
    assigned_at = NULL, claimed_at = NULL;
ALTER SEQUENCE sim.sync_incarnation_seq RESTART;
ALTER SEQUENCE sim.sync_fence_seq RESTART;
TRUNCATE sim.journal;
"""


class Entry(NamedTuple):
    """One change of one row, as its transaction committed it; ``notice`` entries carry a payload in ``after``."""

    tx: int | None
    session: str | None
    source: str
    before: Any
    after: Any


class VirtualServer:
    """The simulation's own session: it moves the clock, reads the journal and ends other sessions."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url.replace("+psycopg2", ""))
        self._connection.autocommit = True
        self._cursor = self._connection.cursor()
        self._one_at_a_time = threading.Lock()  # actors ask, too, each in a thread of its own
        self._execute(_FRAME)
        self._clock: int | None = None

    def record_changes(self) -> None:
        """Begin the journal; the product's tables exist now."""
        for source, table in _RECORDED.items():
            self._execute(
                f"CREATE CONSTRAINT TRIGGER record AFTER INSERT OR UPDATE OR DELETE ON sim.{table}"
                f" DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sim.record('{source}')"
            )

    def empty(self) -> None:
        """As it was before the first node came."""
        self._execute(_EMPTY)
        self._clock = None

    def replace_function(self, name: str, change: dict[str, str]) -> None:
        """Put other words into the body of one of the product's functions; for mutants."""
        ((body,),) = self._execute("SELECT pg_get_functiondef(%s::regproc)", (f"sim.{name}",))
        for old, new in change.items():
            assert old in body, f"{old!r} is not in {name} any more"
            body = body.replace(old, new)
        self._execute(body)

    def set_clock(self, seconds: float) -> None:
        """Let every session's ``clock_timestamp()`` be that long after :data:`EPOCH`."""
        microseconds = round((EPOCH + seconds) * 1e6)
        if microseconds != self._clock:
            self._clock = microseconds
            self._execute("SELECT setval('sim.microseconds', %s)", (microseconds,))

    def news(self) -> list[Entry]:
        """What was committed since the last call."""
        rows = self._execute(
            "WITH news AS (DELETE FROM sim.journal RETURNING *)"
            " SELECT tx, session, source, before, after FROM news ORDER BY id"
        )
        return [Entry(*row) for row in rows]

    def waits(self, pids: list[int]) -> dict[int, list[int]]:
        """Which of these sessions wait for a lock, and for whom."""
        rows = self._execute("SELECT pid, pg_blocking_pids(pid) FROM unnest(%s::int[]) AS pid", (pids,))
        return {pid: blockers for pid, blockers in rows if blockers}

    def cancel(self, pid: int) -> None:
        """End a session's statement, as a timeout does."""
        self._execute("SELECT pg_cancel_backend(%s)", (pid,))

    def terminate(self, pid: int) -> None:
        """End a session, and return when its locks are free."""
        self._execute("SELECT pg_terminate_backend(%s)", (pid,))
        while self._exists(pid):
            time.sleep(0.0005)  # pg_terminate_backend's own waiting looks every 100 ms

    def _exists(self, pid: int) -> bool:
        ((count,),) = self._execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,))
        return bool(count)

    def close(self) -> None:
        """End the simulation's own session."""
        self._connection.close()

    def _execute(self, statement: str, parameters: tuple[Any, ...] | None = None) -> list[Any]:
        """The rows of the statement, if it has any."""
        with self._one_at_a_time:
            self._cursor.execute(statement, parameters)
            return self._cursor.fetchall() if self._cursor.description else []
