"""Claims in the database: who runs which run of which key, with a fence that grows.

One commit records ends and grants claims for a whole batch (group commit). In this order: ends; the node and its
partitions locked with share locks, so that eviction and handover cannot slip between check and insert; the claims;
and each fence only when those locks are held.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import TextClause
from sqlalchemy.engine import Connection

from jobsync_celery.core.model import Run
from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.store.database import Database, Link

#: A claim's holder is alive: its incarnation has a row that is not dead.
_ALIVE = "EXISTS (SELECT FROM {node} n WHERE n.incarnation = c.incarnation AND n.state IN ('live', 'draining'))"
_WANTED = (
    "unnest(CAST(:task_ids AS text[]), CAST(:origins AS text[]), CAST(:retries AS int[]))"
    " AS w (task_id, origin, retries)"
)
#: No failover has happened that the caller does not know of yet.
_SAME_SERVER = "(CAST(:timeline AS bigint) IS NULL OR {timeline}() = :timeline)"


class Wanted(NamedTuple):
    """A run that asks for its claim."""

    run: Run
    task_name: str
    key: str
    token: int
    partition: int

    def record(self) -> dict[str, object]:
        """By the names of columns."""
        task_id, origin, retries = self.run
        return {
            "task_id": task_id,
            "origin": origin,
            "retries": retries,
            "task_name": self.task_name,
            "task_key": self.key,
            "token_id": self.token,
            "partition_id": self.partition,
        }


class Ending(NamedTuple):
    """How a claimed run ended: ``state`` is done, failed, retried, or lost (to be run again)."""

    run: Run
    fence: int
    state: str
    partition: int

    def record(self) -> dict[str, object]:
        """By the names of columns."""
        task_id, origin, retries = self.run
        return {
            "task_id": task_id,
            "origin": origin,
            "retries": retries,
            "fence": self.fence,
            "state": self.state,
        }


class Granted(NamedTuple):
    """The run may start, under this fence."""

    fence: int
    attempt: int


@dataclass(frozen=True)
class Known:
    """The run ended before, or a later try of it exists: acknowledge and forget it."""

    state: str


@dataclass(frozen=True)
class Busy:
    """The key (or the run itself) is running; ``node`` says where."""

    node: str


@dataclass(frozen=True)
class NotOurs:
    """The partition is not owned by this incarnation: give the message back."""


Outcome = Granted | Known | Busy | NotOurs


@dataclass(frozen=True)
class Committed:
    """The answer to a batch: ends that are recorded, ends that wait for a lock on their claim, and outcomes.

    An end in neither set was overtaken: another node has the run. If ``unsure``, the database fell silent half-way:
    a run without an outcome may be claimed or not.
    """

    recorded: set[Run]
    delayed: set[Run]
    outcomes: dict[Run, Outcome]
    unsure: bool = False


class Claims:
    """The rows of ``sync_claim``, as one node sees and changes them."""

    def __init__(self, database: Database) -> None:
        def sql(template: str) -> TextClause:
            return database.sql(
                template.replace("{alive}", _ALIVE),
                wanted=_WANTED,
                same_server=_SAME_SERVER,
            )

        self._missed = sql(
            "SELECT c.task_id, c.origin, c.retries, c.state IN ('running', 'lost') AS open FROM {claim} c"
            " JOIN unnest(CAST(:ended_ids AS text[]), CAST(:ended_origins AS text[]), CAST(:ended_retries AS int[]),"
            " CAST(:fences AS bigint[])) AS e (task_id, origin, retries, fence)"
            " ON c.task_id = e.task_id AND c.origin = e.origin AND c.retries = e.retries AND c.fence = e.fence"
        )
        self._disown = sql(
            "UPDATE {claim} c SET state = 'lost', finished_on = clock_timestamp() FROM {wanted}"
            " WHERE c.task_id = w.task_id AND c.origin = w.origin AND c.retries = w.retries"
            " AND c.state = 'running' AND c.incarnation = :incarnation"
        )
        self._owned = sql(
            "WITH me AS (SELECT incarnation FROM {node} WHERE name = :name AND incarnation = :incarnation"
            " AND state IN ('live', 'draining') AND {same_server} FOR KEY SHARE)"
            " SELECT p.partition_id FROM {partition} p, me WHERE p.partition_id = ANY(CAST(:partitions AS int[]))"
            " AND p.owner_incarnation = :incarnation ORDER BY p.partition_id FOR SHARE OF p"
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
        self._commit = sql(
            "SELECT task_id, origin, retries, fence FROM {commit_claims}(CAST(:ended AS json), CAST(:wanted AS json),"
            " :name, :incarnation, CAST(:partitions AS int[]), CAST(:timeline AS bigint))"
        )
        self._settle_keys = sql(
            "WITH gone AS (SELECT c.task_id, c.origin, c.retries FROM {claim} c"
            " WHERE c.task_key = ANY(CAST(:keys AS text[])) AND c.state = 'running' AND NOT {alive}"
            " ORDER BY c.task_key FOR UPDATE OF c SKIP LOCKED)"
            " UPDATE {claim} c SET state = 'lost', finished_on = clock_timestamp() FROM gone"
            " WHERE c.task_id = gone.task_id AND c.origin = gone.origin AND c.retries = gone.retries"
        )
        self._take_over = sql(
            "UPDATE {claim} c SET state = 'running', node = :name, incarnation = :incarnation,"
            " attempt = c.attempt + (c.state = 'lost')::int, created_on = clock_timestamp(), finished_on = NULL"
            " FROM {wanted} WHERE c.task_id = w.task_id AND c.origin = w.origin AND c.retries = w.retries"
            " AND (c.state = 'lost' OR (c.state = 'running' AND c.incarnation = :incarnation))"
            " AND NOT EXISTS (SELECT FROM {claim} other WHERE other.task_key = c.task_key AND other.state = 'running'"
            " AND (other.task_id, other.origin, other.retries) <> (c.task_id, c.origin, c.retries))"
            " AND NOT EXISTS (SELECT FROM {claim} later WHERE later.task_id = w.task_id"
            " AND later.origin = w.origin AND later.retries > w.retries)"
            " RETURNING c.task_id, c.origin, c.retries"
        )
        self._draw_fences = sql(
            "UPDATE {claim} c SET fence = ({timeline}() << 40) + nextval('{fence_seq}') FROM {wanted}"
            " WHERE c.task_id = w.task_id AND c.origin = w.origin AND c.retries = w.retries"
            " RETURNING c.task_id, c.origin, c.retries, c.fence, c.attempt"
        )
        self._standing = sql(
            "SELECT w.task_id, w.origin, w.retries, own.state, holder.node,"
            " EXISTS (SELECT FROM {claim} later WHERE later.task_id = w.task_id AND later.origin = w.origin"
            " AND later.retries > w.retries) AS superseded"
            " FROM unnest(CAST(:task_ids AS text[]), CAST(:origins AS text[]), CAST(:retries AS int[]),"
            " CAST(:keys AS text[])) AS w (task_id, origin, retries, task_key)"
            " LEFT JOIN {claim} own ON own.task_id = w.task_id AND own.origin = w.origin AND own.retries = w.retries"
            " LEFT JOIN {claim} holder ON holder.task_key = w.task_key AND holder.state = 'running'"
        )
        self._lose = sql(
            "WITH gone AS (SELECT c.task_id, c.origin, c.retries FROM {claim} c"
            " WHERE c.state = 'running' AND c.incarnation = :incarnation ORDER BY c.task_key"
            " FOR UPDATE OF c SKIP LOCKED)"
            " UPDATE {claim} c SET state = 'lost', finished_on = clock_timestamp() FROM gone"
            " WHERE c.task_id = gone.task_id AND c.origin = gone.origin AND c.retries = gone.retries"
            " RETURNING c.partition_id"
        )
        self._settle = sql(
            "WITH gone AS (SELECT c.task_id, c.origin, c.retries FROM {claim} c"
            " WHERE c.state = 'running' AND NOT {alive} ORDER BY c.task_key FOR UPDATE OF c SKIP LOCKED)"
            " UPDATE {claim} c SET state = 'lost', finished_on = clock_timestamp() FROM gone"
            " WHERE c.task_id = gone.task_id AND c.origin = gone.origin AND c.retries = gone.retries"
            " RETURNING c.partition_id"
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
    ) -> Committed:
        """Record ends and claim runs; one statement, which is one commit and one round trip, as a rule.

        Recording the same end twice is no error, so a batch whose commit was in doubt can be sent again. Claims get
        outcomes as :meth:`claim` says. A key's next claim can stand beside its predecessor's end. Each fence is drawn
        when the row of its partition is locked: whoever claims the key later has to be the partition's owner later,
        and draws later. What is not recorded or granted at once is looked into in a transaction of its own.
        """
        params = {
            "ended": json.dumps([ending.record() for ending in endings]),
            "wanted": json.dumps([want.record() for want in wanted]),
            "name": name,
            "incarnation": incarnation,
            "partitions": sorted({want.partition for want in wanted}),
            "timeline": timeline,
        }
        (*_, recorded), *granted = link.statement(self._commit, params)
        outcomes: dict[Run, Outcome] = {
            Run(task_id, origin, retries): Granted(fence, 1) for task_id, origin, retries, fence in granted
        }
        ended = {ending.run for ending in endings}
        left = [want for want in wanted if want.run not in outcomes] if len(outcomes) < len(wanted) else []
        if recorded == len(ended) and not left:
            return Committed(ended, set(), outcomes)
        try:
            with link.transaction() as tx:
                delayed: set[Run] = set()
                if recorded < len(ended):
                    ended, delayed = self.missed(tx, endings)
                rest = self.claim(tx, name, incarnation, left, timeline) if left else {}
        except StoreUnavailable:  # what the statement did stands: only the rest is open
            return Committed(set(), ended, outcomes, unsure=True)
        return Committed(ended, delayed, {**outcomes, **rest})

    def missed(self, tx: Connection, endings: Sequence[Ending]) -> tuple[set[Run], set[Run]]:
        """Of these ends, not all of which could be recorded: those that stand, and those that wait for a lock.

        Among the first are runs that ended otherwise, by ``complete`` before they failed, say; the second are held by
        a ``guard``, for instance. In neither set is what another node took over.
        """
        ended: set[Run] = set()
        waiting: set[Run] = set()
        for row in tx.execute(self._missed, _ends(endings)) if endings else ():
            (waiting if row.open else ended).add(Run(*row[:3]))
        return ended, waiting

    def claim(
        self, tx: Connection, name: str, incarnation: int, wanted: Sequence[Wanted], timeline: int | None = None
    ) -> dict[Run, Outcome]:
        """Claim each run for this incarnation; every run gets an outcome of its own.

        Runs of one key must not be claimed in one batch. After a failover to another ``timeline`` than the given
        one nothing is ours. A claim of a run that is not ours any more, granted in a commit whose answer was lost,
        is ended as lost.
        """
        me = {"name": name, "incarnation": incarnation}
        owned = {
            row.partition_id
            for row in tx.execute(
                self._owned, {**me, "timeline": timeline, "partitions": sorted({want.partition for want in wanted})}
            )
        }
        outcomes: dict[Run, Outcome] = {want.run: NotOurs() for want in wanted if want.partition not in owned}
        if outcomes:
            tx.execute(self._disown, {"incarnation": incarnation, **_arrays(outcomes)})
        ours = [want for want in wanted if want.partition in owned]
        granted = self._insert_claims(tx, me, ours)
        left = [want for want in ours if want.run not in granted]
        if left:
            granted |= self._resolve(tx, me, left)
            outcomes.update(self._refusals(tx, [want for want in left if want.run not in granted]))
        if granted:
            for row in tx.execute(self._draw_fences, _arrays(granted)):
                outcomes[Run(*row[:3])] = Granted(row.fence, row.attempt)
        return outcomes

    def lose(self, tx: Connection, incarnation: int) -> set[int]:
        """Mark the running claims of an incarnation lost; their partitions.

        A claim that its holder locked under ``guard`` is left alone: it is settled by the next pass.
        """
        return {row.partition_id for row in tx.execute(self._lose, {"incarnation": incarnation})}

    def settle(self, tx: Connection) -> set[int]:
        """Mark every running claim lost whose holder is dead or gone; their partitions."""
        return {row.partition_id for row in tx.execute(self._settle)}

    def running(self, tx: Connection, runs: Sequence[Run]) -> dict[Run, str]:
        """Which of these runs are running at a live node, and at which."""
        return {Run(*row[:3]): row.node for row in tx.execute(self._running, _arrays(runs))} if runs else {}

    def _insert_claims(self, tx: Connection, me: dict[str, object], wanted: Sequence[Wanted]) -> set[Run]:
        if not wanted:
            return set()
        return {Run(*row) for row in tx.execute(self._insert, {**me, **_columns(wanted)})}

    def _resolve(self, tx: Connection, me: dict[str, object], left: Sequence[Wanted]) -> set[Run]:
        """Take over what a dead holder left, or what this incarnation claimed without hearing the answer."""
        tx.execute(self._settle_keys, {"keys": [want.key for want in left]})
        taken = {Run(*row) for row in tx.execute(self._take_over, {**me, **_arrays(want.run for want in left)})}
        return taken | self._insert_claims(tx, me, [want for want in left if want.run not in taken])

    def _refusals(self, tx: Connection, left: Sequence[Wanted]) -> dict[Run, Outcome]:
        if not left:
            return {}
        refusals: dict[Run, Outcome] = {}
        params = {**_arrays(want.run for want in left), "keys": [want.key for want in left]}
        for row in tx.execute(self._standing, params):
            run = Run(*row[:3])
            if row.superseded or row.state in ("done", "failed", "retried"):
                refusals[run] = Known(row.state or "retried")
            else:
                refusals[run] = Busy(row.node or "")
        return refusals


def _ends(endings: Sequence[Ending]) -> dict[str, object]:
    return {
        **_arrays((ending.run for ending in endings), "ended_ids", "ended_origins", "ended_retries"),
        "fences": [ending.fence for ending in endings],
        "states": [ending.state for ending in endings],
    }


def _columns(wanted: Sequence[Wanted]) -> dict[str, object]:
    return {
        **_arrays(want.run for want in wanted),
        "names": [want.task_name for want in wanted],
        "keys": [want.key for want in wanted],
        "tokens": [want.token for want in wanted],
        "partitions": [want.partition for want in wanted],
    }


def _arrays(
    runs: Iterable[Run], ids: str = "task_ids", origins: str = "origins", retries: str = "retries"
) -> dict[str, object]:
    listed = list(runs)
    return {
        ids: [run.task_id for run in listed],
        origins: [run.origin for run in listed],
        retries: [run.retries for run in listed],
    }
