"""Ways in which a body ends: the key stays its own until it is really over, and the claim says how it ended."""

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery.result import AsyncResult

from e2e.site import Site

SHARED = {"workers": ("w1", "w2")}


def ends(site: Site, *results: AsyncResult) -> list[tuple[str, int]]:
    """(state, attempt) of each task's claim."""
    claims = {claim["task_id"]: claim for claim in site.settled(*(result.id for result in results))}
    return [(claims[result.id]["state"], claims[result.id]["attempt"]) for result in results]


def test_failures_and_ignored_tasks_end_their_claims(shared: Site) -> None:
    fail, ignore, reject = shared.call("fail", "a"), shared.call("ignore", "b"), shared.call("reject", "c", False)
    after = [shared.call("step", key, 1) for key in "abc"]
    shared.results(after)
    with pytest.raises(ValueError, match="as asked"):
        fail.get(timeout=30)
    assert ends(shared, fail, ignore, reject) == [("failed", 1), ("done", 1), ("failed", 1)]
    shared.assert_once([result.id for result in after])
    shared.assert_at_home(fail.id, ignore.id, reject.id)
    assert len(shared.history.runs(fail.id, ignore.id, reject.id)) == 3


def test_a_requeued_rejection_runs_again_as_a_second_attempt(shared: Site) -> None:
    reject = shared.call("reject", "requeued", True)
    after = shared.call("step", "requeued", 1)
    assert shared.results([reject, after]) == ["second attempt", 1]
    assert ends(shared, reject, after) == [("done", 2), ("done", 1)]
    assert [run.attempt for run in shared.history.runs(reject.id)] == [1, 2]
    shared.assert_serial()


def test_a_task_whose_child_dies_runs_again_as_a_second_attempt(shared: Site) -> None:
    results = [shared.call("die", "exits", "exit"), shared.call("die", "killed", "kill")]
    after = [shared.call("step", key, 1) for key in ("exits", "killed")]
    assert shared.results(results) == ["second attempt"] * 2
    assert shared.results(after) == [1, 1]
    assert ends(shared, *results) == [("done", 2), ("done", 2)]
    assert [len(shared.history.runs(result.id)) for result in results] == [2, 2]
    shared.assert_once([result.id for result in after])


def test_a_soft_time_limit_fails_the_task_and_frees_its_key(shared: Site) -> None:
    soft = shared.call("step", "soft", 1, 30, soft_time_limit=1)
    after = shared.call("step", "soft", 2)
    assert after.get(timeout=30) == 2
    with pytest.raises(SoftTimeLimitExceeded):
        soft.get(timeout=30)
    assert ends(shared, soft, after) == [("failed", 1), ("done", 1)]
    shared.assert_serial()


def test_a_hard_time_limit_keeps_the_key_until_the_child_is_dead(shared: Site) -> None:
    hard, deaf = shared.call("step", "hard", 1, 30, time_limit=1), shared.call("deaf", "deaf", 30, time_limit=1)
    after = [shared.call("step", key, 2) for key in ("hard", "deaf")]
    assert shared.results(after) == [2, 2]
    for result in (hard, deaf):
        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=30)
    assert ends(shared, hard, deaf) == [("failed", 1), ("failed", 1)]
    assert [run.ended for run in shared.history.runs(deaf.id)] == [None]
    shared.assert_once([result.id for result in after])


def test_results_that_cannot_be_stored_end_the_claim_all_the_same(shared: Site) -> None:
    odd = [shared.call("odd", how, how) for how in ("result", "raises", "large")]
    after = [shared.call("step", how, 1) for how in ("result", "raises", "large")]
    assert shared.results(after) == [1, 1, 1]
    assert len(odd[2].get(timeout=30)) == 3_000_000
    assert ends(shared, *odd) == [("failed", 1), ("failed", 1), ("done", 1)]
    assert len(shared.history.runs(*(result.id for result in odd))) == 3
    shared.assert_once([result.id for result in after])
