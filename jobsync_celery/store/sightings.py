"""What nodes have seen that is no state of the cluster but a sign that something is wrong: for the doctor.

One row for each kind and subject, however often it is seen, so the table stays small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from jobsync_celery.store.database import Database


@dataclass(frozen=True)
class Seen:
    """Something that a node saw so many times since it was last written down."""

    kind: str
    subject: str
    times: int = 1
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sighting:
    """Something that was seen, last by ``node``; ``age`` is seconds since then by the database's clock."""

    kind: str
    subject: str
    node: str
    first_on: datetime
    last_on: datetime
    times: int
    detail: Mapping[str, Any]
    age: float


class Sightings:
    """The rows of ``sync_sighting``."""

    def __init__(self, database: Database) -> None:
        # Sorted, so that two who write the same subjects do not wait for each other crosswise.
        self._add = database.sql(
            "INSERT INTO {sighting} AS s (kind, subject, node, times, detail)"
            " SELECT kind, subject, :node, times, CAST(detail AS jsonb) FROM unnest(CAST(:kinds AS text[]),"
            " CAST(:subjects AS text[]), CAST(:times AS bigint[]), CAST(:details AS text[]))"
            " AS given (kind, subject, times, detail) ORDER BY kind, subject"
            " ON CONFLICT (kind, subject) DO UPDATE SET node = excluded.node, last_on = clock_timestamp(),"
            " times = s.times + excluded.times, detail = excluded.detail"
        )
        self._since = database.sql(
            "SELECT kind, subject, node, first_on, last_on, times, detail,"
            " extract(epoch FROM clock_timestamp() - last_on)::float8 AS age FROM {sighting}"
            " WHERE last_on > clock_timestamp() - make_interval(secs => :seconds) ORDER BY last_on DESC, kind, subject"
        )

    def add(self, tx: Connection, node: str, seen: Sequence[Seen]) -> None:
        """Write down what a node saw; each kind and subject once."""
        given = {
            "node": node,
            "kinds": [each.kind for each in seen],
            "subjects": [each.subject for each in seen],
            "times": [each.times for each in seen],
            "details": [json.dumps(dict(each.detail)) for each in seen],
        }
        tx.execute(self._add, given)

    def since(self, tx: Connection, seconds: float) -> list[Sighting]:
        """What was seen in the last so many seconds, the latest first."""
        return [Sighting(**row._mapping) for row in tx.execute(self._since, {"seconds": seconds})]
