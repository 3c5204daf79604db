"""What coordination would have prevented: questions about observed runs, each answered in one sorted pass."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from jobsync_celery.store.database import Database

#: An observer that said nothing for so long is gone, and so are the runs that it had not seen the end of.
SILENT_SEC = 30.0
#: Memory for sorting a million runs without a detour over the disk.
_SORT_MEMORY = "256MB"

# What surely was: from the latest moment that a run may have begun to the earliest that it may have ended. One that is
# shorter than the error of its times surely overlapped with nothing, and stands aside as not proper. So do runs without
# a key. Of what has not ended, the last time seen counts.
_SEEN = """
SELECT s.*, s.task_key IS NOT NULL AND s.first < s.last AS proper FROM (
    SELECT o.task_id, o.retries, o.task_name, o.task_key, o.redelivered, o.began_on, v.node,
        CASE o.state WHEN 'running' THEN NULL ELSE o.until END AS until,
        CASE WHEN o.state = 'running' AND (v.left_on IS NOT NULL
            OR v.seen_on < now() - make_interval(secs => {silent})) THEN 'lost' ELSE o.state END AS state,
        o.began_on + make_interval(secs => o.error_sec) AS first,
        CASE o.state WHEN 'running' THEN v.seen_on ELSE o.until END - make_interval(secs => o.error_sec) AS last
    FROM {observation} o JOIN {observer} v USING (observer_id)
    WHERE o.began_on > now() - make_interval(secs => :since)
) AS s
""".replace("{silent}", str(SILENT_SEC))

# Of the runs of a key in the order of their begin, one overlapped with an earlier one if it began before the latest end
# of those, and with a later one if the next began before its own end. ``late`` ones would have had to wait.
_TASKS = """
WITH seen AS ({seen}), marked AS (
    SELECT seen.*, proper AND first < latest AS late, proper AND following < last AS early,
        least(last, latest) - first AS shared
    FROM (
        SELECT seen.*, max(last) OVER (along ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS latest,
            lead(first) OVER along AS following
        FROM seen WINDOW along AS (PARTITION BY task_key, proper ORDER BY first)
    ) AS seen
), keys AS MATERIALIZED (
    SELECT task_name, task_key, count(*) AS runs,
        count(*) FILTER (WHERE late OR early) AS overlapping, count(*) FILTER (WHERE late) AS late,
        extract(epoch FROM max(shared) FILTER (WHERE late))::float8 AS longest,
        count(DISTINCT node) AS workers,
        count(*) FILTER (WHERE redelivered) AS redelivered,
        count(*) FILTER (WHERE state = 'lost') AS lost, count(*) FILTER (WHERE state = 'running') AS running
    FROM marked GROUP BY task_name, task_key
)
SELECT * FROM (
    SELECT task_name, NULL AS task_key, sum(runs)::bigint AS runs, count(task_key) AS keys,
        sum(overlapping)::bigint AS overlapping, sum(late)::bigint AS late, max(longest) AS longest,
        count(task_key) FILTER (WHERE late > 0) AS overlapping_keys,
        count(task_key) FILTER (WHERE workers > 1) AS spread_keys, max(workers) AS workers,
        sum(redelivered)::bigint AS redelivered, sum(lost)::bigint AS lost, sum(running)::bigint AS running,
        coalesce(sum(runs) FILTER (WHERE task_key IS NULL), 0)::bigint AS keyless
    FROM keys GROUP BY task_name ORDER BY late DESC, runs DESC, task_name
) AS tasks
UNION ALL SELECT * FROM (
    SELECT task_name, task_key, runs, 1, overlapping, late, longest, 1, (workers > 1)::int, workers,
        redelivered, lost, running, 0
    FROM keys WHERE task_key IS NOT NULL AND (CAST(:task AS text) IS NULL OR task_name = :task)
        AND (late > 0 OR overlapping > 0)
    ORDER BY late DESC, longest DESC NULLS LAST, task_key LIMIT :limit
) AS worst
"""

# A run is a task's id and its retries. Begun again, it is the same message once more; ended again, its work was done
# twice.
_AGAIN = """
SELECT task_name, sum(begun - 1)::bigint AS reruns, sum(redelivered)::bigint AS redelivered_reruns,
    sum(greatest(ended - 1, 0))::bigint AS ended_again,
    (array_agg(task_id ORDER BY ended DESC, begun DESC, task_id))[1] AS example
FROM (
    SELECT task_name, task_id, retries, count(*) AS begun, count(*) FILTER (WHERE state = 'ended') AS ended,
        least(count(*) FILTER (WHERE redelivered), count(*) - 1) AS redelivered
    FROM {observation} WHERE began_on > now() - make_interval(secs => :since)
    GROUP BY task_name, task_id, retries HAVING count(*) > 1
) AS runs GROUP BY task_name
"""

_PAIRS = """
WITH seen AS ({seen}), numbered AS (
    SELECT *, row_number() OVER (ORDER BY first)::float8 AS n FROM seen WHERE proper AND task_key = ANY(:keys)
), marked AS (
    SELECT *, max(ARRAY[extract(epoch FROM last)::float8, n]) OVER (
        PARTITION BY task_key ORDER BY first ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM numbered
)
SELECT DISTINCT ON (b.task_key) b.task_key AS key,
    extract(epoch FROM least(a.last, b.last) - b.first)::float8 AS shared,
    a.task_name AS first_task, a.task_id AS first_id, a.node AS first_node, a.began_on AS first_began,
    a.until AS first_until, b.task_name AS second_task, b.task_id AS second_id, b.node AS second_node,
    b.began_on AS second_began, b.until AS second_until
FROM marked b JOIN marked a ON a.n = b.before[2] WHERE b.first < a.last
ORDER BY b.task_key, shared DESC
"""

_OBSERVERS = """
SELECT count(DISTINCT node) AS workers, min(began_on) AS since, coalesce(sum(dropped), 0)::bigint AS dropped,
    count(DISTINCT node) FILTER (WHERE left_on IS NULL AND seen_on > now() - make_interval(secs => {silent}))
        AS present,
    (SELECT max(error_sec)::float8 FROM (SELECT error_sec FROM {observation}
        WHERE began_on > now() - make_interval(secs => :since) ORDER BY began_on DESC LIMIT 10000) AS latest) AS error,
    clock_timestamp() AS at
FROM {observer} WHERE seen_on > now() - make_interval(secs => :since)
""".replace("{silent}", str(SILENT_SEC))


@dataclass(frozen=True)
class Observers:
    """Who observes, and how well. ``error``: by how much the times of the latest runs may be off, in seconds."""

    workers: int
    present: int
    since: datetime | None
    dropped: int
    error: float | None
    at: datetime


@dataclass(frozen=True)
class ObservedTask:
    """What was observed of a task, or of one key of it.

    ``overlapping`` runs overlapped another of their key, of whichever task; the ``late`` ones of them began while the
    other was running. ``longest`` is how long two ran together, in seconds. ``spread_keys`` ran on several workers.
    """

    task_name: str
    task_key: str | None
    runs: int
    keys: int
    overlapping: int
    late: int
    longest: float | None
    overlapping_keys: int
    spread_keys: int
    workers: int
    redelivered: int
    lost: int
    running: int
    keyless: int
    reruns: int = 0
    redelivered_reruns: int = 0
    ended_again: int = 0
    example: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two runs of a key that ran together, ``shared`` seconds long; without an end where none is known."""

    key: str
    shared: float
    first_task: str
    first_id: str
    first_node: str
    first_began: datetime
    first_until: datetime | None
    second_task: str
    second_id: str
    second_node: str
    second_began: datetime
    second_until: datetime | None


@dataclass(frozen=True)
class Report:
    """What was observed: tasks, the worst keys among them, and for each of those the two runs that met longest."""

    observers: Observers
    tasks: list[ObservedTask]
    worst: list[ObservedTask]
    pairs: dict[str, Pair]


class ObservationReports:
    """Questions to ``sync_observation``."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._memory = sql(f"SELECT set_config('work_mem', '{_SORT_MEMORY}', true)")
        self._observers = sql(_OBSERVERS)
        self._tasks = sql(_TASKS, seen=_SEEN.strip())
        self._again = sql(_AGAIN)
        self._pairs = sql(_PAIRS, seen=_SEEN.strip())

    def report(self, tx: Connection, since: float, task: str | None = None, worst: int = 5) -> Report:
        """What was observed in the last ``since`` seconds, of all tasks or of one."""
        asked = {"since": since, "task": task, "limit": worst}
        tx.execute(self._memory)
        observers = Observers(**tx.execute(self._observers, {"since": since}).one()._mapping)
        again = {row.task_name: _but_name(row) for row in tx.execute(self._again, {"since": since})}
        rows = tx.execute(self._tasks, asked).all()
        tasks = [ObservedTask(**row._mapping, **again.get(row.task_name, {})) for row in rows if row.task_key is None]
        keys = [ObservedTask(**row._mapping) for row in rows if row.task_key is not None]
        pairs = self._longest(tx, since, {each.task_key for each in keys if each.task_key})
        return Report(observers, [each for each in tasks if task in (None, each.task_name)], keys, pairs)

    def _longest(self, tx: Connection, since: float, keys: Collection[str]) -> dict[str, Pair]:
        if not keys:
            return {}
        rows = tx.execute(self._pairs, {"since": since, "keys": sorted(keys)})
        return {row.key: Pair(**row._mapping) for row in rows}


def _but_name(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row._mapping.items() if name != "task_name"}
