"""Another shape for a cluster that is stopped: its partitions are made anew, and what points to them follows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from sqlalchemy.engine import Connection

from jobsync_celery.store.database import Database, Row
from jobsync_celery.store.partitions import Partitions
from jobsync_celery.store.revisions import ClusterShape, array
from jobsync_celery.store.schema import ClusterInfo, cluster_in

_BATCH = 5000


@dataclass(frozen=True)
class Reshaped:
    """What followed the partitions: pools of task locks, task locks, and claims that may run again."""

    pools: int
    locks: int
    claims: int


class Reshaping:
    """Rewrites the partitions; the leader's row must be locked, and no node be live."""

    def __init__(self, database: Database) -> None:
        sql = database.sql
        self._partitions = Partitions(database)
        self._cluster = sql("SELECT * FROM {cluster} FOR UPDATE")
        self._set_cluster = sql(
            "UPDATE {cluster} SET total_tokens = :total_tokens, partitions = :partitions,"
            " hash_function = :hash_function, lock_partitions = :lock_partitions, former = CAST(:former AS jsonb)"
        )
        self._locks = sql("SELECT l.task_id, p.pool FROM {lock} l JOIN {partition} p USING (partition_id)")
        self._move_locks = sql(
            "UPDATE {lock} l SET partition_id = w.number"
            " FROM unnest(CAST(:keys AS text[]), CAST(:numbers AS int[])) AS w (key, number) WHERE l.task_id = w.key"
        )
        # The others have ended for good: they keep the numbers under which they ran.
        self._claims = sql(
            "SELECT c.task_id, c.origin, c.retries, c.task_key, coalesce(p.pool, '') AS pool FROM {claim} c"
            " LEFT JOIN {partition} p USING (partition_id) WHERE c.state IN ('running', 'lost')"
        )
        self._move_claims = sql(
            "UPDATE {claim} c SET token_id = w.token, partition_id = w.number"
            " FROM unnest(CAST(:task_ids AS text[]), CAST(:origins AS text[]), CAST(:retries AS int[]),"
            " CAST(:tokens AS int[]), CAST(:numbers AS int[])) AS w (task_id, origin, retries, token, number)"
            " WHERE c.task_id = w.task_id AND c.origin = w.origin AND c.retries = w.retries"
        )
        self._version = sql("SELECT coalesce(max(version), 0) + 1 FROM {partition}")
        self._clear = sql("DELETE FROM {partition}")
        self._add = sql(
            "INSERT INTO {partition} (partition_id, first_token, last_token, pool, version)"
            " SELECT w.*, :version FROM unnest(CAST(:numbers AS int[]), CAST(:firsts AS int[]), CAST(:lasts AS int[]),"
            " CAST(:pools AS text[])) AS w (number, first, last, pool)"
        )

    def locked(self, tx: Connection) -> ClusterInfo:
        """The cluster; until the transaction ends nobody registers with it, and no key is locked or unlocked."""
        return cluster_in(tx.execute(self._cluster).one())

    def rebuild(self, tx: Connection, cluster: ClusterInfo, shape: ClusterShape) -> Reshaped:
        """Give the cluster this shape. What is not owned by anybody is planned for by the next leader."""
        pools = self._renumbered(tx, shape)
        locks = tx.execute(self._locks).all()
        claims = tx.execute(self._claims).all()
        self._make_partitions(tx, shape, pools)
        self._relocate_locks(tx, shape, pools, locks)
        self._relocate_claims(tx, shape, pools, claims)
        former = [each for each in cluster.former if each not in (cluster.shape, shape)] + [cluster.shape]
        tx.execute(self._set_cluster, {**asdict(shape), "former": json.dumps([_numbers(each) for each in former])})
        return Reshaped(len(pools), len(locks), len(claims))

    def _renumbered(self, tx: Connection, shape: ClusterShape) -> dict[str, range]:
        """Pool -> its new partitions, behind the ordinary ones and in the order in which they were."""
        known = self._partitions.pools(tx)
        size = shape.pool_tokens.partitions
        starts = range(shape.partitions, shape.partitions + size * len(known), size)
        return {
            pool: range(at, at + size) for at, pool in zip(starts, sorted(known, key=known.__getitem__), strict=True)
        }

    def _make_partitions(self, tx: Connection, shape: ClusterShape, pools: Mapping[str, range]) -> None:
        version = tx.execute(self._version).scalar_one()
        tx.execute(self._clear)
        rows = [(number, *shape.tokens.range(number), "") for number in range(shape.partitions)]
        for pool, numbers in pools.items():
            rows += [(number, *shape.pool_tokens.range(at), pool) for at, number in enumerate(numbers)]
        every, firsts, lasts, names = zip(*rows, strict=True)
        ranges = {"numbers": array(every), "firsts": array(firsts), "lasts": array(lasts)}
        tx.execute(self._add, {**ranges, "pools": list(names), "version": version})

    def _relocate_locks(
        self, tx: Connection, shape: ClusterShape, pools: Mapping[str, range], locks: Sequence[Row]
    ) -> None:
        if locks:  # a statement that changes nothing counts as a change too
            numbers = [pools[pool][shape.pool_tokens.partition_for(key)] for key, pool in locks]
            tx.execute(self._move_locks, {"keys": [key for key, _ in locks], "numbers": numbers})

    def _relocate_claims(
        self, tx: Connection, shape: ClusterShape, pools: Mapping[str, range], claims: Iterable[Row]
    ) -> None:
        left = iter(claims)
        while batch := list(islice(left, _BATCH)):
            places = [
                pools[claim.pool][shape.pool_tokens.partition_for(claim.task_key)]
                if claim.pool
                else shape.tokens.partition_for(claim.task_key)
                for claim in batch
            ]
            columns = {
                "task_ids": [claim.task_id for claim in batch],
                "origins": [claim.origin for claim in batch],
                "retries": [claim.retries for claim in batch],
                "tokens": [shape.tokens.token(claim.task_key) for claim in batch],
                "numbers": places,
            }
            tx.execute(self._move_claims, columns)


def _numbers(shape: ClusterShape) -> dict[str, object]:
    numbers = asdict(shape)
    del numbers["kind"]
    return numbers
