"""The pipe from the processes that run tasks: it makes nobody wait, and tells what it could not tell."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from jobsync_celery.core.observation import Run
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


def read(recorder: Recorder) -> Heard:
    heard = Heard()
    recorder.read(heard)
    return heard


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
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


def test_without_a_reader_a_task_goes_on_all_the_same() -> None:
    recorder = Recorder()
    os.close(recorder._reader)
    assert begin(recorder) is None
    os.close(recorder._writer)
    assert begin(recorder) is None
