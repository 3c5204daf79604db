from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobsync_celery.core.lease import DRIFT, Watch, gap_limit, margin_for, trusted_until
from jobsync_celery.core.model import Member

INTERVAL, TIMEOUT = 5.0, 15.0
EPOCH = 1.7e9  # where the database's clock stands when the boot clock shows 0


@dataclass
class Answer:
    """One answer to the observer: asked, worked out by the database, received (boot clock)."""

    sent: float
    taken: float
    received: float


@st.composite
def answer_sequences(draw: st.DrawFn) -> list[Answer]:
    answers, now = [], 100.0
    for _ in range(draw(st.integers(1, 12))):
        now += draw(st.floats(0.5, 6.0))
        there, back = draw(st.floats(0, 0.4)), draw(st.floats(0, 0.4))
        answers.append(Answer(now, now + there, now + there + back))
        now += there + back
    return answers


renewal_times = st.lists(st.floats(60, 200), max_size=15).map(lambda times: [50.0, *sorted(times)])
jumps = st.floats(-100, 100) | st.floats(-2, 2)


def suspicions(
    answers: list[Answer], renewals: list[float], steps: list[tuple[float, float]], after: float
) -> list[tuple[float, int]]:
    """Return (time, counter) of every suspicion of one victim, asked `after` seconds after each answer."""

    def database(now: float) -> float:
        return EPOCH + now + sum(size for at, size in steps if at <= now)

    watch, found = Watch(1, INTERVAL, TIMEOUT), []
    for number, answer in enumerate(answers):
        counter = bisect.bisect_right(renewals, answer.taken)
        age = database(answer.taken) - database(renewals[counter - 1])
        victim = Member("victim", 2, renewals=counter, age=age)
        watch = watch.observe(answer.sent, answer.received, database(answer.taken), [victim])
        now = answer.received + after
        if number + 1 < len(answers):
            now = min(now, answers[number + 1].received)
        found += [(now, renewals) for _, _, renewals in watch.suspects(now)]
    return found


@settings(max_examples=300, deadline=None)
@given(answer_sequences(), renewal_times, st.data(), st.floats(0, 10))
def test_nobody_who_renewed_within_his_timeout_is_suspect_whatever_steps_the_database_clock_makes(
    answers: list[Answer], renewals: list[float], data: st.DataObject, after: float
) -> None:
    # At most one step between two answers; another test bounds what two can do.
    bounds = [0.0, *(answer.taken for answer in answers)]
    steps = [
        (data.draw(st.floats(early, late)), data.draw(jumps))
        for early, late in itertools.pairwise(bounds)
        if data.draw(st.booleans())
    ]
    for now, counter in suspicions(answers, renewals, steps, after):
        assert now - renewals[counter - 1] >= TIMEOUT


@settings(max_examples=200, deadline=None)
@given(answer_sequences(), renewal_times, st.lists(st.tuples(st.floats(0, 200), jumps)), st.floats(0, 10))
def test_a_clock_that_steps_forth_and_back_unseen_errs_by_no_more_than_the_time_between_two_answers(
    answers: list[Answer], renewals: list[float], steps: list[tuple[float, float]], after: float
) -> None:
    unseen = max((b.received - a.sent for a, b in itertools.pairwise(answers)), default=0.0)
    for now, counter in suspicions(answers, renewals, steps, after):
        assert now - renewals[counter - 1] >= TIMEOUT - unseen


