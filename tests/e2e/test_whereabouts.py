"""The judgement of where locked keys ran finds what is planted, and nothing else."""

from __future__ import annotations

import pytest

from e2e.history import Run
from e2e.whereabouts import Locked, Presence, astray

GPU_FIRST = ("gpu-%", "cpu-%")


def run(node: str, fence: int, began: float, key: str = "k") -> Run:
    return Run("t", key, 0, "id", 0, 1, node, node, fence, 1, began, began, began, "returned")


def found(run: Run, lock: Locked, presence: Presence | None = None) -> tuple[int, int]:
    judged, wrong = astray([run], [lock], presence or Presence(), settle=5.0)
    return judged, len(wrong)


def there(*nodes: str, since: float = 0.0) -> Presence:
    presence = Presence()
    for node in nodes:
        presence.came(node, since)
    return presence


def test_a_claim_on_a_forbidden_node_after_the_call_returned_is_found() -> None:
    lock = Locked("k", ("gpu-%",), returned=10.0, after=100, upto=200)
    assert found(run("cpu-1", 101, 11.0), lock) == (1, 1)
    assert found(run("cpu-1", 200, 19.0), lock) == (1, 1)
    assert found(run("cpu-1", (1 << 40) + 150, 11.0), lock) == (1, 1), "the timeline of a fence is no matter"
    assert found(run("gpu-1", 150, 11.0), lock) == (1, 0)


def test_what_was_claimed_before_the_call_returned_may_still_begin() -> None:
    lock = Locked("k", ("gpu-%",), returned=10.0, after=100, upto=200)
    assert found(run("cpu-1", 100, 12.0), lock) == (0, 0)


def test_claims_of_other_keys_after_the_next_change_or_near_the_expiry_are_not_judged() -> None:
    lock = Locked("k", ("gpu-%",), returned=10.0, after=100, upto=200, expires=11.0)
    assert found(run("cpu-1", 150, 10.5, key="other"), lock) == (0, 0)
    assert found(run("cpu-1", 201, 10.5), lock) == (0, 0)
    assert found(run("cpu-1", 150, 11.0), lock) == (0, 0)
    assert found(run("cpu-1", 150, 10.9), lock) == (1, 1)


@pytest.mark.parametrize(("since", "wrong"), [(0.0, 1), (15.0, 1), (15.1, 0)])
def test_a_fallback_is_wrong_only_where_the_first_pattern_s_node_was_there_long_enough(
    since: float, wrong: int
) -> None:
    lock = Locked("k", GPU_FIRST, returned=1.0, after=100)
    assert found(run("cpu-1", 150, 20.0), lock, there("gpu-1", since=since)) == (1, wrong)


def test_a_fallback_may_serve_from_the_moment_at_which_the_first_pattern_s_node_goes() -> None:
    lock, presence = Locked("k", GPU_FIRST, returned=1.0, after=100), there("gpu-1", "cpu-1")
    presence.goes("gpu-1", 20.0)
    assert found(run("cpu-1", 150, 19.9), lock, presence) == (1, 1)
    assert found(run("cpu-1", 150, 20.0), lock, presence) == (1, 0)
    assert found(run("tpu-1", 150, 20.0), lock, presence) == (1, 1)
