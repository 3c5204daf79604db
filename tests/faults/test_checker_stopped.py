"""A body that was stopped between its last look at the lease and its first line is judged by that look, if it was."""

from __future__ import annotations

import pytest

from tests.faults.made_up import Body, Story


@pytest.fixture
def story() -> Story:
    """Node a looks at 1.0 and is stopped until 5.0; node b takes its run over at 3.5, and has ended when a goes on."""
    story = Story()
    story.fault(0.5, 5.0, "pause-group")
    story.ran(0, 5.003, 5.4, ended=False, fence=6, looked=1.0)
    story.ran(0, 3.5, 4.0, node="b", fence=7, attempt=2)
    return story


def late(story: Story) -> Body:
    return story.bodies[0]


def test_a_body_that_was_stopped_after_its_look_may_run_beside_or_after_its_successor(story: Story) -> None:
    verdict = story.verdict()
    assert verdict.ok
    assert verdict.figures["stopped_before_start"] == 1


def test_the_next_task_of_the_key_may_have_started_meanwhile_as_well(story: Story) -> None:
    story.ran(1, 4.1, 5.2, node="b", fence=8)
    assert story.verdict().ok


@pytest.mark.parametrize(
    ("at", "until", "nemesis", "target"),
    [
        (0.5, 5.0, "cut-both-stall", "a"),
        (0.5, 5.0, "pause-group", "b"),
        (2.0, 5.0, "pause-group", "a"),
        (0.5, 4.0, "pause-group", "a"),
        (0.5, 9.0, "pause-group", "a"),
    ],
    ids=["no pause", "elsewhere", "begins after the look", "is over before the start", "goes on after the start"],
)
def test_without_a_pause_that_covers_the_gap_nothing_is_excused(
    story: Story, at: float, until: float, nemesis: str, target: str
) -> None:
    story.faults.clear()
    story.fault(at, until, nemesis, target)
    assert {"S6", "S7"} <= story.broken()
    assert story.verdict().figures["stopped_before_start"] == 0


@pytest.mark.parametrize("looked", [None, 4.95], ids=["unknown", "just before the start"])
def test_without_a_look_before_the_pause_nothing_is_excused(story: Story, looked: float | None) -> None:
    late(story).looked = looked
    assert {"S6", "S7"} <= story.broken()


def test_a_look_after_the_successor_had_started_excuses_nothing(story: Story) -> None:
    late(story).looked = 3.6
    assert {"S1", "S7"} <= story.broken()
    assert story.verdict().figures["stopped_before_start"] == 1


def test_a_look_after_the_successor_had_ended_excuses_nothing(story: Story) -> None:
    late(story).looked = 4.2
    assert {"S6", "S7"} <= story.broken()


@pytest.mark.parametrize(("last", "broken"), [(5.09, set()), (5.3, {"S1"})])
def test_under_terminate_such_a_body_has_to_be_silent_100_ms_after_it_was_continued(
    story: Story, last: float, broken: set[str]
) -> None:
    body = late(story)
    body.policy, body.last = "terminate", last
    assert story.broken() == broken
