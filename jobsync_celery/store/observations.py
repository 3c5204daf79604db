"""What observers write: who observes, and runs as they were seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jobsync_celery.core.observation import Observation
from jobsync_celery.store.database import Database, Link

# A run that was written while it ran gets its end; one whose writing got no answer is written as it is.
_WRITE = """
WITH seen AS (
    UPDATE {observer} SET dropped = :dropped,
        seen_on = greatest(seen_on, to_timestamp(CAST(:seen AS float8)))
    WHERE observer_id = :observer
    RETURNING observer_id
), written AS (
    INSERT INTO {observation} AS o (number, began_on, until, error_sec, state, retries, redelivered, task_id,
        task_name, task_key, observer_id)
    SELECT (r -> 0)::bigint, to_timestamp((r ->> 1)::float8), to_timestamp((r ->> 2)::float8), (r -> 3)::real, r ->> 4,
        (r -> 5)::int, (r -> 6)::boolean, r ->> 7, r ->> 8, r ->> 9, seen.observer_id
    FROM seen, jsonb_array_elements(CAST(:rows AS jsonb)) AS r
    ON CONFLICT (began_on, observer_id, number) DO UPDATE
        SET until = excluded.until, state = excluded.state, error_sec = excluded.error_sec
)
SELECT count(*) FROM seen
"""


@dataclass(frozen=True)
class ObserverIdentity:
    """A worker that observes: one start of it."""

    node: str
    hostname: str
    pid: int
    pool: str


class Observations:
    """The tables ``sync_observer`` and ``sync_observation``."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._enrol = sql(
            "INSERT INTO {observer} (node, hostname, pid, pool) VALUES (:node, :hostname, :pid, :pool)"
            " RETURNING observer_id"
        )
        self._clock = sql("SELECT extract(epoch FROM clock_timestamp())::float8")
        self._write = sql(_WRITE)
        self._leave = sql("UPDATE {observer} SET left_on = clock_timestamp() WHERE observer_id = :observer")

    def enrol(self, link: Link, identity: ObserverIdentity) -> int:
        """Begin to observe; the observer's number."""
        return int(link.statement(self._enrol, asdict(identity))[0][0])

    def clock(self, link: Link) -> float:
        """The database's clock, in seconds."""
        return float(link.statement(self._clock)[0][0])

    def write(self, link: Link, observer: int, seen: float, dropped: int, rows: Sequence[Observation]) -> bool:
        """Write runs, or what became of them, in one statement; false if there is no such observer any more.

        Arguments:
            seen: until then, by the database's clock, what has not ended was going on.
            dropped: how many runs this observer has left out so far.
        """
        values = {"observer": observer, "seen": seen, "dropped": dropped, "rows": f"[{','.join(map(_row, rows))}]"}
        return bool(link.statement(self._write, values)[0][0])

    def leave(self, link: Link, observer: int) -> None:
        """This worker observes no more."""
        link.statement(self._leave, {"observer": observer})


def _row(observation: Observation) -> str:
    number, began, until, error, state, run = observation
    ended = "null" if until is None else f"{until:.6f}"
    return f'[{number},{began:.6f},{ended},{error:.9f},"{state}",{run}]'
