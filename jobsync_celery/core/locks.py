"""Task locks: node name patterns in order of preference, the pools they make, and who may serve a pool.

Patterns are those of SQL's LIKE: ``%`` is any text, ``_`` any one character, a backslash takes the next character
as it is. Case counts, and a pattern covers the whole name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from jobsync_celery.core.model import Member
from jobsync_celery.errors import LockInvalid

PATTERN_LENGTH = 255
PATTERN_COUNT = 16

_PARTS = re.compile(r"\\(?P<plain>.)|(?P<many>%+)|(?P<one>_)|(?P<other>.)", re.DOTALL)
_SHOWN_LENGTH = 40


def patterns_of(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return one pattern, or patterns in order of preference, as a task lock keeps them: checked, each once.

    Raises LockInvalid, with what to do instead, for anything but 1 to 16 different strings of 1 to 255 storable
    characters, and for an escape at the end of a pattern, which PostgreSQL refuses.
    """
    patterns = tuple(dict.fromkeys(map(_checked, _listed(value))))
    if not patterns:
        raise LockInvalid("a task lock needs a node pattern: name at least one, or '%' for every node")
    if len(patterns) > PATTERN_COUNT:
        raise LockInvalid(
            f"a task lock takes at most {PATTERN_COUNT} node patterns, not {len(patterns)}: "
            "let one pattern match several nodes, as '%gpu%' does"
        )
    return patterns


def pool_of(patterns: Sequence[str]) -> str:
    """Return the canonical text of an ordered list of patterns; no patterns are the pool of all that is not locked."""
    return json.dumps(patterns, ensure_ascii=False, separators=(",", ":")) if patterns else ""


def patterns_in(pool: str) -> tuple[str, ...]:
    """Return the patterns whose text `pool_of` made."""
    return tuple(json.loads(pool)) if pool else ()


def matches(pattern: str, name: str) -> bool:
    """Tell what PostgreSQL tells of ``name LIKE pattern``, for a pattern that `patterns_of` admits.

    Time is at most the product of both lengths, whatever the pattern.
    """
    return _expression(pattern).fullmatch(name) is not None


def eligible(patterns: Sequence[str], members: Iterable[Member]) -> list[Member]:
    """Return the live members that match the first pattern that any live member matches, in the order given.

    Empty if no live member matches any; so it is for no patterns at all, since nothing is locked then.
    """
    live = [member for member in members if member.state == "live"]
    for pattern in patterns:
        matching = _expression(pattern).fullmatch
        if chosen := [member for member in live if matching(member.name)]:
            return chosen
    return []


def _listed(value: object) -> Iterable[object]:
    if isinstance(value, str):
        return [value]
    # Of those that can be iterated over, bytes give no strings, sets no order, and a mapping was meant otherwise.
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, set, frozenset, Mapping)):
        return value
    wanted = "a string, or a list of strings in order of preference"
    raise LockInvalid(f"node patterns must be {wanted}, not {type(value).__name__}")


def _checked(pattern: object) -> str:
    if not isinstance(pattern, str):
        raise LockInvalid(f"a node pattern must be a string, not {type(pattern).__name__}")
    # Not the value itself: an enumeration member that is a string must give its text.
    text = str.__str__(pattern)
    if fault := _fault(text):
        shown = text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}…"
        raise LockInvalid(f"node pattern {shown!r} {fault}")
    return text


def _fault(text: str) -> str | None:
    if not 0 < len(text) <= PATTERN_LENGTH:
        return f"has {len(text)} characters: write 1 to {PATTERN_LENGTH}; '%' stands for any text"
    if "\0" in text:
        return "contains the character NUL, which no node name has: leave it out"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "contains a lone surrogate, which no database stores: write valid Unicode"
    if (len(text) - len(text.rstrip("\\"))) % 2:
        return r"ends in an escape with nothing to take as it is: write \\ for a backslash"
    return None


@lru_cache(maxsize=1024)
def _expression(pattern: str) -> re.Pattern[str]:
    """Return the regular expression for `fullmatch`."""
    stretches = [""]  # of known length each, with any text between them
    for part in _PARTS.finditer(pattern):
        if part["many"]:
            stretches.append("")
        else:
            stretches[-1] += "." if part["one"] else re.escape(part["plain"] or part["other"])
    if len(stretches) == 1:
        return re.compile(stretches[0], re.DOTALL)
    first, *middle, last = stretches
    # A stretch found where it first occurs need never be looked for again further on. A lookahead is never gone back
    # into, so this keeps the search from growing with the power of the number of stretches. (Atomic groups say the
    # same from Python 3.11 on.)
    found = (f"(?=(?P<s{number}>.*?{stretch}))(?P=s{number})" for number, stretch in enumerate(middle))
    return re.compile(f"{first}{''.join(found)}.*{last}", re.DOTALL)
