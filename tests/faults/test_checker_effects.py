"""What the checker finds in bodies that have effects, are retried, replaced, or fail; and what it lets pass."""

from __future__ import annotations

import pytest

from tests.faults.made_up import Body, Story


@pytest.fixture
def story() -> Story:
    return Story()


# -- S5: effects under guard ----------------------------------------------------------------------------------------


def guarded(story: Story) -> Body:
    """A body with an effect that loses its claim, and its successor with another."""
    story.publish(0, kind="guard")
    body = story.ran(0, 1.0, 4.5, ended=False)
    story.entered(body, xid=10)
    story.lost(body, "15:15:")
    story.fault(1.2, 4.5, "cut-database-refused")
    story.entered(story.ran(0, 3.5, 4.0, node="b", attempt=2), xid=16)
    return body


def test_an_effect_that_was_committed_before_its_claim_was_lost_breaks_nothing(story: Story) -> None:
    guarded(story)
    assert story.verdict().ok
    assert story.verdict().figures["effects_of_lost_claims"] == 1


@pytest.mark.parametrize(
    ("committed", "broken"),
    [("10:11:", set()), ("9:15:9,11", set()), ("9:15:10", {"S5"}), ("9:15:9,10,11", {"S5"}), ("10:10:", {"S5"})],
)
def test_an_effect_that_was_not_committed_when_its_claim_was_lost_breaks_s5(
    story: Story, committed: str, broken: set[str]
) -> None:
    guarded(story)
    story.losses[0]["committed"] = committed
    assert story.broken() == broken


def test_a_transaction_that_began_after_the_loss_breaks_s5(story: Story) -> None:
    guarded(story)
    story.ledger[0]["xid"] = "15"
    assert story.broken() == {"S5"}


def test_an_effect_whose_claim_was_taken_over_without_a_note_of_its_loss_breaks_s5(story: Story) -> None:
    guarded(story)
    story.losses.clear()
    assert story.broken() == {"S5"}


def test_an_effect_under_a_fence_that_its_claim_never_had_breaks_s5(story: Story) -> None:
    guarded(story)
    story.rows[0]["fence"] = 1
    assert "S5" in story.broken()


def test_an_effect_under_a_fence_under_which_no_body_ran_breaks_s5(story: Story) -> None:
    guarded(story)
    story.ledger.append({**story.ledger[0], "fence": 9})
    assert story.broken() == {"S5"}


def test_an_effect_that_a_body_saw_committed_and_that_is_not_there_breaks_s5(story: Story) -> None:
    guarded(story)
    story.ledger.pop(0)
    assert story.broken() == {"S5"}


def test_an_effect_that_a_failover_lost_is_excused(story: Story) -> None:
    guarded(story)
    story.ledger.pop(0)
    story.fault(1.5, 4.0, "standby-promoted", "database")
    assert story.verdict().ok


def test_a_body_that_ends_without_the_effect_that_it_was_to_have_breaks_s5(story: Story) -> None:
    story.publish(0, kind="guard")
    story.ran(0, 1.0, 1.5)
    assert story.broken() == {"S5"}


def test_a_body_that_is_fenced_although_its_claim_was_not_lost_breaks_s5(story: Story) -> None:
    body = guarded(story)
    body.notes, body.over, body.ended = (("fenced", 4.0),), "requeued", True
    story.ledger.pop(0)
    assert story.verdict().ok
    story.losses.clear()
    assert story.broken() == {"S5"}


# -- S5: effects under complete -------------------------------------------------------------------------------------


def completed(story: Story) -> Body:
    story.publish(0, kind="complete")
    body = story.ran(0, 1.0, 2.0)
    story.entered(body, completes=True, at=1.5)
    return body


def test_the_next_task_of_a_key_may_start_beside_the_rest_of_a_body_that_completed(story: Story) -> None:
    completed(story)
    story.ran(1, 1.55, 1.9, node="b")
    verdict = story.verdict()
    assert verdict.ok
    assert (verdict.figures["overlaps"], verdict.figures["completions"]) == (0, 1)


def test_the_next_task_may_start_while_the_answer_to_that_commit_is_on_its_way(story: Story) -> None:
    body = completed(story)
    story.ran(1, 1.55, 1.9, node="b")
    body.notes = (("completing", 1.5), ("completed", 1.7))
    assert story.verdict().ok


