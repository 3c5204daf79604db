"""What the documents say is true of the code."""

from __future__ import annotations

import ast
import dataclasses
import logging
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from sqlalchemy import create_engine

import jobsync_celery
from jobsync_celery.doctor.doctor import CHECKS
from jobsync_celery.plugin.broadcast import event_type
from jobsync_celery.runtime.events import FACTS, LOG_ONLY, plain
from jobsync_celery.settings import CoordinationConfig
from jobsync_celery.store.database import Database
from jobsync_celery.store.schema import ClusterShape, ensure_schema

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "OPERATOR_GUIDE.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"^\| `(\w+)` \| `(.+?)` \|", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
ANCHOR = re.compile(r"\]\(([^)#:]*)#([^)]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FACT = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \| (.+) \|$", re.MULTILINE)
MEMBER = re.compile(r"`(JobSync|Job|Claim|CoordinationConfig)\.(\w+)")

#: The one that the guide gives rights to; roles belong to the server, which other tests share.
ROLE = "DO $$ BEGIN CREATE ROLE worker; EXCEPTION WHEN duplicate_object THEN NULL; END $$"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def statements() -> list[str]:
    return [one.strip() for block in blocks(GUIDE, "sql") for one in block.split(";") if one.strip()]


def snippets() -> Iterator[Any]:
    for page in PAGES:
        for number, text in enumerate(blocks(page, "python"), 1):
            yield pytest.param(text, id=f"{name_of(page)}-{number}")


def stated(page: Path) -> dict[str, object]:
    """The settings that a page names, with their defaults."""
    found = SETTING.findall(page.read_text())
    assert len(found) == len(dict(found)), "a setting is named twice"
    return {name: ast.literal_eval(default) for name, default in found}


def true_defaults() -> dict[str, object]:
    return {
        each.name: each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        for each in dataclasses.fields(CoordinationConfig)
    }


def test_every_statement_of_the_operator_guide_runs_on_fresh_tables(database_url: str) -> None:
    ensure_schema(Database(database_url), ClusterShape(10000, 64, "double_sha256"))
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(ROLE)
            for statement in statements():
                connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


def test_the_operator_guide_has_statements() -> None:
    assert len(statements()) > 10


@pytest.mark.parametrize("text", list(snippets()))
def test_every_python_snippet_is_python(text: str) -> None:
    ast.parse(text)


def test_the_settings_page_names_every_setting_with_its_default() -> None:
    assert stated(ROOT / "docs" / "reference" / "settings.md") == true_defaults()


def test_the_readme_states_true_defaults() -> None:
    told = stated(ROOT / "README.md")
    assert told
    assert told == {name: value for name, value in true_defaults().items() if name in told}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    assert not [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to a page's headings."""
    headings = HEADING.findall(BLOCK.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    links = ANCHOR.findall(page.read_text())
    assert not [(file, anchor) for file, anchor in links if anchor not in anchors(page.parent / file if file else page)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_method_that_is_named_exists(page: Path) -> None:
    missing = [
        f"{owner}.{member}"
        for owner, member in MEMBER.findall(page.read_text())
        if not _has(getattr(jobsync_celery, owner), member)
    ]
    assert not missing


def test_the_api_page_names_every_public_name_and_error() -> None:
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    errors = import_module("jobsync_celery.errors")
    public = {*jobsync_celery.__all__, *(name for name in vars(errors) if name[0].isupper())}
    assert not [name for name in sorted(public) if name not in text]


def test_the_api_page_names_every_method() -> None:
    named = set(MEMBER.findall((ROOT / "docs" / "reference" / "api.md").read_text()))
    public = {
        (owner.__name__, name)
        for owner in (jobsync_celery.JobSync, jobsync_celery.Job, jobsync_celery.Claim)
        for base in owner.__mro__[:-1]
        for name in vars(base)
        if not name.startswith("_")
    }
    assert not public - named


def test_the_page_on_events_names_every_fact_with_its_level_its_fields_and_its_event() -> None:
    listed = FACT.findall((ROOT / "docs" / "reference" / "events.md").read_text())
    told = {
        name: (level, set(re.findall(r"\w+", fields)), event.strip("`")) for name, level, fields, event, _ in listed
    }
    true = {
        fact: (logging.getLevelName(level).lower(), _fields(line), "-" if fact in LOG_ONLY else event_type(fact))
        for fact, (level, line) in FACTS.items()
    }
    assert told == true


def _fields(line: str) -> set[str]:
    """The fields of a fact as programs get them, from its line in the log."""
    named = {name for _, name, _, _ in Formatter().parse(line) if name}
    return set(plain({name: () if name == "numbers" else 0 for name in named}))


def _has(owner: type, name: str) -> bool:
    """Whether a class has the member, or its constructor sets it."""
    if hasattr(owner, name):
        return True
    source = Path(str(import_module(owner.__module__).__file__)).read_text()
    return f"self.{name} = " in source or f"self.{name}: " in source


def test_the_doctor_s_page_has_every_check_in_its_words() -> None:
    page = (ROOT / "docs" / "reference" / "doctor.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", page, re.MULTILINE))
    assert rows == {check.name: check.looks_for for check in CHECKS}
