"""A worker that lives but cannot work is told from one that can."""

from __future__ import annotations

import threading

import pytest

from jobsync_celery.runtime.pulse import Pulse

LIMIT = 15.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_before_the_first_connection_nothing_is_wrong(clock: Clock) -> None:
    pulse = Pulse(clock=clock)
    clock.now += 1000
    assert not pulse.cut_off(LIMIT) and not pulse.hangs(LIMIT)


def test_a_worker_is_cut_off_once_it_has_been_for_the_limit(clock: Clock) -> None:
    pulse = Pulse(clock=clock)
    pulse.connected()
    pulse.disconnected()
    clock.now += LIMIT
    assert not pulse.cut_off(LIMIT)
    clock.now += 0.1
    assert pulse.cut_off(LIMIT)
    pulse.connected()
    assert not pulse.cut_off(LIMIT)


def test_after_a_lost_connection_others_have_seconds_to_notice_that_the_broker_is_back(clock: Clock) -> None:
    pulse = Pulse(clock=clock)
    pulse.connected()
    assert not pulse.shaken()
    pulse.disconnected()
    assert pulse.shaken()
    clock.now += 2 * LIMIT
    assert pulse.shaken()
    pulse.connected()
    clock.now += 7.9
    assert pulse.shaken()
    clock.now += 0.2
    assert not pulse.shaken()


def test_a_connection_that_is_lost_again_before_it_was_of_use_has_been_away_since_the_first_time(clock: Clock) -> None:
    pulse = Pulse(clock=clock)
    pulse.connected()
    pulse.disconnected()
    clock.now += LIMIT
    pulse.disconnected()
    clock.now += 0.1
    assert pulse.cut_off(LIMIT)


def test_a_loop_that_stands_still_hangs_unless_there_is_no_connection_to_wait_for(clock: Clock) -> None:
    pulse = Pulse(clock=clock)
    pulse.connected()
    clock.now += LIMIT + 1
    pulse.turned()
    clock.now += LIMIT + 1
    assert not pulse.hangs(LIMIT)
    clock.now += 2
    assert pulse.hangs(LIMIT)
    pulse.disconnected()
    assert not pulse.hangs(LIMIT)


def test_where_a_loop_stands_still_is_told_from_any_thread(clock: Clock) -> None:
    pulse = Pulse(clock=clock)
    assert pulse.whereabouts() == ""
    turned, go_on = threading.Event(), threading.Event()

    def stand_still() -> None:
        pulse.turned()
        turned.set()
        go_on.wait(60)

    loop = threading.Thread(target=stand_still)
    loop.start()
    try:
        assert turned.wait(60)
        told = next(told for told in iter(pulse.whereabouts, "") if told.startswith("wait ("))
        innermost, *callers = told.split(" < ")
        assert "/threading.py:" in innermost
        assert any(call.startswith("stand_still (runtime/test_pulse.py:") for call in callers)
    finally:
        go_on.set()
        loop.join()


def test_a_loop_that_runs_bodies_itself_may_stand_still(clock: Clock) -> None:
    pulse = Pulse(turns=False, clock=clock)
    pulse.connected()
    clock.now += 100 * LIMIT
    assert not pulse.hangs(LIMIT)
