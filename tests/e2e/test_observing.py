"""``mode="observe"`` on real workers: what would be prevented is seen, and nothing else happens."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.utils.nodenames import worker_direct
from click.testing import CliRunner

from e2e.history import overlaps
from e2e.site import Site
from e2e.waiting import until
from jobsync_celery.__main__ import main
from jobsync_celery.servers import PrivateRedis

SHARED = {"jobsync": {"mode": "observe"}, "conf": {"worker_direct": True}}
#: So small is the error of two workers' clocks on one machine, and it is told.
MOST_ERROR_MS = 1000.0


@pytest.fixture(scope="module", params=[pytest.param("redis", marks=pytest.mark.redis)])
def shared_broker(redis_server: PrivateRedis) -> str:
    """One broker: only what is delivered again depends on it."""
    return str(redis_server.url)


def report(site: Site, *words: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["observe", "--json", "--url", site.database_url, *words])
    answer: dict[str, Any] = json.loads(done.stdout)
    return {"tasks": []} if "error" in answer else answer  # no worker has made the tables yet


def of_task(site: Site, name: str) -> dict[str, Any]:
    found = [each for each in report(site)["tasks"] if each["task"] == f"e2e.{name}"]
    return found[0] if found else {}


def until_told(site: Site, name: str, judge: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What the report says of a task once the observers have written what it has to say."""
    return until(lambda: judge(told := of_task(site, name)) and told, f"{name} is told of", every=0.2)  # type: ignore[return-value]


def at(site: Site, worker: str) -> dict[str, Any]:
    """To be run by this worker, as any Celery task can be."""
    return {"queue": worker_direct(site.node(worker))}


def test_two_runs_of_a_key_at_once_on_two_workers_are_told_with_evidence(shared: Site, tmp_path: Path) -> None:
    file = tmp_path / "together"
    file.touch()
    first = shared.call("as_long_as", "42", 1, str(file), **at(shared, "w1"))
    shared.until_begun(first.id)
    second = shared.call("as_long_as", "42", 2, str(file), **at(shared, "w2"))
    alone = shared.call("as_long_as", "43", 3, str(file), **at(shared, "w2"))
    shared.until_begun(second.id, alone.id)
    file.unlink()
    assert shared.results([first, second, alone]) == [1, 2, 3]
    assert len(overlaps(shared.history.runs(first.id, second.id, alone.id))) == 1  # as the bodies saw it themselves
    told = until_told(shared, "as_long_as", lambda each: each.get("runs") == 3 and not each["running"])
    assert (told["keys"], told["overlapping_runs"], told["began_during_another"], told["overlapping_keys"]) == (
        2,
        2,
        1,
        1,
    )
    assert told["keys_on_several_workers"] == 1 and told["without_end"] == told["without_key"] == told["reruns"] == 0
    answer = report(shared)
    assert answer["workers_observing"] == 2 and answer["error_ms"] < MOST_ERROR_MS and answer["runs_left_out"] == 0
    [worst] = answer["worst_keys"]
    evidence = worst["evidence"]
    assert (worst["key"], evidence["first"]["task_id"], evidence["second"]["task_id"]) == ("42", first.id, second.id)
    assert (evidence["first"]["worker"], evidence["second"]["worker"]) == (shared.node("w1"), shared.node("w2"))
    assert "1 run of 1 key from beginning while another" in answer["conclusion"]


def test_a_key_that_moves_from_worker_to_worker_is_counted_without_an_overlap(shared: Site) -> None:
    for number, name in enumerate(("w1", "w2", "w1")):
        assert shared.call("step", "moving", number, **at(shared, name)).get(timeout=60) == number
        # Its result is there a moment before its end.
        told = until_told(shared, "step", lambda each, n=number: each.get("runs") == n + 1 and not each["running"])  # type: ignore[misc]
    assert (told["overlapping_runs"], told["keys_on_several_workers"], told["keys"]) == (0, 1, 1)


