"""What a page gives its reader to type, in the order of the page.

Convention of the pages: what is indented is typed into a shell; what is fenced says what it is. A Python snippet whose
introduction ends in the name of a file, as in "in `proj.py`:", is a part of that file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.sql")])

_FENCE = re.compile(r"^```(\w*)$")
_INDENT = "    "
_FILE = re.compile(r"`(\w+\.py)`:$")


@dataclass(frozen=True)
class Snippet:
    """Something to type. ``file``: the file that it is a part of."""

    page: str
    line: int
    kind: str
    text: str
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines of a shell snippet, one command each."""
        return self.text.replace("\\\n", "").splitlines()

    @property
    def statements(self) -> list[str]:
        """The statements of an SQL snippet."""
        return statements(self.text)


def statements(sql: str) -> list[str]:
    """The statements of a script, without its comments."""
    bare = "\n".join(line for line in sql.splitlines() if not line.startswith("--"))
    return [one.strip() for one in bare.split(";") if one.strip()]


def snippets(page: Path) -> list[Snippet]:
    """All snippets of a page; a script of SQL is a single one."""
    name, text = str(page.relative_to(ROOT)), page.read_text()
    if page.suffix == ".sql":
        return [Snippet(name, 1, "sql", text)]
    found: list[Snippet] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        if opening:
            end = lines.index("```", number + 1)
            body = "\n".join(lines[number + 1 : end]) + "\n"
            found.append(Snippet(name, number + 1, opening[1] or "text", body, _file(lines[:number])))
            number = end + 1
        elif lines[number].startswith(_INDENT) and (number == 0 or not lines[number - 1].strip()):
            end = number
            while end < len(lines) and (lines[end].startswith(_INDENT) or not lines[end].strip()):
                end += 1
            body = "\n".join(line[len(_INDENT) :] for line in lines[number:end]).rstrip() + "\n"
            found.append(Snippet(name, number + 1, "sh", body))
            number = end
        else:
            number += 1
    return found


def _file(before: list[str]) -> str | None:
    """The file that the last line before a snippet names."""
    named = _FILE.search(next((line for line in reversed(before) if line.strip()), ""))
    return None if named is None else named[1]
