"""Where a node says that keys belong: never two say yes, though they learn at different times."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from stage import Clock

from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.runtime.placement import Placement
from jobsync_celery.store.locks import Placements

TOKENS = TokenMap(40, 4, "double_sha256")
LEASE = 10.0
HOME, POOL = TOKENS.partition_for("k"), 4


def test_nothing_is_said_before_the_locks_are_known() -> None:
    assert Placement(TOKENS, LEASE, Clock()).of("k") is None


def test_locks_that_are_old_count_at_once() -> None:
    placement = Placement(TOKENS, LEASE, Clock())
    placement.learn(Placements(7, 60.0, {"k": POOL}))
    assert placement.of("k") == POOL and placement.of("other") == TOKENS.partition_for("other")


def test_where_no_key_was_ever_locked_everything_is_sure_at_once() -> None:
    placement = Placement(TOKENS, LEASE, Clock())
    placement.learn(Placements(0, math.inf, {}))
    assert placement.of("k") == HOME


def test_a_longer_lease_of_another_node_is_waited_for() -> None:
    clock = Clock()
    placement = Placement(TOKENS, LEASE, clock)
    placement.learn(Placements(7, 0.0, {"k": POOL}, lease=3 * LEASE))
    clock.pass_by(2 * LEASE)
    assert placement.of("k") is None
    clock.pass_by(LEASE + 0.1)
    assert placement.of("k") == POOL


def test_after_a_failover_a_version_may_be_another_one_of_the_same_number() -> None:
    placement = Placement(TOKENS, LEASE, Clock())
    placement.learn(Placements(2, 60.0, {"k": POOL}))
    placement.forget()
    assert placement.version is None and placement.of("k") is None
    placement.learn(Placements(2, 60.0, {}))
    assert placement.of("k") == HOME


def test_after_a_late_change_a_newcomer_waits_until_everybody_has_learnt_of_it() -> None:
    clock = Clock()
    placement = Placement(TOKENS, LEASE, clock)
    placement.learn(Placements(7, 4.0, {"k": POOL}))
    assert placement.of("k") is None and placement.of("other") is None
    clock.pass_by(LEASE - 4.0 + 0.1)
    assert placement.of("k") == POOL


def test_a_change_unsettles_its_own_key_for_one_lease_and_no_other() -> None:
    clock = Clock()
    placement = Placement(TOKENS, LEASE, clock)
    placement.learn(Placements(1, 60.0, {}))
    placement.learn(Placements(2, 0.0, {"k": POOL}))
    assert placement.of("k") is None and placement.of("other") is not None
    clock.pass_by(LEASE + 0.1)
    assert placement.of("k") == POOL


def test_in_doubt_nothing_is_said() -> None:
    placement = Placement(TOKENS, LEASE, Clock())
    placement.learn(Placements(1, 60.0, {}))
    placement.doubt()
    assert placement.of("k") is None


@given(
    st.lists(st.tuples(st.floats(0.1, 6.0), st.booleans()), max_size=12),
    st.lists(st.floats(0.0, 9.9), min_size=24, max_size=24),
)
def test_two_nodes_never_name_two_places_for_a_key(changes: list[tuple[float, bool]], delays: list[float]) -> None:
    """Each learns of every change within its lease, or says nothing until it does: here, at latest after 9.9 s."""
    clock = Clock()
    nodes = [Placement(TOKENS, LEASE, clock) for _ in range(2)]
    for node in nodes:
        node.learn(Placements(0, 60.0, {}))
    at, events = clock.now, []
    for version, (pause, locked) in enumerate(changes, 1):
        at += pause
        for which in range(2):
            events.append((at + delays[2 * (version - 1) + which], which, Placements(version, 0.0, _locked(locked))))
    for when, which, placements in sorted(events, key=lambda event: event[:2]):
        clock.now = when
        if placements.version > (nodes[which].version or 0):
            nodes[which].learn(placements)
        said = {place for node in nodes if (place := node.of("k")) is not None}
        assert len(said) <= 1


def _locked(locked: bool) -> dict[str, int]:
    return {"k": POOL} if locked else {}
