"""The first pages that anybody follows, from nothing to effects that count once."""

from __future__ import annotations

import pytest

from pages.reader import Reader, Rows
from pages.snippets import ROOT, snippets

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(300)]

#: What the pages take to be the reader's own.
OWN = {
    "proj.py": """
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

engine = create_engine("postgresql://user:password@localhost/dbname".replace("postgresql:", "postgresql+psycopg2:"))
Session = sessionmaker(engine)
booking = text("INSERT INTO booking VALUES (:account, :amount)")
"""
}


def everything_is_done(rows: Rows) -> bool:
    """nothing runs, and nothing failed"""
    return bool(rows) and {row["state"] for row in rows} == {"done"}


@pytest.mark.parametrize(("page", "tasks"), [("README.md", 100), ("docs/quickstart.md", 1001)])
def test_the_page_works_as_printed(page: str, tasks: int, reader: Reader) -> None:
    found = snippets(ROOT / page)
    reader.write(found, before=OWN)
    reader.ask("CREATE TABLE booking (account int, amount int)")
    reader.follow(found)
    reader.python("import proj; proj.book.delay(1, 10)")
    reader.until("SELECT COUNT(*) FROM sync_claim WHERE state = 'done'", lambda rows: rows[0]["count"] == tasks + 1)
    reader.until("SELECT state FROM sync_claim", everything_is_done)
    assert reader.ask("SELECT * FROM booking") == [{"account": 1, "amount": 10}]
    assert {row["node"].partition("@")[0] for row in reader.ask("SELECT DISTINCT node FROM sync_claim")} == {
        "one",
        "two",
    }
    reader.stop()
    assert reader.ask("SELECT * FROM sync_node WHERE kind = 'celery'") == []
