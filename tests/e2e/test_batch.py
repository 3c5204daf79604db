"""A batch whose tasks are all known: workers that start within the window share it evenly, under one plan."""

from __future__ import annotations

from random import Random

import pytest

from e2e.site import Site
from e2e.waiting import until

FIVE = ("worker-01", "worker-02", "worker-03", "worker-04", "worker-05")
#: As the operator guide prints them.
CLAIMS = "SELECT node, COUNT(*) FROM sync_claim GROUP BY node"
TOKENS = "SELECT node, COUNT(*) FROM sync_token GROUP BY node"
PLANS = "SELECT COUNT(*) FROM sync_rebalance"


@pytest.fixture
def broker_url(redis_url: str) -> str:
    return redis_url


@pytest.mark.redis
@pytest.mark.timeout(300)
@pytest.mark.cluster(jobsync={"partitions": 64, "minimum_nodes": 5, "wait_on_enter": 2})
def test_workers_that_start_within_the_window_share_ten_thousand_tasks_evenly(site: Site) -> None:
    rng = Random(5)
    results = [site.call("step", f"{rng.getrandbits(64):x}", n, ignore_result=True) for n in range(10_000)]
    started = [site.worker(name) for name in FIVE[:4]]
    until(lambda: any("the first plan waits: 4 of 5" in each.logs() for each in started), "the first plan waits")
    assert site.rows(PLANS)[0]["count"] == 0
    started.append(site.worker(FIVE[4]))
    site.until_shared(*FIVE)
    assert site.rows(PLANS)[0]["count"] == 1
    until(lambda: sum(row["count"] for row in site.rows(CLAIMS)) == len(results), "all are claimed", timeout=120)
    for query, total in ((CLAIMS, len(results)), (TOKENS, 10_000)):
        shares = {row["node"]: row["count"] for row in site.rows(query)}
        assert set(shares) == {site.node(name) for name in FIVE}
        assert max(abs(5 * share / total - 1) for share in shares.values()) < 0.1, shares
    site.until_ended(*(result.id for result in results))
    site.assert_serial()
    for worker in started:
        worker.stop()
    # The same again the next night: the plan of those who have all left counts no more.
    again = site.worker(FIVE[2])
    waits = "the first plan waits: 1 of 5"
    before = again.logs().count(waits)
    until(lambda: again.logs().count(waits) > before, "it waits for the others again")
