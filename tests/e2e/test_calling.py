"""Ways to call a coordinated task: the right node runs it, once, and its claim ends."""

from datetime import datetime, timedelta, timezone

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from e2e.history import now
from e2e.site import Site
from e2e.waiting import until

SHARED = {"workers": ("w1", "w2")}


def states(site: Site, result: AsyncResult) -> list[tuple[int, str]]:
    """(retries, state) of a task's claims, once none runs."""
    return [(claim["retries"], claim["state"]) for claim in site.settled(result.id)]


def assert_revoked(result: AsyncResult) -> None:
    with pytest.raises(TaskRevokedError):
        result.get(timeout=30)


def test_delay_and_send_task_run_once_at_the_owner(shared: Site) -> None:
    step = shared.app.tasks["e2e.step"]
    results = [step.delay(f"key{n % 10}", n) for n in range(40)]
    results += [shared.app.send_task("e2e.step", (f"key{n % 10}", n)) for n in range(40, 60)]
    assert shared.results(results) == list(range(60))
    ids = [result.id for result in results]
    shared.assert_once(ids)
    shared.assert_at_home(*ids)
    assert {claim["node"] for claim in shared.claims(*ids)} == {shared.node("w1"), shared.node("w2")}


def test_eta_countdown_and_priority_run_once_at_the_owner_and_not_too_early(shared: Site) -> None:
    published = now()
    eta = datetime.now(timezone.utc) + timedelta(seconds=1)
    later = [shared.call("step", f"eta{n}", n, eta=eta) for n in range(4)]
    later += [shared.call("step", f"down{n}", n, countdown=1) for n in range(4)]
    ranked = [shared.call("step", f"rank{n}", n, priority=n) for n in (0, 3, 9)]
    shared.results(later + ranked)
    ids = [result.id for result in later + ranked]
    shared.assert_once(ids)
    shared.assert_at_home(*ids)
    began = [run.began for run in shared.history.runs(*(result.id for result in later))]
    assert min(began) >= published + 0.95


def test_an_expired_task_never_starts_and_leaves_its_key_free(shared: Site) -> None:
    long = shared.call("step", "expiry", 1, 1.0)
    shared.until_begun(long.id)
    held = shared.call("step", "expiry", 2, expires=0.4)
    late = shared.call("step", "expiry", 3, expires=datetime.now(timezone.utc) - timedelta(seconds=5))
    after = shared.call("step", "expiry", 4)
    assert shared.results([long, after]) == [1, 4]
    assert_revoked(held)
    assert_revoked(late)
    assert shared.history.runs(held.id, late.id) == []
    shared.assert_once([long.id, after.id])
    until(lambda: "running" not in {claim["state"] for claim in shared.claims(held.id, late.id)}, "no claim is left")


def test_a_rate_limit_holds_and_every_task_runs_once(shared: Site) -> None:
    node = shared.node("w1")
    keys = [shared.key_of(node, "limited", n) for n in range(3)]
    results = [shared.call("limited", keys[n % 3], n) for n in range(9)]
    assert shared.results(results) == list(range(9))
    ids = [result.id for result in results]
    shared.assert_once(ids)
    shared.assert_at_home(*ids)
    began = [run.began for run in shared.history.runs(*ids)]
    assert began[-1] - began[0] >= 7 / 5  # five a second, the first at once


def test_each_retry_has_a_claim_of_its_own_under_the_same_id(shared: Site) -> None:
    at_once = shared.call("again", "retry", 3)
    waited = shared.call("again", "retry after a while", 2, 0.5)
    alone = shared.call("auto", "retry by itself", 2)
    in_vain = shared.call("auto", "retry in vain", 9)
    assert shared.results([at_once, waited, alone]) == [3, 2, 2]
    with pytest.raises(ValueError, match="once more"):
        in_vain.get(timeout=30)
    assert states(shared, at_once) == [(0, "retried"), (1, "retried"), (2, "retried"), (3, "done")]
    assert states(shared, waited) == [(0, "retried"), (1, "retried"), (2, "done")]
    assert states(shared, alone) == [(0, "retried"), (1, "retried"), (2, "done")]
    assert states(shared, in_vain) == [(0, "retried"), (1, "retried"), (2, "failed")]
    ids = [result.id for result in (at_once, waited, alone, in_vain)]
    shared.assert_at_home(*ids)
    shared.assert_serial()
    claims = shared.claims(*ids)
    assert {claim["attempt"] for claim in claims} == {1}
    assert len({(claim["task_id"], claim["origin"]) for claim in claims}) == 4


def test_a_retry_gives_way_to_the_other_tasks_of_its_key(shared: Site) -> None:
    retried = shared.call("again", "polite", 1, 0.8)
    shared.until_begun(retried.id)
    between = shared.call("step", "polite", 5)
    assert shared.results([between, retried]) == [5, 1]
    order = [(run.id, run.retries) for run in shared.history.runs(retried.id, between.id)]
    assert order == [(retried.id, 0), (between.id, 0), (retried.id, 1)]


def test_a_replacement_is_a_new_run_of_the_same_id_at_its_own_owner(shared: Site) -> None:
    here, there = (shared.key_of(shared.node(name), "replace") for name in ("w1", "w2"))
    result = shared.call("replace", here, there)
    same = shared.call("replace", "itself", "itself")
    assert shared.results([result, same]) == [7, 7]
    claims = until(lambda: len(found := shared.settled(result.id)) == 2 and found, "both runs have claims")
    assert [(claim["task_key"], claim["state"]) for claim in claims] == [(here, "done"), (there, "done")]
    assert claims[0]["origin"] != claims[1]["origin"]
    shared.assert_at_home(result.id, same.id)
    shared.assert_serial()


def test_a_task_revoked_before_its_start_never_runs(shared: Site) -> None:
    long = shared.call("step", "revoked", 1, 1.5)
    shared.until_begun(long.id)
    held = shared.call("step", "revoked", 2)
    after = shared.call("step", "revoked", 3)
    shared.app.control.revoke(held.id)
    assert shared.results([long, after]) == [1, 3]
    assert_revoked(held)
    assert shared.history.runs(held.id) == []
    shared.assert_once([long.id, after.id])
    until(lambda: "running" not in {claim["state"] for claim in shared.claims(held.id)}, "no claim is left")


def test_a_terminated_task_keeps_its_key_until_its_child_is_gone(shared: Site) -> None:
    plain = shared.call("step", "terminated", 1, 30)
    deaf = shared.call("deaf", "deaf", 2.0)
    shared.until_begun(plain.id, deaf.id)
    after = [shared.call("step", key, n) for n, key in enumerate(("terminated", "deaf"))]
    for result in (plain, deaf):
        shared.app.control.revoke(result.id, terminate=True, signal="SIGTERM")
    assert shared.results(after) == [0, 1]
    assert_revoked(plain)
    shared.assert_once([result.id for result in after])
    assert [run.how for run in shared.history.runs(deaf.id)] == ["returned"]
    assert [run.how for run in shared.history.runs(plain.id)] != ["returned"]
    assert {claim["state"] for claim in shared.settled(plain.id, deaf.id)} <= {"done", "failed"}
