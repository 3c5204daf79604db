"""In the quiet phase nothing may stand still while there is work."""

from __future__ import annotations

import pytest

from tests.faults.made_up import TIMEOUT, Story
from tests.faults.model import Sample
from tests.faults.standstill import allowed

LONG = allowed(TIMEOUT)
QUIET = 10.0


def watched(until: float) -> list[Sample]:
    """Everybody's partitions are owned, and somebody looked from the begin of the quiet phase until then."""
    return [Sample(at, {1: "a"}) for at in (QUIET, until)]


@pytest.fixture
def story() -> Story:
    """Something ran before the quiet phase, and something at its begin."""
    story = Story()
    story.ran(0, 1.0, 1.5)
    story.ran(1, QUIET, QUIET + 1.0)
    return story


def test_a_fetched_message_that_comes_back_in_time_breaks_nothing(story: Story) -> None:
    story.ran(2, QUIET + 1.0 + LONG - 0.1, QUIET + 1.0 + LONG)
    assert story.verdict(quiet_from=QUIET, samples=watched(QUIET + 20.0)).ok


def test_a_fetched_message_that_comes_back_late_breaks_l1(story: Story) -> None:
    story.ran(2, QUIET + 1.0 + LONG + 0.1, QUIET + 1.2 + LONG)
    (violation,) = story.verdict(quiet_from=QUIET, samples=watched(QUIET + 20.0)).violations
    assert (violation.promise, violation.runs, violation.at) == ("L1", ("2.1",), QUIET + 1.0)
    assert "tasks [2] waited" in violation.text


def test_a_fetched_message_that_never_comes_back_breaks_l1(story: Story) -> None:
    story.publish(2)
    assert story.broken(quiet_from=QUIET, samples=watched(QUIET + 1.0 + LONG - 0.1)) == {"S6"}
    assert story.broken(quiet_from=QUIET, samples=watched(QUIET + 1.0 + LONG + 0.1)) == {"S6", "L1"}


def test_a_run_that_was_killed_and_is_not_begun_again_breaks_l1(story: Story) -> None:
    story.ran(2, 8.0, 9.0, key="other", ended=False, state="lost")
    assert "L1" in story.broken(quiet_from=QUIET, samples=watched(QUIET + 1.2 + LONG))


def test_a_message_may_wait_while_others_run(story: Story) -> None:
    story.ran(2, QUIET + 1.0, QUIET + 1.0 + LONG, key="other")
    story.ran(3, QUIET + 1.0 + LONG, QUIET + 2.0 + LONG)
    assert story.verdict(quiet_from=QUIET, samples=watched(QUIET + 20.0)).ok


def test_what_failed_for_good_is_not_waited_for(story: Story) -> None:
    story.ran(2, 8.0, 9.0, key="other", ended=False, state="failed")
    assert story.verdict(quiet_from=QUIET, samples=watched(QUIET + 30.0), may_fail={2}).ok


def test_nothing_to_do_is_no_standstill(story: Story) -> None:
    story.publish(2, at=QUIET + 8.0)
    story.ran(2, QUIET + 8.1, QUIET + 8.2)
    assert story.verdict(quiet_from=QUIET, samples=watched(QUIET + 30.0)).ok


def test_before_the_quiet_phase_a_fault_may_be_why_nothing_runs(story: Story) -> None:
    story.ran(2, QUIET + 1.0, QUIET + 1.5, key="other")
    assert story.verdict(quiet_from=QUIET, samples=watched(QUIET + 20.0)).ok
    assert story.verdict(quiet_from=None, samples=watched(QUIET + 20.0)).ok
