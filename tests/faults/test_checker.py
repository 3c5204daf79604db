"""The checker finds violations planted in made-up histories, and nothing in legal ones."""

from __future__ import annotations

import pytest

from tests.faults.checker import check
from tests.faults.made_up import TIMEOUT, Body, Story
from tests.faults.model import Sample, Stale, Verdict


@pytest.fixture
def story() -> Story:
    return Story()


# -- S1 and S2: what starts -----------------------------------------------------------------------------------------


def test_one_after_another_breaks_nothing(story: Story) -> None:
    story.ran(0, 1.0, 1.5)
    story.ran(1, 1.6, 2.0, node="b")
    story.ran(2, 1.2, 1.9, key="other")
    assert story.verdict().ok


def test_a_start_beside_a_claim_that_was_not_lost_breaks_s1(story: Story) -> None:
    story.ran(0, 1.0, 1.5)
    story.ran(1, 1.4, 2.0, node="b")
    (violation,) = story.verdict().violations
    assert (violation.promise, violation.runs, violation.at) == ("S1", ("0.1", "1.1"), 1.4)
    assert "nothing shows that it had lost its claim" in violation.text


def test_a_second_copy_of_a_running_run_breaks_s1(story: Story) -> None:
    story.ran(0, 1.0, 1.5)
    story.ran(0, 1.2, 1.7, node="b")
    assert "S1" in story.broken()


def test_a_body_that_outlives_its_lost_claim_may_finish_beside_its_successor(story: Story) -> None:
    story.ran(0, 1.0, 4.5)
    story.ran(0, 3.5, 5.0, node="b", attempt=2)
    story.fault(1.2, 4.0, "cut-database-refused")
    verdict = story.verdict()
    assert verdict.ok
    assert verdict.figures["overlaps"] == 1


def test_a_late_success_may_stand_beside_a_claim_made_meanwhile_if_a_fault_can_explain_it(story: Story) -> None:
    story.ran(0, 1.0, 4.5)
    story.ran(1, 3.5, 4.0, node="b")
    assert story.broken() == {"S1"}
    story.fault(0.0, 0.5, "cut-database-refused")
    story.fault(3.0, 4.5, "cut-database-refused")
    assert story.broken() == {"S1"}
    story.fault(1.2, 4.5, "cut-database-refused", "b")
    assert story.broken() == {"S1"}
    story.fault(1.2, 4.5, "cut-database-refused")
    assert not story.broken()


def test_an_end_recorded_while_the_body_ran_excuses_no_overlap(story: Story) -> None:
    story.ran(0, 1.0, 4.5)
    story.ran(1, 3.5, 4.0, node="b")
    story.fault(1.2, 4.5, "cut-database-refused")
    story.rows[0]["finished_on"] = 3.4
    assert story.broken() == {"S1"}


def test_an_overlap_with_a_run_that_was_taken_over_later_is_excused(story: Story) -> None:
    story.ran(0, 1.0, 4.5, ended=False)
    story.ran(1, 3.5, 4.0, node="b")
    story.ran(0, 5.0, 5.5, node="b", attempt=2)
    assert story.verdict().ok


def test_a_smaller_fence_beside_a_larger_one_breaks_s1_whatever_was_lost(story: Story) -> None:
    story.ran(0, 1.0, 4.5, fence=7)
    story.ran(0, 3.5, 5.0, node="b", fence=6, attempt=2)
    assert {"S1", "S7"} <= story.broken()


def test_a_body_killed_between_two_ticks_does_not_overlap_what_comes_next(story: Story) -> None:
    story.ran(0, 1.0, 1.5, ended=False)
    story.fault(1.52, 1.52)
    story.ran(0, 1.54, 2.0, node="b", attempt=2)
    assert story.verdict().ok


@pytest.mark.parametrize(("beyond", "broken"), [(0.08, set()), (0.15, {"S1"})])
def test_a_terminated_body_is_silent_100_ms_after_its_successor_started(
    story: Story, beyond: float, broken: set[str]
) -> None:
    story.ran(0, 1.0, 3.5 + beyond, policy="terminate", ended=False)
    story.ran(0, 3.5, 5.0, node="b", attempt=2)
    assert story.broken() == broken


