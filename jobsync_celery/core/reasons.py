"""Why a plan moves what it moves, in words for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from jobsync_celery.core.locks import eligible, patterns_in
from jobsync_celery.core.model import Member, Move, Plan, Seat


def without(members: Sequence[Member], name: str) -> list[Member]:
    """The members as they would be if one of them drained."""
    return [replace(each, state="draining") if each.name == name else each for each in members]


def reasons(
    plan: Plan, members: Collection[Member], seats: Collection[Seat], leaving: str | None = None
) -> dict[int, str]:
    """Partition -> why its target changes; the plan was made for these members and seats.

    Arguments:
        leaving: the name that is planned without.
    """
    states = {member.name: member.state for member in members}
    rows = {seat.number: seat for seat in seats}
    before = Counter(seat.target for seat in seats)
    after = Counter(plan.targets.values())
    told: dict[int, str] = {}
    for move in plan.moves:
        why = _source_gone(move, states, leaving) or _no_match(move, rows[move.partition], members)
        if why is None:
            back = rows[move.partition].last_owner == move.destination
            why = f"balance: from {before[move.source]} to {after[move.source]} partitions" + ", back" * back
        told[move.partition] = why
    return told


def _source_gone(move: Move, states: Mapping[str, str], leaving: str | None) -> str | None:
    if move.destination is None:
        return "no node is live"
    if move.source is None:
        return "it has no target yet"
    if move.source == leaving:
        return "planned without its node"
    if move.source not in states:
        return "its node is gone"
    return None if states[move.source] == "live" else f"its node is {states[move.source]}"


def _no_match(move: Move, seat: Seat, members: Collection[Member]) -> str | None:
    if seat.pool and move.source not in {each.name for each in eligible(patterns_in(seat.pool), members)}:
        return "its node does not match the lock"
    return None
