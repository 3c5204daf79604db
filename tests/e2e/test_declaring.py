"""Ways to declare a coordinated task, and calls that stay within their own process."""

import pytest

from e2e.site import Site
from e2e.waiting import until
from jobsync_celery import NullClaim, current_claim
from jobsync_celery.errors import KeyMissing

SHARED = {"workers": ("w1", "w2")}


def test_either_order_of_decorators_and_a_class_coordinate_a_task(shared: Site) -> None:
    names = ("over", "shared_over", "shared_under", "by_class")
    results = [shared.call(name, f"order{n % 5}", n) for n in range(15) for name in names]
    assert shared.results(results) == [n for n in range(15) for _ in names]
    ids = [result.id for result in results]
    shared.assert_once(ids)
    shared.assert_at_home(*ids)
    assert len(shared.claims(*ids)) == 60


def test_a_key_is_read_by_name_position_default_or_callable(shared: Site) -> None:
    tasks = shared.app.tasks
    called = {
        tasks["e2e.step"].delay(key="by keyword"): "by keyword",
        tasks["e2e.step"].delay("by place"): "by place",
        tasks["e2e.by_position"].delay(1, "by position"): "by position",
        tasks["e2e.by_call"].delay({"id": 5}): "order-5",
        tasks["e2e.unbound"].delay(1): "by default",
        tasks["e2e.unbound"].delay(1, "given"): "given",
        tasks["e2e.step"].delay(77): "77",
    }
    shared.results(called)
    keys = {claim["task_id"]: claim["task_key"] for claim in shared.settled(*(result.id for result in called))}
    assert keys == {result.id: key for result, key in called.items()}
    shared.assert_at_home(*keys)
    assert [result.get() for result, key in called.items() if key in ("by default", "given")] == ["by default", "given"]


def test_a_missing_key_is_an_error_of_the_publisher_that_names_task_and_key(shared: Site) -> None:
    tasks = shared.app.tasks
    for publish, said in (
        (lambda: shared.app.send_task("e2e.by_position", (1,)), "1"),
        (lambda: tasks["e2e.step"].apply_async((None, 1)), "key"),
        (lambda: tasks["e2e.by_call"].delay({}), "lambda"),
        (lambda: shared.app.send_task("e2e.step", kwargs={"n": 1}), "key"),
        (lambda: tasks["e2e.step"].delay("x" * 256), "key"),
    ):
        with pytest.raises(KeyMissing, match=r"e2e\.(step|by_position|by_call)") as error:
            publish()
        assert said in str(error.value)


def test_a_producer_without_the_code_routes_by_the_settings(shared: Site) -> None:
    from celery import Celery

    from jobsync_celery import JobSync

    settings = shared.settings(tasks={"e2e.step": "key", "e2e.by_position": 1})
    with Celery("producer", set_as_current=False) as app:
        app.conf.update(settings["conf"])
        JobSync(app, settings["jobsync"])
        results = [app.send_task("e2e.step", kwargs={"key": f"far{n % 3}", "n": n}) for n in range(6)]
        results += [app.send_task("e2e.by_position", (n, f"far{n % 3}")) for n in range(6)]
        assert shared.results(results) == [*range(6), *range(6)]
    ids = [result.id for result in results]
    shared.assert_once(ids)
    shared.assert_at_home(*ids)


def test_eager_applied_and_direct_calls_have_a_null_claim(shared: Site) -> None:
    task = shared.app.tasks["e2e.unbound"]
    before = len(shared.claims())
    shared.app.conf.task_always_eager = True
    try:
        eager = task.delay(1, "eager")
        chained = (shared.app.tasks["e2e.step"].s("eager", 1) | shared.app.tasks["e2e.add"].s("eager", 2)).delay()
    finally:
        shared.app.conf.task_always_eager = False
    assert (eager.get(), chained.get(), task.apply((1, "applied")).get(), task(1, "direct")) == (None, 3, None, None)
    claim = current_claim()
    assert isinstance(claim, NullClaim)
    claim.guard(object())
    claim.check()
    assert len(shared.claims()) == before


def test_a_worker_answers_for_its_keys(shared: Site) -> None:
    jobsync = shared.app.jobsync
    key = shared.key_of(shared.node("w2"), "asked")
    assert jobsync.owner_of(key) == shared.node("w2")
    assert jobsync.queue_for(key).startswith(shared.prefix)
    assert sorted(node.name for node in jobsync.get_active_nodes()) == [shared.node("w1"), shared.node("w2")]
    assert not jobsync.owns(key) and not jobsync.am_i_healthy() and jobsync.my_tokens == frozenset()
    rows = shared.rows("SELECT node, count(*) AS tokens FROM sync_token GROUP BY node")
    assert sum(row["tokens"] for row in rows) == 10_000
    until(lambda: len(jobsync.status().live) == 2, "status shows both nodes")
