"""Reasons: every move of a plan is explained by what the members and seats are."""

from __future__ import annotations

from jobsync_celery.core.locks import pool_of
from jobsync_celery.core.model import Member, Seat
from jobsync_celery.core.plan import plan
from jobsync_celery.core.reasons import reasons, without

A, B, C = Member("a", 1), Member("b", 2), Member("c", 3)


def seats(*targets: str | None, pool: str = "") -> list[Seat]:
    return [
        Seat(n, target, target, None if target is None else 1, None, pool if n == 0 else "")
        for n, target in enumerate(targets)
    ]


def explained(members: list[Member], rows: list[Seat], leaving: str | None = None) -> set[str]:
    made = plan(members, rows)
    told = reasons(made, members, rows, leaving)
    assert set(told) == {move.partition for move in made.moves}
    return set(told.values())


def test_a_newcomer_gets_what_others_have_too_much_of() -> None:
    assert explained([A, B], seats("a", "a", "a", "a")) == {"balance: from 4 to 2 partitions"}


def test_a_returning_name_gets_back_what_it_had() -> None:
    rows = [Seat(n, "a", "a", 1, last_owner="b") for n in range(4)]
    assert explained([A, B], rows) == {"balance: from 4 to 2 partitions, back"}


def test_what_a_node_had_that_is_gone_or_draining_goes_to_others() -> None:
    assert explained([A], seats("a", "b")) == {"its node is gone"}
    assert explained(without([A, B], "b"), seats("a", "b")) == {"its node is draining"}
    assert explained(without([A, B], "b"), seats("a", "b"), leaving="b") == {"planned without its node"}


def test_what_nobody_was_to_have_gets_a_target() -> None:
    assert explained([A], seats("a", None)) == {"it has no target yet"}
    assert explained([], seats("a")) == {"no node is live"}


def test_locked_keys_leave_a_node_that_does_not_match() -> None:
    rows = seats("a", "a", "b", "c", pool=pool_of(["b%"]))
    assert explained([A, B, C], rows) == {"its node does not match the lock"}
