"""Claims that cannot simply be inserted: left by a dead holder, lost too often, running elsewhere, or known as ended.

The way of every run that :meth:`Claims.commit` did not grant at once, in a transaction of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import TextClause
from sqlalchemy.engine import Connection

from jobsync_celery.core.model import Run
from jobsync_celery.store.database import Database
from jobsync_celery.store.outcomes import Busy, Elsewhere, GivenUp, Granted, Known, NotOurs, Outcome, Unserved, Wanted

#: A claim's holder is alive: its incarnation has a row that is not dead.
ALIVE = "EXISTS (SELECT FROM {node} n WHERE n.incarnation = c.incarnation AND n.state IN ('live', 'draining'))"
#: These runs, as a table w.
WANTED = (
    "unnest(CAST(:task_ids AS text[]), CAST(:origins AS text[]), CAST(:retries AS int[]))"
    " AS w (task_id, origin, retries)"
)
#: No failover has happened that the caller does not know of yet.
_SAME_SERVER = "(CAST(:timeline AS bigint) IS NULL OR {timeline}() = :timeline)"
_SAME_RUN = "c.task_id = w.task_id AND c.origin = w.origin AND c.retries = w.retries"


class Contest:
    """Claiming with everything that may stand in the way."""

    def __init__(self, database: Database) -> None:
        def sql(template: str) -> TextClause:
            return database.sql(
                template.replace("{alive}", ALIVE), wanted=WANTED, same_server=_SAME_SERVER, same_run=_SAME_RUN
            )

        self._disown = sql(
            "UPDATE {claim} c SET state = 'lost', finished_on = clock_timestamp() FROM {wanted}"
            " WHERE {same_run}"
            " AND c.state = 'running' AND c.incarnation = :incarnation"
        )
        self._owned = sql(
            "WITH me AS (SELECT incarnation FROM {node} WHERE name = :name AND incarnation = :incarnation"
            " AND state IN ('live', 'draining') AND {same_server} FOR KEY SHARE)"
            # Who was a caretaker until its new owner was planned may not run what it still has.
            " SELECT p.partition_id, p.pool <> '' AND (p.caretaker OR p.target IS DISTINCT FROM :name) AS caretaker"
            " FROM {partition} p, me"
            " WHERE p.partition_id = ANY(CAST(:partitions AS int[]))"
            " AND p.owner_incarnation = :incarnation ORDER BY p.partition_id FOR SHARE OF p"
        )
        self._places = sql(
            "SELECT placed.task_key, placed.home_id, placed.locked, p.partition_id, p.pool,"
            " (SELECT count(*) FROM {partition} q WHERE q.pool = p.pool AND q.first_token < p.first_token) AS position"
            " FROM (SELECT w.task_key, w.home_id, l.task_id IS NOT NULL AS locked,"
            " coalesce(l.partition_id, w.home_id) AS partition_id"
            " FROM unnest(CAST(:keys AS text[]), CAST(:homes AS int[])) AS w (task_key, home_id)"
            " LEFT JOIN {lock} l ON l.task_id = w.task_key) AS placed JOIN {partition} p USING (partition_id)"
        )
        self._insert = sql(
            "INSERT INTO {claim} (task_id, origin, retries, task_name, task_key, token_id, partition_id, node,"
            " incarnation, fence, attempt, state)"
            " SELECT w.task_id, w.origin, w.retries, w.task_name, w.task_key, w.token_id, w.partition_id, :name,"
            " :incarnation, 0, 1, 'running'"
            " FROM unnest(CAST(:task_ids AS text[]), CAST(:origins AS text[]), CAST(:retries AS int[]),"
            " CAST(:names AS text[]), CAST(:keys AS text[]), CAST(:tokens AS int[]), CAST(:partitions AS int[]))"
            " AS w (task_id, origin, retries, task_name, task_key, token_id, partition_id)"
            " WHERE NOT EXISTS (SELECT FROM {claim} later WHERE later.task_id = w.task_id"
            " AND later.origin = w.origin AND later.retries > w.retries)"
            # Not left to the conflict: it would wait for a transaction that is about to end the other claim.
            " AND NOT EXISTS (SELECT FROM {claim} r WHERE r.task_key = w.task_key AND r.state = 'running')"
            " ORDER BY w.task_key ON CONFLICT DO NOTHING RETURNING task_id, origin, retries"
        )
        self._settle_keys = sql(
            "WITH gone AS (SELECT c.task_id, c.origin, c.retries FROM {claim} c"
            " WHERE c.task_key = ANY(CAST(:keys AS text[])) AND c.state = 'running' AND NOT {alive}"
            " ORDER BY c.task_key FOR UPDATE OF c SKIP LOCKED)"
            " UPDATE {claim} c SET state = 'lost', finished_on = clock_timestamp(),"
            " lost_runs = c.lost_runs + (c.started OR c.lost_runs = 0)::int FROM gone"
            " WHERE c.task_id = gone.task_id AND c.origin = gone.origin AND c.retries = gone.retries"
        )
        self._give_up = sql(
            "UPDATE {claim} c SET state = 'failed', finished_on = clock_timestamp(),"
            " reason = 'lost ' || c.lost_runs || ' times: its worker or pool child died while it ran'"
            " FROM {wanted} WHERE {same_run} AND c.state = 'lost' AND c.started AND c.lost_runs >= :max_lost_runs"
        )
        self._take_over = sql(
            "UPDATE {claim} c SET state = 'running', node = :name, incarnation = :incarnation,"
            " partition_id = w.partition_id, attempt = c.attempt + (c.state = 'lost')::int,"
            " created_on = clock_timestamp(), finished_on = NULL, started = false, awaited = false"
            " FROM unnest(CAST(:task_ids AS text[]), CAST(:origins AS text[]), CAST(:retries AS int[]),"
            " CAST(:partitions AS int[])) AS w (task_id, origin, retries, partition_id) WHERE {same_run}"
            " AND (c.state = 'lost' OR (c.state = 'running' AND c.incarnation = :incarnation))"
            " AND NOT EXISTS (SELECT FROM {claim} other WHERE other.task_key = c.task_key AND other.state = 'running'"
            " AND (other.task_id, other.origin, other.retries) <> (c.task_id, c.origin, c.retries))"
            " AND NOT EXISTS (SELECT FROM {claim} later WHERE later.task_id = w.task_id"
            " AND later.origin = w.origin AND later.retries > w.retries)"
            " RETURNING c.task_id, c.origin, c.retries"
        )
        self._draw_fences = sql(
            "UPDATE {claim} c SET fence = ({timeline}() << 40) + nextval('{fence_seq}') FROM {wanted}"
            " WHERE {same_run}"
            " RETURNING c.task_id, c.origin, c.retries, c.fence, c.attempt, c.lost_runs"
        )
        self._await = sql(
            "WITH holders AS (SELECT c.task_id, c.origin, c.retries FROM {claim} c"
            " WHERE c.task_key = ANY(CAST(:keys AS text[])) AND c.state = 'running' AND NOT c.awaited"
            " ORDER BY c.task_key FOR NO KEY UPDATE OF c SKIP LOCKED)"
            " UPDATE {claim} c SET awaited = true FROM holders"
            " WHERE c.task_id = holders.task_id AND c.origin = holders.origin AND c.retries = holders.retries"
        )
        self._standing = sql(
            "SELECT w.task_id, w.origin, w.retries, own.state, own.reason, holder.node, holder.awaited,"
            " EXISTS (SELECT FROM {claim} later WHERE later.task_id = w.task_id AND later.origin = w.origin"
            " AND later.retries > w.retries) AS superseded"
            " FROM unnest(CAST(:task_ids AS text[]), CAST(:origins AS text[]), CAST(:retries AS int[]),"
            " CAST(:keys AS text[])) AS w (task_id, origin, retries, task_key)"
            " LEFT JOIN {claim} own ON own.task_id = w.task_id AND own.origin = w.origin AND own.retries = w.retries"
            " LEFT JOIN {claim} holder ON holder.task_key = w.task_key AND holder.state = 'running'"
        )

    def claim(
        self,
        tx: Connection,
        name: str,
        incarnation: int,
        wanted: Sequence[Wanted],
        timeline: int | None,
        max_lost_runs: int,
    ) -> dict[Run, Outcome]:
        """Claim each run for this incarnation; every run gets an outcome of its own.

        Runs of one key must not be claimed in one batch. The rows of partitions, locked here, keep their keys from
        being locked or unlocked until the commit. After a failover to another ``timeline`` than the given one nothing
        is ours. A run that was lost ``max_lost_runs`` times, the last time after it had begun for sure, is recorded
        as failed. A claim of a run that is not ours any more, granted in a commit whose answer was lost, is ended as
        lost.
        """
        me = {"name": name, "incarnation": incarnation}
        partitions = sorted({want.partition for want in wanted})
        owned = {
            row.partition_id: row.caretaker
            for row in tx.execute(self._owned, {**me, "timeline": timeline, "partitions": partitions})
        }
        outcomes = self._turned_away(tx, wanted, owned)
        if outcomes:
            tx.execute(self._disown, {"incarnation": incarnation, **arrays(outcomes)})
        ours = [want for want in wanted if want.run not in outcomes]
        granted = self._insert_claims(tx, me, ours)
        left = [want for want in ours if want.run not in granted]
        if left:
            granted |= self._resolve(tx, me, left, max_lost_runs)
            outcomes.update(self._refusals(tx, [want for want in left if want.run not in granted]))
        if granted:
            for row in tx.execute(self._draw_fences, arrays(granted)):
                last_chance = row.lost_runs > 0 and row.lost_runs + 1 >= max_lost_runs
                outcomes[Run(*row[:3])] = Granted(row.fence, row.attempt, row.lost_runs, last_chance)
        return outcomes

    def _turned_away(self, tx: Connection, wanted: Sequence[Wanted], owned: Mapping[int, bool]) -> dict[Run, Outcome]:
        """Runs in partitions that are not ours, of keys that belong elsewhere, or of keys that nobody may run now."""
        outcomes: dict[Run, Outcome] = {want.run: NotOurs() for want in wanted if want.partition not in owned}
        here = [want for want in wanted if want.partition in owned]
        homes = {(want.key, want.partition if want.home is None else want.home) for want in here}
        params = {"keys": [key for key, _ in homes], "homes": [home for _, home in homes]}
        places = {(row.task_key, row.home_id): row for row in tx.execute(self._places, params)} if here else {}
        for want in here:
            row = places.get((want.key, want.partition if want.home is None else want.home))
            if row is None:  # its home is not in the tables
                outcomes[want.run] = Unserved("")
            elif row.partition_id != want.partition:
                outcomes[want.run] = Elsewhere(row.partition_id, row.pool, row.position, row.locked)
            elif owned[want.partition]:
                outcomes[want.run] = Unserved(row.pool)
        return outcomes

    def _insert_claims(self, tx: Connection, me: dict[str, object], wanted: Sequence[Wanted]) -> set[Run]:
        if not wanted:
            return set()
        return {Run(*row) for row in tx.execute(self._insert, {**me, **_columns(wanted)})}

    def _resolve(self, tx: Connection, me: dict[str, object], left: Sequence[Wanted], max_lost_runs: int) -> set[Run]:
        """Take over what a dead holder left, or what this incarnation claimed without hearing the answer.

        Whoever runs a key that is wanted here is told so, before the last try: either its end comes before that, or
        it finds the mark and says so. Only who has the row locked, to end it perhaps, cannot be told.
        """
        tx.execute(self._settle_keys, {"keys": [want.key for want in left]})
        runs = arrays(want.run for want in left)
        tx.execute(self._give_up, {**runs, "max_lost_runs": max_lost_runs})
        partitions = [want.partition for want in left]
        taken = {Run(*row) for row in tx.execute(self._take_over, {**me, **runs, "partitions": partitions})}
        tx.execute(self._await, {"keys": [want.key for want in left if want.run not in taken]})
        return taken | self._insert_claims(tx, me, [want for want in left if want.run not in taken])

    def _refusals(self, tx: Connection, left: Sequence[Wanted]) -> dict[Run, Outcome]:
        if not left:
            return {}
        refusals: dict[Run, Outcome] = {}
        params = {**arrays(want.run for want in left), "keys": [want.key for want in left]}
        for row in tx.execute(self._standing, params):
            run = Run(*row[:3])
            if row.state == "failed" and row.reason:
                refusals[run] = GivenUp(row.reason)
            elif row.superseded or row.state in ("done", "failed", "retried"):
                refusals[run] = Known(row.state or "retried")
            else:
                refusals[run] = Busy(row.node or "", told=bool(row.awaited))
        return refusals


def _columns(wanted: Sequence[Wanted]) -> dict[str, object]:
    return {
        **arrays(want.run for want in wanted),
        "names": [want.task_name for want in wanted],
        "keys": [want.key for want in wanted],
        "tokens": [want.token for want in wanted],
        "partitions": [want.partition for want in wanted],
    }


def arrays(runs: Iterable[Run]) -> dict[str, object]:
    """Runs as the parameters of ``WANTED``."""
    listed = list(runs)
    return {
        "task_ids": [run.task_id for run in listed],
        "origins": [run.origin for run in listed],
        "retries": [run.retries for run in listed],
    }
