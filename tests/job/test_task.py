"""Tasks are what their ids are."""

from __future__ import annotations

import uuid

import pytest

from jobsync_celery import Task
from jobsync_celery.errors import KeyInvalid


def test_tasks_with_the_same_id_are_the_same_whatever_its_type_and_their_names() -> None:
    one = uuid.uuid4()
    assert Task(42) == Task("42", "settle")
    assert Task(one) == Task(str(one))
    assert len({Task(42), Task("42"), Task(43)}) == 2
    assert Task(42) != Task(43) and Task(42) != 42


def test_tasks_are_sorted_by_id_and_numbers_as_numbers() -> None:
    assert [task.id for task in sorted(map(Task, (10, 9, 1)))] == [1, 9, 10]
    assert [task.id for task in sorted(map(Task, ("b", "a")))] == ["a", "b"]
    assert [task.id for task in sorted(map(Task, ("a", "10", 9, "-1")))] == ["-1", 9, "10", "a"]


@pytest.mark.parametrize("value", [None, 1.5, ("a", 1), True, "", "x" * 256, "a\0b", ["a"]])
def test_what_cannot_be_stored_as_a_key_is_no_id(value: object) -> None:
    with pytest.raises(KeyInvalid):
        Task(value)  # type: ignore[arg-type] # that is the test


@pytest.mark.parametrize("name", [1, "a\0b", "\ud800"])
def test_a_name_that_cannot_be_stored_is_refused(name: object) -> None:
    with pytest.raises(KeyInvalid, match="name"):
        Task("a", name)  # type: ignore[arg-type] # that is the test


def test_a_task_shows_its_id_and_name() -> None:
    assert repr(Task("a")) == "Task('a')" and repr(Task("a", "settle")) == "Task('a', 'settle')"
