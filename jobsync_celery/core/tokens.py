"""Keys to tokens, and tokens to partitions.

The hash functions are those of the jobsync library, so that its users' tokens stay.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from uuid import UUID

from jobsync_celery.errors import KeyInvalid

KEY_LENGTH = 255
#: Integers below this are valid keys as they are.
_SHORT = 1 << 63

_sha256 = hashlib.sha256
_first_eight_bytes = struct.Struct(">Q").unpack_from


def md5(text: str) -> int:
    """Return the whole MD5 digest of the UTF-8 text as a big-endian integer."""
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest(), "big")


def sha256(text: str) -> int:
    """Return the first eight bytes of the text's SHA-256 as a big-endian integer."""
    number: int = _first_eight_bytes(_sha256(text.encode()).digest())[0]
    return number


def double_sha256(text: str) -> int:
    """Return the first eight bytes of the SHA-256 of the text's SHA-256 as a big-endian integer."""
    number: int = _first_eight_bytes(_sha256(_sha256(text.encode()).digest()).digest())[0]
    return number


HASH_FUNCTIONS: Mapping[str, Callable[[str], int]] = MappingProxyType(
    {"md5": md5, "sha256": sha256, "double_sha256": double_sha256}
)


def key_text(value: object) -> str:
    """Return a key as the text that is hashed and stored; 42 and "42" are the same key.

    Takes a string, an integer or a UUID. Raises KeyInvalid for any other type (booleans too), and for
    text that is empty, longer than 255 characters, or cannot be stored (NUL, lone surrogates).
    """
    if type(value) is str and value.isascii() and 0 < len(value) <= KEY_LENGTH and "\0" not in value:
        return value  # most are such, and programs ask for every one of theirs
    if type(value) is int and -_SHORT < value < _SHORT:
        return repr(value)
    text = _as_text(value)
    if not 0 < len(text) <= KEY_LENGTH:
        raise KeyInvalid(f"a key must have 1 to {KEY_LENGTH} characters")
    if "\0" in text:
        raise KeyInvalid("a key must not contain the character NUL")
    if not text.isascii():
        _require_unicode(text)
    return text


def token_for(key: str, total_tokens: int, hash_function: str) -> int:
    """Return the token of a key's text: its hash modulo `total_tokens`."""
    return _function(hash_function)(key) % total_tokens


@dataclass(frozen=True, slots=True)
class TokenMap:
    """Tokens 0 to total_tokens - 1 in contiguous partitions that differ in size by at most one.

    The first ``total_tokens % partitions`` partitions hold one token more. Raises ValueError unless
    1 <= partitions <= total_tokens, and for an unknown hash function.
    """

    total_tokens: int
    partitions: int
    hash_function: str
    _hash: Callable[[str], int] = field(init=False, repr=False, compare=False)
    _size: int = field(init=False, repr=False, compare=False)
    _larger: int = field(init=False, repr=False, compare=False)
    _boundary: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.partitions <= self.total_tokens:
            raise ValueError(f"partitions must be 1 to total_tokens ({self.total_tokens}), not {self.partitions}")
        size, larger = divmod(self.total_tokens, self.partitions)
        # Worked out once: the router asks at every publish.
        object.__setattr__(self, "_hash", _function(self.hash_function))
        object.__setattr__(self, "_size", size)
        object.__setattr__(self, "_larger", larger)
        object.__setattr__(self, "_boundary", larger * (size + 1))

    def token(self, key: str) -> int:
        """Return the token of a key's text."""
        return self._hash(key) % self.total_tokens

    def partition(self, token: int) -> int:
        """Return the partition that holds a token; ValueError for a token out of range."""
        if not 0 <= token < self.total_tokens:
            raise ValueError(f"token must be 0 to {self.total_tokens - 1}, not {token}")
        return self._partition(token)

    def partition_for(self, key: str) -> int:
        """Return the partition of a key's text."""
        return self._partition(self._hash(key) % self.total_tokens)

    def range(self, partition: int) -> tuple[int, int]:
        """Return a partition's first and last token, both inclusive; ValueError if there is no such one."""
        if not 0 <= partition < self.partitions:
            raise ValueError(f"partition must be 0 to {self.partitions - 1}, not {partition}")
        first = partition * self._size + min(partition, self._larger)
        return first, first + self._size - (partition >= self._larger)

    def _partition(self, token: int) -> int:
        beyond = token - self._boundary
        if beyond < 0:
            return token // (self._size + 1)
        return self._larger + beyond // self._size


class TokenSet(Set[int]):
    """The tokens of some partitions, as a set that is worked out only as far as it is asked.

    Partitions beyond those of the map have no tokens of their own.
    """

    def __init__(self, tokens: TokenMap, partitions: Iterable[int]) -> None:
        self._tokens = tokens
        self._partitions = frozenset(number for number in partitions if 0 <= number < tokens.partitions)

    def __contains__(self, token: object) -> bool:
        if not isinstance(token, int) or not 0 <= token < self._tokens.total_tokens:
            return False
        return self._tokens.partition(token) in self._partitions

    def __iter__(self) -> Iterator[int]:
        for number in sorted(self._partitions):
            first, last = self._tokens.range(number)
            yield from range(first, last + 1)

    def __len__(self) -> int:
        ranges = map(self._tokens.range, self._partitions)
        return sum(last - first + 1 for first, last in ranges)

    def __hash__(self) -> int:
        return self._hash()

    def __repr__(self) -> str:
        return f"<{len(self)} tokens of {len(self._partitions)} partitions>"

    @classmethod
    def _from_iterable(cls, tokens: Iterable[int]) -> Set[int]:  # type: ignore[override] # what & and | return
        return frozenset(tokens)


def _function(name: str) -> Callable[[str], int]:
    try:
        return HASH_FUNCTIONS[name]
    except KeyError:
        raise ValueError(f"hash function must be one of {', '.join(HASH_FUNCTIONS)}, not {name!r}") from None


def _as_text(value: object) -> str:
    if isinstance(value, str):
        # Not str(): an enumeration member that is a string must give its text, as serializers do.
        return value if type(value) is str else str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        # Not str(), for the same reason; and Python refuses to print integers beyond some thousand digits.
        return int.__repr__(value) if value.bit_length() < 4 * KEY_LENGTH else "9" * (KEY_LENGTH + 1)
    if isinstance(value, UUID):
        return str(value)
    raise KeyInvalid(f"a key must be a string, an integer or a UUID, not {type(value).__name__}")


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise KeyInvalid("a key must be valid Unicode: it contains a lone surrogate") from error
