"""TAB completes commands, nodes, and who has locked what; by a URL, by an app, and as an interactive bash does it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from command_stage import Cluster, by_url

PROGRAMS = Path(sys.executable).parent
APP = """
from celery import Celery
from jobsync_celery import JobSync
app = Celery("proj", broker="memory://")
JobSync(app, {{"url": {url!r}, "partitions": 4, "total_tokens": 100, "hash_function": "md5"}})
"""


@pytest.fixture
def url(cluster: Cluster, database_url: str) -> str:
    cluster.join("other-2", 3)
    by_url(database_url, "locks", "add", "key-1", "gpu%", "--by", "script")
    return database_url


def offered(program: str, line: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> list[str]:
    """What click offers for the last word of a line."""
    asked = {f"_{program.upper()}_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(
        [PROGRAMS / program], env={**os.environ, **(env or {}), **asked}, cwd=cwd, capture_output=True, text=True,
        check=True, timeout=30,
    )  # fmt: skip
    assert not done.stderr
    return [each.partition(",")[2] for each in done.stdout.split()]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("jobsync drain --url {url} o", ["one", "other-2"]),
        ("jobsync locks clear-by --url {url} ", ["script"]),
        ("jobsync locks remove --url {url} k", ["key-1"]),
    ],
)
def test_the_database_that_a_line_names_is_asked_for_names(url: str, line: str, names: list[str]) -> None:
    assert offered("jobsync", line.format(url=url)) == names


def test_an_app_is_asked_where_it_has_its_tables(url: str, tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text(APP.format(url=url))
    assert offered("celery", "celery -A proj jobsync drain on", cwd=tmp_path) == ["one"]


def test_where_nobody_answers_nothing_is_offered_and_nothing_said(tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text("raise RuntimeError('half written')")
    assert offered("celery", "celery -A proj jobsync drain ", cwd=tmp_path) == []
    assert offered("jobsync", "jobsync drain ", {"JOBSYNC_URL": "postgresql://10.255.255.1/none"}) == []


@pytest.mark.parametrize(
    ("line", "program", "typed", "completed"),
    [
        ("_JOBSYNC_COMPLETE", "jobsync", "jobsync drain ot", "other-2"),
        ("_CELERY_COMPLETE", "celery", "celery jobsync undra", "undrain"),
    ],
)
def test_the_documented_line_completes_in_bash(url: str, line: str, program: str, typed: str, completed: str) -> None:
    words = typed.split()
    script = f"""
        eval "$({line}=bash_source {program})"
        COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}
        _{program}_completion {program}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    env = {**os.environ, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}", "JOBSYNC_URL": url}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split() == [completed]
