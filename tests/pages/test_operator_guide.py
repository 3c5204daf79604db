"""The operator guide and its cheat sheet, followed on a live cluster that has some load."""

from __future__ import annotations

import configparser
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml
from e2e.waiting import until

from jobsync_celery.runtime.vitals import FILE_VARIABLE, read
from pages.answers import ANSWERS, judge_of
from pages.reader import Reader, Rows
from pages.snippets import ROOT, Snippet, snippets

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(300)]

GUIDE = ROOT / "docs" / "OPERATOR_GUIDE.md"
SHEET = ROOT / "docs" / "Cheatsheet.sql"
SEED_TASKS = "import worker, proj\nfor number in range(60): worker.settle.delay(number, number)"
PROJ = """
import os
from worker import app, settle
from jobsync_celery import CoordinationConfig, JobSync

JobSync(app, CoordinationConfig(url=os.environ["DATABASE_URL"]))
"""


def judged(statement: str, rows: Rows, reader: Reader) -> None:
    live = reader.ask("SELECT name FROM sync_node WHERE state = 'live'")
    assert ANSWERS[judge_of(statement)](rows, {row["name"] for row in live}), (statement, rows)


@pytest.fixture
def operator(reader: Reader) -> Reader:
    """A reader with the app that the guide speaks of."""
    (reader.folder / "worker.py").write_text((ROOT / "examples" / "worker.py").read_text())
    (reader.folder / "proj.py").write_text(PROJ)
    return reader


def test_the_guide_works_as_printed(operator: Reader) -> None:
    loaded = False
    for snippet in snippets(GUIDE):
        if snippet.kind == "sql" and not loaded:
            operator.python(SEED_TASKS)
            done = "SELECT COUNT(*) FROM sync_claim WHERE state = 'done'"
            operator.until(done, lambda rows: rows[0]["count"] >= 60)
            loaded = True
        if snippet.kind == "yaml":
            as_kubernetes_would(operator, yaml.safe_load(snippet.text))
        elif snippet.kind == "ini":
            as_systemd_would(operator, snippet.text)
        elif snippet.kind == "python":
            clearing_what_a_worker_left(operator, snippet)
        else:
            operator.follow([snippet], lambda statement, rows: judged(statement, rows, operator))
    operator.follow(snippets(SHEET), lambda statement, rows: judged(statement, rows, operator))
    operator.stop()


def clearing_what_a_worker_left(operator: Reader, snippet: Snippet) -> None:
    """The guide's Job clears the lock of a creator that is gone."""
    operator.python("proj.app.jobsync.register_lock('order-7', 'worker-%')")
    operator.ask("UPDATE sync_lock SET created_by = 'old-worker-name'")
    operator.follow([snippet])
    assert operator.ask("SELECT task_id FROM sync_lock") == []
    operator.settle()


def as_kubernetes_would(operator: Reader, deployment: dict[str, Any]) -> None:
    """Run what the manifest runs in its container; the probes find the worker well."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert [each["name"] for each in container["env"]] == [FILE_VARIABLE]
    operator.environment[FILE_VARIABLE] = str(operator.folder / "probe")
    worker = operator.begin(container["command"])
    probes = [container[each] for each in ("startupProbe", "readinessProbe", "livenessProbe")]
    until(lambda: read(operator.environment[FILE_VARIABLE]) is not None, "the worker writes its file")
    with ThreadPoolExecutor() as threads:
        hooks = [*probes, container["lifecycle"]["preStop"]]
        list(threads.map(operator.run, (hook["exec"]["command"] for hook in hooks)))
    operator.stop(worker)
    del operator.environment[FILE_VARIABLE]


def parsed_unit(text: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(text)
    return parsed


def as_systemd_would(operator: Reader, unit: str) -> None:
    """Run what the unit starts, as its instance 07; and what goes into its service section, beside it."""
    if not unit.startswith("["):
        service = parsed_unit(f"[Service]\n{unit}")["Service"]
        operator.environment[FILE_VARIABLE] = str(operator.folder / "probe")
        assert service["Environment"].partition("=")[0] == FILE_VARIABLE
        worker = operator.begin(["celery", "-A", "proj", "worker", "-n", "worker-07@%h", "-l", "INFO"])
        operator.run(["python", *shlex.split(service["ExecStartPost"])[1:]])
        operator.stop(worker)
        del operator.environment[FILE_VARIABLE]
        return
    parsed = parsed_unit(unit)
    command = parsed["Service"]["ExecStart"].replace("%i", "07").replace("%%", "%")
    assert command.startswith("/opt/proj/.venv/bin/celery ")
    operator.stop(operator.begin(["celery", *shlex.split(command)[1:]]))


def test_every_expected_answer_belongs_to_a_statement() -> None:
    asked = [
        statement
        for page in (GUIDE, SHEET)
        for each in snippets(page)
        if each.kind == "sql"
        for statement in each.statements
    ]
    assert {judge_of(statement) for statement in asked} == set(ANSWERS)


def test_the_cheat_sheet_has_every_statement_of_the_guide() -> None:
    def even(statements: list[str]) -> set[str]:
        return {" ".join(statement.split()) for statement in statements}

    sheet = even(snippets(SHEET)[0].statements)
    asked = [each for each in snippets(GUIDE) if each.kind == "sql"]
    assert not [one for each in asked for one in even(each.statements) - sheet]
