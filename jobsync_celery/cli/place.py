"""Where a key's tasks are to run, and why there: what ``where`` and ``why`` both tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobsync_celery.cli.answer import moment
from jobsync_celery.cli.queues import queue_names
from jobsync_celery.cli.site import Site
from jobsync_celery.errors import JobsyncError
from jobsync_celery.store.claim_reports import ClaimReports, ClaimRow
from jobsync_celery.store.database import Connection
from jobsync_celery.store.history import History, PartitionRow
from jobsync_celery.store.locks import TaskLock
from jobsync_celery.store.nodes import NodeRow


@dataclass(frozen=True)
class Place:
    """A key's token and partition, its lock, who has the partition, and what of the key runs."""

    key: str
    token: int
    hash_function: str
    total_tokens: int
    partition: PartitionRow
    lock: TaskLock | None
    owner: NodeRow | None
    target: NodeRow | None
    running: ClaimRow | None
    queue: str | None

    @property
    def unserved(self) -> bool:
        """Whether no live node may run the key's tasks."""
        return self.lock is not None and (self.partition.caretaker or self.partition.target is None)

    @property
    def owner_name(self) -> str | None:
        """Who may run the key's tasks now."""
        return None if self.partition.caretaker else self.partition.owner

    @property
    def settled(self) -> bool:
        """Whether a live node has the partition, and is to keep it."""
        alive = self.owner is not None and self.owner.state in ("live", "draining") and not self.owner.silent
        return alive and self.partition.state == "owned"

    def reasons(self) -> Iterator[str]:
        """Why the key is there, in sentences."""
        yield self._why_this_partition()
        yield self._why_this_node()

    def _why_this_partition(self) -> str:
        number = self.partition.number
        if self.lock is None:
            return (
                f"by its hash: {self.hash_function} of the key, modulo {self.total_tokens}, is token {self.token},"
                f" which is in partition {number}"
            )
        until = f", until {moment(self.lock.expires_at)}" if self.lock.expires_at else ""
        because = f" ({self.lock.reason})" if self.lock.reason else ""
        patterns = ", then ".join(repr(pattern) for pattern in self.lock.patterns)
        return f"by its task lock to {patterns}, set by {self.lock.created_by}{because}{until}: partition {number}"

    def _why_this_node(self) -> str:
        row = self.partition
        if self.unserved:
            return "no live node matches the lock: its tasks wait until one starts, or until the lock is cleared"
        if row.owner is None:
            return self._why_nobody()
        if row.state == "moving":
            return (
                f"partition {row.number} is moving: {row.owner} has it still, {row.target} is to take it{self._planned}"
            )
        if not self.settled:
            return f"{row.owner} has partition {row.number}, but its lease has ended: another is to take over"
        return f"{row.owner} has had partition {row.number} since {moment(row.claimed_at)}"

    def _why_nobody(self) -> str:
        row = self.partition
        if row.target is None:
            return f"nobody has partition {row.number}, and there is no plan for it: no node is live"
        if self.target is not None and self.target.awaited:
            until = moment(self.target.awaited_until)
            return f"nobody has partition {row.number}: it waits until {until} for {row.target} to return"
        return f"nobody has partition {row.number} just now: {row.target} is to take it{self._planned}"

    @property
    def _planned(self) -> str:
        return f" (planned {moment(self.partition.assigned_at)})" if self.partition.assigned_at else ""

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        lock = self.lock
        return {
            "key": self.key,
            "token": self.token,
            "partition": self.partition.number,
            "queue": self.queue,
            "owner": self.owner_name,
            "target": self.partition.target,
            "state": "unserved" if self.unserved else self.partition.state,
            "by": "hash" if lock is None else "lock",
            "lock": None
            if lock is None
            else {"patterns": list(lock.patterns), "reason": lock.reason, "created_by": lock.created_by},
            "why": list(self.reasons()),
        }


def place_of(site: Site, tx: Connection, key: str) -> Place:
    """Where a key is now."""
    tokens = site.tokens
    lock = site.store.locks.of_key(tx, key)
    number = lock.partition if lock else tokens.partition_for(key)
    row = History(site.database).partition(tx, number)
    if row is None:
        raise JobsyncError(f"the tables have no partition {number}: they were changed by hand")
    nodes = {node.name: node for node in site.store.nodes.everyone(tx)}
    running = ClaimReports(site.database).latest(tx, ["running"], key=key, limit=1)
    return Place(
        key=key,
        token=tokens.token(key),
        hash_function=tokens.hash_function,
        total_tokens=tokens.total_tokens,
        partition=row,
        lock=lock,
        owner=nodes.get(row.owner or ""),
        target=nodes.get(row.target or ""),
        running=running[0] if running else None,
        queue=queue_names(site, [row]).get(number),
    )
