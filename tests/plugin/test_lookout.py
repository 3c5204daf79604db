"""What a worker's lookout remembers until it can be written down."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from jobsync_celery import JobSync
from jobsync_celery.errors import StoreError
from jobsync_celery.plugin import lookout
from jobsync_celery.plugin.lookout import Lookout
from jobsync_celery.store.schema import ensure_schema


@pytest.fixture
def cluster(database_url: str) -> Any:
    app = Celery("proj", broker="memory://", set_as_current=False)
    cluster = JobSync(app, {"url": database_url, "queue_prefix": "t-"}).cluster
    assert cluster is not None
    ensure_schema(cluster.store.database, cluster.shape)
    return cluster


def seen(cluster: Any) -> dict[tuple[str, str], int]:
    """Kind and subject -> how often."""
    with cluster.store.database.transaction() as tx:
        return {(each.kind, each.subject): each.times for each in cluster.store.sightings.since(tx, 60.0)}


def test_what_is_seen_again_is_counted_and_said_in_its_latest_words(cluster: Any) -> None:
    watching = Lookout(cluster, "w1", leads=lambda: False)
    for number in range(3):
        watching.saw("misplaced", "task in queue", number=number)
    watching._write_down()
    watching.saw("misplaced", "task in queue", number=3)
    watching._write_down()
    assert seen(cluster) == {("misplaced", "task in queue"): 4}
    with cluster.store.database.transaction() as tx:
        [each] = cluster.store.sightings.since(tx, 60.0)
    assert (each.node, each.detail) == ("w1", {"number": 3})


def test_facts_that_an_operator_wants_later_are_seen_and_others_are_not(cluster: Any) -> None:
    watching = Lookout(cluster, "w1", leads=lambda: False)
    cluster.events("lease_lost", name="w1", reason="it was declared dead")
    cluster.events("partitions_taken", numbers=frozenset({1}))
    watching._write_down()
    assert seen(cluster) == {("lease_lost", "w1"): 1}


def test_nothing_is_lost_while_the_database_is_away(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = Lookout(cluster, "w1", leads=lambda: False)
    watching.saw("misplaced", "a")
    with monkeypatch.context() as away:
        away.setattr(cluster.store.sightings, "add", _refuse)
        with pytest.raises(StoreError):
            watching._write_down()
    watching.saw("misplaced", "a")
    watching._write_down()
    assert seen(cluster) == {("misplaced", "a"): 2}


def test_it_remembers_a_bounded_number_of_things(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "_MOST", 3)
    watching = Lookout(cluster, "w1", leads=lambda: False)
    for number in range(10):
        watching.saw("misplaced", str(number))
    watching._write_down()
    assert len(seen(cluster)) == 3


def test_an_old_mark_of_another_cluster_is_no_sign_a_second_one_is(cluster: Any) -> None:
    """Kombu's memory transport keeps a queue for all connections of a process."""
    told: list[str] = []
    cluster.events.listen(lambda fact, fields: told.append(fact))
    ours, theirs = Lookout(cluster, "w1", leads=lambda: True), Lookout(cluster, "x1", leads=lambda: True)
    theirs._exchange("another cluster's id")
    ours._look_at_mark()
    assert told == []
    ours._look_at_mark()
    assert told == []
    theirs._exchange("another cluster's id")
    ours._look_at_mark()
    assert told == ["foreign_cluster"]


def _refuse(*_: object) -> None:
    raise StoreError("away")
