"""The plan: which node each partition should belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from jobsync_celery.core.model import Member, Move, Plan, Seat


def plan(members: Sequence[Member], seats: Sequence[Seat], *, absent: Collection[str] = ()) -> Plan:
    """Return the balanced targets of all seats that change the fewest of them.

    Live members share the seats by weight (largest remainder; equal weights differ by at most one seat;
    weight 0 takes nothing unless all are 0). A seat stays where its target can keep it. One that must
    change goes, where there is room, to its present owner, else to its last owner, else to whoever lacks
    seats. Among seats that could change, those that their target does not own yet go first.
    Seats targeted at a name in `absent` (awaited, and not live) stay and count for nobody.

    With no live member nothing is given away: a draining member keeps its seats, other targets become None.
    The order of the arguments does not matter; ties go to the lower incarnation, then to the name.
    Time is O(P log P + N log N) for P seats and N members; linear in P for seats sorted by number.
    """
    ordered = sorted(seats, key=lambda seat: seat.number)
    live = [member for member in members if member.state == "live"]
    targets = {seat.number: seat.target for seat in ordered}
    if live:
        awaited = set(absent).difference(member.name for member in live)
        targets.update(_share([seat for seat in ordered if seat.target not in awaited], live))
    else:
        staying = {member.name for member in members if member.draining}.union(absent)
        targets.update((seat.number, None) for seat in ordered if seat.target not in staying)
    moves = (
        Move(seat.number, seat.target, targets[seat.number]) for seat in ordered if seat.target != targets[seat.number]
    )
    return Plan(targets, tuple(moves))


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


def _share(seats: Sequence[Seat], members: Iterable[Member]) -> dict[int, str]:
    """Return the targets that change, for the seats of one pool and the members eligible for them."""
    holdings = _holdings(seats, members)
    quotas = _quotas(holdings, len(seats))
    room = {name: quota - len(holdings[name].seats) for name, quota in quotas.items()}
    homeless = [seat for seat in seats if seat.target not in holdings]
    for name, holding in holdings.items():
        if room[name] < 0:
            homeless.extend(_given_up(holding.seats, -room[name], room))
    homeless.sort(key=lambda seat: seat.number)
    return _housed(homeless, {name: free for name, free in room.items() if free > 0})


def _holdings(seats: Iterable[Seat], members: Iterable[Member]) -> dict[str, _Holding]:
    by_age = {member.name: member for member in sorted(members, key=lambda each: (each.incarnation, each.name))}
    held: dict[str, list[Seat]] = {name: [] for name in by_age}
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
        for name, member in by_age.items()
    }


def _quotas(holdings: Mapping[str, _Holding], count: int) -> dict[str, int]:
    """Divide `count` seats by weight: whole shares, then largest remainders.

    Among equal remainders the seat goes where it spares most; the order of `holdings` breaks ties.
    """
    weights = _whole_weights([holding.member.weight for holding in holdings.values()])
    total = sum(weights)
    shares = {name: divmod(count * weight, total) for name, weight in zip(holdings, weights, strict=True)}
    quotas = {name: whole for name, (whole, _) in shares.items()}
    ranking = sorted(
        holdings,
        key=lambda name: (shares[name][1], holdings[name].spares(quotas[name])),
        reverse=True,  # stable: equals keep the order of holdings
    )
    for name in ranking[: count - sum(quotas.values())]:
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
    """Choose the `count` seats that cost least to give up: not owned yet, then those of a returning name."""

    def cost(seat: Seat) -> tuple[bool, bool]:
        return seat.owner == seat.target, room.get(seat.last_owner or "", 0) <= 0

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
