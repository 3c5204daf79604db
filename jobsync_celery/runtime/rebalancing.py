"""A new plan, written: under the leader's rules, whoever calls."""

from __future__ import annotations

import time
from collections.abc import Collection

from jobsync_celery.core.model import Member, Plan, Seat
from jobsync_celery.core.plan import plan
from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.runtime.eviction import settle
from jobsync_celery.store.database import Connection
from jobsync_celery.store.leader import Leader, Rebalance
from jobsync_celery.store.store import Store


def leads(members: Collection[Member]) -> Member | None:
    """The node that leads: the oldest live one; of draining ones only if all drain."""
    live = [member for member in members if not member.draining]
    return min(live or members, key=lambda member: member.incarnation, default=None)


def rebalance(
    tx: Connection,
    store: Store,
    tokens: TokenMap,
    reason: str,
    waited_until: float | None = None,
    *,
    keep_draining: bool = False,
) -> tuple[Plan, Leader]:
    """Make a plan for the members as they stand and write what moves; the leader's row is locked first.

    What waits for a name to return does not move, until its time is over. ``waited_until`` is over in any case. With
    ``keep_draining`` what draining nodes have does not move either.

    Nothing is written if nothing moves. The leader recorded is the one that leads by the rules, whoever calls.
    """
    begun = time.perf_counter()
    leader = store.leaders.lock(tx)
    store.waits.end_overdue(tx, waited_until)
    settle(tx, store)
    members = store.nodes.members(tx)
    seats = store.partitions.seats(tx)
    staying = {member.name for member in members if member.draining} if keep_draining else set[str]()
    made = plan(members, seats, absent=staying.union(store.waits.awaited(tx)))
    leading = leads(members)
    if leading is not None and leader.incarnation != leading.incarnation:
        leader = store.leaders.take_term(tx, leading)
    changed = {move.partition for move in made.moves} | made.flipped
    store.partitions.assign(tx, {number: made.targets[number] for number in sorted(changed)}, made.caretakers)
    if made.moves:
        store.leaders.record(tx, _history(made, seats, leader, tokens, reason, (time.perf_counter() - begun) * 1000))
    if changed:
        store.notify(tx, "plan")
    return made, leader


def back_up(tx: Connection, store: Store, tokens: TokenMap) -> Plan | None:
    """Plan in the leader's place, under its rules; None before the first plan, which is the leader's own.

    Who drains is left to a leader that renews its lease: it knows whether the broker was away.
    """
    if all(seat.target is None for seat in store.partitions.seats(tx)):
        return None
    leader = leads(store.nodes.members(tx))
    renews = leader is not None and leader.timeout is not None and leader.age < leader.timeout
    return rebalance(tx, store, tokens, "backstop", keep_draining=renews)[0]


def _history(
    made: Plan, seats: Collection[Seat], leader: Leader, tokens: TokenMap, reason: str, duration_ms: float
) -> Rebalance:
    # Lock pools carry each token once more.
    moved = [tokens.range(move.partition) for move in made.moves if move.partition < tokens.partitions]
    return Rebalance(
        reason=reason,
        leader=leader.node,
        term=leader.term,
        nodes_before=len({seat.target for seat in seats if seat.target is not None}),
        nodes_after=len({target for target in made.targets.values() if target is not None}),
        tokens_moved=sum(last - first + 1 for first, last in moved),
        duration_ms=duration_ms,
    )
