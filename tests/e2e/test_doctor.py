"""What the doctor says of a cluster that is well, and of faults that have to do with the broker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import kombu
import psycopg2
import pytest

from e2e.examined import beside, diagnosis, finding, found
from e2e.site import TIMEOUT, Site
from e2e.waiting import until
from jobsync_celery.servers import PrivatePostgres

SHARED = {"workers": ("w1", "w2"), "jobsync": {"partitions": 20}}
#: The first mark is left, and another's is found in its place, after so many seconds.
_MARKS = 8 * TIMEOUT


@pytest.fixture(scope="module")
def postgres() -> Iterator[PrivatePostgres]:
    """A durable one: the doctor complains of others."""
    with PrivatePostgres() as server:
        yield server


def test_of_a_healthy_cluster_it_says_nothing_and_leaves_no_check_out(well: Site) -> None:
    well.results([well.call("step", f"key{n}", n) for n in range(20)])
    seen = diagnosis(well)
    assert [each.what for each in seen.findings] == []
    assert seen.left_out == ()


def test_coordinated_messages_that_come_by_other_queues(well: Site) -> None:
    app, queues = well.app, well.app.jobsync.cluster.queues
    by_hand = app.tasks["e2e.step"].apply_async(("by hand", 1), queue=f"{well.prefix}ordinary")
    wrong = next(queue for queue in queues.queues if queue.name != well.app.jobsync.queue_for("strayed"))
    strayed = app.tasks["e2e.step"].apply_async(("strayed", 2), queue=wrong)
    assert [by_hand.get(timeout=30), strayed.get(timeout=30)] == [1, 2]
    until(lambda: len(found(well, "coordinated-elsewhere")) == 2, "both are named", every=0.5)
    named = {each.severity: each for each in found(well, "coordinated-elsewhere")}
    assert f"e2e.step in {well.prefix}ordinary" in named["risk"].evidence[0]
    assert f"e2e.step in {wrong.name}" in named["problem"].evidence[0]


def test_a_queue_that_nobody_consumes(well: Site) -> None:
    name = f"{well.prefix}025"  # of a partition that there is no more
    with kombu.Connection(well.broker_url) as connection:
        queue = kombu.Queue(name, kombu.Exchange(name, type="direct"), routing_key=name)(connection.channel())
        queue.declare()
        connection.Producer().publish("left", exchange=name, routing_key=name)
        assert finding(well, "queue-unconsumed").what == f"nobody consumes {name}"
        queue.delete()


def test_another_cluster_on_the_same_queues(well: Site, postgres: PrivatePostgres) -> None:
    name = f"other_{uuid.uuid4().hex[:8]}"
    execute(postgres.url_of("postgres"), f"CREATE DATABASE {name}")
    with beside(well, "foreign", jobsync={"url": postgres.url_of(name)}):
        named = finding(well, "foreign-cluster", _MARKS)
        assert name in named.evidence[0]
    execute(postgres.url_of("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


def test_tasks_that_take_longer_than_the_broker_waits(well: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobsync_celery.doctor.broker_checks.CONSUMER_TIMEOUT_SEC", 0.5)
    monkeypatch.setattr("jobsync_celery.doctor.broker_checks._VISIBILITY_SEC", 0.5)
    well.results([well.call("step", "long", 1, 1.0)])
    assert "e2e.step took" in finding(well, "visibility-timeout" if well.is_redis else "consumer-timeout").evidence[0]


def execute(url: str, statement: str) -> None:
    session = psycopg2.connect(url.replace("+psycopg2", ""))
    session.autocommit = True
    with session.cursor() as cursor:
        cursor.execute(statement)
    session.close()
