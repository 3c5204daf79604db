"""Which faults strike two at a time: those that make sense together, now and then, and the same ones for a seed."""

from __future__ import annotations

from fnmatch import fnmatchcase
from random import Random

import pytest

from tests.faults.nemeses import everything
from tests.faults.nemeses.pairs import PAIRS, company

ALL = everything()
BY_NAME = {nemesis.name: nemesis for nemesis in ALL}


def test_pairs_are_made_of_nemeses_that_exist() -> None:
    for lasting, names in PAIRS.items():
        assert any(fnmatchcase(name, lasting) for name in BY_NAME), lasting
        assert set(names) <= BY_NAME.keys()
        assert lasting not in names


@pytest.mark.parametrize("name", ["database-slow", "cut-both-deaf", "pause-parent"])
def test_a_fault_that_lasts_has_company_now_and_then(name: str) -> None:
    drawn = [company(BY_NAME[name], ALL, Random(seed)) for seed in range(400)]
    assert 60 < sum(each is not None for each in drawn) < 140
    assert drawn == [company(BY_NAME[name], ALL[::-1], Random(seed)) for seed in range(400)]


@pytest.mark.parametrize("name", ["kill-group", "rolling-restart", "promoted-standby"])
def test_a_fault_that_strikes_at_once_or_restarts_things_is_alone(name: str) -> None:
    assert all(company(BY_NAME[name], ALL, Random(seed), share=1.0) is None for seed in range(50))


def test_only_what_was_asked_for_comes_along() -> None:
    first, second = BY_NAME["database-slow"], BY_NAME["kill-child"]
    assert company(first, [first], Random(1), share=1.0) is None
    assert company(first, [first, second], Random(1), share=1.0) is second


def test_nobody_kills_the_main_process_of_a_pool_that_is_stopped() -> None:
    for name in ("pause-group", "pause-child"):
        assert "kill-main" not in {
            found.name for seed in range(50) if (found := company(BY_NAME[name], ALL, Random(seed), share=1.0))
        }
