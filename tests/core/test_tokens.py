from __future__ import annotations

import enum
import itertools
import pickle
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobsync_celery.core.tokens import HASH_FUNCTIONS, TokenMap, key_text, token_for
from jobsync_celery.errors import KeyInvalid

# Worked out with coreutils and Perl (md5sum, sha256sum, pack), not with this code.
VECTORS = [
    ("md5", "42", 0xA1D0C6E83F027327D8461063F4AC58A6),
    ("md5", "account-7", 0xBF4A8BED0DB23465C6EF7663188BFA49),
    ("md5", "ключ", 0xC3657B66C60A307292AAE11F07B04AE7),
    ("sha256", "42", 0x73475CB40A568E8D),
    ("sha256", "account-7", 0x9B4073FE69EB8DD5),
    ("sha256", "ключ", 0x1DE36A32AF798DA0),
    ("double_sha256", "42", 0x01CE41EF545F9BF8),
    ("double_sha256", "account-7", 0x93ECAA1D6426FCB4),
    ("double_sha256", "ключ", 0x4B0F1754071819CE),
]

sizes = st.integers(1, 3000).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total)))


class Region(str, enum.Enum):
    NORTH = "north"


class Priority(enum.IntEnum):
    HIGH = 7


@pytest.mark.parametrize(("function", "key", "value"), VECTORS)
def test_hash_functions_give_the_known_values(function: str, key: str, value: int) -> None:
    assert HASH_FUNCTIONS[function](key) == value
    assert token_for(key, 10000, function) == value % 10000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a b", "a b"),
        (42, "42"),
        (-1, "-1"),
        (Region.NORTH, "north"),
        (Priority.HIGH, "7"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("x" * 255, "x" * 255),
        ("ж" * 255, "ж" * 255),
    ],
)
def test_a_key_is_normalised_to_plain_text(value: object, text: str) -> None:
    assert key_text(value) == text
    assert type(key_text(value)) is str


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 1.0, b"x", (), "", "x" * 256, "a\0b", "\ud800", 10**255),
        pytest.param(-(10**9999), id="more digits than Python prints"),
    ],
)
def test_a_value_that_cannot_be_a_key_is_refused_with_the_rule(value: object) -> None:
    with pytest.raises(KeyInvalid, match="a key must"):
        key_text(value)


@settings(deadline=None)
@given(st.one_of(st.text(), st.integers()))
def test_every_accepted_key_is_storable_and_hashable(value: object) -> None:
    try:
        text = key_text(value)
    except KeyInvalid:
        return
    assert 1 <= len(text) <= 255
    assert all(0 <= token_for(text, 997, name) < 997 for name in HASH_FUNCTIONS)


@settings(deadline=None)
@given(sizes)
def test_partitions_are_contiguous_and_differ_in_size_by_at_most_one(size: tuple[int, int]) -> None:
    tokens = TokenMap(*size, "md5")
    ranges = [tokens.range(partition) for partition in range(tokens.partitions)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == tokens.total_tokens - 1
    assert all(left[1] + 1 == right[0] for left, right in itertools.pairwise(ranges))
    widths = [last - first + 1 for first, last in ranges]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] - widths[-1] <= 1


@settings(deadline=None)
@given(sizes)
def test_a_token_lies_in_the_range_of_its_partition(size: tuple[int, int]) -> None:
    tokens = TokenMap(*size, "md5")
    for partition in range(tokens.partitions):
        first, last = tokens.range(partition)
        assert tokens.partition(first) == tokens.partition(last) == partition


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1), st.sampled_from(sorted(HASH_FUNCTIONS)))
def test_a_keys_partition_is_the_partition_of_its_token(key: str, function: str) -> None:
    tokens = TokenMap(10000, 64, function)
    assert tokens.token(key) == token_for(key, 10000, function)
    assert tokens.partition_for(key) == tokens.partition(tokens.token(key))


@pytest.mark.parametrize("arguments", [(0, 1, "md5"), (10, 11, "md5"), (10, 0, "md5"), (10, 5, "crc32")])
def test_an_impossible_token_map_is_refused(arguments: tuple[int, int, str]) -> None:
    with pytest.raises(ValueError, match="must be"):
        TokenMap(*arguments)


def test_tokens_and_partitions_out_of_range_are_refused() -> None:
    tokens = TokenMap(10, 3, "md5")
    for ask in (tokens.partition, tokens.range):
        for number in (-1, 10):
            with pytest.raises(ValueError, match="must be 0 to"):
                ask(number)


def test_a_token_map_survives_pickling() -> None:
    tokens = TokenMap(10000, 64, "sha256")
    copy = pickle.loads(pickle.dumps(tokens))
    assert copy == tokens
    assert copy.partition_for("k") == tokens.partition_for("k")
