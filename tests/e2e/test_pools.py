"""The pools: prefork is what all other tests use; threads and solo do the same; the rest is refused."""

from pathlib import Path
from typing import Any

import pytest

from e2e.app import make_app
from e2e.site import Site


def exercise(site: Site) -> None:
    """A little of everything that does not need children."""
    good = site.many(40, 6, "step", 0.01)
    slow = [site.call("step", "busy", n, 0.3) for n in range(3)]
    retried, ignored, failed = site.call("again", "retry", 2), site.call("ignore", "i"), site.call("fail", "f")
    requeued, plain = site.call("reject", "requeued", True), [site.call("plain", n) for n in range(5)]
    assert site.results([*good, *slow, *plain]) == [*range(40), *range(3), *range(5)]
    assert site.results([retried, requeued]) == [2, "second attempt"]
    with pytest.raises(ValueError, match="as asked"):
        failed.get(timeout=30)
    ids = [result.id for result in (*good, *slow)]
    site.assert_once(ids)
    site.assert_at_home(*ids, retried.id, ignored.id, failed.id, requeued.id)
    states = [(claim["state"], claim["attempt"]) for claim in site.settled(retried.id)]
    assert states == [("retried", 1), ("retried", 1), ("done", 1)]
    states = [(claim["state"], claim["attempt"]) for claim in site.settled(ignored.id, failed.id, requeued.id)]
    assert sorted(states) == [("done", 1), ("done", 2), ("failed", 1)]
    site.assert_brokers_are_empty()


@pytest.mark.cluster("w1", "w2", options=("-P", "threads", "-c", "3"))
def test_threads_run_side_by_side_and_one_of_a_key_at_a_time(celery_setup: Any, site: Site) -> None:
    exercise(site)
    late = site.many(60, 10, "step", 0.05)
    celery_setup.worker_cluster[0].stop()
    site.until_shared("w2")
    site.results(late)
    site.assert_once(result.id for result in late)


@pytest.mark.cluster("w1", "w2", options=("--max-tasks-per-child", "3"))
def test_prefork_children_that_are_replaced_all_the_time_do_the_same(celery_setup: Any, site: Site) -> None:
    exercise(site)
    assert len({run.pid for run in site.history.runs()}) > 8
    for worker in celery_setup.worker_cluster:
        worker.stop()
    assert site.rows("SELECT name FROM sync_node") == []


@pytest.mark.cluster("w1", "w2", options=("-P", "solo"))
def test_solo_runs_one_task_at_a_time(celery_setup: Any, site: Site) -> None:
    exercise(site)
    late = site.many(60, 10, "step", 0.05)
    celery_setup.worker_cluster[0].stop()
    site.until_shared("w2")
    site.results(late)
    site.assert_once(result.id for result in late)


def test_gevent_is_refused_with_the_reason(site: Site, tmp_path: Path) -> None:
    # As much of gevent as Celery needs to get to the plugin.
    package = tmp_path / "imports" / "gevent"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("getcurrent = sleep = spawn = spawn_raw = GreenletExit = Timeout = None\n")
    (package / "monkey.py").write_text("def patch_all():\n    pass\n")
    (package / "signal.py").touch()
    (package / "pool.py").write_text("class Pool:\n    def __init__(self, size):\n        pass\n")
    (package / "greenlet.py").write_text("Greenlet = object\n")
    worker = site.worker("w1", "-P", "gevent", path=str(package.parent))
    assert worker.container.wait() != 0
    assert "jobsync supports the pools prefork, threads and solo" in worker.logs()


@pytest.mark.parametrize("off", [None, {"enabled": False}])
def test_switched_off_tasks_are_ordinary_and_nothing_is_created(site: Site, off: dict[str, Any] | None) -> None:
    settings = site.settings()
    worker = site.worker("w1", off=off is None, jobsync=off)
    worker.ready()
    settings["jobsync"] = off
    with make_app(settings) as app:
        results = [app.tasks["e2e.step"].delay("key", n) for n in range(5)]
        assert site.results(results) == list(range(5))
    assert {run.node for run in site.history.runs()} == {None}
    assert site.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []
    assert site.rows("SELECT count(*) AS n FROM pg_stat_activity WHERE application_name LIKE 'jobsync%%'")[0]["n"] == 0
    assert not worker.logs().count("jobsync: ")
    worker.stop()
