"""The pages that speak of a cluster that is there: how to fence, commands, task locks, and the API. They share one."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Iterator

import pytest

from jobsync_celery.runtime.vitals import FILE_VARIABLE
from jobsync_celery.servers import PrivatePostgres, PrivateRedis
from pages.conftest import a_reader
from pages.reader import Reader
from pages.snippets import ROOT, Snippet, snippets

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("pages-other")]

#: The app that these pages take to be the reader's own, with the three libraries that a body may write by.
APP = """
import django
import psycopg
import psycopg2
from celery import Celery
from django.conf import settings
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from jobsync_celery import CoordinationConfig, JobSync, coordinated, current_claim

DSN = "postgresql://user:password@localhost/dbname"
BOOK = "INSERT INTO booking (account, amount) VALUES (%s, %s)"
at = make_url(DSN)
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": at.database, "USER": at.username, "PASSWORD": at.password,
    "HOST": at.host, "PORT": at.port,
}})
django.setup()

from django.db import models

class Booking(models.Model):
    account = models.IntegerField(primary_key=True)
    amount = models.IntegerField()

    class Meta:
        app_label, db_table = "proj", "booking"

engine = create_engine(DSN.replace("postgresql:", "postgresql+psycopg2:"))
booking = text("INSERT INTO booking (account, amount) VALUES (:account, :amount)")
app = Celery("proj", broker="redis://localhost:6379/0")
config = coord_config = CoordinationConfig(url=DSN)
jobsync = JobSync(app, config)
"""
FENCING = snippets(ROOT / "docs" / "how-to" / "fencing.md")


def as_task(number: int, snippet: Snippet) -> str:
    """A snippet of the page as the body of a task."""
    body = textwrap.indent(snippet.text, "    ")
    return f"\n@app.task\n@coordinated(key='account_id')\ndef body_{number}(account_id, amount):\n{body}"


@pytest.fixture(scope="module")
def cluster(
    postgres: PrivatePostgres, redis_server: PrivateRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reader]:
    """A worker whose tasks have the bodies that the page on fencing shows."""
    with a_reader(postgres, redis_server, tmp_path_factory.mktemp("pages")) as reader:
        reader.ask("CREATE TABLE booking (account int, amount int)")
        bodies = "".join(as_task(number, snippet) for number, snippet in enumerate(FENCING))
        (reader.folder / "proj.py").write_text(reader.localised(APP + bodies))
        reader.environment[FILE_VARIABLE] = str(reader.folder / "probe")
        reader.begin(["celery", "-A", "proj", "worker", "-n", "worker-01@%h", "-c", "1", "-l", "INFO"])
        reader.python("from proj import *")
        yield reader
        reader.stop()


def test_each_way_to_complete_a_claim_commits_its_effect_with_it(cluster: Reader) -> None:
    assert len(FENCING) == 4
    cluster.python("for number in range(4): globals()[f'body_{number}'].delay(number, 7)")
    cluster.until("SELECT state FROM sync_claim", lambda rows: [row["state"] for row in rows] == ["done"] * 4)
    booked = cluster.ask("SELECT account, amount FROM booking ORDER BY account")
    assert booked == [{"account": number, "amount": 7} for number in range(4)]


def test_the_page_on_the_command_line_works_as_printed(cluster: Reader) -> None:
    cluster.until("SELECT FROM sync_partition WHERE owner IS NULL", lambda rows: not rows)
    cluster.follow(snippets(ROOT / "docs" / "reference" / "cli.md"))


def test_the_page_on_the_doctor_works_as_printed(cluster: Reader) -> None:
    cluster.follow(snippets(ROOT / "docs" / "reference" / "doctor.md"))


def test_the_page_on_events_works_as_printed(cluster: Reader) -> None:
    cluster.follow(snippets(ROOT / "docs" / "reference" / "events.md"))
    cluster.python(
        "JsonLines().format(logging.makeLogRecord({'jobsync_event': 'node_left', 'jobsync': {'name': 'w'}}))"
    )
    command = ["celery", "-A", "proj", "events", "--dump"]
    dump = subprocess.Popen(command, cwd=cluster.folder, env=cluster.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert dump.stdout is not None
        next(line for line in dump.stdout if "heartbeat" in line)  # it is listening
        cluster.run(["sh", "-c", "celery -A proj jobsync drain worker-01@$(hostname)"])
        line = next(line for line in dump.stdout if "jobsync node draining" in line)
        assert "node=worker-01@" in line
    finally:
        dump.terminate()
        dump.communicate(timeout=20)
        cluster.run(["sh", "-c", "celery -A proj jobsync undrain worker-01@$(hostname)"])


def test_the_page_on_task_locks_works_as_printed(cluster: Reader) -> None:
    cluster.follow(snippets(ROOT / "docs" / "how-to" / "task-locks.md"))
    assert cluster.ask("SELECT COUNT(*) FROM sync_lock WHERE task_id LIKE 'device-%'") == [{"count": 10_000}]
    assert cluster.ask("SELECT COUNT(*) FROM sync_lock WHERE task_id = 'model-7'") == [{"count": 0}]


def test_the_api_page_works_as_printed(cluster: Reader) -> None:
    cluster.python(
        "from types import SimpleNamespace\n"
        "orders = [SimpleNamespace(id=number) for number in range(10)]\n"
        "process = print\n"
        "config = CoordinationConfig(url=DSN, appname='jobs_')\n"
        "jobsync.register_lock('order-1', '%')"
    )
    cluster.ask("UPDATE sync_lock SET created_by = 'old-worker-name' WHERE task_id = 'order-1'")
    cluster.follow(snippets(ROOT / "docs" / "reference" / "api.md"))
    assert cluster.ask("SELECT COUNT(*) FROM jobs_audit") == [{"count": 10}]
    assert cluster.ask("SELECT * FROM sync_lock WHERE task_id = 'order-1'") == []