@settings(deadline=None)
@given(st.floats(0.01, 100), st.integers(1, 20), st.floats(0.1, 10), st.floats(2, 6))
def test_an_observer_with_a_gap_suspects_nobody(beyond: float, before: int, interval: float, times: float) -> None:
    timeout = interval * times
    victim = [Member("victim", 2, renewals=7, age=1e6)]
    watch = Watch(1, interval, timeout)
    now = 0.0
    for _ in range(before):
        watch = watch.observe(now, now, EPOCH + now, victim)
        now += interval
    now += gap_limit(interval, timeout) - interval + beyond
    assert watch.suspects(now) == ()
    watch = watch.observe(now, now, EPOCH + now, victim)
    back = now
    while now < back + timeout:
        assert watch.suspects(now) == ()
        now += interval
        watch = watch.observe(now, now, EPOCH + now, victim)
    assert watch.suspects(back + timeout * (1 + 2 * DRIFT)) or now > back + timeout


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(0, 0.999), min_size=2, max_size=6),
    st.floats(20, 40),
    st.floats(0, 60),
    st.sampled_from([0.1, 0.2, 1.0]),
    st.sampled_from([3.0, 4.0]),
)
def test_an_outage_of_the_database_evicts_nobody(
    phases: list[float], begin: float, length: float, retry: float, times: float
) -> None:
    """Nodes 0 to n-1 renew each second, in their own phase; a failed attempt is repeated after `retry`."""
    due = dict(enumerate(phases))
    renewed, counters = dict.fromkeys(due, 0.0), dict.fromkeys(due, 0)
    watch = Watch(0, 1.0, times)
    while (now := min(due.values())) < begin + length + 10:
        number = min(due, key=lambda each: due[each])
        if begin <= now < begin + length:
            due[number] = now + retry
            continue
        due[number], renewed[number] = now + 1.0, now
        counters[number] += 1
        if number == 0:
            assert watch.suspects(now) == ()
            members = [Member(str(each), each, renewals=counters[each], age=now - renewed[each]) for each in due]
            watch = watch.observe(now, now, EPOCH + now, members)
            assert watch.suspects(now) == ()


def watched(*renewed: float, until: float) -> Watch:
    """Return the watch of an observer who asked each INTERVAL; its one victim renewed at `renewed`."""
    watch, now = Watch(1, INTERVAL, TIMEOUT), 0.0
    while now <= until:
        counter = bisect.bisect_right(renewed, now)
        age = now - renewed[counter - 1]
        watch = watch.observe(now, now, EPOCH + now, [Member("victim", 2, renewals=counter, age=age)])
        now += INTERVAL
    return watch


def test_a_silent_node_is_suspect_as_soon_as_its_lease_ends_by_the_database_clock() -> None:
    watch = watched(0, 5, 10, 15, 20.5, until=35)
    end = 20.5 + TIMEOUT * (1 + DRIFT)
    assert watch.next_check(35) == pytest.approx(end)
    assert watch.suspects(end - 0.01) == ()
    assert watch.suspects(end + 0.01) == (("victim", 2, 5),)
    assert watch.next_check(end + 0.01) is None


def test_a_first_answer_counts_from_when_it_came_whatever_age_it_tells() -> None:
    watch = watched(-100, until=15)
    assert watch.suspects(15) == ()
    assert watch.suspects(TIMEOUT * (1 + DRIFT)) == (("victim", 2, 1),)


@pytest.mark.parametrize("step", [-1000, -1, 1, 1000])
def test_a_step_of_the_database_clock_falls_back_on_the_counter(step: float) -> None:
    watch = Watch(1, INTERVAL, TIMEOUT)
    watch = watch.observe(0, 0, EPOCH, [Member("victim", 2, renewals=1, age=1)])
    watch = watch.observe(5, 5, EPOCH + 5 + step, [Member("victim", 2, renewals=2, age=4 + step)])
    assert watch.next_check(5) == pytest.approx(5 + TIMEOUT * (1 + DRIFT))


@pytest.mark.parametrize(
    ("database_time", "received", "age", "why"),
    [
        (5.0, 5.0, 2.0, "no step"),
        (5.5, 5.0, 2.5, "half a second forth, after the renewal"),
        (4.9, 5.4, 2.4, "half a second back, before the renewal, and a slow answer"),
    ],
)
def test_a_step_too_small_to_matter_is_allowed_for(database_time: float, received: float, age: float, why: str) -> None:
    watch = Watch(1, INTERVAL, TIMEOUT).observe(0, 0, EPOCH, [])
    watch = watch.observe(5, received, EPOCH + database_time, [Member("victim", 2, age=age)])
    assert watch.next_check(6) == pytest.approx(3 + TIMEOUT * (1 + DRIFT)), why


