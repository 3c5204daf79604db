"""The plan: which node each partition should belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

from jobsync_celery.core.locks import eligible, patterns_in
from jobsync_celery.core.model import Member, Move, Plan, Seat


def plan(members: Sequence[Member], seats: Sequence[Seat], *, absent: Collection[str] = ()) -> Plan:
    """Return the balanced targets of all seats that change the fewest of them.

    Live members share the seats by weight (largest remainder; equal weights differ by at most one seat;
    weight 0 takes nothing unless all are 0). A seat stays where its target can keep it. One that must
    change goes, where there is room, to its present owner, else to its last owner, else to whoever lacks
    seats. Among seats that could change, those that their target does not own yet go first, then those whose last owner
    has returned, then the latest.
    Seats targeted at a name in `absent` (awaited, and not live) stay and count for nobody.

    Each pool of a task lock is shared by itself in the same way, among the members eligible for its patterns; the
    seats of the pool "" are planned as if there were no others. In a lock pool everybody gets an exact share by weight
    rounded down or up. Up it goes where a seat stays by it, then with those who have the fewest seats of lock pools
    for their weight: so pools of a single seat spread, and no heavier newcomer takes them.
    A lock pool without an eligible member is shared among all live ones as `caretakers`, who may not run what is in
    it. A seat that stays for an absent or draining name keeps what it is.

    With no live member nothing is given away: a draining member keeps its seats, other targets become None.
    The order of the arguments does not matter; ties go to the lower incarnation, then to the name.
    Time is O(P log P + N log N) for P seats and N members, and O(N log p) more for each lock pool of p seats, beside
    the matching of N names; linear in P for seats sorted by number.
    """
    ordered = sorted(seats, key=lambda seat: seat.number)
    live = sorted(
        (member for member in members if member.state == "live"), key=lambda each: (each.incarnation, each.name)
    )
    staying = set(absent).difference(member.name for member in live)
    if not live:
        staying.update(member.name for member in members if member.draining)
    targets = {seat.number: seat.target for seat in ordered}
    caretakers = {seat.number for seat in ordered if seat.caretaker and seat.target in staying}
    shared = [seat for seat in ordered if seat.target not in staying]
    if live:
        pools = _lock_pools(shared, live)
        caretakers.update(seat.number for pool in pools if not pool.served for seat in pool.seats)
        targets.update(_share([seat for seat in shared if not seat.pool], live))
        targets.update(_spread(pools))
    else:
        targets.update((seat.number, None) for seat in shared)
    return _plan_of(ordered, targets, frozenset(caretakers))


def _plan_of(ordered: Iterable[Seat], targets: Mapping[int, str | None], caretakers: frozenset[int]) -> Plan:
    moves: list[Move] = []
    flipped: set[int] = set()
    for seat in ordered:
        if seat.target != targets[seat.number]:
            moves.append(Move(seat.number, seat.target, targets[seat.number]))
        elif seat.caretaker != (seat.number in caretakers):
            flipped.add(seat.number)
    return Plan(targets, tuple(moves), caretakers, frozenset(flipped))


@dataclass(frozen=True, slots=True)
class _LockPool:
    """The seats of one lock pool and those who share them: the eligible members, or all live ones as caretakers."""

    seats: Sequence[Seat]
    members: Sequence[Member]
    served: bool


def _lock_pools(seats: Iterable[Seat], live: Sequence[Member]) -> list[_LockPool]:
    """Return the lock pools, those with the least choice of members first, so that the others can make up for it.

    Equals keep the order of the seats.
    """
    by_pool: dict[str, list[Seat]] = {}
    for seat in seats:
        if seat.pool:
            by_pool.setdefault(seat.pool, []).append(seat)
    pools: list[_LockPool] = []
    for pool, its in by_pool.items():
        able = eligible(patterns_in(pool), live)
        pools.append(_LockPool(its, able or live, served=bool(able)))
    return sorted(pools, key=lambda pool: len(pool.members))


def _spread(pools: Sequence[_LockPool]) -> dict[int, str]:
    """Return the targets that change in lock pools, where every pool heeds what the others give to whom."""
    present: dict[int, str | None] = {}
    for pool in pools:
        names = {member.name for member in pool.members}
        present.update((seat.number, seat.target if seat.target in names else None) for seat in pool.seats)
    load: Counter[str | None] = Counter(present.values())
    targets: dict[int, str] = {}
    for pool in pools:
        changes = _share(pool.seats, pool.members, load)
        load.subtract(present[number] for number in changes)
        load.update(changes.values())
        targets.update(changes)
    return targets


@dataclass(frozen=True, slots=True)
class _Holding:
    """One member's seats before the plan; how many of them it owns, and how many no other could reclaim.

    `returning` counts the seats without a usable target that it owns or owned last.
    """

    member: Member
    seats: Sequence[Seat]
    owned: int
    unclaimed: int
    returning: int

    def spares(self, count: int) -> tuple[bool, ...]:
        """Say what one seat beyond `count` spares, dearest first.

        A move; the move of an owned seat; the move of one that no returning name wants; a stranger's home.
        """
        held = len(self.seats)
        return held > count, self.owned > count, self.unclaimed > count, held + self.returning > count


def _share(seats: Sequence[Seat], members: Iterable[Member], load: Counter[str | None] | None = None) -> dict[int, str]:
    """Return the targets that change, for the seats of one pool and the members eligible for them, by age.

    `load` counts the seats of all lock pools, this one's too, by name; None for the pool "".
    """
    holdings = _holdings(seats, members)
    quotas = _quotas(holdings, len(seats), load)
    room = {name: quota - len(holdings[name].seats) for name, quota in quotas.items()}
    homeless = [seat for seat in seats if seat.target not in holdings]
    for name, holding in holdings.items():
        if room[name] < 0:
            homeless.extend(_given_up(holding.seats, -room[name], room))
    homeless.sort(key=lambda seat: seat.number)
    return _housed(homeless, {name: free for name, free in room.items() if free > 0})


def _holdings(seats: Iterable[Seat], members: Iterable[Member]) -> dict[str, _Holding]:
    by_name = {member.name: member for member in members}
    held: dict[str, list[Seat]] = {name: [] for name in by_name}
    returning: Counter[str | None] = Counter()
    for seat in seats:
        if seat.target in held:
            held[seat.target].append(seat)
        else:
            returning[seat.owner if seat.owner in held else seat.last_owner] += 1
    newcomers = {name for name, its in held.items() if not its}
    return {
        name: _Holding(
            member,
            held[name],
            owned=sum(seat.owner == name for seat in held[name]),
            unclaimed=sum(seat.last_owner not in newcomers for seat in held[name]),
            returning=returning[name],
        )
        for name, member in by_name.items()
    }


def _quotas(holdings: Mapping[str, _Holding], count: int, load: Counter[str | None] | None) -> dict[str, int]:
    """Divide `count` seats by weight: whole shares, then largest remainders.

    Among equal remainders the seat goes where it spares most; the order of `holdings` breaks ties.
    In a lock pool the moves that it spares and the least load come before the size of the remainder.
    """
    weights = dict(zip(holdings, _whole_weights([holding.member.weight for holding in holdings.values()]), strict=True))
    total = sum(weights.values())
    shares = {name: divmod(count * weight, total) for name, weight in weights.items()}
    quotas = {name: whole for name, (whole, _) in shares.items()}

    def rank(name: str) -> tuple[Any, ...]:
        _, remainder = shares[name]
        holding, quota = holdings[name], quotas[name]
        if load is None:
            return remainder, holding.spares(quota)
        # Largest remainders would give every pool of a single seat to the heaviest member, and homes before load would
        # bring them all back to the node that once was the first to start.
        *moves, home = holding.spares(quota)
        elsewhere = load[name] - len(holding.seats)
        return moves, -(elsewhere + quota) / weights[name], home, remainder

    candidates = (name for name, (_, remainder) in shares.items() if remainder)
    # Stable: equals keep the order of holdings.
    for name in nlargest(count - sum(quotas.values()), candidates, key=rank):
        quotas[name] += 1
    return quotas


def _whole_weights(weights: Sequence[float]) -> list[int]:
    """Scale weights to integers of exactly the same proportions; all zero counts as all equal."""
    # Exact, because a rounded share could hand out one seat too many, and rounding would break real ties.
    ratios = [float(weight).as_integer_ratio() for weight in weights]
    scale = max(denominator for _, denominator in ratios)  # denominators are powers of two
    whole = [numerator * (scale // denominator) for numerator, denominator in ratios]
    return whole if any(whole) else [1] * len(whole)


def _given_up(seats: Sequence[Seat], count: int, room: Mapping[str, int]) -> Sequence[Seat]:
    """Choose the `count` seats that cost least to give up: not owned yet, then those of a returning name.

    Of these the ones that came last: its former visitors left their name on other seats, too.
    """

    def cost(seat: Seat) -> tuple[bool, bool, float]:
        return seat.owner == seat.target, room.get(seat.last_owner or "", 0) <= 0, -seat.since

    return sorted(seats, key=cost)[:count]


def _housed(homeless: Sequence[Seat], room: dict[str, int]) -> dict[int, str]:
    """Give every homeless seat to a name with room, of which there is exactly enough."""
    targets: dict[int, str] = {}
    for former in ("owner", "last_owner"):
        for seat in homeless:
            name = getattr(seat, former)
            if seat.number not in targets and room.get(name, 0) > 0:
                targets[seat.number] = name
                room[name] -= 1
    vacancies = (name for name, free in room.items() for _ in range(free))
    remaining = (seat.number for seat in homeless if seat.number not in targets)
    targets.update(zip(remaining, vacancies, strict=True))
    return targets
