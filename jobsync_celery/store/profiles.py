"""What nodes say of themselves when they register: settings, tasks, broker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Connection

from jobsync_celery.store.database import Database


class Profiles:
    """The rows of ``sync_profile``. Those of nodes that are gone go when another one registers."""

    def __init__(self, database: Database) -> None:
        self._write = database.sql(
            "INSERT INTO {profile} (node, incarnation, profile) VALUES (:name, :incarnation, CAST(:profile AS jsonb))"
            " ON CONFLICT (node) DO UPDATE SET incarnation = excluded.incarnation, profile = excluded.profile"
        )
        self._forget = database.sql(
            "DELETE FROM {profile} WHERE node = ANY(ARRAY(SELECT p.node FROM {profile} p WHERE NOT EXISTS"
            " (SELECT FROM {node} n WHERE n.name = p.node) ORDER BY p.node FOR UPDATE SKIP LOCKED))"
        )
        self._present = database.sql(
            "SELECT p.node, p.profile FROM {profile} p JOIN {node} n ON n.name = p.node"
            " AND n.incarnation = p.incarnation WHERE n.state IN ('live', 'draining') ORDER BY n.incarnation"
        )

    def write(self, tx: Connection, name: str, incarnation: int, profile: Mapping[str, Any]) -> None:
        """What a node that has just registered says of itself."""
        given = {"name": name, "incarnation": incarnation, "profile": json.dumps(dict(profile))}
        tx.execute(self._write, given)
        tx.execute(self._forget)

    def present(self, tx: Connection) -> dict[str, Mapping[str, Any]]:
        """What the live and draining nodes have said, oldest first."""
        return {row.node: row.profile for row in tx.execute(self._present)}
