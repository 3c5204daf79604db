"""What an observer notes: runs as they begin and end, by the boot clock, and what that is by the database's clock."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

#: How fast two clocks may drift apart: the fastest slew of NTP.
SLEW = 0.0005
_LONGEST_TEXT = 255
_MOST_RETRIES = 1 << 31


class Run(NamedTuple):
    """What is run; ``key`` is None if none could be computed."""

    task_name: str
    key: str | None
    task_id: str
    retries: int
    redelivered: bool


def storable(task_name: str, key: str | None, task_id: str, retries: int, redelivered: bool) -> Run:
    """The run as it can be stored: whatever its message says, but the key, which is valid."""
    count = retries if type(retries) is int and 0 <= retries < _MOST_RETRIES else 0
    return Run(_text(task_name), key, _text(task_id), count, bool(redelivered))


def _text(value: object) -> str:
    """What can be stored as text, and is not too long."""
    text = str(value)[:_LONGEST_TEXT]
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "?").encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The database's clock is the boot clock plus ``offset``, give or take ``error``; read at ``at``. In seconds."""

    at: float
    offset: float
    error: float

    @classmethod
    def of(cls, sent: float, received: float, database_time: float) -> ClockReading:
        """What an answer tells that was asked for at ``sent``: its time is of any moment until it was ``received``."""
        at = (sent + received) / 2
        return cls(at, database_time - at, (received - sent) / 2 * (1 + SLEW))

    def error_at(self, at: float) -> float:
        """The error of a moment before or after the reading."""
        return self.error + SLEW * abs(at - self.at)

    def or_better(self, newer: ClockReading) -> ClockReading:
        """The reading to go by; the newer one also where the two contradict, since then a clock was set."""
        error = self.error_at(newer.at)
        contradict = abs(newer.offset - self.offset) > error + newer.error
        return newer if contradict or newer.error <= error else self


class Observation(NamedTuple):
    """A run by the database's clock, in seconds, give or take ``error``; ``until`` is None while it runs.

    Of a ``lost`` run, whose process died under it, ``until`` is when it was last known to run.
    """

    number: int
    began: float
    until: float | None
    error: float
    state: str
    run: Run


@dataclass(slots=True)
class Sight:
    """A run as an observer knows it; ``at`` and ``until`` are of the boot clock.

    ``began`` is by the database's, and set once it was converted, for it names the run's row. ``sent`` is whether the
    database may have a row of it, ``written`` whether it has.
    """

    number: int
    place: tuple[int, int]
    at: float
    run: Run
    state: str = "running"
    until: float | None = None
    began: float | None = None
    error: float = 0.0
    sent: bool = False
    written: bool = False

    def observation(self, reading: ClockReading) -> Observation:
        """The run by the database's clock."""
        began = self.began
        if began is None:
            began = self.began = self.at + reading.offset
            self.error = reading.error_at(self.at)
        until = None
        if self.until is not None:
            until = max(self.until + reading.offset, began)
            self.error = max(self.error, reading.error_at(self.until))
        return Observation(self.number, began, until, self.error, self.state, self.run)


class Notebook:
    """The runs that one observer has seen, and has still to write or to see the end of; bounded.

    Arguments:
        limit: how many runs are kept while they cannot be written. Further ones are counted as dropped.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._open: dict[tuple[int, int], Sight] = {}
        self._over: dict[int, Sight] = {}
        self._refused = 0
        self._dropped: dict[int, int] = {}

    @property
    def dropped(self) -> int:
        """How many runs were not noted: by the processes that ran them, or here."""
        return self._refused + sum(self._dropped.values())

    @property
    def pids(self) -> set[int]:
        """The processes in which a run is going on."""
        return {pid for pid, _ in self._open}

    def begin(self, pid: int, number: int, at: float, run: Run, dropped: int) -> None:
        """A run began in this process, as its ``number``.

        Arguments:
            at: when, by the boot clock.
            dropped: how many runs the process could not tell of so far.
        """
        self._dropped[pid] = dropped
        if len(self._open) + len(self._over) >= self._limit:
            self._refused += 1
            return
        self._count += 1
        place = (pid, number)
        self._open[place] = Sight(self._count, place, at, run)

    def end(self, pid: int, number: int, at: float) -> None:
        """A run ended, well or not."""
        self._end((pid, number), "ended", at)

    def lose(self, dead: Collection[int], seen: float) -> None:
        """These processes are gone; they were last seen then, by the boot clock."""
        for place in [each for each in self._open if each[0] in dead]:
            self._end(place, "lost", max(seen, self._open[place].at))

    def page(self, begun_before: float, limit: int) -> list[Sight]:
        """What is to be written: runs that are over, and those that began before then and are not written yet."""
        page = [sight for _, sight in zip(range(limit), self._over.values(), strict=False)]
        for sight in self._open.values():
            if len(page) >= limit:
                break
            if not sight.written and sight.at < begun_before:
                page.append(sight)
        return page

    def wrote(self, page: Iterable[Sight]) -> None:
        """These are written as they are in the page."""
        for sight in page:
            sight.written = True
            if sight.state != "running":
                self._over.pop(sight.number, None)

    def _end(self, place: tuple[int, int], state: str, at: float) -> None:
        sight = self._open.pop(place, None)
        if sight is not None:  # refused, or of a process that was taken for dead
            sight.state, sight.until = state, at
            self._over[sight.number] = sight

    def discard(self, page: Iterable[Sight]) -> None:
        """The database refuses these: count them, and forget them."""
        for sight in page:
            self._refused += 1
            self._over.pop(sight.number, None)
            self._open.pop(sight.place, None)
