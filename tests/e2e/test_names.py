"""A node name belongs to one worker at a time, and a restarted worker gets it back at once."""

from e2e.history import now
from e2e.site import Site
from e2e.waiting import until

LONG_LEASE = {"heartbeat_interval_sec": 1, "heartbeat_timeout_sec": 30}


def test_a_second_worker_of_a_name_is_refused_and_a_restart_after_a_kill_is_not(site: Site) -> None:
    first = site.worker("w1", "--node-name", "worker-01", jobsync=LONG_LEASE)
    until(lambda: set(site.shares()) == {"worker-01"}, "the first is the node")
    twin = site.worker("w2", "--node-name", "worker-01", jobsync=LONG_LEASE)
    until(lambda: "coordination refused: another live worker is registered as 'worker-01'" in twin.logs())
    assert f"pid {first.container.pid}" in twin.logs()
    plain = [site.call("plain", n, 0.1) for n in range(20)]
    steps = [site.call("step", f"key{n}", n) for n in range(20)]
    assert site.results([*plain, *steps]) == [*range(20)] * 2
    hosts = {run.host for run in site.history.runs(*(result.id for result in plain))}
    assert hosts == {site.node("w1"), site.node("w2")}
    assert {run.host for run in site.history.runs(*(result.id for result in steps))} == {site.node("w1")}
    twin.stop()

    fetched = [site.call("slow_first", f"slow{n}", n, 60) for n in range(4)]
    until(lambda: len(site.history.runs(*(result.id for result in fetched))) == 2, "two run")
    killed = now()
    first.kill("SIGKILL")
    first.container.begin()
    assert site.results(fetched) == [0, 1, 2, 3]
    assert now() - killed < 15, "the lease of 30 s was not waited for"
    site.assert_serial()
    rows = site.rows("SELECT name, state FROM sync_node")
    assert rows == [{"name": "worker-01", "state": "live"}]
