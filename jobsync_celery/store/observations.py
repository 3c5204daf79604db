"""What observers write: who observes, and runs as they were seen."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from jobsync_celery.core.observation import Observation
from jobsync_celery.store.database import Database, Link, copy_in

# In the order in which they are packed below, those of a fixed size first.
_COLUMNS = "began_on, until, number, observer_id, error_sec, retries, redelivered, state, task_id, task_name, task_key"
# A run that was written while it ran gets its end; one whose writing got no answer is written as it is.
_WRITE_AGAIN = """
INSERT INTO {observation} ({columns})
SELECT timestamptz 'epoch' + (r -> 0)::bigint * interval '1 microsecond',
    timestamptz 'epoch' + (r ->> 1)::bigint * interval '1 microsecond', (r -> 2)::bigint, :observer,
    (r -> 3)::real, (r -> 4)::int, (r -> 5)::boolean, r ->> 6, r ->> 7, r ->> 8, r ->> 9
FROM jsonb_array_elements(CAST(:rows AS jsonb)) AS r
ON CONFLICT (began_on, observer_id, number) DO UPDATE
    SET until = excluded.until, state = excluded.state, error_sec = excluded.error_sec
"""
_SEEN = """
UPDATE {observer} SET dropped = :dropped, seen_on = greatest(seen_on, to_timestamp(CAST(:seen AS float8)))
WHERE observer_id = :observer
"""

# The binary format of COPY, for which the server needs half the time: a header, rows, an end. Each value has its
# length before it, and NULL the length -1. https://www.postgresql.org/docs/current/sql-copy.html
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = struct.pack("!h", -1)
_FIXED = struct.Struct("!h iq iq iq ii if ii i?")
_FIELDS = len(_COLUMNS.split(", "))
_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)
#: Microseconds from the epoch of Unix to that of PostgreSQL, the beginning of 2000.
_EPOCH = 946_684_800_000_000


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
        self._seen = sql(_SEEN)
        self._write_again = sql(_WRITE_AGAIN, columns=_COLUMNS)
        self._write_new = sql("COPY {observation} ({columns}) FROM STDIN (FORMAT binary)", columns=_COLUMNS)
        self._leave = sql("UPDATE {observer} SET left_on = clock_timestamp() WHERE observer_id = :observer")

    def enrol(self, link: Link, identity: ObserverIdentity) -> int:
        """Begin to observe; the observer's number."""
        return int(link.statement(self._enrol, asdict(identity))[0][0])

    def clock(self, link: Link) -> float:
        """The database's clock, in seconds."""
        return float(link.statement(self._clock)[0][0])

    def write(
        self,
        link: Link,
        observer: int,
        seen: float,
        dropped: int,
        new: Sequence[Observation],
        again: Sequence[Observation] = (),
    ) -> bool:
        """Write runs, or what became of them, in one transaction; false if there is no such observer any more.

        Arguments:
            seen: until then, by the database's clock, what has not ended was going on.
            dropped: how many runs this observer has left out so far.
            new: runs that have ended, and were not written before, nor tried to be.
            again: others; where there is a row of one, it gets its end.
        """
        rows = json.dumps([_values(each) for each in again], ensure_ascii=False)
        copied = b"".join([_HEADER, *(_packed(each, observer) for each in new), _TRAILER])
        with link.transaction() as tx:
            if not tx.execute(self._seen, {"observer": observer, "seen": seen, "dropped": dropped}).rowcount:
                return False
            if again:
                tx.execute(self._write_again, {"observer": observer, "rows": rows})
            if new:
                copy_in(tx, self._write_new, copied)
        return True

    def leave(self, link: Link, observer: int) -> None:
        """This worker observes no more."""
        link.statement(self._leave, {"observer": observer})


def _values(observation: Observation) -> list[object]:
    number, began, until, error, state, run = observation
    ended = None if until is None else _microseconds(until)
    told = [run.retries, run.redelivered, state, run.task_id, run.task_name, run.key]
    return [_microseconds(began), ended, number, error, *told]


def _packed(observation: Observation, observer: int) -> bytes:
    number, began, until, error, state, (name, key, task_id, retries, redelivered) = observation
    assert until is not None
    start, end = _microseconds(began) - _EPOCH, _microseconds(until) - _EPOCH
    fixed = _FIXED.pack(_FIELDS, 8, start, 8, end, 8, number, 4, observer, 4, error, 4, retries, 1, redelivered)
    return fixed + _word(state) + _text(task_id) + _word(name) + (_NULL if key is None else _text(key))


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded


#: For what comes again and again.
_word = lru_cache(maxsize=1000)(_text)


def _microseconds(seconds: float) -> int:
    """Rounded in one place: a run's begin names its row."""
    return round(seconds * 1e6)
