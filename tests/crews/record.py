"""What one process answered when it was asked, again and again, of each of some ids: "is it mine?"

The answers lie in a file that the process has mapped into its memory: what it had answered is there however it ended.
A *stay* is a row of "mine" answers of one id, each soon after the one before. Of its first and its last call both ends
are known, so that the true moment of an answer lies between two known ones; all are nanoseconds of the monotonic clock,
which all processes of a machine share.
"""

from __future__ import annotations

import itertools
import mmap
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

_NANO = 1_000_000_000
#: "Mine" before and "mine" after so little time is "mine" all the while: no partition comes back so soon.
CONTINUOUS = _NANO // 10
#: Longer than this between two rounds, or for one, it was not looking, and says so.
_ASLEEP = _NANO // 50
_EVERY_SEC = 0.001

_MOST_STAYS, _MOST_SLEEPS = 50_000, 10_000
_ROUNDS, _BEGUN, _LAST, _STAYS, _SLEEPS, _HEAD = range(6)
_STAY, _SLEEP = 6, 2
_FIRST_STAY = _HEAD + _MOST_SLEEPS * _SLEEP
_CELLS = _FIRST_STAY + _MOST_STAYS * _STAY


@dataclass(frozen=True)
class Stay:
    """One process said "mine" of one id, at least from ``surely_from`` to ``surely_to`` if that is any time at all."""

    process: str
    id: int
    first: tuple[int, int]
    last: tuple[int, int]
    calls: int

    @property
    def surely_from(self) -> int:
        """When the first call had been answered."""
        return self.first[1]

    @property
    def surely_to(self) -> int:
        """When the last call had not begun yet."""
        return self.last[0]


class Record:
    """The file, as anybody may read it at any time."""

    def __init__(self, path: Path, process: str) -> None:
        self.process = process
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(_CELLS * 8)
        with path.open("r+b") as file:
            self._cells = memoryview(mmap.mmap(file.fileno(), _CELLS * 8)).cast("q")

    @property
    def rounds(self) -> int:
        """How often each id was asked for."""
        return self._cells[_ROUNDS]

    @property
    def last(self) -> int:
        """When the last round ended."""
        return self._cells[_LAST]

    @property
    def begun(self) -> int:
        """When the first round began."""
        return self._cells[_BEGUN]

    @property
    def stays(self) -> list[Stay]:
        """All so far, in the order in which they began."""
        return [self._stay(number) for number in range(self._cells[_STAYS])]

    @property
    def sleeps(self) -> list[tuple[int, int]]:
        """When it was not looking: starved, or stopped."""
        starts = range(_HEAD, _HEAD + self._cells[_SLEEPS] * _SLEEP, _SLEEP)
        return [(self._cells[at], self._cells[at + 1]) for at in starts]

    def _stay(self, number: int) -> Stay:
        at = _FIRST_STAY + number * _STAY
        id_, *ends, calls = self._cells[at : at + _STAY]
        return Stay(self.process, id_, (ends[0], ends[1]), (ends[2], ends[3]), calls)


class Sampler(Record):
    """Asks for every id in turn, about every millisecond, and keeps the record.

    Arguments:
        ask: the question; whether this id is mine now.
    """

    def __init__(
        self,
        path: Path,
        process: str,
        ids: Sequence[Hashable],
        ask: Callable[[Hashable], bool],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(path, process)
        self._ids = list(ids)
        self._ask = ask
        self._clock = clock
        #: For each id the first cell of the stay that lasts; 0 if none does.
        self._open = [0] * len(self._ids)

    def run(self) -> None:
        """Rounds for ever."""
        pace = threading.Event()
        while True:
            begun = time.monotonic()
            self.round()
            pace.wait(max(0.0, begun + _EVERY_SEC - time.monotonic()))

    def round(self) -> None:
        """Ask once for every id."""
        cells, ask, clock, lasting = self._cells, self._ask, self._clock, self._open
        begun = before = clock()
        self._looked_away(self.last or begun, begun)
        for number, id_ in enumerate(self._ids):
            mine = ask(id_)
            after = clock()
            at = lasting[number]
            if not mine:
                lasting[number] = 0
            elif at and after - cells[at + 3] < CONTINUOUS:
                cells[at + 3] = before
                cells[at + 4] = after
                cells[at + 5] += 1
            else:
                lasting[number] = self._begin(number, before, after)
            before = after
        self._looked_away(begun, before)
        cells[_BEGUN] = cells[_BEGUN] or begun
        cells[_LAST] = before
        cells[_ROUNDS] += 1

    def _looked_away(self, since: int, until: int) -> None:
        if until - since > _ASLEEP:
            number = self._cells[_SLEEPS]
            assert number < _MOST_SLEEPS, "the record is full"
            self._cells[_HEAD + number * _SLEEP] = since
            self._cells[_HEAD + number * _SLEEP + 1] = until
            self._cells[_SLEEPS] = number + 1

    def _begin(self, id_: int, before: int, after: int) -> int:
        number = self._cells[_STAYS]
        assert number < _MOST_STAYS, "the record is full"
        at = _FIRST_STAY + number * _STAY
        for offset, value in enumerate((id_, before, after, before, after, 1)):
            self._cells[at + offset] = value
        self._cells[_STAYS] = number + 1  # last, so that a stay that can be seen is whole
        return at


@dataclass(frozen=True)
class Contradiction:
    """Two processes said "mine" of one id at one moment, for at least so long; times in nanoseconds."""

    id: int
    processes: tuple[str, str]
    since: int
    until: int

    def __str__(self) -> str:
        one, other = self.processes
        return f"{one} and {other} both had id {self.id} for {(self.until - self.since) / 1e6:.3f} ms"


def contradictions(stays: Sequence[Stay]) -> list[Contradiction]:
    """Every pair of stays of one id in two processes that surely overlap."""
    found = []
    ordered = sorted(stays, key=lambda stay: (stay.id, stay.first))
    for id_, group in itertools.groupby(ordered, lambda stay: stay.id):
        lasting: list[Stay] = []
        for stay in group:
            lasting = [each for each in lasting if each.last[1] > stay.first[0]]
            for each in lasting:
                if each.process != stay.process and (both := _overlap(each, stay)):
                    found.append(Contradiction(id_, (each.process, stay.process), *both))
            lasting.append(stay)
    return found


def _overlap(one: Stay, other: Stay) -> tuple[int, int] | None:
    """From when to when both surely said "mine"; a call that lies within the other's stay is enough."""
    both = max(one.surely_from, other.surely_from), min(one.surely_to, other.surely_to)
    if both[0] < both[1]:
        return both
    for inner, outer in ((one, other), (other, one)):
        for call in (inner.first, inner.last):
            if outer.surely_from <= call[0] and call[1] <= outer.surely_to:
                return call
    return None
