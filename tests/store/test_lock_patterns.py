"""Node name patterns in the core mean what PostgreSQL's LIKE means by them."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from jobsync_celery.core.locks import matches, patterns_of
from jobsync_celery.errors import LockInvalid
from jobsync_celery.store.database import Link

LIKE = text(
    "SELECT name LIKE pattern FROM unnest(CAST(:names AS text[]), CAST(:patterns AS text[]))"
    " WITH ORDINALITY AS pairs (name, pattern, place) ORDER BY place"
)


def admitted(pattern: str) -> bool:
    try:
        return patterns_of(pattern) == (pattern,)
    except LockInvalid:
        return False


# Few letters, so that patterns often match; the rest is what regular expressions and other locales take specially.
names = st.text("aabB%_\\", max_size=8) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
patterns = st.text("aab%%_\\", min_size=1, max_size=10) | names
pairs = st.tuples(patterns.filter(admitted), names)


def test_patterns_match_as_in_postgresql(link: Link) -> None:
    seen = set()

    @settings(max_examples=20, deadline=None)
    @given(st.lists(pairs, min_size=50, max_size=200))
    @example([("_", "\n"), ("%\r\n", "a\r\n"), ("_", "é"), ("_", "e\u0301"), ("_", "😀"), ("ß", "SS"), ("i", "İ")])
    @example([("[ab]", "a"), ("a.b", "axb"), ("^a$", "a"), ("a|b", "a"), ("(a)\\1", "aa"), ("%" * 255, "")])
    @example([("%a" * 20 + "b", "a" * 60), ("a%" * 5, "a" * 5), ("_%" * 4, "abc"), ("\\a\\%", "a%")])
    def agree(drawn: list[tuple[str, str]]) -> None:
        rows = link.statement(LIKE, {"names": [name for _, name in drawn], "patterns": [each for each, _ in drawn]})
        told = [row[0] for row in rows]
        assert [matches(pattern, name) for pattern, name in drawn] == told
        seen.update(told)

    agree()
    assert seen == {True, False}