@pytest.mark.parametrize(("beyond", "broken"), [(0.08, set()), (0.15, {"S1"})])
def test_a_terminated_body_is_silent_100_ms_after_it_was_continued(
    story: Story, beyond: float, broken: set[str]
) -> None:
    story.ran(0, 1.0, 6.0 + beyond, policy="terminate", ended=False, silent=(2.0, 5.999))
    story.ran(0, 4.0, 4.5, node="b", attempt=2)
    story.fault(1.5, 6.0, "pause-group")
    assert story.broken() == broken


def test_a_pause_of_the_parent_excuses_no_child_that_went_on(story: Story) -> None:
    story.ran(0, 1.0, 6.0, policy="terminate", ended=False)
    story.ran(0, 4.0, 4.5, node="b", attempt=2)
    story.fault(1.5, 6.0, "pause-parent")
    assert story.broken() == {"S1"}


def test_a_start_without_a_claim_breaks_s2(story: Story) -> None:
    story.ran(0, 1.0, 1.5, node="", fence=0)
    assert "S2" in story.broken()


def test_a_start_of_which_the_table_knows_nothing_breaks_s2(story: Story) -> None:
    story.ran(0, 1.0, 1.5)
    story.rows.clear()
    assert story.broken() == {"S2", "S6"}


@pytest.mark.parametrize("column", ["node", "attempt", "task_key"])
def test_a_start_that_its_claim_contradicts_breaks_s2(story: Story, column: str) -> None:
    story.ran(0, 1.0, 1.5)
    story.rows[0][column] = 2 if column == "attempt" else "else"
    assert story.broken() == {"S2"}


def test_a_start_under_a_fence_that_no_claim_ever_had_breaks_s2(story: Story) -> None:
    story.ran(0, 1.0, 1.5, fence=9)
    story.rows[0]["fence"] = 8
    assert "S2" in story.broken()


# -- S5 and S6: what ends -------------------------------------------------------------------------------------------


def test_a_task_that_never_started_is_lost(story: Story) -> None:
    story.publish(0)
    assert story.broken() == {"S6"}


def test_a_task_that_was_killed_and_not_run_again_is_lost(story: Story) -> None:
    story.ran(0, 1.0, 1.5, ended=False, state="lost")
    assert story.broken() == {"S6"}


def test_a_finish_that_is_not_recorded_breaks_s6(story: Story) -> None:
    story.ran(0, 1.0, 1.5, state="running")
    assert story.broken() == {"S6"}


def test_done_without_a_body_that_finished_breaks_s5(story: Story) -> None:
    story.ran(0, 1.0, 1.5, ended=False)
    assert story.broken() == {"S5"}


def test_a_late_success_recorded_over_the_successors_claim_breaks_s5(story: Story) -> None:
    story.ran(0, 1.0, 4.5)
    story.ran(0, 3.5, 4.0, node="b", attempt=2, ended=False)
    assert story.broken() == {"S5"}


def test_done_twice_breaks_s6(story: Story) -> None:
    story.ran(0, 1.0, 1.5)
    story.more_rows.append({**story.rows[0], "origin": "copy", "fence": 99})
    assert "S6" in story.broken()


def test_a_run_that_starts_again_after_it_was_recorded_done_breaks_s6(story: Story) -> None:
    story.ran(0, 1.0, 1.5)
    done = dict(story.rows[0])
    story.fault(1.4, 1.4)
    story.ran(0, 9.0, 9.5, node="b", attempt=2)
    story.rows[0] = done
    assert "S6" in story.broken()


def test_a_run_may_start_again_when_its_worker_died_before_its_end_was_recorded(story: Story) -> None:
    story.ran(0, 1.0, 1.5)
    story.fault(1.51, 1.51)
    story.ran(0, 4.0, 4.5, node="b", attempt=2)
    assert story.verdict().ok


