"""The checker finds what is planted, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobsync_celery.demo.checker import Findings, check
from jobsync_celery.demo.records import History, Record, What

LEASE = 2.0


def run(
    n: int, start: float, end: float | None, *, key: str = "a", fence: int, node: str = "one", how: What = "done",
    partition: int = 0,
) -> list[Record]:  # fmt: skip
    begun = Record("start", start, n, key, node, fence, 100, partition)
    return [begun] if end is None else [begun, Record(how, end, n, key, node, fence, 100, partition)]


def published(*numbers: int, at: float = 0.0) -> list[Record]:
    return [Record("published", at, n, "a") for n in numbers]


def killed(node: str, at: float, gone: float, *partitions: int) -> list[Record]:
    return [Record("kill", at, node=node, partitions=partitions), Record("gone", gone, node=node)]


def judged(records: list[Record], effects: list[int]) -> Findings:
    return check(records, effects, LEASE)


def test_a_history_without_faults_is_clean() -> None:
    records = published(1, 2, 3) + run(1, 1, 2, fence=1) + run(2, 2, 3, fence=2) + run(3, 1.5, 2.5, key="b", fence=3)
    found = judged(records, [3, 1, 2])
    assert found.clean and not list(found.offences())
    assert (found.published, found.starts, found.done) == (3, 3, 3)


def test_a_lost_task_is_found() -> None:
    found = judged(published(1, 2) + run(1, 1, 2, fence=1), [1])
    assert found.lost == (2,) and not found.clean


def test_a_doubled_effect_is_found() -> None:
    found = judged(published(1) + run(1, 1, 2, fence=1), [1, 1])
    assert found.doubled == (1,) and not found.clean


def test_an_effect_of_a_task_that_nobody_published_is_found() -> None:
    found = judged(published(1) + run(1, 1, 2, fence=1), [1, 7])
    assert found.strangers == (7,) and not found.clean


def test_two_runs_of_a_key_at_one_time_are_found() -> None:
    found = judged(published(1, 2) + run(1, 1, 3, fence=1) + run(2, 2.9, 4, fence=2, node="two"), [1, 2])
    assert [(one.n, other.n) for one, other in found.overlaps] == [(1, 2)]
    assert not found.clean and "overlap: task 1 of a on one" in next(found.offences())


def test_a_run_within_a_longer_one_is_found_behind_a_short_one() -> None:
    records = run(1, 1, 9, fence=1) + run(2, 2, 3, fence=2) + run(3, 5, 6, fence=3)
    found = judged(published(1, 2, 3) + records, [1, 2, 3])
    assert [(one.n, other.n) for one, other in found.overlaps] == [(1, 2), (1, 3)]


def test_runs_of_different_keys_may_overlap() -> None:
    found = judged(published(1, 2) + run(1, 1, 3, fence=1) + run(2, 2, 4, key="b", fence=2), [1, 2])
    assert not found.overlaps


def test_a_run_that_never_ended_overlaps_every_later_one() -> None:
    found = judged(published(1, 2) + run(1, 1, None, fence=1) + run(2, 50, 51, fence=2), [1, 2])
    assert [(one.n, other.n) for one, other in found.overlaps] == [(1, 2)]


@pytest.mark.parametrize("fence", [4, 5])
def test_a_fence_that_does_not_grow_is_found(fence: int) -> None:
    found = judged(published(1, 2) + run(1, 1, 2, fence=5) + run(2, 3, 4, fence=fence), [1, 2])
    assert [(one.n, other.n) for one, other in found.disorder] == [(1, 2)] and not found.clean


def test_a_task_killed_half_way_may_run_again() -> None:
    records = [*run(1, 1, None, fence=1), *killed("one", 1.5, 1.6, 0), *run(1, 4, 5, fence=2, node="two")]
    found = judged(published(1) + records, [1])
    assert found.clean and found.rerun_killed == 1


def test_a_task_killed_after_its_commit_is_done() -> None:
    records = [*run(1, 1, None, fence=1), *killed("one", 1.5, 1.6, 0)]
    found = judged(published(1) + records, [1])
    assert found.clean and (found.survived, found.rerun_killed) == (1, 0)
    assert judged(published(1) + records, []).lost == (1,)


def test_a_killed_run_lasts_until_its_node_was_gone() -> None:
    records = [*run(1, 1, None, fence=1), *killed("one", 1.5, 4.5, 0), *run(1, 4, 5, fence=2, node="two")]
    assert judged(published(1) + records, [1]).overlaps


def test_a_fenced_task_may_run_again() -> None:
    records = run(1, 1, 2, fence=1, how="fenced") + run(1, 4, 5, fence=2, node="two")
    found = judged(published(1) + records, [1])
    assert found.clean and found.rerun_fenced == 1


def test_a_task_that_was_done_must_not_run_again() -> None:
    records = run(1, 1, 2, fence=1) + run(1, 4, 5, fence=2, node="two", how="fenced")
    found = judged(published(1) + records, [1])
    assert [len(tries) for tries in found.again] == [2] and not found.clean


def test_a_kill_does_not_excuse_another_node() -> None:
    records = [*run(1, 1, None, fence=1), *killed("two", 1.5, 1.6, 0), *run(1, 4, 5, fence=2, node="three")]
    found = judged(published(1) + records, [1])
    assert found.again and found.overlaps


def test_fail_over_is_timed_by_tasks_that_waited_in_the_dead_nodes_partitions() -> None:
    records = [
        *published(1, 2, 4, at=10.5), *published(3, at=20.0), *killed("one", 10, 10.1, 0, 1, 2, 3),
        *run(1, 12.2, 13, fence=1, node="two", partition=0),
        *run(2, 12.5, 13, fence=2, node="two", key="b", partition=1),
        *run(3, 20.1, 21, fence=3, node="two", key="c", partition=2),
        *run(4, 10.6, 11, fence=4, node="two", key="d", partition=9),
    ]  # fmt: skip
    (failover,) = judged(records, [1, 2, 3, 4]).failovers
    assert (failover.node, failover.waited, failover.owned) == ("one", 2, 4)
    assert failover.first == pytest.approx(2.2) and failover.last == pytest.approx(2.5)


def test_a_history_gives_back_what_was_appended_and_leaves_a_half_line_for_later(tmp_path: Path) -> None:
    file = tmp_path / "history"
    writer, reader = History(file), History(file)
    assert reader.follow() == []
    records = [*published(1), *run(1, 1, 2, fence=1), *killed("one", 3, 4, 5, 6)]
    for record in records:
        writer.append(record)
    with file.open("a") as half:
        half.write('{"what":"start"')
    assert reader.follow() == records
    with file.open("a") as half:
        half.write(',"at":9.0}\n')
    assert reader.follow() == [Record("start", 9.0)]
    writer.close()
