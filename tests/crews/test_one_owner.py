"""``can_claim_task`` is true in one process at most at any instant, whatever happens; and soon in one again.

``JOBSYNC_JOB_LEASE=5,30`` runs all this with these heartbeat settings, and silences to match.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from e2e.waiting import until
from faults import black_hole
from faults.proxy import PASS, Mode

from crews.crew import HEARTBEAT, SLACK, TIMEOUT, Crew, Member, now

Note = Callable[[str, object], None]
#: What moving takes once it is known that something has to move, in seconds: about one, a loaded machine apart.
SOON = 1.0 + SLACK

pytestmark = pytest.mark.slow


@pytest.fixture(params=["leader", "follower"])
def victim(request: pytest.FixtureRequest, crew: Crew) -> Member:
    """One of three members that share everything."""
    crew.settle(3)
    return crew.leader() if request.param == "leader" else crew.follower()


def test_members_that_join_take_their_share_from_those_that_have_it(crew: Crew, record_property: Note) -> None:
    crew.settle(2)
    for _ in range(2):
        begun = now()
        joined = crew.start()
        crew.until_shared()
        record_property("vacant", crew.vacant(begun))
        record_property("joined", joined.joined_in())
        assert crew.vacant(begun) < SOON and joined.joined_in() < SOON
    crew.assert_one_owner()


def test_a_member_that_leaves_hands_over_at_once(crew: Crew, victim: Member, record_property: Note) -> None:
    at = victim.signal(signal.SIGTERM)
    crew.until_shared(crew.others(victim))
    record_property("vacant", crew.vacant(at))
    assert crew.vacant(at) < SOON
    assert victim.ended() == 0
    crew.assert_one_owner()


def test_what_a_killed_member_had_is_another_s_within_its_lease_and_a_second(
    crew: Crew, victim: Member, record_property: Note
) -> None:
    assert victim.has()
    at = victim.kill()
    crew.until_shared()
    record_property("vacant", crew.vacant(at))
    assert crew.vacant(at) < TIMEOUT + SOON
    crew.assert_one_owner()


def test_a_member_that_is_stopped_for_less_than_its_lease_keeps_what_it_has(crew: Crew) -> None:
    crew.settle(3)
    before, victim = crew.held(), crew.follower()
    victim.signal(signal.SIGSTOP)
    time.sleep(TIMEOUT - 2 * HEARTBEAT)  # the silence itself
    woken = victim.signal(signal.SIGCONT)
    until(lambda: victim.record.last > woken, "it goes on")
    assert crew.held() == before
    crew.assert_one_owner()


def test_a_member_that_is_stopped_beyond_its_lease_has_nothing_when_it_wakes_and_a_share_soon_after(
    crew: Crew, record_property: Note
) -> None:
    crew.settle(3)
    victim = crew.leader()
    at = victim.signal(signal.SIGSTOP)
    crew.until_shared(crew.others(victim))
    record_property("vacant", crew.vacant(at))
    assert crew.vacant(at) < TIMEOUT + SOON
    woken = victim.signal(signal.SIGCONT)
    record_property("again", victim.again(woken))
    assert victim.again(woken) < SOON
    crew.until_shared()
    crew.assert_one_owner()


@contextmanager
def hole(member: Member, how: str) -> Iterator[None]:
    """Nothing gets through between a member and the database; the kernel drops the packets, or a proxy the data."""
    if how == "packets":
        with black_hole.black_hole(member.way.port):
            yield
        return
    member.way.set(Mode(how))
    try:
        yield
    finally:
        member.way.set(PASS)


@pytest.mark.parametrize("how", ["drop", "packets"])
def test_a_member_in_a_black_hole_has_nothing_from_its_deadline_on_and_a_share_once_it_is_out(
    crew: Crew, how: str, record_property: Note
) -> None:
    if how == "packets" and (reason := black_hole.missing()):
        pytest.skip(f"left out, {reason}")
    crew.settle(3)
    cut = crew.follower()
    at = now()
    with hole(cut, how):
        crew.until_shared(crew.others(cut))
        record_property("vacant", crew.vacant(at))
        assert crew.vacant(at) < TIMEOUT + SOON
        assert not cut.has()
        out = now()
    record_property("again", cut.again(out))
    assert cut.again(out) < TIMEOUT + SOON
    crew.until_shared()
    crew.assert_one_owner()


def test_of_two_processes_with_one_name_the_second_waits_and_takes_over_when_the_first_is_gone(
    crew: Crew, record_property: Note
) -> None:
    crew.settle(3)
    first = crew.follower()
    begun = now()
    second = crew.start(first.name, first.way)  # under one address, or they could not tell that it is one cluster
    until(lambda: first.name in second.logs(), "it says that its name is taken")
    crew.until_shared(crew.others(second))
    assert crew.vacant(begun) == 0.0 and not second.record.stays
    at = first.kill()
    crew.until_shared()
    record_property("vacant", crew.vacant(at))
    assert crew.vacant(at) < 1.0 + SOON  # it looks every second
    crew.assert_one_owner()