@pytest.mark.parametrize("fault", [None, (1.51, "b"), (9.0, "a")], ids=["no fault", "elsewhere", "later"])
def test_a_finished_run_that_starts_again_without_a_fault_breaks_s6(
    story: Story, fault: tuple[float, str] | None
) -> None:
    story.ran(0, 1.0, 1.5)
    if fault:
        story.fault(fault[0], fault[0], target=fault[1])
    story.ran(0, 4.0, 4.5, node="b", attempt=2)
    assert story.broken() == {"S6"}


def test_a_fault_long_before_explains_no_second_start(story: Story) -> None:
    story.fault(1.0, 1.1)
    story.ran(0, 30.0, 30.5)
    story.ran(0, 34.0, 34.5, attempt=2)
    assert story.broken() == {"S6"}


def test_a_finished_run_that_starts_again_in_the_same_attempt_breaks_s6_whatever_was_broken(story: Story) -> None:
    story.ran(0, 1.0, 1.5)
    story.fault(1.51, 1.51)
    story.ran(0, 4.0, 4.5, node="b")
    assert story.broken() == {"S6"}


def test_an_older_try_after_a_later_one_breaks_s6(story: Story) -> None:
    story.publish(0, retries=1)
    story.ran(0, 1.0, 1.5, retries=1, ended=False)
    story.ran(0, 4.0, 4.5, ended=False, state="retried")
    story.ran(0, 7.0, 7.5, retries=1, attempt=2)
    (violation,) = story.verdict().violations
    assert (violation.promise, violation.at) == ("S6", 4.0)


@pytest.mark.parametrize(
    ("losses", "reason", "broken"), [(3, "lost 3 times", set()), (2, "lost 2 times", {"S6"}), (3, None, {"S6"})]
)
def test_a_task_fails_for_good_only_after_enough_losses_and_with_a_reason(
    story: Story, losses: int, reason: str | None, broken: set[str]
) -> None:
    story.ran(0, 1.0, 1.5, ended=False, state="failed", attempt=3)
    story.rows[0].update(reason=reason, lost_runs=losses)
    assert story.broken() == broken


def test_a_task_may_fail_if_it_was_said_to(story: Story) -> None:
    story.ran(0, 1.0, 1.5, ended=False, state="failed")
    assert story.broken() == {"S6"}
    assert not story.broken(may_fail={0})


def test_what_a_failover_forgot_may_run_again_but_only_with_a_larger_fence(story: Story) -> None:
    story.ran(0, 1.0, 1.5, fence=5)
    story.fault(1.2, 3.0, "standby-promoted", "database")
    again = story.ran(0, 6.0, 6.5, node="b", fence=6)
    assert story.verdict().ok
    again.fence = story.rows[0]["fence"] = 4
    assert story.broken() == {"S7"}


def test_a_body_of_another_task_than_published_breaks_s6(story: Story) -> None:
    story.publish(0, key="another")
    story.ran(0, 1.0, 1.5)
    assert story.broken() == {"S6"}


@pytest.mark.parametrize("owner", ["b", None])
def test_a_claim_committed_for_somebody_who_is_not_the_owner_breaks_s2(story: Story, owner: str | None) -> None:
    story.ran(0, 1.0, 1.5)
    story.ran(1, 1.0, 1.5, key="other")
    assert story.verdict(stale=[]).ok
    (violation,) = story.verdict(stale=[Stale(0.9, "id0", "k", 7, "a", owner)]).violations
    assert (violation.promise, violation.runs, violation.at) == ("S2", ("0.1",), 0.9)
    assert f"the owner was {owner or 'nobody'}" in violation.text


def test_a_claim_of_a_former_owner_breaks_s2_though_no_body_ever_ran_under_it(story: Story) -> None:
    story.ran(0, 1.0, 1.5, node="b")
    (violation,) = story.verdict(stale=[Stale(0.9, "id0", "k", 7, "a", "b")]).violations
    assert (violation.promise, violation.runs) == ("S2", ())


# -- S7: fences -----------------------------------------------------------------------------------------------------


def test_a_smaller_fence_after_a_larger_one_breaks_s7_even_long_after(story: Story) -> None:
    story.ran(0, 1.0, 1.5, fence=7)
    story.ran(1, 60.0, 60.5, fence=6)
    assert story.broken() == {"S7"}


