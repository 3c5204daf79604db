"""A cluster is stopped in the middle of its work and started again with fewer partitions, then with more."""

from __future__ import annotations

from celery import Celery

from e2e.commands import ask
from e2e.site import Site
from e2e.waiting import until

TASKS, KEYS = 200, 60


def work(site: Site, partitions: int, done: int, workers: int) -> None:
    """So many workers until so many tasks are done, then none."""
    started = [site.worker(f"w{n}-{partitions}", jobsync={"partitions": partitions}) for n in range(workers)]
    until(lambda: len(site.history.ended()) >= done, f"{done} tasks are done with {partitions} partitions", every=0.05)
    for worker in started:
        worker.kill("SIGTERM")
    for worker in started:
        assert worker.container.wait() == 0, worker.logs()[-3000:]


def test_every_task_runs_once_through_fewer_and_more_partitions(site: Site) -> None:
    wide, narrow, wider = (site.producer(partitions=partitions) for partitions in (16, 4, 40))
    ask(wide, "schema", "upgrade")
    calls = [(f"key{n % KEYS}", n, 0.0 if n % 10 else 0.05) for n in range(TASKS)]
    ids = [wide.tasks["e2e.step"].apply_async(call).id for call in calls]

    told = ask(narrow, "schema", "reshape")
    assert (told["before"]["partitions"], told["after"]["partitions"], told["left"]) == (16, 4, 0)
    assert {each["queue"] for each in told["queues"]} == {f"{site.prefix}{n:03}" for n in range(4, 16)}
    if site.is_redis:  # one broker for the second way is enough: there nothing is moved
        work(site, 4, TASKS // 3, workers=1)
        grow(site, wider)
        ids.append(narrow.tasks["e2e.step"].apply_async(("key1", TASKS)).id)  # by a producer that was forgotten
    work(site, 40 if site.is_redis else 4, len(ids), workers=2)
    site.assert_once(ids)
    assert site.waiting(*site.queues()) == 0


def grow(site: Site, wider: Celery) -> None:
    """Reshape in the middle of the work: what has ended stays, and what was begun is where its key is."""
    before = site.claims()
    told = ask(wider, "schema", "reshape")
    assert (told["before"]["partitions"], told["after"]["partitions"], told["queues"]) == (4, 40, [])
    after = site.claims()
    assert [each for each in after if each["state"] == "done"] == [each for each in before if each["state"] == "done"]
    tokens = wider.jobsync.cluster.tokens
    to_come = [(each["partition_id"], each["task_key"]) for each in after if each["state"] == "lost"]
    assert to_come == [(tokens.partition_for(key), key) for _, key in to_come]