def test_a_run_whose_child_was_killed_has_no_end_and_overlaps_with_nothing_later(shared: Site) -> None:
    shared.call("die", "mortal", "kill")
    until_told(shared, "die", lambda each: each.get("without_end") == 1)
    result = shared.call("fail", "mortal")
    with pytest.raises(ValueError, match="as asked"):
        result.get(timeout=60)
    told = until_told(shared, "fail", lambda each: each.get("runs") == 1 and not each["running"])
    assert told["overlapping_runs"] == told["without_end"] == 0


def test_a_run_without_a_key_is_run_and_counted(shared: Site) -> None:
    with pytest.raises(Exception, match="id"):
        shared.call("by_call", {}).get(timeout=60)
    assert shared.call("by_call", {"id": 7}).get(timeout=60) == 7
    told = until_told(shared, "by_call", lambda each: each.get("runs") == 2)
    assert (told["without_key"], told["keys"]) == (1, 1)
    assert any("observed without a key" in worker.logs() for worker in shared.workers)


def test_workers_consume_what_they_would_and_nothing_of_a_cluster_is_there(shared: Site) -> None:
    queues = shared.app.control.inspect(timeout=60, limit=2).active_queues()
    assert {name: {queue["name"] for queue in each} for name, each in queues.items()} == {
        shared.node(name): {f"{shared.prefix}ordinary", worker_direct(shared.node(name)).name} for name in ("w1", "w2")
    }
    until(lambda: shared.rows("SELECT to_regclass('sync_observation') AS made")[0]["made"], "there are tables")
    for table in ("node", "partition", "claim", "cluster", "rebalance"):
        assert shared.rows(f"SELECT * FROM sync_{table}") == []
    assert [row["term"] for row in shared.rows("SELECT term FROM sync_leader")] == [0]
    assert shared.call("unbound", 1, "42").get(timeout=60) is None  # the null claim's key


@pytest.mark.parametrize("broker_url", [pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)], indirect=True)
@pytest.mark.cluster(jobsync={"mode": "observe"}, conf={"task_acks_late": True})
def test_a_run_that_is_delivered_again_is_told_and_then_the_same_tables_coordinate(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "as long"
    file.touch()
    first = site.worker("w1")
    site.until_ready()
    run = site.call("as_long_as", "42", 1, str(file))
    until_told(site, "as_long_as", lambda each: each.get("running") == 1)
    first.kill(signal.SIGKILL)
    second = site.worker("w2")
    until_told(site, "as_long_as", lambda each: each["runs"] == 2)
    file.unlink()
    assert run.get(timeout=60) == 1
    told = until_told(site, "as_long_as", lambda each: each["running"] <= 1)
    assert (told["reruns"], told["redelivered_reruns"], told["delivered_again"]) == (1, 1, 1)
    assert (told["overlapping_runs"], told["ended_again"], told["keys_on_several_workers"]) == (0, 0, 1)
    second.stop()
    assert site.rows("SELECT state FROM sync_observation WHERE state = 'ended'") == [{"state": "ended"}]
    site.worker("w3", jobsync={"mode": "coordinate", "partitions": 4, "total_tokens": 400})
    site.until_shared("w3")
    assert sum(site.shares().values()) == 4  # of this cluster's shape, not of the observers' settings
    producer = site.producer(mode="coordinate", partitions=4, total_tokens=400)
    assert producer.tasks["e2e.unbound"].delay(1, "42").get(timeout=60) == "42"  # the claim's key


@pytest.mark.parametrize("broker_url", [pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
@pytest.mark.cluster(jobsync={"mode": "observe", "url": "postgresql://nobody@127.0.0.1:1/none"})
def test_tasks_run_while_the_database_is_away_and_the_worker_stops_in_good_order(site: Site) -> None:
    worker = site.worker("w1")
    site.until_ready()
    assert site.results(site.many(20, 3)) == list(range(20))
    until(lambda: "observations are not written" in worker.logs(), "it is said")
    worker.stop()
