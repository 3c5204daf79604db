"""The usage guide, typed from top to bottom."""

from __future__ import annotations

import pytest

from pages.reader import Reader
from pages.snippets import ROOT, snippets

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(300)]

#: Every task that the guide defines and does not call itself.
CALLS = """
import proj
proj.book.delay(1, 10)
proj.close.delay(2)
proj.recount.delay(3, 2)
proj.export.delay(4)
settle_under_lock(1, 2)
"""
BATCH = {f"order-{number}" for number in range(20)}


def test_the_guide_works_as_printed(reader: Reader) -> None:
    found = snippets(ROOT / "docs" / "USAGE_GUIDE.md")
    reader.ask("CREATE TABLE booking (account int, amount int)")
    reader.write(found)
    reader.follow(found)
    reader.python(CALLS)
    # 30 of the loop, the later one, two of the chain, one shipment, and the four above.
    reader.until("SELECT COUNT(*) FROM sync_claim WHERE state = 'done'", lambda rows: rows[0]["count"] == 38)
    assert reader.ask("SELECT task_name, state FROM sync_claim WHERE state <> 'done'") == []
    booked = reader.ask("SELECT account, amount FROM booking ORDER BY account, amount")
    assert [(row["account"], row["amount"]) for row in booked] == [(1, 1), (1, 1), (1, 10), (2, 1), (2, 2)]
    audited = reader.ask("SELECT task_id, node, task_name FROM orders_audit")
    assert {row["task_id"] for row in audited} == BATCH
    assert {(row["node"], row["task_name"]) for row in audited} == {("orders-01", "order")}
    reader.stop()
    said = "".join(log.read_text() for log in reader.folder.glob("running-*.log"))
    assert said.count("opens device-") == said.count("closes device-") >= 12
    assert reader.ask("SELECT name FROM feed_node UNION ALL SELECT name FROM sync_node WHERE state <> 'admin'") == []
