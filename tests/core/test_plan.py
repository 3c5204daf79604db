from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobsync_celery.core.model import Member, Move, NodeState, Plan, Seat
from jobsync_celery.core.plan import plan

NAMES = ("a", "b", "c", "gone")
names = st.none() | st.sampled_from(NAMES)
weights = st.sampled_from([0.0, 0.1, 0.3, 1.0, 1.0, 1.0, 2.0, 2.5])
states: st.SearchStrategy[NodeState] = st.sampled_from(["live", "live", "live", "draining"])


@st.composite
def clusters(draw: st.DrawFn, weighted: bool = True) -> tuple[list[Member], list[Seat]]:
    members = [
        Member(name, incarnation, draw(states), draw(weights) if weighted else 1.0)
        for name, incarnation in zip(NAMES, draw(st.permutations(range(3))), strict=False)
    ][: draw(st.integers(1, 3))]
    seats = [Seat(number, draw(names), draw(names), None, draw(names)) for number in range(draw(st.integers(0, 6)))]
    return members, seats


def live(members: Iterable[Member]) -> list[Member]:
    return [member for member in members if member.state == "live"]


def balanced(counts: Sequence[int], members: Sequence[Member]) -> bool:
    """Tell whether counts are largest-remainder shares, for some choice among equal remainders."""
    shares = [Fraction(member.weight) for member in members]
    if not any(shares):
        shares = [Fraction(1)] * len(shares)
    exact = [sum(counts) * share / sum(shares) for share in shares]
    extra = [count - int(share) for count, share in zip(counts, exact, strict=True)]
    remainders = [share - int(share) for share in exact]
    given_extra = [left for left, more in zip(remainders, extra, strict=True) if more]
    without = [left for left, more in zip(remainders, extra, strict=True) if not more]
    return set(extra) <= {0, 1} and min(given_extra, default=Fraction(1)) >= max(without, default=Fraction(0))


def fewest_moves(members: Sequence[Member], seats: Sequence[Seat]) -> int:
    eligible = [member.name for member in members]
    return min(
        sum(seat.target != name for seat, name in zip(seats, choice, strict=True))
        for choice in itertools.product(eligible, repeat=len(seats))
        if balanced([choice.count(name) for name in eligible], members)
    )


def counts(result: Plan, members: Iterable[Member]) -> list[int]:
    held = Counter(result.targets.values())
    return [held[member.name] for member in members]


def settled(result: Plan, seats: Iterable[Seat]) -> list[Seat]:
    """Carry a plan out: every target takes its partition."""
    return [
        replace(
            seat,
            target=result.targets[seat.number],
            owner=result.targets[seat.number],
            last_owner=seat.owner if seat.owner != result.targets[seat.number] else seat.last_owner,
        )
        for seat in seats
    ]


def cluster_of(count: int, seats: int) -> tuple[list[Member], list[Seat]]:
    members = [Member(f"w{number}", number) for number in range(count)]
    empty = [Seat(number) for number in range(seats)]
    return members, settled(plan(members, empty), empty)


@settings(max_examples=150, deadline=None)
@given(clusters())
def test_a_plan_is_balanced_and_moves_exactly_the_minimum(cluster: tuple[list[Member], list[Seat]]) -> None:
    members, seats = cluster
    eligible = live(members)
    if not eligible:
        return
    result = plan(members, seats)
    assert balanced(counts(result, eligible), eligible)
    assert set(result.targets.values()) <= {member.name for member in eligible}
    assert len(result.moves) == fewest_moves(eligible, seats)


