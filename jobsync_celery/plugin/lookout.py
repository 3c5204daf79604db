"""What a worker sees that no table tells: written down for the doctor, by a thread that nothing waits for.

The leader also leaves a mark with the broker, a message that says whose queues these are. If it finds another's in its
place, two clusters share their queues: each keeps its own claims, so nothing else would notice.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kombu.entity import Exchange, Queue

from jobsync_celery.errors import StoreError
from jobsync_celery.plugin.cluster import Cluster
from jobsync_celery.store.schema import ClusterInfo, find_cluster
from jobsync_celery.store.sightings import Seen

logger = logging.getLogger(__name__)

#: Facts that an operator would want to know of later, and what they are about.
_TELLING: Mapping[str, str] = {
    "lease_lost": "name",
    "loop_hangs": "name",
    "cannot_consume": "name",
    "name_taken": "name",
    "schema_refused": "",
    "clock_stepped": "",
    "foreign_cluster": "tables",
    "listener_slow": "receiver",
    "listener_failed": "receiver",
}
#: So many kinds and subjects between two writings; more are one too many to help anybody.
_MOST = 100
_MOST_MARKS = 20
_CONNECT_SEC = 5.0


class Lookout:
    """One worker's.

    Arguments:
        leads: whether this worker leads now; who leads looks after the mark.
    """

    def __init__(self, cluster: Cluster, node: str, leads: Callable[[], bool]) -> None:
        self._cluster = cluster
        self._node = node
        self._leads = leads
        self._seen: dict[tuple[str, str], Seen] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._stopping = threading.Event()
        self._info: ClusterInfo | None = None
        self._marked = False
        self._mark_due = 0.0
        self._thread = threading.Thread(target=self._run, name="jobsync-lookout", daemon=True)
        cluster.events.listen(self._heard)

    def start(self) -> None:
        """Start the thread; only after the pool has forked."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread soon; what is not written down by then is lost."""
        self._stopping.set()

    def saw(self, kind: str, subject: str, **detail: Any) -> None:
        """Remember it, to be written down within some seconds. Any thread; returns at once."""
        if os.getpid() != self._pid:  # a pool child has no such thread, and may have forked with the lock held
            return
        with self._lock:
            before = self._seen.get((kind, subject))
            if before is None and len(self._seen) >= _MOST:
                return
            times = 1 if before is None else before.times + 1
            self._seen[kind, subject] = Seen(kind, subject, times, detail)

    def _heard(self, fact: str, fields: Mapping[str, Any]) -> None:
        about = _TELLING.get(fact)
        if about is not None:
            told = {name: value for name, value in fields.items() if isinstance(value, (str, int, float))}
            self.saw(fact, str(fields[about]) if about else self._node, **told)

    def _run(self) -> None:
        config = self._cluster.config
        while not self._stopping.wait(2 * config.heartbeat_interval_sec):
            try:
                self._write_down()
                self._patrol()
            except Exception:  # the node loop tells of a database that is away, and Celery of a broker
                logger.debug("jobsync: the lookout goes on later", exc_info=True)

    def _patrol(self) -> None:
        """Look after the mark, if that is ours to do."""
        if not self._leads():
            self._marked = False
        elif time.monotonic() >= self._mark_due:
            self._mark_due = time.monotonic() + 2 * self._cluster.config.heartbeat_timeout_sec
            self._look_at_mark()

    def _write_down(self) -> None:
        with self._lock:
            seen, self._seen = self._seen, {}
        if not seen:
            return
        store = self._cluster.store
        try:
            with store.database.transaction("jobsync lookout") as tx:
                store.sightings.add(tx, self._node, list(seen.values()))
        except StoreError:
            self._remember(seen)
            raise

    def _remember(self, unwritten: Mapping[tuple[str, str], Seen]) -> None:
        with self._lock:
            for key, each in unwritten.items():
                newer = self._seen.get(key)
                self._seen[key] = each if newer is None else replace(newer, times=newer.times + each.times)

    def _look_at_mark(self) -> None:
        ours = self._info = self._info or find_cluster(self._cluster.store.database)
        if ours is None:
            return
        foreign = [mark for mark in self._exchange(ours.cluster_id) if mark.get("cluster") != ours.cluster_id]
        # What was there before our first look may be from long ago.
        if self._marked:
            for mark in foreign:
                self._cluster.events(
                    "foreign_cluster",
                    prefix=self._cluster.config.queue_prefix,
                    tables=str(mark.get("tables")),
                    ours=self._tables,
                )
        self._marked = True

    def _exchange(self, cluster_id: str) -> list[dict[str, Any]]:
        """Put our mark into the place of those that are there; which these were."""
        name = mark_queue(self._cluster.config.queue_prefix)
        with self._cluster.app.connection_for_write(connect_timeout=_CONNECT_SEC) as connection:
            connection.ensure_connection(max_retries=1, timeout=_CONNECT_SEC)
            channel = connection.channel()
            queue = Queue(name, Exchange(name, type="direct"), routing_key=name)(channel)
            queue.declare()
            found: list[dict[str, Any]] = []
            while len(found) < _MOST_MARKS and (message := queue.get(no_ack=True)) is not None:
                found.append(_read(message.body))
            mark = {"cluster": cluster_id, "tables": self._tables, "node": self._node}
            connection.Producer(channel).publish(
                json.dumps(mark), exchange=name, routing_key=name, content_type="text/plain", content_encoding="utf-8"
            )
            return found

    @property
    def _tables(self) -> str:
        database = self._cluster.store.database
        return f"{database.prefix}* in {database.where}"


def _read(body: Any) -> dict[str, Any]:
    try:
        mark = json.loads(body)
    except ValueError:
        mark = None
    return mark if isinstance(mark, dict) else {"tables": "unknown"}


def mark_queue(prefix: str) -> str:
    """The queue that holds the mark."""
    return f"{prefix}cluster"