def test_an_impossible_age_counts_from_the_answer_before() -> None:
    watch = Watch(1, INTERVAL, TIMEOUT)
    watch = watch.observe(0, 0, EPOCH, [Member("victim", 2, renewals=1)])
    watch = watch.observe(5, 5, EPOCH + 5, [Member("victim", 2, renewals=2, age=62)])
    assert watch.next_check(5) == pytest.approx(TIMEOUT * (1 + DRIFT))


def test_a_slow_answer_counts_from_when_it_was_received() -> None:
    watch = Watch(1, INTERVAL, TIMEOUT)
    watch = watch.observe(0, 0, EPOCH, [])
    watch = watch.observe(5, 8, EPOCH + 5, [Member("victim", 2, renewals=2, age=0)])
    assert watch.next_check(8) == pytest.approx(8 + TIMEOUT * (1 + DRIFT))


def test_the_observer_itself_and_nodes_that_hold_no_lease_are_never_suspect() -> None:
    others = [Member("left", 2, "left"), Member("dead", 3, "dead"), Member("admin", 4, "admin")]
    members = [Member("me", 1), *others]
    watch = Watch(1, INTERVAL, TIMEOUT)
    for now in range(0, 60, 5):
        watch = watch.observe(now, now, EPOCH + now, members)
    assert watch.suspects(60) == ()
    assert watch.next_check(60) is None


def test_a_member_with_a_longer_lease_of_its_own_is_given_that_time() -> None:
    member = Member("slow", 2, timeout=40)
    watch = Watch(1, INTERVAL, TIMEOUT)
    for now in range(0, 45, 5):
        assert watch.suspects(now) == ()
        watch = watch.observe(now, now, EPOCH + now, [member])
    assert watch.suspects(40 * (1 + DRIFT)) == (("slow", 2, 0),)


def test_suspects_come_oldest_first() -> None:
    watch = Watch(1, INTERVAL, TIMEOUT)
    for now in range(0, 25, 5):
        watch = watch.observe(now, now, EPOCH + now, [Member("b", 9), Member("a", 30), Member("c", 4)])
    assert [name for name, _, _ in watch.suspects(20)] == ["c", "b", "a"]


def test_a_watch_without_answers_knows_nothing() -> None:
    watch = Watch(1, INTERVAL, TIMEOUT)
    assert watch.suspects(1e9) == ()
    assert watch.next_check(1e9) is None


def test_observing_leaves_the_earlier_watch_as_it_was() -> None:
    watch = Watch(1, INTERVAL, TIMEOUT)
    watch.observe(0, 0, EPOCH, [Member("victim", 2)])
    assert watch == Watch(1, INTERVAL, TIMEOUT)


@settings(deadline=None)
@given(st.floats(0, 1e6), st.floats(0.2, 600))
def test_trust_ends_before_anybody_may_doubt_it(sent_at: float, timeout: float) -> None:
    end = trusted_until(sent_at, timeout, margin=margin_for(timeout))
    assert sent_at < end < sent_at + timeout * (1 - DRIFT)


def test_the_margin_is_a_tenth_of_the_lease_and_two_seconds_at_most() -> None:
    assert margin_for(5) == pytest.approx(0.5)
    assert margin_for(15) == pytest.approx(1.5)
    assert margin_for(100) == 2.0


@settings(deadline=None)
@given(st.floats(0.1, 60), st.floats(2, 10))
def test_a_punctual_observer_never_has_a_gap(interval: float, times: float) -> None:
    timeout = interval * times
    assert interval < gap_limit(interval, timeout) < timeout
