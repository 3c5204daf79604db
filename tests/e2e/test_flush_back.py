"""A team leaves the plugin: what lies in the partitions goes back to ordinary queues, and plain workers run it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from celery import chord

from e2e.commands import ask
from e2e.history import doubled
from e2e.site import Site
from e2e.waiting import until

BRIEF = {"heartbeat_interval_sec": 0.5, "heartbeat_timeout_sec": 1.5}
SILENT = "SELECT name FROM sync_node WHERE last_heartbeat < clock_timestamp() - make_interval(secs => lease_sec)"


@pytest.mark.cluster("w1", jobsync={"partitions": 4, **BRIEF}, options=("-c", "1"))
def test_plain_workers_run_each_of_the_tasks_once_that_were_flushed_back(celery_setup: Any, site: Site) -> None:
    [worker] = celery_setup.worker_cluster
    soon = site.call("step", "early", 1, countdown=5)  # the worker fetches it, and takes it into its death
    until(lambda: soon.id in worker.logs(), "the worker has the task")
    mark = f"{site.prefix}cluster"
    until(lambda: site.waiting(mark) == 1, "the leader has left the cluster's mark")
    worker.kill()
    worker.container.wait()

    app = site.producer()
    elsewhere = f"{site.prefix}elsewhere"
    app.conf.task_routes = [app.jobsync.cluster.router, {"e2e.over": {"queue": elsewhere}}]
    app.amqp.flush_routes()
    app.amqp.router = app.amqp.Router()
    step, over, gpu = (app.tasks[f"e2e.{name}"] for name in ("step", "over", "gpu"))
    ids = [step.apply_async(("key", n)).id for n in range(40)]
    results = [
        soon,
        step.apply_async(("later", 1), countdown=1),
        step.apply_async(("packed", 1), compression="gzip"),
        step.apply_async(("in time", 1), expires=600),
        step.apply_async(("urgent", 1), priority=6, headers={"theirs": "kept"}),
        over.apply_async(("routed", 1)),
        gpu.apply_async(("locked", 1)),
        chord([step.s(f"part{n}", n) for n in range(3)], app.tasks["e2e.total"].s("whole")).apply_async(),
    ]
    expired = step.apply_async(("too late", 1), expires=0.01)
    assert ask(app, "flush-back", "--dry-run", code=2) == {
        "error": f"a node is live: stop all workers first ({worker.hostname()})"
    }
    until(lambda: site.rows(SILENT), "the lease of the dead worker is over")
    assert ask(app, "flush-back", "--dry-run")["left"] == len(ids) + len(results) + 3
    told = ask(app, "flush-back", "--delete-queues")
    moved = sum((Counter(each["moved"]) for each in told["queues"]), Counter())
    assert told["left"] == 0 and moved[elsewhere] == 1
    dropped = 0 if site.is_redis else 1  # RabbitMQ drops what has expired by itself
    assert moved[f"{site.prefix}ordinary"] == told["moved"] - 1 == len(ids) + len(results) + 2 - dropped
    assert mark in [each["queue"] for each in told["queues"] if each["deleted"]] and site.waiting(mark) == 0
    assert ask(app, "flush-back")["moved"] == 0

    site.worker("plain1", "-Q", f"{site.prefix}ordinary,{elsewhere}", off=True)
    site.worker("plain2", "-Q", f"{site.prefix}ordinary,{elsewhere}", off=True)
    assert results[-1].get(timeout=60) == 3
    site.until_ended(*ids, *(each.id for each in results[:-1]))
    assert doubled(site.history.runs()) == []
    assert expired.id not in site.history.ended()
