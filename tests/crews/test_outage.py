"""PostgreSQL goes away and comes back: everybody is back by itself, and nobody was evicted for it.

``JOBSYNC_JOB_OUTAGES=20,60`` makes the outages so long (in seconds), and the lease the default one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
from e2e.waiting import until

from crews.crew import SLACK, TIMEOUT, Crew, now
from jobsync_celery.servers import PrivatePostgres

ASKED = os.environ.get("JOBSYNC_JOB_OUTAGES", "")
OUTAGES = [float(seconds) for seconds in ASKED.split(",")] if ASKED else [TIMEOUT + 1.0]
LEASE = {"heartbeat_interval_sec": 5, "heartbeat_timeout_sec": 15} if ASKED else {}
MEMBERS = 5
RESUME_SEC = 5.0
NANO = 1_000_000_000
Note = Callable[[str, object], None]

pytestmark = pytest.mark.slow


@pytest.mark.timeout(120 + 2 * sum(OUTAGES))
@pytest.mark.parametrize("seconds", OUTAGES)
def test_after_an_outage_longer_than_the_lease_all_are_back_by_themselves_with_what_they_had(
    new_crew: Callable[..., Crew], postgres: PrivatePostgres, seconds: float, record_property: Note
) -> None:
    crew = new_crew(**LEASE)
    members = crew.settle(MEMBERS)
    lease = LEASE.get("heartbeat_timeout_sec", TIMEOUT)
    before = crew.rows("SELECT partition_id, owner, owner_incarnation FROM sync_partition ORDER BY 1")
    had = crew.held()
    gone = now()
    postgres.stop(immediate=True)
    try:
        until(lambda: not any(member.has() for member in members), "nobody says mine", timeout=lease + SLACK, every=0.1)
        time.sleep(max(0.0, seconds - (now() - gone) / NANO))  # the outage itself
        assert not any(member.has() for member in members)
    finally:
        postgres.start()
    back = now()
    again = max(member.again(back) for member in members)
    assert crew.held() == had
    record_property("all have what they had", (now() - back) / NANO)
    record_property("each has something again", again)
    assert again < RESUME_SEC + SLACK
    assert crew.rows("SELECT partition_id, owner, owner_incarnation FROM sync_partition ORDER BY 1") == before
    assert crew.rows("SELECT count(*) FROM sync_node WHERE state = 'live'") == [(MEMBERS,)]
    assert not any("was declared dead" in member.logs() for member in members)
    assert {member.ask("state") for member in members} == {"running_leader", "running_follower"}
    crew.assert_one_owner()