@settings(deadline=None)
@given(clusters(), st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_order_of_its_input(
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
def test_a_plan_carried_out_needs_no_further_move(cluster: tuple[list[Member], list[Seat]]) -> None:
    members, seats = cluster
    assert plan(members, settled(plan(members, seats), seats)).moves == ()


@settings(deadline=None)
@given(clusters(), st.sets(names.filter(bool)))
def test_the_seats_of_awaited_names_stay_and_the_rest_is_balanced(
    cluster: tuple[list[Member], list[Seat]], absent: set[str]
) -> None:
    members, seats = cluster
    eligible = live(members)
    awaited = absent - {member.name for member in eligible}
    result = plan(members, seats, absent=absent)
    assert all(result.targets[seat.number] == seat.target for seat in seats if seat.target in awaited)
    if eligible:
        assert balanced(counts(result, eligible), eligible)


@settings(deadline=None)
@given(clusters())
def test_moves_say_exactly_which_targets_change(cluster: tuple[list[Member], list[Seat]]) -> None:
    members, seats = cluster
    result = plan(members, seats)
    assert list(result.targets) == [seat.number for seat in seats]
    assert result.moves == tuple(
        Move(seat.number, seat.target, result.targets[seat.number])
        for seat in seats
        if result.targets[seat.number] != seat.target
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), max_size=30))
def test_joins_and_leaves_keep_balance_and_move_only_the_ideal_share(
    partitions: int, changes: list[tuple[bool, int]]
) -> None:
    members, seats = cluster_of(3, partitions)
    for number, (join, pick) in enumerate(changes):
        before = Counter(seat.target for seat in seats)
        if join or len(members) == 1:
            members.append(Member(f"n{number}", 1000 + number))
            ideal = partitions // len(members)
        else:
            ideal = before[members.pop(pick % len(members)).name]
        result = plan(members, seats)
        held = counts(result, members)
        assert max(held) - min(held) <= 1
        assert len(result.moves) == ideal
        seats = settled(result, seats)


