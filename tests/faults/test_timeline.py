"""The time line shows a person what happened, at every width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.model import Fault, Verdict, Violation
from tests.faults.timeline import MOST_ROWS, MOST_VIOLATIONS, render

BOOT = 123456.0


def body(n: int, node: str, fence: int, begin: float, last: float, how: str = "end", key: str = "k") -> Any:
    fields = {"id": f"id{n}", "origin": "o", "retries": 0, "key": key, "n": n, "node": node, "fence": fence}
    more = {"attempt": 1, "pid": fence, "policy": "finish"}
    return [
        {"event": event, "at": BOOT + at, **fields, **more}
        for event, at in (("start", begin), *(("tick", at) for at in _ticks(begin, last)), (how, last))
    ]


def _ticks(begin: float, last: float) -> Iterator[float]:
    at = begin + 0.05
    while at < last:
        yield at
        at += 0.05


HISTORY = [
    *body(17, "worker-01", 12, 0.0, 1.0),
    *body(18, "worker-02", 14, 0.5, 1.5, how="tick"),
    *body(19, "worker-03", 15, 0.6, 1.0, key="other"),
    *body(16, "worker-01", 11, -30.0, -29.0),
]
FAULTS = [
    Fault(BOOT + 0.2, BOOT + 0.7, "pause-group", "worker-01", ""),
    Fault(BOOT + 60.0, BOOT + 61.0, "disk-full", "database", ""),
]
OVERLAP = Violation("S1", "17.1 was running when 18.1 started, and nothing shows it", ("17.1", "18.1"), BOOT + 0.5)


def test_nothing_broken_is_one_line() -> None:
    assert render(Verdict(()), HISTORY, FAULTS) == "No promise was broken."


def test_an_overlap_is_drawn_with_its_runs_and_faults_and_nothing_else() -> None:
    text = render(Verdict((OVERLAP,)), HISTORY, FAULTS, 80)
    assert "S1 at 123456.500: 17.1 was running when 18.1 started" in text
    assert "*17.1 worker-01 f12" in text and "*18.1 worker-02 f14" in text
    assert " pause-group worker-01" in text
    assert "19.1" not in text and "16.1" not in text and "disk-full" not in text


@pytest.mark.parametrize("width", [80, 160])
def test_marks_stand_where_things_happened(width: int) -> None:
    lines = render(Verdict((OVERLAP,)), HISTORY, FAULTS, width).split("\n")
    violation, older, newer, pause = lines[-4:]
    assert older.index("[") < violation.index("v", 3) == newer.index("[") < older.index("]", 40) < newer.index("x")
    assert older.index("[") < pause.index("#") < newer.index("[") < pause.rindex("#") < older.index("]", 40)
    assert "=" in older and "." not in older[30:]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_no_line_is_longer_than_the_width_and_a_wide_one_is_used(width: int) -> None:
    lines = render(Verdict((OVERLAP,)), HISTORY, FAULTS, width).split("\n")
    assert 0.8 * width < max(map(len, lines)) <= width


def test_what_goes_on_beyond_the_margins_is_drawn_as_going_on() -> None:
    longer = [*HISTORY, *body(20, "worker-04", 10, -5.0, 9.0)]
    (line,) = [line for line in render(Verdict((OVERLAP,)), longer, FAULTS, 80).split("\n") if " 20.1" in line]
    assert line.startswith(" 20.1 worker-04 f10") and line.count("<") == 1 and line.endswith("=>")


def test_silence_is_drawn_as_such() -> None:
    stopped = [line for line in HISTORY if not BOOT + 0.2 < line["at"] < BOOT + 0.7]
    text = render(Verdict((OVERLAP,)), stopped, FAULTS, 80)
    (older,) = [line for line in text.split("\n") if line.startswith("*17.1")]
    assert "=...." in older and "....=" in older


def test_the_ruler_counts_from_the_begin_in_round_steps() -> None:
    text = render(Verdict((OVERLAP,)), HISTORY, FAULTS, 80)
    (ruler,) = [line for line in text.split("\n") if line.startswith("from")]
    assert ruler.startswith("from 123455.880 s")
    assert [float(each) for each in ruler.partition("|")[2].split("|")] == [0, 0.5, 1, 1.5]


def test_a_violation_without_runs_is_drawn_with_the_faults_around_it() -> None:
    ownerless = Violation("L1", "partition 3 had no owner", (), BOOT + 58.0)
    text = render(Verdict((ownerless,)), HISTORY, FAULTS, 80)
    assert "disk-full" in text and "pause-group" not in text


def test_much_is_cut_and_the_rest_is_counted() -> None:
    crowd = [line for n in range(MOST_ROWS + 5) for line in body(n, "w", n, 0.0, 1.0)]
    few = Violation("S7", "", ("0.1", "1.1"), BOOT)
    text = render(Verdict((few,) * (MOST_VIOLATIONS + 2)), crowd, (), 80)
    assert text.startswith(f"{MOST_VIOLATIONS + 2} violations (S7: {MOST_VIOLATIONS + 2})")
    assert "*0.1 " in text and "*1.1 " in text
    assert text.count("... and 5 more rows") == MOST_VIOLATIONS
    assert text.endswith("... and 2 more violations")