def test_the_next_task_may_not_start_before_that_commit(story: Story) -> None:
    completed(story)
    story.ran(1, 1.4, 1.9, node="b")
    assert story.broken() == {"S1"}


def test_a_body_that_only_tried_to_complete_still_runs(story: Story) -> None:
    body = story.ran(0, 1.0, 2.0)
    body.notes = (("completing", 1.5),)
    story.ran(1, 1.55, 1.9, node="b")
    assert story.broken() == {"S1"}


def test_a_body_that_was_killed_after_it_had_completed_is_done(story: Story) -> None:
    body = completed(story)
    body.ended = False
    story.fault(2.01, 2.01)
    assert story.verdict().ok


def test_a_body_that_lost_the_answer_to_its_commit_is_done(story: Story) -> None:
    body = completed(story)
    body.over, body.notes = "requeued", (("completing", 1.5),)
    assert story.verdict().ok


def test_a_run_that_starts_again_after_it_was_completed_breaks_s6_whatever_was_broken(story: Story) -> None:
    body = completed(story)
    body.ended = False
    row = dict(story.rows[0])
    story.fault(2.01, 2.01)
    story.ran(0, 5.0, 5.5, node="b", attempt=2)
    story.rows[0] = row
    assert "S6" in story.broken()


@pytest.mark.parametrize("state", ["lost", "failed", "running"])
def test_a_completion_beside_a_claim_that_is_not_done_breaks_s5(story: Story, state: str) -> None:
    completed(story)
    story.rows[0]["state"] = state
    assert "S5" in story.broken(may_fail={0})


def test_a_completion_under_another_fence_than_is_recorded_done_breaks_s5(story: Story) -> None:
    completed(story)
    story.lost(story.bodies[0])
    story.fault(1.2, 4.5, "cut-database-refused")
    story.ran(0, 3.5, 4.0, node="b", attempt=2)
    assert "S5" in story.broken()


def test_a_run_that_was_completed_twice_breaks_s5(story: Story) -> None:
    completed(story)
    story.ledger.append(dict(story.ledger[0]))
    assert story.broken() == {"S5"}


def test_a_run_done_without_the_effect_that_completes_it_breaks_s5(story: Story) -> None:
    completed(story)
    story.ledger.clear()
    assert story.broken() == {"S5"}
    story.fault(0.9, 3.0, "standby-promoted", "database")
    assert story.verdict().ok


# -- S6: retries ----------------------------------------------------------------------------------------------------


def retried(story: Story) -> Body:
    story.publish(0, kind="retry", retries=1)
    body = story.ran(0, 1.0, 1.5, state="retried", over="retried")
    story.ran(0, 2.0, 2.5, retries=1)
    return body


def test_a_retry_that_finishes_breaks_nothing(story: Story) -> None:
    retried(story)
    assert story.verdict().ok
    assert story.verdict().figures["ends"] == {"end": 1, "retried": 1}


def test_a_try_that_runs_again_without_a_fault_after_it_was_retried_breaks_s6(story: Story) -> None:
    retried(story)
    story.bodies.append(Body(0, "k", "a", 9, 1.6, 1.7, attempt=2, over="retried"))
    story.more_rows[0].update(fence=9, attempt=2)
    story.bodies[1].fence = story.rows[0]["fence"] = 10
    assert story.broken() == {"S6"}
    story.fault(1.55, 1.55)
    assert story.verdict().ok


def test_an_earlier_try_after_the_last_one_breaks_s6(story: Story) -> None:
    retried(story)
    story.bodies.append(Body(0, "k", "a", 9, 3.0, 3.5, attempt=2, over="retried"))
    story.more_rows[0].update(fence=9, attempt=2)
    assert story.broken() == {"S6"}


def test_a_retry_that_never_ran_is_lost(story: Story) -> None:
    story.publish(0, kind="retry", retries=1)
    story.ran(0, 1.0, 1.5, state="retried", over="retried")
    assert story.broken() == {"S6"}


def test_two_ends_of_a_task_that_is_retried_break_s6(story: Story) -> None:
    retried(story)
    story.more_rows[0]["state"] = "done"
    story.bodies[0].over = "end"
    assert story.broken() == {"S6"}


