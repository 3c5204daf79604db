"""The page on observing, typed from top to bottom; its workers are no nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobsync_celery.servers import PrivatePostgres, PrivateRedis
from pages.conftest import a_reader
from pages.snippets import ROOT, snippets

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(120)]

REPORT = "celery -A proj jobsync observe"
#: A hundred runs of four keys on two workers of two children each: some overlap, and that is exit status 1.
STATUSES = {REPORT: 1, f"{REPORT} --since 1 --task proj.settle --json": 1}


def test_the_page_works_as_printed(postgres: PrivatePostgres, redis_server: PrivateRedis, tmp_path: Path) -> None:
    found = snippets(ROOT / "docs" / "how-to" / "observe.md")
    long = {"celery -A proj worker": "observes proj.settle"}
    with a_reader(postgres, redis_server, tmp_path, long=long, statuses=STATUSES) as reader:
        reader.write(found)
        *before, report = [each for each in found if each.kind == "sh"]
        reader.follow(before)
        ended = "SELECT count(*) FROM sync_observation WHERE state = 'ended'"
        reader.until(
            "SELECT to_regclass('sync_observation') IS NOT NULL AS made", lambda rows: rows == [{"made": True}]
        )
        reader.until(ended, lambda rows: rows == [{"count": 100}])
        reader.follow([report])
        said = reader.run(REPORT.split(), status=1)
        assert "Coordination would have prevented " in said and " ran together for " in said
        reader.run(["celery", "-A", "proj", "jobsync", "cleanup", "--observation-retention", "3600"])
        reader.stop()
        assert reader.ask(ended) == [{"count": 100}]
