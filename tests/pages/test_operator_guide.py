"""The operator guide and its cheat sheet, followed on a live cluster that has some load."""

from __future__ import annotations

import pytest

from pages.answers import ANSWERS, judge_of
from pages.reader import Reader, Rows
from pages.snippets import ROOT, Snippet, snippets

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(300)]

GUIDE = ROOT / "docs" / "OPERATOR_GUIDE.md"
SHEET = ROOT / "docs" / "Cheatsheet.sql"
SEED_TASKS = "import worker, proj\nfor number in range(60): worker.settle.delay(number, number)"
#: The one whose rights the guide tells; roles belong to the server, which other tests share.
ROLE = "DO $$ BEGIN CREATE ROLE worker; EXCEPTION WHEN duplicate_object THEN NULL; END $$"


def judged(statement: str, rows: Rows, reader: Reader) -> None:
    live = reader.ask("SELECT name FROM sync_node WHERE state = 'live'")
    assert ANSWERS[judge_of(statement)](rows, {row["name"] for row in live}), (statement, rows)


def test_the_guide_works_as_printed(operator: Reader) -> None:
    loaded = False
    operator.ask(ROLE)
    for snippet in snippets(GUIDE):
        if snippet.kind == "sql" and not loaded:
            operator.python(SEED_TASKS)
            done = "SELECT COUNT(*) FROM sync_claim WHERE state = 'done'"
            operator.until(done, lambda rows: rows[0]["count"] >= 60)
            loaded = True
        if snippet.kind == "python":
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
