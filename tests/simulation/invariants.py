"""The promises of the design, checked against what was committed and what bodies did.

The ledger replays the journal in the order of commits, transaction by transaction, and knows nothing of how the
product comes to its decisions. Names as in the design: S1 one running claim a key; S2 no start without a claim that was
committed by a live owner, under a lease that is trusted; S3 one owner, changed in the allowed ways only; S4 nobody is
evicted who still trusts itself; S5 no guarded commit of a lost claim; S6 (here) a finished run is never run again;
S7 fences grow with each claim of a key; L4 (here) an outage evicts nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .sim_node import Body, SimNode
from .virtual_server import Entry

if TYPE_CHECKING:
    from .world import World

Row = Mapping[str, Any]
_ALIVE = ("live", "draining")
_ENDED = ("done", "failed", "retried")


class Broken(AssertionError):
    """A promise was broken."""

    def __init__(self, promise: str, what: str, story: str) -> None:
        super().__init__(f"{promise}: {what}\n{story}")
        self.promise = promise


@dataclass(frozen=True)
class _Change:
    """What one transaction made of one row."""

    before: Row | None
    after: Row | None


class Ledger:
    """The committed state, as one transaction after the other made it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.nodes: dict[int, str] = {}
        self.partitions: dict[int, Row] = {}
        self.claims: dict[tuple[str, str, int], Row] = {}
        self._fences: dict[str, int] = {}
        self.evictions = 0
        self.grants = self.starts = self.guarded = self.fenced = self.moves = self.takeovers = 0

    # -- what was committed -----------------------------------------------------------------------------------------

    def take(self, entries: Sequence[Entry]) -> None:
        """Apply what the journal says, and check each transaction."""
        last = {entry.tx: place for place, entry in enumerate(entries)}
        for tx in sorted(last, key=lambda each: last[each]):
            self._transaction([entry for entry in entries if entry.tx == tx])

    def _transaction(self, entries: Sequence[Entry]) -> None:
        session = entries[0].session or ""
        self._effects(entry.after for entry in entries if entry.source == "effect")
        changes = {source: self._changes(source, entries) for source in ("partition", "claim")}
        for entry in entries:
            if entry.source == "node":
                live = [e for e in entries if e.source == "node" and e.after and e.after["state"] == "live"]
                self._node(session, entry, registers=bool(live))
        for change in changes["partition"]:
            self._partition(session, change)
        for change in changes["claim"]:
            self._claim(session, change)
        self._one_claim_a_key()

    def _changes(self, source: str, entries: Iterable[Entry]) -> list[_Change]:
        rows: dict[Any, _Change] = {}
        for entry in entries:
            if entry.source == source:
                row = entry.after or entry.before
                key = row["partition_id"] if source == "partition" else _run(row)
                first = rows[key].before if key in rows else entry.before
                rows[key] = _Change(first, entry.after)
        return list(rows.values())

    def _node(self, session: str, entry: Entry, *, registers: bool) -> None:
        before, after = entry.before, entry.after
        if before is not None and (after is None or after["incarnation"] != before["incarnation"]):
            if before["state"] in _ALIVE and before["incarnation"] not in self._incarnations_of(session):
                self._break("S4", f"{session} removed the row of live incarnation {before['incarnation']}")
            self.nodes[before["incarnation"]] = "left"
        if after is not None:
            self.nodes[after["incarnation"]] = after["state"]
            evicted = before is not None and before["state"] in _ALIVE and after["state"] == "dead"
            self._world.note(f"COMMITTED {session}: incarnation {after['incarnation']} is {after['state']}")
            if evicted:
                self.evictions += 1
                self._evicted(session, after["incarnation"], registers=registers)

    def _evicted(self, session: str, incarnation: int, *, registers: bool) -> None:
        for node in self._living():
            if node.lease.holds(incarnation):
                self._break("S4", f"{session} evicted {incarnation}, which {node} trusts until {node.lease.deadline}")
        observer = self._node_of(session)
        if observer is None or registers:
            return
        decided = observer.decided_at
        times = [time for time in observer.answers if time <= decided]
        interval, timeout = self._world.interval, self._world.timeout
        since = next((time for time in reversed(times) if time <= decided - timeout), None)
        watched = [time for time in times if since is not None and time >= since] + [decided]
        gap = max((later - earlier for earlier, later in pairwise(watched)), default=timeout)
        # By the design: an interval and a half, or, if that is more, an interval and the lease's margin.
        if since is None or gap > max(1.5 * interval, interval + 0.1 * timeout) * 1.01:
            heard = f"having heard the database at {times[-5:]}"
            self._break("L4", f"{session} evicted {incarnation} at {decided}, {heard}")

    def _partition(self, session: str, change: _Change) -> None:
        before, after = change.before, change.after
        assert after is not None, "partitions are never removed"
        self.partitions[after["partition_id"]] = after
        was, now = before["owner_incarnation"] if before else None, after["owner_incarnation"]
        if was == now:
            return
        self.moves += 1
        self._world.note(f"COMMITTED {session}: partition {after['partition_id']} goes from {was} to {now}")
        number = after["partition_id"]
        if was is not None and now is not None:
            self._break("S3", f"{session} took partition {number} from {was}, which had not released it")
        if now is not None and (self.nodes.get(now) != "live" or after["target"] != after["owner"]):
            self._break("S3", f"{session} took partition {number} as {now}, not live or not its target: {after}")
        released = was in self._incarnations_of(session)
        if was is not None and not released and self.nodes.get(was) in _ALIVE:
            self._break("S3", f"{session} freed partition {number} of the live incarnation {was}")

    def _claim(self, session: str, change: _Change) -> None:
        before, after = change.before, change.after
        if after is None:
            return
        self.claims[_run(after)] = after
        step = (before["state"] if before else None, after["state"])
        unchanged = before is not None and before["fence"] == after["fence"]
        if step[1] == "running" and not (step[0] == "running" and unchanged):
            self._granted(session, before, after)
        elif step[0] in _ENDED and step[1] != step[0]:
            self._break("S6", f"{session} made a run that had ended {step[0]} {step[1]}: {after}")
        elif step[0] == "lost" and not unchanged:
            self._break("S5", f"{session} ended a claim that another node had taken over: {before} {after}")
        self._world.note(f"COMMITTED {session}: {after['task_id']} of {after['task_key']} {step[0]} -> {step[1]}")

    def _granted(self, session: str, before: Row | None, after: Row) -> None:
        self.grants += 1
        incarnation, partition = after["incarnation"], self.partitions.get(after["partition_id"])
        if self.nodes.get(incarnation) not in _ALIVE:
            self._break("S2", f"{session} committed a claim of {incarnation}, which is not alive: {after}")
        if partition is None or partition["owner_incarnation"] != incarnation:
            self._break("S2", f"{session} committed a claim of {incarnation}, not the partition's owner: {partition}")
        if before is not None:
            self._regranted(session, before, after)
        key, fence = after["task_key"], after["fence"]
        if not fence or fence <= self._fences.get(key, 0):
            self._break("S7", f"{session} claimed {key!r} under fence {fence}, after {self._fences.get(key)}")
        self._fences[key] = fence

    def _regranted(self, session: str, before: Row, after: Row) -> None:
        self.takeovers += 1
        if before["state"] in _ENDED:
            self._break("S6", f"{session} claimed a run again that had ended {before['state']}: {after}")
        taken_over = before["state"] == "lost" or before["incarnation"] != after["incarnation"]
        if before["state"] == "running" and taken_over and self.nodes.get(before["incarnation"]) in _ALIVE:
            self._break("S1", f"{session} took over a claim that runs: {before} {after}")
        if after["attempt"] != before["attempt"] + taken_over:
            self._break("S7", f"{session} counted attempts wrongly: {before} {after}")

    def _one_claim_a_key(self) -> None:
        running = Counter(claim["task_key"] for claim in self.claims.values() if claim["state"] == "running")
        if running and max(running.values()) > 1:
            self._break("S1", f"two running claims: {running}")

    def _effects(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.guarded += 1
            claim = self.claims.get(_run(row))
            if claim is None or claim["state"] != "running" or claim["fence"] != row["fence"]:
                self._break("S5", f"a guarded commit under fence {row['fence']} of the claim {claim}")

    # -- what bodies did --------------------------------------------------------------------------------------------

    def started(self, body: Body) -> None:
        """A body starts, now; called in its thread."""
        self.starts += 1
        node, wanted = body.node, body.delivery.wanted
        self._world.note(f"{node}: {wanted.run.task_id} of {wanted.key!r} STARTS under fence {body.fence}")
        claim = self.claims.get(tuple(wanted.run))
        stands = claim is not None and claim["state"] == "running" and claim["fence"] == body.fence
        if claim is None or not stands or self.nodes.get(claim["incarnation"]) not in _ALIVE:
            self._break("S2", f"{node} started {wanted} under fence {body.fence}, but its claim is {claim}")
        for other in self._living():
            for rival in other.bodies:
                same = rival is not body and rival.started and rival.delivery.wanted.key == wanted.key
                if same and other.lease.holds(rival.given.incarnation):
                    self._break("S1", f"{node} started {wanted} while {other} runs {rival.delivery.wanted}")

    def check(self) -> None:
        """See that what every process believes of itself is true."""
        for node in self._living():
            incarnation = node.lease.incarnation
            if node.lease.trusted and self.nodes.get(incarnation, "live") not in _ALIVE:  # it may be news
                self._break("S4", f"{node} trusts incarnation {incarnation}, which is {self.nodes.get(incarnation)}")
        if self._world.database.deadlocks:
            self._break("lock order", self._world.database.deadlocks[0])
        if self._world.complaints:
            self._break("no errors", self._world.complaints[0])

    # -- inside -----------------------------------------------------------------------------------------------------

    def _living(self) -> list[SimNode]:
        return [node for node in self._world.nodes if node.alive]

    def _node_of(self, session: str) -> SimNode | None:
        _, _, number = session.rpartition("#")
        return self._world.nodes[int(number) - 1] if number.isdigit() else None

    def _incarnations_of(self, session: str) -> set[int]:
        node = self._node_of(session)
        return node.incarnations if node else set()

    def _break(self, promise: str, what: str) -> None:
        raise Broken(promise, what, self._world.story())


def _run(row: Row) -> tuple[str, str, int]:
    return row["task_id"], row["origin"], row["retries"]
