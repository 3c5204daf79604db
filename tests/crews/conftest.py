"""Crews: one of a module's own, and one of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from crews.crew import Crew

_FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, tests of one module share a process, and so its crew."""
    for item in items:
        if _FOLDER in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(f"jobs-{item.path.stem}"))


@pytest.fixture(scope="module")
def crew(module_database_url: str) -> Iterator[Crew]:
    """The module's crew, with this folder's lease; a test says how many it needs, and may end some."""
    with Crew(module_database_url) as crew:
        yield crew


@pytest.fixture
def new_crew(database_url: str) -> Iterator[Callable[..., Crew]]:
    """Make a crew with settings of its own."""
    with ExitStack() as stack:
        yield lambda **config: stack.enter_context(Crew(database_url, **config))
