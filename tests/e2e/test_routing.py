"""Messages that do not come by the front door, and the other queues of the same workers."""

import uuid

import kombu
import pytest
from celery import Celery
from celery.result import AsyncResult

from e2e.site import Site
from e2e.waiting import until
from jobsync_celery.errors import KeyMissing

SHARED = {"workers": ("w1", "w2")}


def publish_raw(site: Site, app: Celery, queue: str, times: int = 1, **fields: object) -> AsyncResult:
    """Publish one message several times over, exactly as it is."""
    id_ = str(uuid.uuid4())
    headers, properties, body, _ = app.amqp.create_task_message(id_, **fields)
    with kombu.Connection(site.broker_url) as connection, connection.Producer() as producer:
        for _ in range(times):
            producer.publish(body, exchange="", routing_key=queue, headers=headers, serializer="json", **properties)
    return site.app.AsyncResult(id_)


def test_a_producer_without_the_plugin_is_served_by_forwarding(shared: Site) -> None:
    with shared.stranger() as app:
        sent = [app.send_task("e2e.step", (f"far{n % 5}", n)) for n in range(20)]
        sent += [app.send_task("e2e.step", (f"far{n % 5}", n), queue=f"{shared.prefix}002") for n in range(20, 30)]
        results = [shared.app.AsyncResult(result.id) for result in sent]
        assert shared.results(results) == list(range(30))
    ids = [result.id for result in results]
    shared.assert_once(ids)
    shared.assert_at_home(*ids)
    shared.assert_brokers_are_empty()


def test_an_explicit_queue_is_no_way_round_the_owner(shared: Site) -> None:
    results = [shared.call("step", f"forced{n}", n, queue=f"{shared.prefix}ordinary") for n in range(6)]
    results += [shared.call("step", f"forced{n}", n, queue=f"{shared.prefix}001") for n in range(6, 12)]
    assert shared.results(results) == list(range(12))
    ids = [result.id for result in results]
    shared.assert_once(ids)
    shared.assert_at_home(*ids)


def test_a_message_without_a_key_fails_with_a_stored_error(shared: Site) -> None:
    with shared.stranger() as app:
        results = [
            shared.app.AsyncResult(app.send_task("e2e.step", args, queue=queue).id)
            for args in ((None, 1), ())
            for queue in (f"{shared.prefix}ordinary", f"{shared.prefix}000")
        ]
    for result in results:
        with pytest.raises(KeyMissing, match=r"e2e\.step"):
            result.get(timeout=30)
    assert shared.claims(*(result.id for result in results)) == []
    shared.assert_brokers_are_empty()


def test_copies_of_one_message_run_once(shared: Site) -> None:
    queue = shared.app.jobsync.queue_for("copied")
    slow = publish_raw(shared, shared.app, queue, 3, name="e2e.step", args=("copied", 1, 0.5))
    shared.until_ended(slow.id)
    late = publish_raw(shared, shared.app, f"{shared.prefix}ordinary", 3, name="e2e.step", args=("copied", 2, 0.2))
    assert shared.results([slow, late]) == [1, 2]
    shared.assert_brokers_are_empty()
    shared.assert_once([slow.id, late.id])


def test_publishing_the_same_id_anew_is_a_new_run(shared: Site) -> None:
    first = shared.call("step", "anew", 1)
    assert first.get(timeout=30) == 1
    shared.settled(first.id)
    first.forget()
    shared.call("step", "anew", 2, task_id=first.id)
    # Not by get(): the first run's notice may still be on its way to this process.
    backend = shared.app.backend
    until(lambda: backend.get_task_meta(first.id, cache=False)["result"] == 2, "the second result is stored")
    claims = until(lambda: len(found := shared.settled(first.id)) == 2 and found, "both runs have claims")
    assert [claim["state"] for claim in claims] == ["done", "done"]
    assert [run.n for run in shared.history.runs(first.id)] == [1, 2]
    shared.assert_serial()


def test_ordinary_tasks_of_the_same_workers_are_untouched(shared: Site) -> None:
    results = [shared.call("plain", n) for n in range(20)]
    assert shared.results(results) == list(range(20))
    ids = [result.id for result in results]
    assert shared.claims(*ids) == []
    runs = shared.history.runs(*ids)
    assert len(runs) == 20
    assert {run.node for run in runs} == {None}
    assert {run.host for run in runs} <= {shared.node("w1"), shared.node("w2")}


@pytest.mark.cluster("w1")
def test_queues_given_by_q_decide_who_takes_part(celery_setup: object, site: Site) -> None:
    word = site.prefix.rstrip("-")
    site.worker("mailer", "-Q", "emails")
    site.worker("both", "-Q", f"{word},letters")
    site.until_shared("w1", "both")
    emails = [site.call("plain", n, queue="emails") for n in range(3)]
    letters = [site.call("plain", n, queue="letters") for n in range(3)]
    strays = [site.call("step", f"stray{n}", n, queue="emails") for n in range(6)]
    assert site.results([*emails, *letters, *strays]) == [0, 1, 2, 0, 1, 2, *range(6)]
    assert {run.host for run in site.history.runs(*(result.id for result in emails))} == {site.node("mailer")}
    assert {run.host for run in site.history.runs(*(result.id for result in letters))} == {site.node("both")}
    ids = [result.id for result in strays]
    site.assert_once(ids)
    site.assert_at_home(*ids)
    names = {row["name"] for row in site.rows("SELECT name FROM sync_node")}
    assert names == {site.node("w1"), site.node("both")}
