"""Five processes and thousands of random ids: each is done and written down once, whoever is killed meanwhile.

``JOBSYNC_JOB_TASKS=10000`` makes it so many, ``JOBSYNC_JOB_SEED`` others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest
from e2e.waiting import until

from crews.crew import SLACK, TIMEOUT, Crew, Member, now
from crews.program import task_ids

COUNT = int(os.environ.get("JOBSYNC_JOB_TASKS", "2000"))
SEED = int(os.environ.get("JOBSYNC_JOB_SEED", "1"))
MEMBERS = 5
#: By how much the numbers of random ids may differ from one another's, on top of what chance does to few of them.
BALANCE = 0.1
#: Four times what chance does to a share.
CHANCE = 4 * (MEMBERS / COUNT * (1 - 1 / MEMBERS)) ** 0.5
#: One takes its time, so that it can be killed in the middle however busy the machine is.
SLOWLY = """
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM written WHERE node = '{node}') THEN PERFORM pg_sleep(0.2); END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER take_time AFTER INSERT ON sync_audit REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION take_time();
"""
Note = Callable[[str, object], None]

pytestmark = pytest.mark.slow


def audited(crew: Crew) -> int:
    ((count,),) = crew.rows("SELECT count(*) FROM sync_audit")
    return int(count)


def wrote(crew: Crew, name: str) -> bool:
    """Whether this one has written something down."""
    return name in {node for (node,) in crew.rows("SELECT DISTINCT node FROM sync_audit")}


def assert_even(counts: dict[str, int]) -> None:
    fair = COUNT / MEMBERS
    assert all(abs(count - fair) <= fair * max(BALANCE, CHANCE) for count in counts.values()), counts


@pytest.mark.timeout(120 + COUNT // 100)
def test_each_id_is_won_by_one_and_written_down_once_though_one_is_killed_in_the_middle(
    crew: Crew, record_property: Note
) -> None:
    members = crew.settle(MEMBERS)
    ids = task_ids(COUNT, SEED)
    begun = now()
    won = contest(members)
    record_property("claims a second", round(COUNT / ((now() - begun) / 1e9)))
    assert Counter(id_ for each in won.values() for id_ in each) == Counter(ids)
    assert_even({name: len(each) for name, each in won.items()})
    for member in members:
        assert set(member.order("own", ids)) == set(won[member.name])
    killed, *survivors = reversed(members)
    crew.execute(SLOWLY.format(node=killed.name))
    for member in members:
        member.begin("work", COUNT, SEED)
    until(lambda: wrote(crew, killed.name), "it has begun", every=0.005)
    at = killed.kill()
    until(lambda: audited(crew) == COUNT, "all is written down", every=0.005)
    taken_over = (now() - at) / 1e9
    done = {member.name: member.result() for member in survivors}
    record_property("all done after the kill", taken_over)
    assert taken_over < TIMEOUT + 1.0 + SLACK + COUNT / 10_000
    rows = crew.rows("SELECT node, task_id FROM sync_audit")
    assert sorted(task_id for _, task_id in rows) == sorted(ids), "nothing is lost, and nothing recorded twice"
    for name, each in done.items():
        assert Counter(each) == Counter(task_id for node, task_id in rows if node == name)
    taken = set(won[killed.name]) - {task_id for node, task_id in rows if node == killed.name}
    record_property("taken over", len(taken))
    assert taken, "it was killed in the middle"
    claims = crew.rows("SELECT task_id, state, attempt, node FROM sync_claim")
    assert sorted(task_id for task_id, *_ in claims) == sorted(ids)
    assert {state for _, state, *_ in claims} == {"done"}
    assert {task_id for task_id, _, attempt, _ in claims if attempt > 1} == taken
    crew.assert_one_owner()


def contest(members: list[Member]) -> dict[str, list[str]]:
    """All try to claim everything at once; who won what."""
    for member in members:
        member.begin("contest", COUNT, SEED)
    return {member.name: member.result() for member in members}
