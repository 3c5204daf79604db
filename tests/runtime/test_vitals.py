"""The probe file, and what probes make of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobsync_celery.errors import JobsyncError
from jobsync_celery.runtime.vitals import (
    DRAINING,
    FORWARDS,
    NO_LEASE,
    OFF,
    STARTING,
    STOPPING,
    TAKES_PART,
    Vitals,
    VitalsFile,
    as_dict,
    liveness,
    read,
    readiness,
)

NOW = 1000.0
LIMIT = 60.0
WELL = Vitals("w1@host", 7, TAKES_PART, written=NOW - 0.5, turned=NOW - 1.0, trusted_until=NOW + 12.0)


def alive(seen: Vitals) -> bool:
    return liveness(seen, NOW, LIMIT).well


def ready(seen: Vitals) -> bool:
    return readiness(seen, NOW, LIMIT).well


def test_a_worker_that_takes_part_is_live_and_ready() -> None:
    assert alive(WELL) and ready(WELL)
    assert readiness(WELL, NOW, LIMIT).why == "w1@host takes part, its lease is good for 12.0 s"


def test_a_loop_that_has_not_turned_for_longer_than_the_limit_is_not_live() -> None:
    hung = WELL._replace(turned=NOW - 61.0)
    assert liveness(hung, NOW, LIMIT) == (False, "the event loop of w1@host has not turned for 61 s")
    assert alive(WELL._replace(turned=NOW - 59.0))


def test_a_loop_that_need_not_turn_is_live() -> None:
    assert alive(WELL._replace(turned=None, state=STOPPING))


def test_a_process_that_writes_no_more_is_neither_live_nor_ready() -> None:
    gone = WELL._replace(written=NOW - 61.0, turned=None, trusted_until=NOW + 100)
    assert not alive(gone) and not ready(gone)


def test_what_was_written_before_the_machine_was_started_says_nothing() -> None:
    assert "before the machine was started" in liveness(WELL._replace(written=NOW + 500.0), NOW, LIMIT).why


@pytest.mark.parametrize("state", [STARTING, NO_LEASE, DRAINING, STOPPING])
def test_a_worker_that_takes_no_part_though_it_should_is_live_and_not_ready(state: str) -> None:
    assert alive(WELL._replace(state=state)) and not ready(WELL._replace(state=state))


@pytest.mark.parametrize("state", [FORWARDS, OFF])
def test_a_worker_that_is_not_meant_to_take_part_is_ready(state: str) -> None:
    assert ready(WELL._replace(state=state, trusted_until=None))


def test_a_lease_that_has_ended_since_it_was_written_down_is_not_ready() -> None:
    assert readiness(WELL._replace(trusted_until=NOW - 0.1), NOW, LIMIT).why == "the lease of w1@host has ended"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "probe"
    file = VitalsFile(str(path))
    assert read(str(path)) is None  # it is starting
    for seen in (WELL, WELL._replace(node="wörker@host", turned=None), WELL):
        file.write(seen)
        assert read(str(path)) == seen
    assert as_dict(WELL, NOW)["lease_left_sec"] == 12.0


def test_writing_needs_no_room_after_the_first_time(tmp_path: Path) -> None:
    path = tmp_path / "probe"
    file = VitalsFile(str(path))
    file.write(WELL)
    before = path.stat()
    file.write(WELL._replace(node="w" * 255, turned=1 / 3))
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)


def test_a_file_that_was_cleared_up_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "probe"
    file = VitalsFile(str(path))
    file.write(WELL)
    path.unlink()
    file.write(WELL)
    assert read(str(path)) == WELL


def test_a_new_worker_does_not_keep_what_the_last_one_wrote(tmp_path: Path) -> None:
    path = tmp_path / "probe"
    VitalsFile(str(path)).write(WELL)
    VitalsFile(str(path))
    assert read(str(path)) is None


def test_a_link_is_not_followed_and_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    for path in (link, tmp_path / "none" / "probe"):
        with pytest.raises(JobsyncError, match=f"probe file {path} cannot be written"):
            VitalsFile(str(path))
    assert not os.path.exists(tmp_path / "elsewhere")


@pytest.mark.parametrize("text", ["[]", "{", '{"node": "w1"}', "null", "\x00" * 10])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "probe"
    path.write_text(text)
    with pytest.raises(JobsyncError, match="is no probe file"):
        read(str(path))
