"""No snippet of any page is forgotten, and none is left out without a reason."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import metadata

import pytest
import test_examples

from pages.left_out import COMMANDS, KINDS, entry_of
from pages.snippets import PAGES, ROOT, Snippet, snippets

#: Page -> the test that follows it.
FOLLOWED = {
    "README.md": "test_readme_and_quickstart",
    "docs/quickstart.md": "test_readme_and_quickstart",
    "docs/OPERATOR_GUIDE.md": "test_operator_guide",
    "docs/Cheatsheet.sql": "test_operator_guide",
    "docs/USAGE_GUIDE.md": "test_usage_guide",
    "docs/how-to/fencing.md": "test_other_pages",
    "docs/how-to/task-locks.md": "test_other_pages",
    "docs/reference/api.md": "test_other_pages",
    "docs/reference/cli.md": "test_other_pages",
    "docs/how-to/observe.md": "test_observe_page",
    "docs/reference/doctor.md": "test_other_pages",
    "docs/reference/events.md": "test_other_pages",
    **{f"docs/how-to/{page}": "test_examples" for page in test_examples.PRINTED},
}
FAULTS = ROOT / "tests" / "faults" / "__main__.py"
TYPED = {"python", "sql", "sh"}
EVERYTHING = [snippet for page in PAGES for snippet in snippets(page)]


def commands() -> list[tuple[Snippet, str]]:
    return [(snippet, command) for snippet in EVERYTHING if snippet.kind == "sh" for command in snippet.commands]


def test_every_snippet_is_typed_or_left_out_for_a_reason() -> None:
    everything = {(snippet.page, snippet.kind) for snippet in EVERYTHING}
    typed = {(page, kind) for page in FOLLOWED for kind in TYPED}
    left = everything - {(snippet.page, "sh") for snippet, command in commands() if not entry_of(snippet, command)}
    assert everything - typed - set(KINDS) - {(page, kind) for page, kind in left if kind == "sh"} == set()
    assert set(FOLLOWED) <= {page for page, _ in everything}


def test_every_page_is_followed_where_it_is_said() -> None:
    texts = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    assert not [page for page, test in FOLLOWED.items() if page.rpartition("/")[2] not in texts[test]]


def test_every_reason_is_needed() -> None:
    assert {entry for snippet, command in commands() if (entry := entry_of(snippet, command))} == set(COMMANDS)
    assert set(KINDS) <= {(snippet.page, snippet.kind) for snippet in EVERYTHING}


@pytest.mark.parametrize("command", sorted({command for snippet, command in commands() if entry_of(snippet, command)}))
def test_what_is_left_out_is_at_least_right(command: str) -> None:
    subprocess.run(["sh", "-n", "-c", command], check=True)
    program, *words = command.partition("  #")[0].split()
    if program == "make":
        subprocess.run(["make", "-n", *words[:1]], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    elif program in ("pip", "export"):
        extras = set(metadata("jobsync_celery").get_all("Provides-Extra") or ())
        assert set(re.findall(r"\[(\w+)\]", command)) <= extras
    elif command.startswith("python -m tests.faults"):
        assert not [option for option in re.findall(r"--[a-z-]+", command) if f'"{option}"' not in FAULTS.read_text()]
    else:
        assert program in ("systemctl", "celery", "python"), command
