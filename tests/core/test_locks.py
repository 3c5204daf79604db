from __future__ import annotations

import enum
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobsync_celery.core.locks import (
    PATTERN_COUNT,
    PATTERN_LENGTH,
    eligible,
    matches,
    patterns_in,
    patterns_of,
    pool_of,
)
from jobsync_celery.core.model import Member
from jobsync_celery.errors import LockInvalid

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\\"), min_size=1, max_size=20)


def test_one_pattern_is_a_list_of_one() -> None:
    assert patterns_of("%gpu%") == ("%gpu%",)


def test_patterns_keep_their_order_and_repeated_ones_their_first_place() -> None:
    assert patterns_of(["b%", "a%", "b%", "%", "a%"]) == ("b%", "a%", "%")
    assert patterns_of(iter(["b", "a"])) == ("b", "a")


def test_a_string_of_an_enumeration_gives_its_text() -> None:
    class Kind(str, enum.Enum):
        GPU = "%gpu%"

    assert [type(pattern) for pattern in patterns_of(Kind.GPU)] == [str]
    assert pool_of(patterns_of([Kind.GPU])) == '["%gpu%"]'


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("", r"node pattern '' has 0 characters: write 1 to 255"),
        (["a", ""], "has 0 characters"),
        ("x" * 256, "has 256 characters"),
        ([], "name at least one"),
        ([str(number) for number in range(17)], "at most 16 node patterns, not 17: let one pattern match several"),
        (None, "must be a string, or a list of strings in order of preference, not NoneType"),
        (7, "not int"),
        (b"gpu", "not bytes"),
        ({"a", "b"}, "in order of preference, not set"),
        ({"a": 1}, "not dict"),
        (["a", 7], "a node pattern must be a string, not int"),
        ([["a"]], "must be a string, not list"),
        ("a\0b", "contains the character NUL"),
        ("a\ud800", "contains a lone surrogate"),
        ("a\\", r"ends in an escape with nothing to take as it is: write \\\\ for a backslash"),
        ("a\\\\\\", "ends in an escape"),
    ],
)
def test_impossible_patterns_are_refused_with_what_to_do(value: Any, rule: str) -> None:
    with pytest.raises(LockInvalid, match=rule) as caught:
        patterns_of(value)
    assert len(str(caught.value)) < 200
    assert json.loads(json.dumps(caught.value.args)) == list(caught.value.args)


def test_patterns_at_the_limits_are_taken() -> None:
    longest = tuple(f"{number:02}" + "x" * (PATTERN_LENGTH - 2) for number in range(PATTERN_COUNT))
    assert patterns_of(longest) == longest
    assert patterns_of([*longest, *longest]) == longest
    assert patterns_of("a\\\\") == ("a\\\\",)


@given(st.lists(texts, unique=True, max_size=PATTERN_COUNT))
def test_a_pool_is_told_by_its_patterns_and_their_order(patterns: list[str]) -> None:
    pool = pool_of(patterns)
    assert patterns_in(pool) == tuple(patterns)
    assert (pool == "") == (not patterns)
    assert pool == pool_of(tuple(patterns))
    if len(patterns) > 1:
        assert pool_of(patterns[::-1]) != pool


def test_a_pool_is_compact_and_readable() -> None:
    assert pool_of(("%gpu%", "büro-_")) == '["%gpu%","büro-_"]'


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("%gpu%", "worker-gpu-3", True),
        ("%gpu%", "gpu", True),
        ("%gpu%", "worker-GPU", False),
        ("us-east-%", "us-east-1", True),
        ("us-east-%", "eu-us-east-1", False),
        ("gpu", "gpu-1", False),
        ("gpu-_", "gpu-1", True),
        ("gpu-_", "gpu-", False),
        ("gpu-_", "gpu-12", False),
        ("_", "\n", True),
        ("%", "", True),
        ("_%_", "a", False),
        ("a%a", "a", False),
        ("a\\_b", "a_b", True),
        ("a\\_b", "axb", False),
        ("100\\%", "100%", True),
        ("a\\\\%", "a\\b", True),
        ("a\\b", "ab", True),
        ("a.c", "abc", False),
        ("celery@%", "celery@host.example", True),
        ("%ab%b%", "aab", False),
    ],
)
def test_patterns_mean_what_they_mean_in_sql(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


@given(texts)
def test_a_name_escaped_matches_itself_only(name: str) -> None:
    escaped = re.sub(r"([%_\\])", r"\\\1", name)
    assert matches(escaped, name)
    assert not matches(escaped, f"{name}x")


def test_no_pattern_takes_long() -> None:
    begun = time.process_time()
    assert not matches("%a" * 127 + "b", "a" * 255)
    assert not matches("%_a" * 85, "ab" * 127)
    assert time.process_time() - begun < 1


def test_the_first_pattern_that_a_live_node_matches_decides() -> None:
    first, second, third = Member("gpu-1", 1), Member("cpu-1", 2), Member("gpu-2", 3)
    patterns = ("gpu%", "cpu%")
    assert eligible(patterns, [third, second, first]) == [third, first]
    assert eligible(patterns, [second]) == [second]
    assert eligible(("tpu%", *patterns), [first, second]) == [first]
    assert eligible(("tpu%",), [first, second]) == []
    assert eligible((), [first]) == []


def test_only_live_nodes_are_eligible() -> None:
    gone = [Member("gpu-1", 1, "draining"), Member("gpu-2", 2, "dead"), Member("gpu-3", 3, "left")]
    assert eligible(("gpu%",), gone) == []
    assert eligible(("gpu%", "%"), [*gone, Member("cpu-1", 4)]) == [Member("cpu-1", 4)]
