"""The promises of the design hold under every schedule that hypothesis finds; and it would find what breaks them.

Schedules are drawn by number, so each run draws the same ones. A schedule that fails is shrunk and printed as the rules
to read, after what happened in it, statement by statement. To run it again:

- by number: ``pytest tests/simulation -k 'every_promise and 3'`` draws, fails and shrinks the same way again; numbers
  count from ``JOBSYNC_SIMULATION_SEED`` (default 0), which goes on to others: ``JOBSYNC_SIMULATION_SEED=1000``;
- the shrunk schedule alone: ``JOBSYNC_SIMULATION_BLOB='VERSION BLOB'`` with the two strings of the
  ``@reproduce_failure('VERSION', b'BLOB')`` that hypothesis printed;
- for hours: ``JOBSYNC_SIMULATION_BATCHES=1000 pytest tests/simulation -k every_promise -x``.

A batch is short on purpose: after its first ten examples hypothesis mostly varies what it has tried already.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, reproduce_failure, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from . import mutants
from .invariants import Broken
from .machine import ClusterMachine
from .world import Playground

FIRST = int(os.environ.get("JOBSYNC_SIMULATION_SEED", "0"))
BATCHES = int(os.environ.get("JOBSYNC_SIMULATION_BATCHES", "6"))
BLOB = os.environ.get("JOBSYNC_SIMULATION_BLOB", "")
Mutant = Callable[[pytest.MonkeyPatch, Playground], None]

SCHEDULES = settings(
    max_examples=10,
    stateful_step_count=12,
    deadline=None,
    derandomize=False,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(300)
#: The first schedule that fails will do.
HUNT = settings(SCHEDULES, phases=[Phase.generate], verbosity=Verbosity.quiet)


@pytest.fixture
def playground(database_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Playground]:
    caplog.set_level(logging.CRITICAL, logger="jobsync_celery")  # the story of a failing schedule tells it in place
    playground = Playground(database_url)
    yield playground
    playground.close()


@pytest.mark.timeout(900)  # shrinking takes its time
@pytest.mark.parametrize("number", range(FIRST, FIRST + BATCHES))
def test_every_promise_holds(playground: Playground, number: int) -> None:
    machine = ClusterMachine.on(playground)
    draw = reproduce_failure(*_blob()) if BLOB else seed(number)
    run_state_machine_as_test(draw(machine), settings=SCHEDULES)
    assert BLOB or all(machine.tally[fact] for fact in ("starts", "guarded", "evictions", "moves")), machine.tally


def _blob() -> tuple[str, bytes]:
    version, blob = BLOB.split()
    return version, blob.encode()


def broken_by(mutant: Mutant, playground: Playground, patch: pytest.MonkeyPatch) -> str:
    """Which promise the simulation finds broken, within as many schedules as the product has to stand."""
    mutant(patch, playground)
    for number in range(BATCHES):
        try:
            run_state_machine_as_test(seed(number)(ClusterMachine.on(playground)), settings=HUNT)
        except Broken as broken:
            return broken.promise
    return "nothing"


def test_the_simulation_finds_an_eviction_of_who_renewed_meanwhile(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert broken_by(mutants.eviction_without_compare_and_set, playground, monkeypatch) == "S4"


def test_the_simulation_finds_a_claim_that_locks_no_owner(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert broken_by(mutants.claim_without_share_lock, playground, monkeypatch) == "S2"


def test_the_simulation_finds_a_deadline_counted_from_the_answer(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert broken_by(mutants.deadline_from_the_answer, playground, monkeypatch) == "S4"


def test_the_simulation_finds_a_watch_that_overlooks_gaps(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert broken_by(mutants.watch_without_gaps, playground, monkeypatch) == "L4"


def test_the_simulation_finds_a_pool_child_that_ignores_the_deadline(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert broken_by(mutants.child_without_deadline, playground, monkeypatch) in ("S1", "S2")


def test_the_simulation_finds_an_end_that_ignores_the_fence(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert broken_by(mutants.late_end_without_fence, playground, monkeypatch) in ("S1", "S2", "S5", "S6")


def test_the_simulation_finds_a_guard_that_ignores_what_became_of_the_claim(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert broken_by(mutants.guard_without_state, playground, monkeypatch) == "S5"
