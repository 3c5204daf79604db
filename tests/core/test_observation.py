"""What an observer notes: clocks that are trusted no further than they were read, and runs that are told once."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from jobsync_celery.core.observation import SLEW, ClockReading, Notebook, Run, Sight, storable

DELAYS = st.floats(0, 2)
#: The database's clock runs faster or slower than the boot clock by so much, and is so far from it.
DRIFTS, OFFSETS = st.floats(-SLEW, SLEW), st.floats(-1e6, 1e6)
#: A pause, then the way of a question there and back.
READINGS = st.lists(st.tuples(st.floats(0, 600), DELAYS, DELAYS), min_size=1, max_size=8)
ROUNDING = 1e-6


@given(READINGS, DRIFTS, OFFSETS, st.floats(-60, 60))
def test_the_true_time_is_within_the_error_whatever_the_way_there_and_back_took(
    readings: list[tuple[float, float, float]], drift: float, offset: float, away: float
) -> None:
    def database(at: float) -> float:
        return at * (1 + drift) + offset

    kept: ClockReading | None = None
    now = 0.0
    for pause, there, back in readings:
        sent = now + pause
        now = sent + there + back
        reading = ClockReading.of(sent, now, database(sent + there))
        kept = reading if kept is None else kept.or_better(reading)
        for at in (now, now + away):
            assert abs(at + kept.offset - database(at)) <= kept.error_at(at) + ROUNDING
        assert kept.error_at(now) <= reading.error_at(now)


def test_after_the_database_s_clock_was_set_the_newer_reading_counts_however_rough() -> None:
    fine, rough = ClockReading(10.0, 1000.0, 0.001), ClockReading(11.0, 4600.0, 1.0)
    assert fine.or_better(rough) is rough
    assert fine.or_better(ClockReading(11.0, 1000.5, 1.0)) is fine


@given(
    st.text(max_size=300),
    st.none() | st.text(max_size=255).filter(lambda text: "\0" not in text),
    st.text(st.characters(), max_size=300),
    st.integers(0, 9),
    st.booleans(),
)
def test_a_run_is_stored_as_it_is_or_as_what_can_be_stored(
    name: str, key: str | None, task_id: str, retries: int, redelivered: bool
) -> None:
    stored = [text[:255].replace("\0", "?").encode("utf-8", "replace").decode() for text in (name, task_id)]
    assert storable(name, key, task_id, retries, redelivered) == (stored[0], key, stored[1], retries, redelivered)


def test_what_a_message_says_of_retries_or_its_id_need_not_be_believed() -> None:
    for retries in ("3", None, 1.5, -1, 1 << 31, True):
        assert storable("t", "k", "id", retries, False).retries == 0  # type: ignore[arg-type]
    assert storable("t", "k", 17, 0, None) == ("t", "k", "17", 0, False)  # type: ignore[arg-type]


class Began(NamedTuple):
    """A run began."""

    pid: int
    number: int
    at: float = 0.0
    dropped: int = 0

    @property
    def run(self) -> Run:
        return Run("t", "k", f"{self.pid}-{self.number}", 0, False)


class Ended(NamedTuple):
    """A run ended."""

    pid: int
    number: int
    at: float


def tell(notebook: Notebook, told: Began | Ended) -> None:
    if isinstance(told, Began):
        notebook.begin(told.pid, told.number, told.at, told.run, told.dropped)
    else:
        notebook.end(*told)


class Writer:
    """Writes pages, and has what a table would have."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.rows: dict[int, tuple[Run, str]] = {}
        self.writes = 0

    def write(self, now: float, limit: int = 100) -> list[Sight]:
        page = self.notebook.page(now, limit)
        assert len(page) <= limit
        for sight in page:
            self.rows[sight.number] = (sight.run, sight.state)
        self.writes += len(page)
        self.notebook.wrote(page)
        return page


@st.composite
def histories(draw: st.DrawFn) -> list[Began | Ended | str]:
    """What a few processes tell, each in its own order, with pages written in between."""
    ends = draw(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=30))
    told: list[Began | Ended | str] = []
    for number, (pid, over) in enumerate(ends):
        told.append(Began(pid, number, at=number))
        told += ["write"] * draw(st.integers(0, 1))
        told += [Ended(pid, number, number + 0.5)] if over else []
    return told


@given(histories(), st.integers(1, 5))
def test_each_run_is_written_as_it_ended_and_what_is_written_is_forgotten(
    history: list[Began | Ended | str], limit: int
) -> None:
    notebook = Notebook(1000)
    writer = Writer(notebook)
    for each in history:
        if isinstance(each, str):
            writer.write(1e9, limit)
        else:
            tell(notebook, each)
    while writer.write(1e9, limit):
        pass
    runs = [each for each in history if isinstance(each, Began)]
    over = {each.number for each in history if isinstance(each, Ended)}
    assert sorted(writer.rows.values()) == sorted(
        (each.run, "ended" if each.number in over else "running") for each in runs
    )
    assert writer.writes <= len(runs) + len(over)
    assert len(notebook.pids) == len({each.pid for each in runs if each.number not in over})
    assert notebook.dropped == 0


def test_a_run_that_is_young_is_left_for_its_end() -> None:
    notebook = Notebook(10)
    tell(notebook, Began(1, 1, at=5.0))
    assert notebook.page(4.9, 10) == []
    tell(notebook, Ended(1, 1, 5.1))
    [sight] = notebook.page(4.9, 10)
    assert (sight.state, sight.until) == ("ended", 5.1)


def test_of_a_dead_process_the_last_time_it_was_seen_counts_and_never_one_before_its_run() -> None:
    notebook = Notebook(10)
    for number, at in ((1, 5.0), (2, 9.0)):
        tell(notebook, Began(7, number, at=at))
    tell(notebook, Began(8, 1, at=5.0))
    notebook.lose({7}, 8.0)
    states = [(sight.state, sight.until) for sight in notebook.page(1e9, 10)]
    assert states == [("lost", 8.0), ("lost", 9.0), ("running", None)]
    tell(notebook, Ended(7, 1, 8.5))  # too late to be believed
    assert notebook.pids == {8}


def test_what_finds_no_room_or_is_refused_is_counted_and_so_is_what_its_process_left_out() -> None:
    notebook = Notebook(3)
    for number in range(5):
        tell(notebook, Began(1, number, dropped=2))
    tell(notebook, Ended(1, 4, 1.0))
    tell(notebook, Began(2, 9, dropped=10))
    assert notebook.dropped == 2 + 10 + 3
    assert len(notebook.page(1e9, 10)) == 3
    notebook.discard(notebook.page(1e9, 10))
    assert notebook.dropped == 2 + 10 + 6 and notebook.page(1e9, 10) == []


def test_an_end_is_never_before_its_begin_even_if_the_clock_was_set_back_between() -> None:
    sight = Sight(1, (1, 1), 5.0, Began(1, 1).run)
    began = sight.observation(ClockReading(5.0, 100.0, 0.001)).began
    sight.state, sight.until = "ended", 6.0
    told = sight.observation(ClockReading(6.0, 50.0, 0.25))
    assert (told.began, told.until, told.error) == (began, began, 0.25)
