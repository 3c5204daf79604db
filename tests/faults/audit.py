"""What only the database can tell: whether a claim's holder still owned the partition when the claim was committed.

A constraint trigger that is deferred to the commit looks once more. With the locks of a claim held it can find nothing;
without them a hand-over or an eviction may have come between the claim's own look and its commit.
"""

from __future__ import annotations

import time

from tests.faults.model import Stale
from tests.faults.tables import Tables
from tests.faults.waiting import now

_INSTALL = """
CREATE TABLE faults_stale (
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    task_id text, task_key text, partition_id int, node text, owner text
);
CREATE FUNCTION faults_look_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO faults_stale (task_id, task_key, partition_id, node, owner)
    SELECT NEW.task_id, NEW.task_key, NEW.partition_id, NEW.node, p.owner FROM sync_partition p
    WHERE p.partition_id = NEW.partition_id AND p.owner_incarnation IS DISTINCT FROM NEW.incarnation;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER faults_claimed AFTER INSERT ON sync_claim DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.state = 'running') EXECUTE FUNCTION faults_look_again();
CREATE CONSTRAINT TRIGGER faults_claimed_again AFTER UPDATE ON sync_claim DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.state = 'running' AND (OLD.state <> 'running' OR OLD.incarnation <> NEW.incarnation))
    EXECUTE FUNCTION faults_look_again();
"""


def install(tables: Tables) -> None:
    """Look from now on; the tables of the cluster are there."""
    tables.rows(_INSTALL)


def stale(tables: Tables) -> list[Stale]:
    """The claims that were committed for somebody who was not the owner."""
    # Between a wall clock that was stepped meanwhile and this one there is no better than a guess: it is for people.
    since_boot = now() - time.time()
    rows = tables.rows(
        "SELECT extract(epoch FROM at)::float8 AS at, task_id, task_key, partition_id, node, owner FROM faults_stale"
        " ORDER BY at"
    )
    return [
        Stale(row["at"] + since_boot, row["task_id"], row["task_key"], row["partition_id"], row["node"], row["owner"])
        for row in rows
    ]
