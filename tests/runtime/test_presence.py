"""Presence: a name is held by a process and by the children that outlive it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from stage import eventually

from jobsync_celery.runtime.presence import Presence


@pytest.fixture
def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What keeps this test's names apart; its lock files go with the test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return uuid.uuid4().hex


def orphan(scope: str) -> tuple[str, int, int]:
    """A worker that held the name and died; its child lives on until the descriptor is closed."""
    told, telling = os.pipe()
    waiting, release = os.pipe()
    parent = os.fork()
    if parent == 0:
        presence = Presence(scope, "a")
        if os.fork() == 0:  # inherits the open file
            os.close(release)
            os.read(waiting, 1)
            os._exit(0)
        os.write(telling, presence.identity.encode())
        os._exit(0)
    os.close(telling)
    os.close(waiting)
    os.waitpid(parent, 0)
    identity = os.read(told, 1000).decode()
    os.close(told)
    return identity, release, parent


def test_one_process_holds_a_name_and_another_name_is_free(scope: str) -> None:
    first, second, other = Presence(scope, "a"), Presence(scope, "a"), Presence(scope, "b")
    assert first.held and other.held and not second.held
    assert not second.proves_gone(first.identity)
    first.close()
    assert second.proves_gone(first.identity)
    for presence in (second, other):
        presence.close()


def test_who_leaves_in_good_order_leaves_no_file_and_no_proof_behind(scope: str, tmp_path: Path) -> None:
    first, second = Presence(scope, "a"), Presence(scope, "a")
    identity = first.identity
    first.remove()
    assert not list(tmp_path.iterdir())
    third = Presence(scope, "a")
    assert third.held and not third.proves_gone(identity)
    assert second.hold() and not second.proves_gone(third.identity) and not third.proves_gone(second.identity)
    second.remove()
    assert list(tmp_path.iterdir())
    third.remove()
    assert not list(tmp_path.iterdir())


def test_another_scope_is_another_name(scope: str) -> None:
    first, second = Presence(scope, "a"), Presence(f"{scope}x", "a")
    assert first.held and second.held
    assert not second.proves_gone(first.identity)
    first.close()
    second.close()


def test_a_child_that_outlives_its_parent_holds_the_name(scope: str) -> None:
    identity, release, _ = orphan(scope)
    successor = Presence(scope, "a")
    assert not successor.held and not successor.proves_gone(identity)
    os.close(release)  # the child ends
    eventually(lambda: successor.proves_gone(identity))
    assert successor.held
    successor.close()


def test_only_the_same_file_proves_anything(scope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Presence(scope, "a")
    identity = first.identity
    first.close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    second = Presence(scope, "a")
    assert second.held and not second.proves_gone(identity)
    boot, _, rest = identity.partition(":")
    assert boot and not second.proves_gone(f"another-boot:{rest}")
    assert not second.proves_gone("")
    second.close()


def test_a_file_that_was_cleaned_away_proves_nothing(scope: str, tmp_path: Path) -> None:
    first = Presence(scope, "a")
    for path in tmp_path.glob("jobsync-*.lock"):
        path.unlink()
    second = Presence(scope, "a")
    assert second.held and not second.proves_gone(first.identity)
    first.close()
    second.close()


def test_a_process_that_does_not_hold_the_file_never_looks_gone_to_the_next(scope: str) -> None:
    """It started while a child of its predecessor held the name: then nobody holds it, yet it lives."""
    _, release, _ = orphan(scope)
    alive = Presence(scope, "a")
    assert not alive.held
    registered = alive.identity
    os.close(release)
    third = Presence(scope, "a")
    eventually(lambda: third.hold())
    assert not third.proves_gone(registered)
    third.close()
    alive.close()