def test_an_end_at_another_try_than_was_to_be_breaks_s6(story: Story) -> None:
    story.publish(0, kind="retry", retries=1)
    story.ran(0, 1.0, 1.5)
    assert story.broken() == {"S6"}


@pytest.mark.parametrize(
    ("state", "at", "broken"), [("lost", 1.51, set()), ("lost", 9.0, {"S6"}), ("done", 1.51, {"S5", "S6"})]
)
def test_a_retried_try_is_recorded_so_or_lost_by_a_fault(story: Story, state: str, at: float, broken: set[str]) -> None:
    retried(story)
    story.more_rows[0]["state"] = state
    story.fault(at, at)
    assert story.broken() == broken


# -- S6: replacements -----------------------------------------------------------------------------------------------


def replaced(story: Story) -> Body:
    story.publish(0, kind="replace")
    body = story.ran(0, 1.0, 1.5, over="replaced")
    story.ran(0, 2.0, 2.5, origin="other")
    return body


def test_a_replacement_is_another_publish_and_the_run_that_it_replaces_is_done(story: Story) -> None:
    replaced(story)
    assert story.verdict().ok


def test_a_replacement_that_never_ran_is_lost(story: Story) -> None:
    story.publish(0, kind="replace")
    story.ran(0, 1.0, 1.5, over="replaced")
    assert story.broken() == {"S6"}


def test_a_replacement_that_is_taken_for_the_run_that_it_replaces_breaks_s6(story: Story) -> None:
    replaced(story)
    story.bodies[1].origin = "o"
    story.bodies[1].attempt = story.rows[0]["attempt"] = 2
    story.rows[0]["origin"] = "o"
    story.more_rows.clear()
    assert story.broken() == {"S6"}


def test_a_replaced_run_that_is_not_recorded_done_breaks_s6(story: Story) -> None:
    replaced(story)
    story.more_rows[0]["state"] = "lost"
    assert story.broken() == {"S6"}


def test_more_replacements_than_bodies_that_made_them_break_s6(story: Story) -> None:
    replaced(story)
    story.ran(0, 3.0, 3.5, origin="third")
    assert story.broken() == {"S6"}


def test_a_body_that_was_killed_after_it_had_replaced_itself_may_do_so_again(story: Story) -> None:
    story.publish(0, kind="replace")
    story.ran(0, 1.0, 1.5, ended=False)
    story.fault(1.52, 1.52)
    story.ran(0, 4.0, 4.5, node="b", attempt=2, over="replaced")
    story.ran(0, 5.0, 5.5, origin="one")
    story.ran(0, 6.0, 6.5, origin="two")
    assert story.verdict().ok


# -- S6: failures ---------------------------------------------------------------------------------------------------


def test_a_body_that_fails_for_good_is_recorded_failed(story: Story) -> None:
    story.publish(0, kind="fail")
    story.ran(0, 1.0, 1.5, state="failed", over="failed")
    story.rows[0]["reason"] = None
    assert story.broken() == {"S6"}
    assert not story.broken(may_fail={0})


@pytest.mark.parametrize("state", ["done", "lost", "running"])
def test_a_body_that_fails_and_is_recorded_otherwise_breaks_s6(story: Story, state: str) -> None:
    story.publish(0, kind="fail")
    story.ran(0, 1.0, 1.5, state=state, over="failed")
    assert "S6" in story.broken(may_fail={0})


def test_a_failed_run_that_starts_again_breaks_s6(story: Story) -> None:
    story.publish(0, kind="fail")
    story.ran(0, 1.0, 1.5, state="failed", over="failed")
    row = dict(story.rows[0])
    story.fault(1.51, 1.51)
    story.ran(0, 4.0, 4.5, node="b", attempt=2, over="failed")
    story.rows[0] = row
    assert "S6" in story.broken(may_fail={0})


def test_a_body_that_wants_to_be_run_again_is(story: Story) -> None:
    story.ran(0, 1.0, 1.5, over="requeued")
    assert story.broken() == {"S5"}
    story.ran(0, 2.0, 2.5, attempt=2)
    assert story.verdict().ok
