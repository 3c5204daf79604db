"""``locks``: list, add, remove and clear-by, as ``JobSync`` does it."""

from __future__ import annotations

import pytest
from command_stage import Cluster, at_terminal, by_url, refused, said


def keys(database_url: str, *words: str) -> list[str]:
    return [each["key"] for each in said(by_url(database_url, "locks", "list", "--json", *words))["locks"]]


def add(database_url: str, *words: str) -> str:
    done = by_url(database_url, "locks", "add", *words)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_locks_are_set_listed_and_removed(cluster: Cluster, database_url: str) -> None:
    assert by_url(database_url, "locks", "list").stdout == "no locks\n"
    assert add(database_url, "7", "on%", "--by", "me", "--reason", "data is there") == "7 is locked to on%, by me\n"
    told = add(database_url, "8", "gpu%", "big%", "--expires-in-days", "0.5")
    assert told.startswith("8 is locked to gpu%, big%, by admin@") and "no live node matches" in told
    [first, second] = said(by_url(database_url, "locks", "list", "--json"))["locks"]
    assert (first["key"], first["patterns"], first["served"], first["reason"]) == ("7", ["on%"], True, "data is there")
    assert (second["served"], second["expires_at"] is None) == (False, False)
    done = by_url(database_url, "locks", "list")
    assert done.exit_code == 1 and done.stdout.startswith("2 locks, 1 of them to nodes that are not there\n")
    assert "gpu%" in at_terminal(database_url, "locks", "list")
    assert keys(database_url, "--unserved") == ["8"] and keys(database_url, "--by", "me") == ["7"]
    assert by_url(database_url, "locks", "remove", "7", "8").stdout == "2 keys unlocked\n"
    assert keys(database_url) == []


def test_what_one_creator_has_set_is_cleared(cluster: Cluster, database_url: str) -> None:
    for key, creator in (("1", "old-worker"), ("2", "old-worker"), ("3", "me")):
        add(database_url, key, "%", "--by", creator)
    assert by_url(database_url, "locks", "clear-by", "old-worker").stdout == "2 keys unlocked\n"
    assert keys(database_url) == ["3"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("remove", "7", "nobody"), "not locked, so nothing was unlocked: 'nobody'"),
        (("clear-by", "mee"), "no lock was set by 'mee'; did you mean 'me'?"),
        (("list", "--by", "you"), "no lock was set by 'you'; there are: me"),
        (("add", "7", ""), "node pattern ''"),
        (("add", "", "%"), "a key must have 1 to 255 characters"),
        (("add", "7", "%", "--expires-in-days", "-1"), "must expire in more than 0"),
        (("add", "7", "%\\"), "ends in an escape"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_changed(
    cluster: Cluster, database_url: str, words: tuple[str, ...], told: str
) -> None:
    add(database_url, "7", "on%", "--by", "me")
    assert told in refused(by_url(database_url, "locks", *words))
    assert keys(database_url) == ["7"]
