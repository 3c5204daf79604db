from __future__ import annotations

import inspect
import pickle

import pytest

from jobsync_celery import errors
from jobsync_celery.errors import (
    Fenced,
    JobsyncError,
    KeyInvalid,
    KeyMissing,
    LeaseLost,
    ObservedOnly,
    SettingsError,
    StoreError,
    StoreUnavailable,
)

CLASSES = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, Exception)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_exception_has_the_one_root_and_says_when_it_is_raised(cls: type[Exception]) -> None:
    assert issubclass(cls, JobsyncError)
    assert cls is JobsyncError or (cls.__doc__ or "").startswith("Raised")


@pytest.mark.parametrize("cls", CLASSES)
def test_every_exception_survives_pickling_and_rebuilding_from_its_arguments(cls: type[Exception]) -> None:
    given = {KeyMissing: ("proj.settle", "account_id"), ObservedOnly: ("the app 'proj'",)}
    error = cls(*given.get(cls, ("why", 3)))
    for copy in (pickle.loads(pickle.dumps(error)), cls(*error.args)):
        assert type(copy) is cls
        assert copy.args == error.args
        assert str(copy) == str(error)


def test_a_missing_key_names_task_and_key_and_reason() -> None:
    error = KeyMissing("proj.settle", "account_id", "it is None")
    assert (error.task, error.key, error.reason) == ("proj.settle", "account_id", "it is None")
    assert str(error) == "task 'proj.settle' has no usable key 'account_id': it is None"


def test_errors_of_the_callers_own_making_are_value_errors() -> None:
    assert all(issubclass(each, ValueError) for each in (SettingsError, KeyMissing, KeyInvalid))


def test_branches_can_be_caught_as_a_whole() -> None:
    assert issubclass(StoreUnavailable, StoreError)
    assert issubclass(Fenced, LeaseLost)