def test_a_large_cluster_keeps_every_promise() -> None:
    members, seats = cluster_of(1000, 4096)
    assert set(counts(plan(members, seats), members)) == {4, 5}
    assert plan(members, seats).moves == ()
    left = {seat.target for seat in seats[:50]}
    remaining = [member for member in members if member.name not in left]
    result = plan(remaining, seats)
    assert {move.source for move in result.moves} == left
    assert len(result.moves) == sum(seat.target in left for seat in seats)
    held = counts(result, remaining)
    assert max(held) - min(held) <= 1
    back = plan(members, settled(result, seats))
    assert {move.destination for move in back.moves} == left
    assert len(back.moves) == len(left) * (4096 // 1000)


def test_weights_share_by_largest_remainder() -> None:
    members = [Member("a", 1, weight=1), Member("b", 2, weight=2), Member("c", 3, weight=0.5)]
    result = plan(members, [Seat(number) for number in range(10)])
    assert counts(result, members) == [3, 6, 1]


def test_a_node_of_weight_zero_gets_nothing_unless_all_have_it() -> None:
    seats = [Seat(number) for number in range(4)]
    idle, busy = Member("a", 1, weight=0), Member("b", 2)
    assert counts(plan([idle, busy], seats), [idle, busy]) == [0, 4]
    both = [idle, replace(busy, weight=0)]
    assert counts(plan(both, seats), both) == [2, 2]


@pytest.mark.parametrize(("count", "partitions"), [(2, 64), (3, 84), (7, 84), (3, 64), (100, 1024), (700, 4096)])
def test_a_returning_name_gets_former_partitions_back_and_nothing_else_moves(count: int, partitions: int) -> None:
    members, seats = cluster_of(count, partitions)
    without = members[1:]
    during = settled(plan(without, seats), seats)
    restarted = [replace(member, incarnation=9000 - member.incarnation) for member in without]
    result = plan([*restarted, Member("w0", 9999)], during)
    former = {seat.number for seat in seats if seat.target == "w0"}
    assert {move.partition for move in result.moves} <= former
    # The seat that a share of whole numbers leaves over stays where it is: bringing it back would be a move.
    assert len(result.moves) == partitions // count


def test_a_name_that_returns_before_its_partitions_are_taken_costs_no_owner_anything() -> None:
    members, seats = cluster_of(3, 60)
    planned = plan(members[1:], seats)
    freed = [
        replace(
            seat,
            target=planned.targets[seat.number],
            owner=None if seat.owner == "w0" else seat.owner,
            last_owner=seat.owner,
        )
        for seat in seats
    ]
    moves = plan([*members[1:], Member("w0", 9)], freed).moves
    assert {move.partition for move in moves} == {seat.number for seat in seats if seat.owner == "w0"}


def test_seats_that_nobody_owns_yet_are_moved_first() -> None:
    seats = [Seat(number, "a", "a" if number % 2 else None) for number in range(8)]
    moves = plan([Member("a", 1), Member("b", 2)], seats).moves
    assert [move.partition for move in moves] == [0, 2, 4, 6]


def test_an_owner_keeps_what_was_to_go_to_a_node_that_died_meanwhile() -> None:
    seats = [Seat(number, "dead", "b" if number < 2 else "a") for number in range(4)]
    assert plan([Member("a", 1), Member("b", 2)], seats).targets == {0: "b", 1: "b", 2: "a", 3: "a"}


def test_the_odd_seat_stays_with_the_node_that_owns_all_it_has() -> None:
    seats = [Seat(0, "b", "b"), Seat(1, "b", None), Seat(2, "a", "a"), Seat(3, "a", "a")]
    moves = plan([Member("b", 1), Member("a", 2), Member("c", 3)], seats).moves
    assert moves == (Move(1, "b", "c"),)


def test_the_odd_seat_stays_where_it_is_rather_than_with_the_older_node() -> None:
    seats = [
        Seat(0, "a", None, None, "c"),
        Seat(1, "a", None, None, "c"),
        Seat(2, "b"),
        Seat(3, last_owner="b"),
    ]
    moves = plan([Member("b", 1), Member("a", 2), Member("c", 3)], seats).moves
    assert moves == (Move(3, None, "c"),)


def test_the_odd_seat_goes_to_the_name_that_had_it_last() -> None:
    seats = [Seat(0, last_owner="a"), Seat(1, last_owner="b"), Seat(2, last_owner="b")]
    assert plan([Member("a", 1), Member("b", 2)], seats).targets == {0: "a", 1: "b", 2: "b"}


def test_a_returning_name_gets_what_it_had_last_and_not_what_it_once_had_for_a_while() -> None:
    visited = [Seat(n, "a", "a", last_owner="b", since=1.0) for n in range(4)]
    received = [Seat(n, "a", "a", last_owner="b", since=2.0) for n in range(4, 8)]
    moves = plan([Member("a", 1), Member("b", 2)], [*visited, *received]).moves
    assert moves == tuple(Move(n, "a", "b") for n in range(4, 8))


def test_a_draining_node_hands_everything_over_while_another_lives() -> None:
    members, seats = cluster_of(2, 10)
    members[0] = replace(members[0], state="draining")
    assert set(plan(members, seats).targets.values()) == {"w1"}


def test_targets_stay_while_all_nodes_drain() -> None:
    members, seats = cluster_of(2, 10)
    assert plan([replace(member, state="draining") for member in members], seats).moves == ()


def test_without_nodes_nobody_is_the_target_of_anything() -> None:
    _, seats = cluster_of(2, 10)
    result = plan([], seats)
    assert set(result.targets.values()) == {None}
    assert all(move.destination is None for move in result.moves)


def test_an_awaited_name_that_is_back_counts_as_live() -> None:
    members, seats = cluster_of(2, 10)
    assert plan([*members, Member("w2", 9)], seats, absent=["w0"]) == plan([*members, Member("w2", 9)], seats)


def test_only_live_nodes_receive_partitions() -> None:
    others = [Member("l", 1, "left"), Member("d", 2, "dead"), Member("m", 3, "admin")]
    assert set(plan([*others, Member("a", 4)], [Seat(0), Seat(1)]).targets.values()) == {"a"}
