"""The table of tenures in shared memory: what a node has, as all its processes see it."""

from __future__ import annotations

import os

from jobsync_celery.runtime.tenures import Tenures


def test_every_gain_is_a_larger_tenure_and_a_loss_is_none() -> None:
    tenures = Tenures(8)
    tenures.begin([3, 1])
    first = tenures.all()
    assert first == {1: 1, 3: 2} and tenures.of(0) == 0
    tenures.end([3])
    tenures.begin([3])
    assert tenures.of(3) > first[3] and tenures.of(1) == first[1]


def test_the_count_of_changes_moves_with_every_change_and_only_then() -> None:
    tenures = Tenures(8)
    before = tenures.changes
    tenures.end([1, 2])
    assert tenures.changes == before
    tenures.begin([1])
    tenures.end([1, 2])
    assert tenures.changes == before + 2


def test_a_job_may_start_while_the_tenure_stands_that_it_was_handed_over_in() -> None:
    tenures = Tenures(8)
    assert not tenures.stands(1, 0)
    tenures.begin([1])
    given = tenures.of(1)
    assert tenures.stands(1, given)
    tenures.end([1])
    assert not tenures.stands(1, given)
    tenures.begin([1])
    assert not tenures.stands(1, given) and tenures.stands(1, tenures.of(1))


def test_partitions_beyond_the_table_have_no_tenure_and_are_not_refused_for_it() -> None:
    tenures = Tenures(8)
    tenures.begin([tenures.size - 1, tenures.size, -1])
    assert list(tenures.all()) == [tenures.size - 1]
    assert tenures.of(tenures.size) == 0 and tenures.stands(tenures.size, 0)


def test_a_forked_child_sees_what_its_parent_writes() -> None:
    tenures = Tenures(8)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(0 if tenures.all() == {5: 1} and tenures.changes == 1 else 1)
    tenures.begin([5])
    os.write(writer, b".")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(reader)
    os.close(writer)
