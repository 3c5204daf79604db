"""Waiting for what is to happen, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

#: Generous: a test that passes does not wait, and the machine may be loaded.
PATIENCE = 60.0


def until(condition: Callable[[], T], what: str = "it is so", timeout: float = PATIENCE, every: float = 0.02) -> T:
    """What the condition returns once that is true; the test fails after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"after {timeout:.0f} s it is still not so that {what}: {condition()!r}")
        time.sleep(every)
    return value