def test_a_fence_given_to_two_bodies_breaks_s7(story: Story) -> None:
    story.ran(0, 1.0, 1.5, fence=7, ended=False)
    story.ran(0, 4.0, 4.5, fence=8, attempt=2)
    story.ran(1, 3.0, 3.5, fence=7, key="other")
    assert story.broken() == {"S7"}


def test_a_fence_given_to_two_claims_breaks_s7(story: Story) -> None:
    story.ran(0, 1.0, 1.5, fence=7)
    story.more_rows.append({**story.rows[0], "task_id": "never started", "state": "failed", "reason": "expired"})
    assert story.broken() == {"S7"}


# -- L1 and L2, the record, the figures -----------------------------------------------------------------------------


def owned(owners: dict[float, dict[int, str | None]]) -> list[Sample]:
    return [Sample(at, each) for at, each in owners.items()]


@pytest.mark.parametrize(
    ("until", "fault", "broken"),
    [(3.9, None, set()), (4.2, None, {"L1"}), (4.2, (2.0, 2.0), set()), (9.0, (1.0, 8.0), set())],
)
def test_a_partition_without_an_owner_for_too_long_outside_of_faults_breaks_l1(
    story: Story, until: float, fault: tuple[float, float] | None, broken: set[str]
) -> None:
    if fault:
        story.fault(*fault)
    samples = owned({0.5: {1: "a", 2: "a"}, 1.0: {1: None, 2: "a"}, until: {1: None, 2: "a"}, 10.0: {1: "a", 2: "a"}})
    assert story.broken(samples=samples) == broken


@pytest.mark.parametrize("last", [{1: "a", 2: "a", 3: "a", 4: "b"}, {1: "b", 2: "b", 3: "a", 4: "a"}])
def test_uneven_shares_or_moves_in_the_quiet_phase_break_l2(story: Story, last: dict[int, str | None]) -> None:
    even: dict[int, str | None] = {1: "a", 2: "a", 3: "b", 4: "b"}
    assert not story.broken(samples=owned({2.0: last, 3.5: even, 4.0: even}), quiet_from=0.0)
    assert story.broken(samples=owned({3.5: even, 4.0: last}), quiet_from=0.0) == {"L2"}


def test_a_node_without_a_partition_is_seen_when_it_is_known_to_live(story: Story) -> None:
    samples = owned({9.0: {1: "a", 2: "a"}})
    assert not story.broken(samples=samples, quiet_from=0.0)
    assert story.broken(samples=samples, quiet_from=0.0, live=["a", "b"]) == {"L2"}


def test_a_quiet_phase_that_nobody_looked_at_proves_nothing(story: Story) -> None:
    assert story.broken(samples=owned({1.0: {1: "a"}}), quiet_from=0.0) == {"L2"}


def test_a_line_without_a_start_is_no_history(story: Story) -> None:
    line = {**next(Body(0, "k", "a", 1, 1.0, 1.5).lines()), "event": "tick"}
    assert [each.promise for each in check([line], {}, [], [], timeout=TIMEOUT).violations] == ["record"]


def test_the_figures_tell_how_it_went(story: Story) -> None:
    story.ran(0, 1.0, 1.5, ended=False)
    story.fault(1.51, 1.6)
    story.fault(1.51, 1.6, "kill-child", "b")
    story.ran(0, 3.6, 4.0, node="b", attempt=2)
    figures = story.verdict(samples=owned({1.6: {1: None}, 3.0: {1: None}, 3.2: {1: "b"}})).figures
    assert (figures["executions"], figures["reruns"], figures["faults_that_hit"]) == (2, 1, 1)
    assert figures["nemeses"] == {"kill-child": {"faults": 1, "hit": 0}, "kill-main": {"faults": 1, "hit": 1}}
    assert figures["worst_wait_after_fault_sec"] == pytest.approx(2.0)
    assert figures["worst_ownerless_sec"] == pytest.approx(1.4)


def test_a_verdict_survives_json(story: Story) -> None:
    story.ran(0, 1.0, 1.5)
    story.ran(1, 1.4, 2.0, node="b")
    verdict = story.verdict()
    assert not verdict.ok
    assert Verdict.from_json(verdict.to_json()) == verdict
