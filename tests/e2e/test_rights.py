"""A worker whose role has the rights of the operator guide, and no others, does everything that workers do."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from e2e.commands import ask
from e2e.site import Site

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "OPERATOR_GUIDE.md").read_text()
GRANTS = re.findall(r"^GRANT .*?;$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def role(site: Site) -> Iterator[str]:
    """A role that may do nothing yet."""
    name = f"worker_{uuid.uuid4().hex[:12]}"
    site.rows(f"CREATE ROLE {name}")
    yield name
    site.rows(f"DROP OWNED BY {name}")
    site.rows(f"DROP ROLE {name}")


@pytest.mark.parametrize("broker_url", [pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
def test_a_worker_with_the_documented_rights_needs_no_more(site: Site, role: str) -> None:
    limited = make_url(site.database_url).update_query_dict({"options": f"-c role={role}"}).render_as_string(False)
    app = site.producer(url=limited, audit=True, clear_orphaned_locks=True)
    assert "run GRANT CREATE ON SCHEMA" in ask(app, "schema", "upgrade", code=2)["error"]
    ask(site.app, "schema", "upgrade")
    for grant in GRANTS:
        site.rows(grant.replace("TO worker;", f"TO {role};"))

    ask(app, "schema", "upgrade")
    worker, other = (site.worker(name, jobsync={"url": limited, "audit": True}) for name in ("w1", "w2"))
    site.until_shared("w1", "w2")
    ids = [result.id for result in site.many(30, 10)]
    site.until_ended(*ids)
    app.jobsync.register_lock("key1", "w2%", expires_in_days=1)
    ids.append(site.call("step", "key1", 99).id)
    site.until_ended(*ids)
    assert app.jobsync.clear_all_locks() == 1
    ask(app, "drain", other.hostname(), "--wait")
    ask(app, "undrain", other.hostname())
    other.kill()
    site.until_shared("w1")
    ids.append(site.call("step", "key2", 100).id)
    site.until_ended(*ids)
    site.assert_once(ids)
    site.rows("UPDATE sync_claim SET finished_on = finished_on - interval '10 days' WHERE state = 'done'")
    done = ask(app, "cleanup", "--orphaned-locks", "--dead-node-retention", "60")
    assert done["cleaned"]["claims"]["rows"] == done["audited"] == len(ids)
    worker.stop()
    assert "ERROR" not in worker.logs()
