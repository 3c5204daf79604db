"""Workers come, go, hang and die: every task runs, none that finished runs again, no key runs twice at a time."""

from typing import Any

import pytest

from e2e.history import doubled, now
from e2e.load import load
from e2e.site import TIMEOUT, Site
from e2e.waiting import until

#: What a loaded machine may add to a promised time.
SLACK = 3.0
THREE = ("w1", "w2", "w3")


@pytest.mark.cluster(*THREE, jobsync={"partitions": 12})
def test_sigterm_hands_over_within_a_second_and_nothing_runs_twice(
    celery_setup: Any, site: Site, record_property: Any
) -> None:
    leaver = celery_setup.worker_cluster[1]
    before = site.owners()
    lost = {number for number, owner in before.items() if owner == leaver.hostname()}
    long = site.call("step", site.key_of(leaver.hostname(), "long"), 0, 2.0)
    site.until_begun(long.id)
    with load(site) as stream:
        stopped = now()
        leaver.kill("SIGTERM")
        until(lambda: None not in (owners := site.owners()).values() and leaver.hostname() not in owners.values())
        record_property("handover_sec", round(now() - stopped, 3))
        assert now() - stopped < 1.0 + SLACK
        behind = site.call("step", site.history.runs(long.id)[0].key, 1)
        assert leaver.container.wait() == 0
    site.until_ended(*stream.ids, long.id, behind.id)
    site.assert_once([*stream.ids, long.id, behind.id])
    assert {number for number, owner in site.owners().items() if owner != before[number]} == lost
    assert {row["name"] for row in site.rows("SELECT name FROM sync_node")} == {site.node("w1"), site.node("w3")}
    assert max(site.shares().values()) - min(site.shares().values()) == 0
    site.assert_brokers_are_empty()


@pytest.mark.parametrize("victim", [2, 0], ids=["follower", "leader"])
@pytest.mark.cluster(*THREE, jobsync={"partitions": 12})
def test_after_sigkill_fetched_and_queued_messages_start_elsewhere_in_time(
    celery_setup: Any, site: Site, victim: int, record_property: Any
) -> None:
    by_age = site.rows("SELECT name FROM sync_node ORDER BY incarnation")
    dead = next(w for w in celery_setup.worker_cluster if w.hostname() == by_age[victim]["name"])
    keys = [site.key_of(dead.hostname(), "own", n) for n in range(6)]
    # Two run, the others are fetched and granted, and wait for a slot.
    fetched = [site.call("slow_first", key, n, 60) for n, key in enumerate(keys)]
    until(lambda: len(site.history.runs()) == 2, "both slots are taken")
    until(lambda: len(site.claims(*(result.id for result in fetched))) == 6, "all are fetched and granted")
    killed = now()
    dead.kill("SIGKILL")
    queued = [site.call("step", key, 10 + n) for n, key in enumerate(keys)]
    site.until_ended(*(result.id for result in (*fetched, *queued)))
    again = [run for run in site.history.runs(*(result.id for result in fetched)) if run.node != dead.hostname()]
    began = [run.began for run in (*site.history.runs(*(result.id for result in queued)), *again)]
    record_property("failover_first_sec", round(min(began) - killed, 3))
    record_property("failover_last_sec", round(max(began) - killed, 3))
    assert max(began) - killed < TIMEOUT + 1 + SLACK
    assert len(again) == 6 and {run.attempt for run in again} == {2}
    site.assert_once(result.id for result in queued)
    states = {row["name"]: row["state"] for row in site.rows("SELECT name, state FROM sync_node")}
    assert states[dead.hostname()] == "dead"
    leader = site.rows("SELECT node FROM sync_leader")[0]["node"]
    assert leader != dead.hostname() and states[leader] == "live"


@pytest.mark.cluster("w1", "w2", jobsync={"partitions": 12})
def test_a_joining_worker_has_its_share_soon_and_moves_are_minimal(
    celery_setup: Any, site: Site, record_property: Any
) -> None:
    before = site.owners()
    with load(site) as stream:
        joined = site.worker("w3")
        joined.ready()
        ready = now()
        site.until_shared(*THREE)
        record_property("join_sec", round(now() - ready, 3))
        assert now() - ready < 1 + SLACK
        until(lambda: any(run.node == joined.hostname() for run in site.history.runs()), "the newcomer works")
    after = site.owners()
    assert sum(before[number] != after[number] for number in before) == 4
    site.until_ended(*stream.ids)
    site.assert_once(stream.ids)


@pytest.mark.cluster(*THREE, jobsync={"partitions": 12})
def test_sigkill_under_load_loses_nothing_and_repeats_only_what_it_cut_off(celery_setup: Any, site: Site) -> None:
    first, second, _ = celery_setup.worker_cluster
    killed: dict[str, float] = {}
    with load(site, sec=0.05) as stream:
        killed[first.hostname()] = now()
        first.kill("SIGKILL")
        site.until_shared("w2", "w3")
        first.container.begin()
        site.until_shared(*THREE)
        # This time the main process alone: its children find out by themselves.
        killed[second.hostname()] = now()
        second.container.kill_alone()
        site.until_shared("w1", "w3")
    site.until_ended(*stream.ids)
    assert {claim["state"] for claim in site.settled(*stream.ids)} == {"done"}
    site.assert_serial()
    repeated = set(doubled(site.history.runs(*stream.ids)))
    for id_ in repeated:
        runs = site.history.runs(id_)
        assert [run.attempt for run in runs] == [1, 2]
        assert runs[0].last > killed[str(runs[0].node)] - 1.0, "it was over, and recorded, long before the kill"
    assert len(repeated) <= 2 * 2 * 4  # slots and what was on its way to being recorded
    site.assert_brokers_are_empty()
