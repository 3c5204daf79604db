"""A clock that was set is told from one that is asked slowly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobsync_celery.core.steps import LEAST_STEP, Distance

delays = st.floats(0, 20)


def asked(at: float, there: float, back: float, ahead: float) -> Distance:
    """The answer to a question sent at that time, of a clock that is so far ahead."""
    return Distance.of(at, at + there + back, at + there + ahead)


@given(st.floats(0, 1e6), delays, delays, delays, delays, st.floats(0, 3600), st.floats(-1e6, 1e6))
def test_a_clock_that_was_not_set_never_seems_so_however_slow_the_answers(
    at: float, there: float, back: float, there2: float, back2: float, pause: float, ahead: float
) -> None:
    before = asked(at, there, back, ahead)
    assert asked(at + there + back + pause, there2, back2, ahead).step_since(before) == 0


@given(st.floats(0, 0.1), st.floats(0, 0.1), st.floats(0, 10), st.floats(1.5, 1e6), st.booleans())
def test_a_step_is_told_with_its_sign_and_never_larger_than_it_was(
    there: float, back: float, pause: float, step: float, forth: bool
) -> None:
    signed = step if forth else -step
    told = asked(1 + pause, there, back, signed).step_since(asked(0.5, there, back, 0.0))
    assert (told > 0) is forth
    assert LEAST_STEP <= abs(told) <= step + 1e-6
