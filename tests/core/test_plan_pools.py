"""The plan of lock pools; that of everything else is in test_plan.py."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import counts, live, settled, states, weights

from jobsync_celery.core.locks import eligible, patterns_in, pool_of
from jobsync_celery.core.model import Member, Move, Plan, Seat
from jobsync_celery.core.plan import plan

NAMES = ("gpu-1", "gpu-2", "cpu-1", "cpu-2")
GPU, CPU, FALLBACK, ANY, NOBODY = (
    pool_of(patterns) for patterns in (["gpu%"], ["cpu-_"], ["gpu-1", "cpu%"], ["gpu-2", "%"], ["tpu%"])
)
names = st.none() | st.sampled_from((*NAMES, "gone"))
pools = st.sampled_from(["", GPU, CPU, FALLBACK, ANY, NOBODY])


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Member], list[Seat]]:
    chosen = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    ages = draw(st.permutations(range(len(chosen))))
    members = [Member(name, age, draw(states), draw(weights)) for name, age in zip(chosen, ages, strict=True)]
    seats = [
        Seat(number, draw(names), draw(names), None, draw(names), draw(pools), draw(st.booleans()))
        for number in range(draw(st.integers(0, 9)))
    ]
    return members, seats


def by_pool(seats: Iterable[Seat]) -> dict[str, list[Seat]]:
    groups: dict[str, list[Seat]] = defaultdict(list)
    for seat in seats:
        groups[seat.pool].append(seat)
    return groups


def sharers(pool: str, members: Iterable[Member]) -> list[Member]:
    """Those among whom a pool is shared: the eligible, else all that live."""
    return (eligible(patterns_in(pool), members) if pool else []) or live(members)


def rounded(held: Sequence[int], members: Sequence[Member]) -> bool:
    """Tell whether everybody has an exact share by weight, rounded down or up."""
    shares = [Fraction(member.weight) for member in members]
    if not any(shares):
        shares = [Fraction(1)] * len(shares)
    exact = [sum(held) * share / sum(shares) for share in shares]
    return all(abs(count - share) < 1 for count, share in zip(held, exact, strict=True))


def fewest_moves(members: Sequence[Member], seats: Sequence[Seat]) -> int:
    able = [member.name for member in members]
    return min(
        sum(seat.target != name for seat, name in zip(seats, choice, strict=True))
        for choice in itertools.product(able, repeat=len(seats))
        if rounded([choice.count(name) for name in able], members)
    )


def only(result: Plan, seats: Iterable[Seat]) -> Plan:
    """What a plan says of some seats."""
    targets = {seat.number: result.targets[seat.number] for seat in seats}
    moves = tuple(move for move in result.moves if move.partition in targets)
    return Plan(targets, moves, result.caretakers & targets.keys(), result.flipped & targets.keys())


def carried_out(result: Plan, seats: Sequence[Seat]) -> list[Seat]:
    return [replace(seat, caretaker=seat.number in result.caretakers) for seat in settled(result, seats)]


def replanned(members: Sequence[Member], seats: Sequence[Seat]) -> list[Seat]:
    return carried_out(plan(members, seats), seats)


def test_a_large_cluster_with_many_lock_pools_is_planned_in_moderate_time() -> None:
    members = [Member(f"{'gpu' if number % 2 else 'cpu'}-{number:03}", number) for number in range(300)]
    seats = [Seat(number, pool=pool_of([f"%gpu%{number}", "cpu%"]) if number < 100 else "") for number in range(1100)]
    begun = time.process_time()
    plan(members, seats)
    # Some hundredths of a second; a pool that cost the square of the nodes would take many times as long.
    assert time.process_time() - begun < 2


@settings(deadline=None)
@given(clusters())
def test_each_pool_is_balanced_by_weight_and_moves_exactly_the_minimum(
    cluster: tuple[list[Member], list[Seat]],
) -> None:
    members, seats = cluster
    if not live(members):
        return
    result = plan(members, seats)
    for pool, its in by_pool(seats).items():
        able = sharers(pool, members)
        assert rounded(counts(only(result, its), able), able)
        if pool:
            assert len(only(result, its).moves) == fewest_moves(able, its)


@settings(deadline=None)
@given(clusters())
def test_a_locked_seat_is_an_eligible_nodes_or_a_caretakers_where_there_is_none(
    cluster: tuple[list[Member], list[Seat]],
) -> None:
    members, seats = cluster
    if not live(members):
        return
    result = plan(members, seats)
    for pool, its in by_pool(seats).items():
        able = sharers(pool, members)
        assert {result.targets[seat.number] for seat in its} <= {member.name for member in able}
    assert result.caretakers == {
        seat.number for seat in seats if seat.pool and not eligible(patterns_in(seat.pool), members)
    }


@settings(deadline=None)
@given(clusters(), st.sets(names.filter(bool)))
def test_what_is_not_locked_is_planned_as_if_there_were_no_lock_pools(
    cluster: tuple[list[Member], list[Seat]], absent: set[str]
) -> None:
    members, seats = cluster
    ordinary = [replace(seat, caretaker=False) for seat in seats if not seat.pool]
    others = [seat for seat in seats if seat.pool]
    both = plan(members, [*ordinary, *others], absent=absent)
    assert only(both, ordinary) == plan(members, ordinary, absent=absent)


@settings(deadline=None)
@given(clusters(), st.randoms(use_true_random=False))
def test_a_plan_with_lock_pools_does_not_depend_on_the_order_of_its_input(
    cluster: tuple[list[Member], list[Seat]], random: Random
) -> None:
    members, seats = cluster
    first = plan(members, seats)
    random.shuffle(members)
    random.shuffle(seats)
    again = plan(members, seats)
    assert again == first
    assert list(again.targets) == list(first.targets)


@settings(deadline=None)
@given(clusters())
def test_a_plan_with_lock_pools_carried_out_needs_no_further_change(cluster: tuple[list[Member], list[Seat]]) -> None:
    members, seats = cluster
    again = plan(members, replanned(members, seats))
    assert (again.moves, again.flipped) == ((), frozenset())


@settings(deadline=None)
@given(clusters(), st.sets(names.filter(bool)))
def test_moves_and_flips_say_exactly_what_changes(cluster: tuple[list[Member], list[Seat]], absent: set[str]) -> None:
    members, seats = cluster
    result = plan(members, seats, absent=absent)
    changed = [seat for seat in seats if seat.target != result.targets[seat.number]]
    assert result.moves == tuple(Move(seat.number, seat.target, result.targets[seat.number]) for seat in changed)
    assert result.flipped == {
        seat.number for seat in seats if seat not in changed and seat.caretaker != (seat.number in result.caretakers)
    }


@settings(deadline=None)
@given(clusters(), st.sets(names.filter(bool)))
def test_a_locked_seat_of_an_awaited_name_stays_as_it_is(
    cluster: tuple[list[Member], list[Seat]], absent: set[str]
) -> None:
    members, seats = cluster
    awaited = absent - {member.name for member in live(members)}
    result = plan(members, seats, absent=absent)
    waiting = [seat for seat in seats if seat.target in awaited]
    assert only(result, waiting).moves == ()
    assert only(result, waiting).flipped == frozenset()
    if live(members):
        rest = [seat for seat in seats if seat.target not in awaited]
        assert only(result, rest) == plan(members, rest)


@settings(deadline=None)
@given(clusters())
def test_without_live_nodes_no_lock_pool_is_given_away(cluster: tuple[list[Member], list[Seat]]) -> None:
    members, seats = cluster
    draining = [replace(member, state="draining") for member in members]
    result = plan(draining, seats)
    here = {member.name for member in draining}
    assert result.targets == {seat.number: seat.target if seat.target in here else None for seat in seats}
    assert result.caretakers == {seat.number for seat in seats if seat.target in here and seat.caretaker}


@settings(deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(1, 12), max_size=12), st.sampled_from([0.0, 0.3, 1.0]))
def test_lock_pools_together_are_spread_evenly_over_equal_nodes(count: int, sizes: list[int], weight: float) -> None:
    members = [Member(f"gpu-{number}", number, weight=weight) for number in range(count)]
    kinds = [pool_of([f"absent-{number}", "gpu%"]) for number, size in enumerate(sizes) for _ in range(size)]
    held = counts(plan(members, [Seat(number, pool=pool) for number, pool in enumerate(kinds)]), members)
    assert max(held) - min(held) <= 1


def single_seats(count: int, pattern: str = "gpu%") -> list[Seat]:
    """Many lock pools of one partition each, all for the same nodes."""
    return [Seat(number, pool=pool_of([f"absent-{number}", pattern])) for number in range(count)]


def test_pools_of_one_seat_are_spread_by_weight() -> None:
    members = [Member("gpu-1", 1, weight=1), Member("gpu-2", 2, weight=3), Member("gpu-3", 3, weight=0)]
    assert counts(plan(members, single_seats(20)), members) == [5, 15, 0]


def test_a_heavier_newcomer_takes_no_seat_from_a_present_holder() -> None:
    old, new = Member("gpu-1", 1), Member("gpu-2", 2, weight=8)
    assert plan([old, new], replanned([old], single_seats(5))).moves == ()


def test_pools_with_less_choice_choose_first() -> None:
    members = [Member("gpu-1", 1), Member("gpu-2", 2)]
    seats = [Seat(0, pool=pool_of(["%"])), Seat(1, pool=pool_of(["gpu-1"]))]
    assert plan(members, seats).targets == {0: "gpu-2", 1: "gpu-1"}


def test_seats_that_leave_a_node_make_it_next_in_line() -> None:
    members = [Member("gpu-1", 1), Member("gpu-2", 2)]
    wanting = [replace(seat, number=seat.number + 4) for seat in single_seats(2)]
    assert counts(plan(members, [*(Seat(number, "gpu-1", pool=GPU) for number in range(4)), *wanting]), members) == [
        3,
        3,
    ]


def test_seats_that_a_caretaker_is_about_to_lose_do_not_count_for_it() -> None:
    members = [Member("cpu-1", 1), Member("cpu-2", 2)]
    kept = replanned(members[:1], single_seats(4))
    wanting = [replace(seat, number=seat.number + 4) for seat in single_seats(4, "cpu%")]
    result = plan([*members, *(Member(f"gpu-{number}", 3 + number) for number in range(3))], [*kept, *wanting])
    assert counts(only(result, wanting), members) == [2, 2]


def test_a_rolling_restart_does_not_gather_the_pools_on_one_node() -> None:
    members = [Member(f"gpu-{number}", number) for number in range(3)]
    seats = replanned(members[:1], single_seats(20))
    for number, member in enumerate(members):
        others = [other for other in members if other.name != member.name]
        seats = replanned([*others, replace(member, state="draining")], seats)
        members = [*others, replace(member, incarnation=10 + number)]
    assert max(Counter(seat.target for seat in seats).values()) <= 10


def test_a_fallback_serves_while_the_preferred_node_is_gone_and_gives_back_when_it_returns() -> None:
    preferred, other = Member("gpu-1", 1), Member("cpu-1", 2)
    seats = replanned([preferred, other], [Seat(0, pool=FALLBACK), Seat(1, pool=FALLBACK)])
    assert {seat.target for seat in seats} == {"gpu-1"}
    seats = replanned([other], seats)
    assert {(seat.target, seat.caretaker) for seat in seats} == {("cpu-1", False)}
    result = plan([other, Member("gpu-1", 3)], seats)
    assert result.targets == {0: "gpu-1", 1: "gpu-1"}
    assert result.caretakers == frozenset()


def test_a_locked_seat_waits_for_an_awaited_name_though_a_fallback_lives() -> None:
    seats = [Seat(0, "gpu-1", pool=FALLBACK)]
    assert plan([Member("cpu-1", 2)], seats, absent=["gpu-1"]).moves == ()


def test_a_draining_node_is_eligible_for_nothing_while_another_lives() -> None:
    seats = [Seat(0, "gpu-1", "gpu-1", pool=GPU)]
    result = plan([Member("gpu-1", 1, "draining"), Member("cpu-1", 2)], seats)
    assert result.moves == (Move(0, "gpu-1", "cpu-1"),)
    assert result.caretakers == {0}


def test_a_caretaker_keeps_its_seats_until_somebody_eligible_comes() -> None:
    members = [Member("cpu-1", 1), Member("cpu-2", 2)]
    seats = replanned(members[1:], single_seats(4))
    assert all(seat.caretaker for seat in seats)
    assert plan(members, seats).moves == ()
    result = plan([*members, Member("gpu-1", 3)], seats)
    assert set(result.targets.values()) == {"gpu-1"}
    assert (result.caretakers, result.flipped) == (frozenset(), frozenset())


def test_the_seats_without_an_eligible_node_are_spread_over_caretakers() -> None:
    members = [Member("cpu-1", 1), Member("cpu-2", 2)]
    assert counts(plan(members, single_seats(10)), members) == [5, 5]


@pytest.mark.parametrize(("pool", "name", "flagged"), [(GPU, "gpu-1", True), (GPU, "cpu-1", False)])
def test_a_target_that_stays_but_is_written_down_wrongly_flips(pool: str, name: str, flagged: bool) -> None:
    result = plan([Member(name, 1)], [Seat(0, name, pool=pool, caretaker=flagged)])
    assert (result.moves, result.flipped) == ((), {0})
    assert (0 in result.caretakers) is not flagged


def test_an_only_eligible_node_of_weight_zero_serves_its_pool() -> None:
    members = [Member("gpu-1", 1, weight=0), Member("cpu-1", 2)]
    result = plan(members, [Seat(0, pool=GPU), Seat(1)])
    assert result.targets == {0: "gpu-1", 1: "cpu-1"}
