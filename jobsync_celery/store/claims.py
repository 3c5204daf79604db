"""Claims in the database: who runs which run of which key, with a fence that grows.

One commit records ends and grants claims for a whole batch (group commit). In this order: ends; the node and its
partitions locked with share locks, so that eviction and handover cannot slip between check and insert; the claims;
and each fence only when those locks are held.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import TextClause
from sqlalchemy.engine import Connection

from jobsync_celery.core.model import Run
from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.store.contest import ALIVE, WANTED, Contest, arrays
from jobsync_celery.store.database import Database, Link
from jobsync_celery.store.outcomes import Committed, Ending, Granted, Outcome, Wanted

#: Claims that are marked lost in one transaction. A Job may have any number; whoever wants the key of one that is left
#: finds that its holder is dead.
LOST_AT_ONCE = 2000
#: Who dies cannot say what it had begun. A run that was never lost may have begun; one that was has a mark if so.
_LOST = "state = 'lost', finished_on = clock_timestamp(), lost_runs = c.lost_runs + (c.started OR c.lost_runs = 0)::int"


class Claims:
    """The rows of ``sync_claim``, as one node sees and changes them."""

    def __init__(self, database: Database) -> None:
        def sql(template: str) -> TextClause:
            return database.sql(template.replace("{alive}", ALIVE), wanted=WANTED, lost=_LOST)

        self._contest = Contest(database)
        self._missed = sql(
            "SELECT c.task_id, c.origin, c.retries, c.state IN ('running', 'lost') AND c.state <> e.state AS open"
            " FROM {claim} c JOIN json_to_recordset(CAST(:ended AS json))"
            " AS e (task_id text, origin text, retries int, fence bigint, state text)"
            " ON c.task_id = e.task_id AND c.origin = e.origin AND c.retries = e.retries AND c.fence = e.fence"
        )
        self._commit = sql(
            "SELECT task_id, origin, retries, fence FROM {commit_claims}(CAST(:ended AS json), CAST(:wanted AS json),"
            " :name, :incarnation, CAST(:partitions AS int[]), CAST(:timeline AS bigint))"
        )
        self._lose = sql(
            "WITH gone AS (SELECT c.task_id, c.origin, c.retries FROM {claim} c"
            " WHERE c.state = 'running' AND c.finished_on IS NULL AND c.incarnation = :incarnation"
            " LIMIT :limit FOR UPDATE OF c SKIP LOCKED)"
            " UPDATE {claim} c SET {lost} FROM gone"
            " WHERE c.task_id = gone.task_id AND c.origin = gone.origin AND c.retries = gone.retries"
        )
        self._settle = sql(
            "WITH gone AS (SELECT c.task_id, c.origin, c.retries FROM {claim} c"
            " WHERE c.state = 'running' AND NOT {alive} LIMIT :limit FOR UPDATE OF c SKIP LOCKED)"
            " UPDATE {claim} c SET {lost} FROM gone"
            " WHERE c.task_id = gone.task_id AND c.origin = gone.origin AND c.retries = gone.retries"
        )
        self._begin = sql(
            "UPDATE {claim} SET started = true WHERE task_id = :task_id AND origin = :origin AND retries = :retries"
            " AND fence = :fence AND state = 'running' RETURNING fence"
        )
        self._running = sql(
            "SELECT c.task_id, c.origin, c.retries, c.node FROM {claim} c JOIN {wanted} ON c.task_id = w.task_id"
            " AND c.origin = w.origin AND c.retries = w.retries WHERE c.state = 'running' AND {alive}"
        )

    def commit(
        self,
        link: Link,
        name: str,
        incarnation: int,
        endings: Sequence[Ending],
        wanted: Sequence[Wanted],
        timeline: int | None = None,
        max_lost_runs: int = 3,
    ) -> Committed:
        """Record ends and claim runs; one statement, which is one commit and one round trip, as a rule.

        Recording the same end twice is no error, so a batch whose commit was in doubt can be sent again. Claims get
        outcomes as :meth:`Contest.claim` says. A key's next claim can stand beside its predecessor's end. Each fence
        is drawn when the row of its partition is locked: whoever claims the key later has to be the partition's owner
        later, and draws later. What is not recorded or granted at once is looked into in a transaction of its own.
        """
        params = {
            "ended": json.dumps([ending.record() for ending in endings]),
            "wanted": json.dumps([want.record() for want in wanted]),
            "name": name,
            "incarnation": incarnation,
            "partitions": sorted({want.partition for want in wanted}),
            "timeline": timeline,
        }
        (_, _, heard, recorded), *granted = link.statement(self._commit, params)
        awaited = bool(heard)
        outcomes: dict[Run, Outcome] = {
            Run(task_id, origin, retries): Granted(fence, 1) for task_id, origin, retries, fence in granted
        }
        ended = {ending.run for ending in endings}
        left = [want for want in wanted if want.run not in outcomes] if len(outcomes) < len(wanted) else []
        if recorded == len(ended) and not left:
            return Committed(ended, set(), outcomes, awaited=awaited)
        try:
            with link.transaction() as tx:
                delayed: set[Run] = set()
                if recorded < len(ended):
                    ended, delayed = self.missed(tx, endings)
                rest = self._contest.claim(tx, name, incarnation, left, timeline, max_lost_runs) if left else {}
        except StoreUnavailable:  # what the statement did stands: only the rest is open
            return Committed(set(), ended, outcomes, unsure=True, awaited=awaited)
        return Committed(ended, delayed, {**outcomes, **rest}, awaited=awaited)

    def missed(self, tx: Connection, endings: Sequence[Ending]) -> tuple[set[Run], set[Run]]:
        """Of these ends, not all of which could be recorded: those that stand, and those that wait for a lock.

        Among the first are runs that ended otherwise, by ``complete`` before they failed, say; the second are held by
        a ``guard``, for instance. In neither set is what another node took over.
        """
        ended: set[Run] = set()
        waiting: set[Run] = set()
        ends = json.dumps([ending.record() for ending in endings])
        for row in tx.execute(self._missed, {"ended": ends}) if endings else ():
            (waiting if row.open else ended).add(Run(*row[:3]))
        return ended, waiting

    def begin(self, link: Link, run: Run, fence: int) -> bool:
        """Record that the run begins now; false if its claim is lost, and it must not."""
        return bool(link.statement(self._begin, {**run._asdict(), "fence": fence}))

    def claim(
        self,
        tx: Connection,
        name: str,
        incarnation: int,
        wanted: Sequence[Wanted],
        timeline: int | None = None,
        max_lost_runs: int = 3,
    ) -> dict[Run, Outcome]:
        """Claim inside a transaction of the caller's; see :meth:`Contest.claim`."""
        return self._contest.claim(tx, name, incarnation, wanted, timeline, max_lost_runs)

    def lose(self, tx: Connection, incarnation: int) -> int:
        """Mark running claims of an incarnation lost, a batch of them at most; how many.

        A claim that its holder locked under ``guard`` is left alone: it is settled by the next pass.
        """
        return tx.execute(self._lose, {"incarnation": incarnation, "limit": LOST_AT_ONCE}).rowcount

    def settle(self, tx: Connection) -> int:
        """Mark running claims lost whose holder is dead or gone, a batch of them at most; how many."""
        return tx.execute(self._settle, {"limit": LOST_AT_ONCE}).rowcount

    def running(self, tx: Connection, runs: Sequence[Run]) -> dict[Run, str]:
        """Which of these runs are running at a live node, and at which."""
        return {Run(*row[:3]): row.node for row in tx.execute(self._running, arrays(runs))} if runs else {}
