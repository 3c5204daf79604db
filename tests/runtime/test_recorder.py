"""How processes that run tasks tell of them: nobody waits, each run is told once, and what is left out is counted."""

from __future__ import annotations

import itertools
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobsync_celery.core.observation import Run
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.recorder import Recorder


class Begun(NamedTuple):
    """A run began, as the reader was told."""

    pid: int
    number: int
    at: float
    run: Run
    dropped: int


class Ended(NamedTuple):
    """A run ended, as the reader was told."""

    pid: int
    number: int
    at: float


class Heard(list["Begun | Ended"]):
    """What a reader was told."""

    def begin(self, *told: Any) -> None:
        self.append(Begun(*told))

    def end(self, *told: Any) -> None:
        self.append(Ended(*told))

    @property
    def begun(self) -> list[tuple[int, int]]:
        return [(each.pid, each.number) for each in self if isinstance(each, Begun)]

    @property
    def ended(self) -> list[tuple[int, int]]:
        return [(each.pid, each.number) for each in self if isinstance(each, Ended)]


def read(recorder: Recorder) -> Heard:
    heard = Heard()
    recorder.read(heard)
    return heard


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder(slots=2)
    yield recorder
    recorder.close()


def begin(recorder: Recorder, task_id: str = "id") -> int | None:
    return recorder.begin("proj.settle", "42", task_id, 0, False)


def fill(recorder: Recorder) -> list[int]:
    """Begin runs until there is no room; the numbers of those that were told."""
    told = []
    while (number := begin(recorder)) is not None:
        told.append(number)
    return told


def test_runs_are_read_as_they_were_told_with_what_can_be_stored(recorder: Recorder) -> None:
    first = recorder.begin("proj.settle", "ключ", "a\0b\udc80" + "c" * 300, 2, True)
    assert first is not None
    recorder.end(first)
    assert recorder.begin("proj.settle", None, "next", 0, False) == first + 1
    began, ended, without = read(recorder)
    assert isinstance(began, Begun) and isinstance(ended, Ended) and isinstance(without, Begun)
    assert (began.pid, began.number) == (os.getpid(), first)
    assert began.run == Run("proj.settle", "ключ", "a?b?" + "c" * 251, 2, True)
    assert (ended.pid, ended.number) == (os.getpid(), first) and ended.at >= began.at
    assert without.run.key is None
    assert read(recorder) == []


def test_the_longest_names_and_keys_are_told_where_pipes_take_them_whole(recorder: Recorder) -> None:
    longest = "\N{GRINNING FACE}" * 255
    number = recorder.begin(longest, longest, longest, 0, False)
    assert (number is not None) == (select.PIPE_BUF > 3 * 255 * 4 + 100)


def test_a_full_pipe_leaves_runs_out_and_counts_them_and_keeps_every_end(recorder: Recorder) -> None:
    told = fill(recorder)
    assert len(told) > 1000
    assert begin(recorder) is None
    for number in told[:100]:
        recorder.end(number)  # returns at once, though there is no room for most
    assert begin(recorder) is None
    heard = read(recorder)
    after = begin(recorder)
    heard += read(recorder)
    began = [each for each in heard if isinstance(each, Begun)]
    assert [each.number for each in began] == [*told, after] and began[-1].dropped == 3
    assert [each.number for each in heard if isinstance(each, Ended)] == told[:100]


def test_a_record_that_could_be_torn_is_left_out(recorder: Recorder) -> None:
    assert recorder.begin("t", "k" * 5000, "id", 0, False) is None
    assert begin(recorder) is not None
    [began] = read(recorder)
    assert isinstance(began, Begun) and began.dropped == 1


