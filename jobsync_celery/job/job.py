"""``Job``: a program that is no Celery worker takes part in a cluster of its own, and shares tasks by their ids."""

from __future__ import annotations

import datetime
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias, overload

from jobsync_celery.core.tokens import TokenSet, key_text
from jobsync_celery.errors import JobsyncError, StoreUnavailable
from jobsync_celery.job.alone import Alone
from jobsync_celery.job.checks import config_of, day_of, node_name_of, seconds_of
from jobsync_celery.job.cluster import JobCluster
from jobsync_celery.job.ledger import Ledger
from jobsync_celery.job.seat import LINES, Diary, Seat
from jobsync_celery.job.task import Task, TaskId, task_of
from jobsync_celery.runtime.callbacks import Callback
from jobsync_celery.runtime.claim import Claim, NullClaim
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.lock_desk import LockCalls, LockDesk
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.database import set_patience
from jobsync_celery.store.nodes import NodeRow

#: Seconds for the audit of a large day.
_PATIENCE = 60.0
Many: TypeAlias = Iterable[Task | TaskId]


class Job(LockCalls):
    """One node of a cluster of programs that share tasks by their ids; a context manager.

        with Job("worker-01", coordination_config=CoordinationConfig(url=…, appname="nightly_")) as job:
            for item in items():
                if job.can_claim_task(item.id) and job.add_task(item.id):
                    process(item)

    Each id belongs to one node at most at any time. On entering, the node joins and waits for its share; on leaving, it
    records what it has done, hands everything over and leaves. In between it keeps its lease by itself, in a thread,
    and joins again when it has lost it. Any thread may call any method. A forked child owns nothing.

    Where the tables are those of a Celery cluster it is a guest: it may ask and set task locks, and owns nothing.

    Arguments:
        node_name: its name in the cluster; of two at once with the same name the second waits for the first.
        coordination_config: a :class:`CoordinationConfig`, or a mapping with its settings. None, or ``enabled=False``,
            means one program alone that may claim everything; no database is needed.
        date: the day whose tasks these are: each is done once for a day. None means today, by the local clock.
        wait_on_enter: seconds that the first plan of a cluster waits for more nodes to come; None means what the
            settings say. ``minimum_nodes`` of the settings holds it back too.
        wait_on_exit: seconds for which the node, when it has ended, stays in the cluster before it leaves; it claims
            nothing any more, and nobody else gets its share until then.
        lock_provider: called with this object on entering, before the node joins, to set the task locks it knows of.
        clear_existing_locks: whether the locks that were set under this name before, and that the provider has not set
            again, are cleared behind it.
        on_rebalance: called with a :class:`RebalanceEvent`, or with nothing if it takes nothing, whenever this node
            gains or loses tokens; in a thread of its own. Another node gets what this one loses when it has returned.

    Raises:
        SettingsError: a setting, the name, the date or the callback is impossible.
    """

    def __init__(
        self,
        node_name: str,
        coordination_config: CoordinationConfig | Mapping[str, Any] | object | None = None,
        date: datetime.date | None = None,
        wait_on_enter: float | None = None,
        wait_on_exit: float = 0,
        lock_provider: Callable[[Job], object] | None = None,
        clear_existing_locks: bool = False,
        on_rebalance: Callable[..., object] | None = None,
    ) -> None:
        config = config_of(coordination_config)
        self._date = day_of(date)
        self._node_name = node_name_of(node_name)
        self._wait_on_exit = seconds_of("wait_on_exit", wait_on_exit)
        self._callbacks = [] if on_rebalance is None else [Callback(on_rebalance)]
        self._lock_provider = lock_provider
        self._clear_existing_locks = clear_existing_locks
        if config is not None:
            wait = config.wait_on_enter if wait_on_enter is None else wait_on_enter
            config = replace(config, node_name=node_name, wait_on_enter=wait)
        self._cluster = None if config is None else JobCluster(config)
        self._diary = Diary()
        self._seat: Seat | None = None
        self._ledger: Ledger | None = None
        self._nodes: list[NodeRow] = []
        self._open = self._left = False
        self._alone = Alone()
        self._owns: Callable[[str], bool] = _never
        os.register_at_fork(after_in_child=partial(_abandon, weakref.ref(self)))

    def __repr__(self) -> str:
        return f"<Job {self.node_name!r} {self.state}>"

    # -- entering and leaving -----------------------------------------------------------------------------------

    def __enter__(self) -> Job:
        """Join, and return when this node has its share.

        Raises:
            JoinTimeout: it has none in time. The message names what it waits for.
            StoreError: the database refuses this, or the cluster was made with other settings.
            JobsyncError: the ``lock_provider`` failed, or the block was entered before.
        """
        if self._open or self._left:
            raise JobsyncError(f"the block of {self!r} was entered before: make another Job")
        self._open = True
        try:
            if self._cluster is None:
                self._owns = _always
            else:
                self._join(self._cluster)
        except BaseException:
            self._open, self._left, self._owns = False, True, _never
            if self._cluster is not None:
                self._cluster.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Record what was done, hand everything over, and leave the cluster.

        If the block raised, a task that was claimed by adding it last may be half done. It is given back, and runs
        again elsewhere.

        Raises:
            StoreUnavailable: for a whole lease the database did not let it record what was done. If the block has
                raised already, the log says so instead.
        """
        if not self._open:
            return
        self._open, self._left, self._owns = False, True, _never
        cluster, seat, ledger = self._cluster, self._seat, self._ledger
        if cluster is None or seat is None or ledger is None:
            if cluster is not None:
                cluster.close()
            return
        try:
            ledger.write_at_last(failed=kind is not None, patience=cluster.config.heartbeat_timeout_sec)
            threading.Event().wait(self._wait_on_exit)
        finally:
            try:
                seat.leave()
            finally:
                ledger.close()
                cluster.close()

    # -- tasks --------------------------------------------------------------------------------------------------

    def can_claim_task(self, task: Task | TaskId) -> bool:
        """Whether a task is this node's. Asks no server.

        True on one node at most at any time: false from the deadline of the lease on, before anybody else's is true,
        and true again after recovery. False outside of the block.

        Raises:
            KeyInvalid: it cannot be a task's id.
        """
        return self._owns(task.key if isinstance(task, Task) else key_text(task))

    @overload
    def set_claim(self, task: Task | TaskId) -> Claim | NullClaim | None: ...  # type: ignore[overload-overlap] # a string is an id

    @overload
    def set_claim(self, task: Many) -> list[Claim] | list[NullClaim]: ...

    def set_claim(self, task: Task | TaskId | Many) -> Claim | NullClaim | list[Claim] | list[NullClaim] | None:
        """Claim a task, or many at once; there is one winner for each id and day in the whole cluster.

        A task can be claimed if it is this node's, and is not claimed by anybody, nor done for the day already, as far
        back as ended claims are kept (``claim_retention``). What is claimed and not added by :meth:`add_task`, nor
        completed, is given back when the node leaves or dies.

        Returns:
            The claim, or None; for an iterable the list of those that were won.

        Raises:
            KeyInvalid: one of them cannot be a task's id; nothing is claimed then.
            StoreUnavailable: the database does not answer, or the lease has ended. Claim again: what was won in the
                meantime is this node's.
            JobsyncError: outside of the block.
        """
        if not isinstance(task, Iterable) or isinstance(task, (str, bytes, bytearray)):
            won = self._claim([task_of(task)])  # type: ignore[arg-type] # what is no id is refused there
            return won[0] if won else None
        return self._claim([task_of(each) for each in task])

    def add_task(self, task: Task | TaskId) -> Claim | NullClaim | None:
        """Put a task on the list of what is done, and claim it before if that was not done.

        So either add a task and do it, or claim it by :meth:`set_claim`, do it, and add it. Threads that work for each
        other need the second way: what was claimed by adding it counts as done when its thread adds another one.

        Returns:
            The claim; None if it cannot be claimed (see :meth:`set_claim`), or is on the list already.

        Raises:
            KeyInvalid, StoreUnavailable, JobsyncError: as :meth:`set_claim`.
        """
        self._require_block()
        if self._cluster is None:
            return self._alone.add(task_of(task))
        return None if self._ledger is None else self._ledger.add(task_of(task))

    def give_back(self, task: Task | TaskId) -> bool:
        """Let others claim a task that was claimed here and is not done, as when it has failed; false if it was not.

        Raises:
            KeyInvalid, StoreUnavailable, JobsyncError: as :meth:`set_claim`.
        """
        self._require_block()
        if self._cluster is None:
            return self._alone.give_back(task_of(task))
        return self._ledger is not None and self._ledger.give_back(task_of(task))

    def write_audit(self) -> int:
        """Record what was added as done for the day, in the claims and in ``sync_audit``; how many tasks that were.

        What another node has taken over, since this one had lost its lease, is left out, with a warning in the log.
        What another thread has claimed by adding it last may not be done yet, and what somebody has locked under
        ``guard`` cannot be ended: both stay on the list.

        Raises:
            StoreUnavailable: the database does not answer; the rest stays on the list.
        """
        self._require_block()
        return 0 if self._ledger is None else self._ledger.write()

    def get_audit(self, date: datetime.date | None = None) -> list[dict[str, str]]:
        """What was done on a day, this Job's if not given, by all nodes: ``{"node": …, "task_id": …}`` each."""
        if self._cluster is None:
            return []
        store, day = self._cluster.store, self.date if date is None else day_of(date)
        with store.database.transaction("jobsync audit") as tx:
            set_patience(tx, _PATIENCE)
            rows = store.audit.of(tx, day)
        return [{"node": row.node, "task_id": row.task_id} for row in rows]

    def task_to_token(self, task: Task | TaskId) -> int:
        """The token of a task: its hash slot; 0 without a cluster. Raises KeyInvalid."""
        key = task_of(task).key
        return 0 if self._cluster is None else self._cluster.shape.tokens.token(key)

    # -- this node ----------------------------------------------------------------------------------------------

    @property
    def node_name(self) -> str:
        """This node's name."""
        return self._node_name

    @property
    def date(self) -> datetime.date:
        """The day whose tasks these are; another day needs another Job."""
        return self._date

    @property
    def my_tokens(self) -> frozenset[int]:
        """The tokens of this node; empty from its deadline on, and outside of the block. Asks no server."""
        seat = self._seat if self._open else None
        return frozenset() if seat is None else frozenset(TokenSet(seat.tokens, seat.held))

    @property
    def token_version(self) -> int:
        """A number that grows whenever this node gains or loses tokens."""
        return 0 if self._seat is None else self._seat.tenures.changes

    @property
    def nodes(self) -> list[NodeRow]:
        """The nodes that were there when the block began; :meth:`get_active_nodes` asks anew."""
        return list(self._nodes)

    @property
    def state(self) -> str:
        """What this node is now: new, standalone, guest, running_leader, running_follower, suspended or left.

        Suspended means that its lease was not renewed in time, so that it may claim nothing.
        """
        if not self._open:
            return "left" if self._left else "new"
        if self._seat is None:
            return "standalone" if self._cluster is None else "guest"
        if not self._seat.lease.trusted:
            return "suspended"
        return "running_leader" if self._seat.leading else "running_follower"

    def am_i_leader(self) -> bool:
        """Whether this node leads, as far as it knows; asks no server."""
        return self.state == "running_leader"

    def am_i_healthy(self) -> bool:
        """Whether this program may go on: it holds a lease that it trusts, or needs none. Asks no server."""
        return self.state in ("running_leader", "running_follower", "standalone", "guest")

    # -- the cluster --------------------------------------------------------------------------------------------

    def get_active_nodes(self) -> list[NodeRow]:
        """The nodes that are live or draining, oldest first; asked of the database."""
        return [] if self._cluster is None else [node for node in self._cluster.nodes() if node.present]

    def get_dead_nodes(self) -> list[NodeRow]:
        """The nodes that were declared dead and are not cleaned up yet; asked of the database."""
        return [] if self._cluster is None else [node for node in self._cluster.nodes() if node.state == "dead"]

    def get_coordination_status(self) -> dict[str, Any]:
        """This node and its cluster, as plain values; what only the database knows is None while it does not answer."""
        try:
            here = None if self._cluster is None else [node for node in self._cluster.nodes() if node.present]
        except StoreUnavailable:
            here = None
        nodes = {node.name: node for node in here or ()}
        own = nodes.get(self.node_name)
        beat = None if own is None else own.last_heartbeat
        return {
            "enabled": self._cluster is not None,
            "node_name": self.node_name,
            "state": self.state,
            "is_leader": self.am_i_leader(),
            "my_tokens": 0
            if self._seat is None or not self._open
            else len(TokenSet(self._seat.tokens, self._seat.held)),
            "token_version": self.token_version,
            "total_tokens": 0 if self._cluster is None else self._cluster.shape.total_tokens,
            "active_nodes": None if here is None else list(nodes),
            "last_heartbeat": None if beat is None else beat.isoformat(),
            "recent_events": self._diary.entries(),
        }

    # -- details ------------------------------------------------------------------------------------------------

    def _join(self, cluster: JobCluster) -> None:
        end = time.monotonic() + cluster.patience
        cluster.find(end)
        if self._lock_provider is not None or self._clear_existing_locks:
            provider = None if self._lock_provider is None else partial(self._lock_provider, self)
            cluster.desk().provide(provider, clear_existing=self._clear_existing_locks)
        events = Events(LINES)
        events.listen(self._diary.note)
        if cluster.foreign:
            events("guest", name=self.node_name, kind=cluster.shape.kind)
            self._nodes = self.get_active_nodes()
            return
        seat = Seat(cluster.store, cluster.config, cluster.shape, self.node_name, self._callbacks, events)
        # Before it joins: callbacks may ask what is this node's.
        self._seat, self._ledger, self._owns = seat, Ledger(cluster.store, seat, self.date, events), seat.owns
        try:
            seat.join(end - time.monotonic())
        except BaseException:
            self._seat = self._ledger = None
            raise
        self._nodes = seat.neighbours

    def _claim(self, tasks: list[Task]) -> list[Claim] | list[NullClaim]:
        self._require_block()
        if self._cluster is None:
            return self._alone.claim(tasks)
        return [] if self._ledger is None else self._ledger.claim(tasks)

    def _require_block(self) -> None:
        if not self._open:
            raise JobsyncError(f"tasks are claimed and recorded inside of the block: with {self!r} as job: …")

    def _desk(self) -> LockDesk:
        if self._cluster is None:
            raise JobsyncError("a Job without coordination_config is alone: there is no cluster that could lock keys")
        return self._cluster.desk()


def _abandon(reference: weakref.ref[Job]) -> None:
    """In a forked child: it is no node, and must not use its parent's connections."""
    job = reference()
    if job is not None and job._open:
        job._open, job._left, job._owns = False, True, _never
        job._seat = job._ledger = None
        if job._cluster is not None:
            job._cluster.store.database.discard_after_fork()


def _never(key: str) -> bool:
    return False


def _always(key: str) -> bool:
    return True
