"""Everything a node asks of the database, in one place."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from jobsync_celery.store.audit import Audit
from jobsync_celery.store.claims import Claims
from jobsync_celery.store.database import Database
from jobsync_celery.store.leader import Leaders
from jobsync_celery.store.locks import Locks
from jobsync_celery.store.nodes import Nodes
from jobsync_celery.store.partitions import Partitions
from jobsync_celery.store.profiles import Profiles
from jobsync_celery.store.sightings import Sightings
from jobsync_celery.store.waits import Waits


class Store:
    """The tables of one cluster, and its notification channel."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.nodes = Nodes(database)
        self.waits = Waits(database)
        self.partitions = Partitions(database)
        self.leaders = Leaders(database)
        self.claims = Claims(database)
        self.locks = Locks(database)
        self.audit = Audit(database)
        self.profiles = Profiles(database)
        self.sightings = Sightings(database)
        self._notify = database.sql("SELECT pg_notify(:channel, :payload)")

    def notify(self, tx: Connection, payload: str) -> None:
        """Wake the other nodes when ``tx`` commits: members, orders, plan, freed, evicted or ended."""
        tx.execute(self._notify, {"channel": self.database.channel, "payload": payload})