def test_many_threads_and_children_tell_whole_records(recorder: Recorder) -> None:
    def work(count: int) -> None:
        for _ in range(count):
            number = begin(recorder)
            assert number is not None
            recorder.end(number)

    children = []
    for _ in range(2):  # before there are threads, as Celery forks
        if not (pid := os.fork()):
            try:
                work(300)
            finally:
                os._exit(0)
        children.append(pid)
    threads = [threading.Thread(target=work, args=(200,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pid in children:
        os.waitpid(pid, 0)
    records = read(recorder)
    begun = {(each.pid, each.number) for each in records if isinstance(each, Begun)}
    assert begun == {(each.pid, each.number) for each in records if isinstance(each, Ended)}
    assert len(begun) == 4 * 200 + 2 * 300 and {pid for pid, _ in begun} == {os.getpid(), *children}


STEPS = st.lists(st.sampled_from(["begin", "end", "killed"]), max_size=4)


class Child(Recorder):
    """A child with a slot and its reader, in one process; ``meanwhile`` happens in the midst of a reading."""

    def __init__(self) -> None:
        super().__init__(slots=2)
        self.enter(1)
        self.begun: list[tuple[int, int]] = []
        self.ended: list[tuple[int, int]] = []
        self.running: int | None = None
        self.meanwhile: list[str] = []

    def do(self, steps: list[str]) -> None:
        for step in steps:
            if step == "begin" and self.running is None:
                self.running = begin(self)
                assert self.running is not None
                self.begun.append((self._pid, self.running))
            elif step == "end" and self.running is not None:
                self.end(self.running)
                self.ended.append((self._pid, self.running))
                self.running = None
            elif step == "killed":  # and another child takes its place
                self._pid, self.running = self._pid + 1, None
                self.enter(1)

    def _standing(self) -> list[tuple[Any, ...]]:
        found = super()._standing()
        self.do(self.meanwhile)
        self.meanwhile = []
        return found


@given(st.lists(st.tuples(STEPS, STEPS), max_size=12))
def test_of_a_child_with_a_slot_each_run_is_told_once_whenever_it_is_read(
    rounds: list[tuple[list[str], list[str]]],
) -> None:
    child, heard = Child(), Heard()
    for before, child.meanwhile in rounds:
        child.do(before)
        known = list(child.begun), list(child.ended)
        child.read(heard)
        assert set(known[0]) <= set(heard.begun) and set(known[1]) <= set(heard.ended)
    child.read(heard)
    child.close()
    assert (sorted(heard.begun), heard.ended) == (child.begun, child.ended)


def test_a_run_has_the_times_of_its_begin_and_its_end_also_when_it_is_told_at_once(recorder: Recorder) -> None:
    recorder.enter(0)
    before = boot_clock()
    number = begin(recorder)
    assert number is not None
    between = boot_clock()
    recorder.end(number)
    began, ended = read(recorder)
    assert before <= began.at <= between <= ended.at <= boot_clock()


def test_a_run_under_which_a_child_was_killed_is_told_though_its_successor_runs_already(recorder: Recorder) -> None:
    def die() -> None:
        begin(recorder, "killed under it")
        os.kill(os.getpid(), signal.SIGKILL)

    killed = in_child(recorder, 0, die)
    os.waitpid(killed, 0)
    successor = in_child(recorder, 0, lambda: begin(recorder, "next"))
    os.waitpid(successor, 0)
    told = [(each.pid, each.run.task_id) for each in read(recorder) if isinstance(each, Begun)]
    assert told == [(killed, "killed under it"), (successor, "next")]
    assert read(recorder) == []


def test_a_process_id_that_comes_again_is_not_taken_for_its_predecessor(recorder: Recorder) -> None:
    recorder.enter(0)
    for _ in range(3):
        recorder.end(begin(recorder) or 0)
    heard = read(recorder)
    recorder._numbers = itertools.count(1)  # as forked anew; and the other slot still shows the old one
    recorder.enter(1)
    recorder.end(begin(recorder) or 0)
    heard += read(recorder)
    assert len(heard) == 8 and len(set(map(str, heard))) == 8


def test_what_a_killed_child_ran_is_told_also_if_there_was_no_room_when_its_successor_came(recorder: Recorder) -> None:
    def die() -> None:
        begin(recorder, "killed under it")
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(in_child(recorder, 0, die), 0)
    fill(recorder)
    recorder.enter(0)
    assert begin(recorder) is None
    heard = read(recorder)
    assert begin(recorder) is not None
    heard += read(recorder)
    assert [each.run.task_id for each in heard if isinstance(each, Begun)].count("killed under it") == 1


def test_more_children_than_slots_do_without(recorder: Recorder) -> None:
    os.waitpid(pid := in_child(recorder, 2, lambda: begin(recorder)), 0)
    [began] = read(recorder)
    assert isinstance(began, Begun) and began.pid == pid


def test_what_is_read_while_it_is_written_is_whole(recorder: Recorder) -> None:
    def work() -> None:
        for n in range(20_000):
            while (number := begin(recorder, str(n).ljust(n % 200, "x"))) is None:
                pass  # the reader is behind
            recorder.end(number)

    pid, heard = in_child(recorder, 0, work), Heard()
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None:
        recorder.read(heard)
    recorder.read(heard)
    begun = [each for each in heard if isinstance(each, Begun)]
    assert [each.run.task_id for each in begun] == [str(n).ljust(n % 200, "x") for n in range(20_000)]
    assert [each.number for each in heard if isinstance(each, Ended)] == [each.number for each in begun]


def test_what_a_child_wrote_when_it_was_killed_in_the_midst_of_it_is_not_told(recorder: Recorder) -> None:
    def die() -> None:
        begin(recorder)
        recorder._slots[20:30] = bytes(10)
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(in_child(recorder, 0, die), 0)
    assert read(recorder) == []
    os.waitpid(in_child(recorder, 0, bool), 0)
    assert read(recorder) == []


def in_child(recorder: Recorder, slot: int, work: Callable[[], object]) -> int:
    """Do it in a child that has a slot, if there is one; the child's process id."""
    if not (pid := os.fork()):
        try:
            recorder.enter(slot)
            work()
        finally:
            os._exit(0)
    return pid


def test_without_a_reader_a_task_goes_on_all_the_same() -> None:
    recorder = Recorder()
    os.close(recorder._reader)
    assert begin(recorder) is None
    os.close(recorder._writer)
    assert begin(recorder) is None
