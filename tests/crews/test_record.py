"""The judge is judged: what it must find in records, and what it must not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Hashable
from pathlib import Path

import pytest

from crews.record import CONTINUOUS, Contradiction, Record, Sampler, Stay, contradictions

MS = 1_000_000


class Bench:
    """Processes that are asked in turn on one clock, two ids each; a call takes 50 µs and a round each millisecond."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_000_000 * MS
        self._folder = folder
        self.samplers: list[Sampler] = []

    def clock(self) -> int:
        return self.now

    def process(self, mine: Callable[[float], bool]) -> Sampler:
        """One whose id 1 is its own when this says so, given the milliseconds since the start."""
        begun = self.now

        def ask(id_: Hashable) -> bool:
            self.now += 25_000
            answer = id_ == "one" and mine((self.now - begun) / MS)
            self.now += 25_000
            return answer

        name = f"process {len(self.samplers)}"
        self.samplers.append(Sampler(self._folder / name, name, ["none", "one"], ask, self.clock))
        return self.samplers[-1]

    def run(self, milliseconds: int) -> list[Contradiction]:
        for _ in range(milliseconds):
            round_begun = self.now
            for sampler in self.samplers:
                sampler.round()
            self.now = max(self.now, round_begun + MS)
        return contradictions([stay for sampler in self.samplers for stay in sampler.stays])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_an_overlap_of_two_milliseconds_is_found(bench: Bench) -> None:
    bench.process(lambda at: at < 32)
    bench.process(lambda at: at >= 30)
    (found,) = bench.run(60)
    assert found.processes == ("process 0", "process 1") and found.id == 1
    assert MS // 2 < found.until - found.since <= 2 * MS


def test_a_clean_hand_over_is_none(bench: Bench) -> None:
    for begins in range(0, 60, 10):
        bench.process(lambda at, begins=begins: begins <= at < begins + 10)
    assert bench.run(80) == []
    assert sum(len(sampler.stays) for sampler in bench.samplers) == 6


def test_a_single_answer_between_two_of_another_process_is_found(bench: Bench) -> None:
    bench.process(lambda at: True)
    bench.process(lambda at: 30 <= at < 31)
    (found,) = bench.run(60)
    assert found.until - found.since == 50_000


def test_what_another_had_while_a_process_was_stopped_is_no_contradiction(bench: Bench) -> None:
    stopped, other = bench.process(lambda at: at < 30 or at >= 500), bench.process(lambda at: 40 <= at < 490)
    bench.run(20)
    bench.samplers.remove(stopped)
    bench.run(480)
    bench.samplers.insert(0, stopped)
    assert bench.run(20) == []
    assert [stay.calls > 9 for stay in stopped.stays] == [True, True] and len(other.stays) == 1
    assert len(stopped.sleeps) == 1 and stopped.sleeps[0][1] - stopped.sleeps[0][0] > 470 * MS
    assert other.sleeps == []


def test_a_call_that_was_stopped_halfway_proves_nothing_while_it_lasted() -> None:
    paused = [Stay("a", 0, (0, 1 * MS), (2 * MS, 5000 * MS), 3)]
    meanwhile = [Stay("b", 0, (50 * MS, 51 * MS), (4000 * MS, 4001 * MS), 3000)]
    assert contradictions(paused + meanwhile) == []
    assert contradictions([Stay("a", 0, (0, 1 * MS), (52 * MS, 53 * MS), 3), *meanwhile])


def test_an_overlap_is_found_whoever_comes_first_and_whatever_lies_between() -> None:
    long = Stay("a", 0, (0, 1), (1000 * MS, 1001 * MS), 900)
    others = [Stay("b", 0, (at * MS, at * MS + 1), (at * MS + 5, at * MS + 6), 2) for at in (10, 200, 999)]
    elsewhere = [Stay("b", 1, (0, 1), (1000 * MS, 1001 * MS), 900), Stay("a", 0, (2000 * MS, 2001 * MS), (0, 0), 1)]
    assert len(contradictions([*others, *elsewhere, long])) == 3


def test_one_process_alone_cannot_contradict_itself(bench: Bench) -> None:
    bench.process(lambda at: int(at) % 7 < 3)
    assert bench.run(100) == [] and len(bench.samplers[0].stays) > 10


def test_two_answers_too_far_apart_are_two_stays(bench: Bench) -> None:
    lone = bench.process(lambda at: True)
    bench.run(1)
    bench.now += CONTINUOUS
    bench.run(1)
    assert len(lone.stays) == 2


def test_the_record_of_a_killed_process_is_there(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from crews.record import Sampler\n"
        "sampler = Sampler(Path(sys.argv[1]), 'killed', [1], lambda _: True)\n"
        "for _ in range(20): sampler.round()\n"
        "print(flush=True); sampler.run()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "record")], env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    record = Record(tmp_path / "record", "killed")
    assert sum(stay.calls for stay in record.stays) >= 20 and record.rounds >= 20
