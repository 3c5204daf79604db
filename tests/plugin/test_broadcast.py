"""Facts as Celery events: sent on the loop, of bounded size and number, and never at the cost of anything else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.heartbeat import Heart
from kombu.asynchronous.timer import Timer

from jobsync_celery.plugin.broadcast import Broadcast
from jobsync_celery.runtime.events import Events


class Inbox:
    """Keeps what is posted until the loop turns."""

    def __init__(self) -> None:
        self.posted: list[Callable[[], None]] = []

    def post(self, call: Callable[[], None]) -> None:
        self.posted.append(call)

    def turn(self) -> None:
        posted, self.posted = self.posted, []
        for call in posted:
            call()


class Dispatcher:
    """What Celery's sends."""

    enabled, producer = True, "producer"

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.on_enabled: set[object] = set()
        self.on_disabled: set[object] = set()

    def publish(self, type_: str, fields: dict[str, Any], producer: Any) -> None:
        json.dumps(fields)
        assert producer == self.producer
        self.sent.append((type_, fields))

    def send(self, type_: str, blind: bool = False, retry: bool = False, **fields: Any) -> None:
        assert not retry, "who retries waits for the broker, and the event loop with him"
        self.sent.append((type_, fields))


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def broadcast(inbox: Inbox) -> Broadcast:
    broadcast = Broadcast(inbox, "worker-01")  # type: ignore[arg-type] # as far as it is used
    broadcast.connected(SimpleNamespace(event_dispatcher=Dispatcher()))
    return broadcast


@pytest.fixture
def events(broadcast: Broadcast) -> Events:
    events = Events()
    events.listen(broadcast.hear)
    return events


def sent(broadcast: Broadcast) -> list[tuple[str, dict[str, Any]]]:
    return broadcast._dispatcher.sent  # type: ignore[no-any-return] # ours


def test_a_fact_is_sent_when_the_loop_turns(events: Events, broadcast: Broadcast, inbox: Inbox) -> None:
    events("partitions_taken", numbers=[0, 1, 2, 9])
    assert sent(broadcast) == []
    inbox.turn()
    [(type_, fields)] = sent(broadcast)
    assert type_ == "jobsync-partitions-taken"
    assert {name: fields[name] for name in ("node", "count", "numbers")} == {
        "node": "worker-01",
        "count": 4,
        "numbers": "0-2, 9",
    }


def test_heartbeats_of_celery_s_wait_for_no_broker(broadcast: Broadcast) -> None:
    heart = Heart(Timer(), broadcast._dispatcher, interval=2.0)
    heart._send("worker-heartbeat")
    [(type_, fields)] = sent(broadcast)
    assert type_ == "worker-heartbeat" and fields["freq"] == 2.0


def test_a_fact_of_one_task_is_not_sent(events: Events, broadcast: Broadcast, inbox: Inbox) -> None:
    events("task_failed", task_name="proj.settle", task="1", error="lost too often")
    inbox.turn()
    assert sent(broadcast) == []


def test_an_event_has_a_bounded_size(events: Events, broadcast: Broadcast, inbox: Inbox) -> None:
    events("partitions_taken", numbers=list(range(0, 60_000, 2)))
    events("store_unavailable", error=ValueError("x" * 1_000_000))
    inbox.turn()
    assert max(len(json.dumps(fields)) for _, fields in sent(broadcast)) < 2_000


def test_what_happens_without_a_connection_waits_and_is_bounded(
    events: Events, broadcast: Broadcast, inbox: Inbox
) -> None:
    for _ in range(200):
        events("store_available")
    events("node_left", name="worker-01")
    inbox.turn()
    assert len(sent(broadcast)) == 100 and sent(broadcast)[-1][0] == "jobsync-node-left"


@pytest.mark.parametrize("dispatcher", [None, SimpleNamespace(enabled=False)])
def test_where_events_are_off_nothing_is_sent_or_kept(
    events: Events, broadcast: Broadcast, inbox: Inbox, dispatcher: Any
) -> None:
    working, broadcast._dispatcher = broadcast._dispatcher, dispatcher
    events("store_available")
    inbox.turn()
    broadcast._dispatcher = working
    broadcast.send()
    assert sent(broadcast) == []


def test_an_event_that_cannot_be_sent_is_no_trouble(events: Events, broadcast: Broadcast, inbox: Inbox) -> None:
    broadcast._dispatcher.producer = None

    def fail(*_: object) -> None:
        raise ConnectionError

    broadcast._dispatcher.publish = fail
    events("store_available")
    inbox.turn()


def test_a_pool_child_sends_nothing(events: Events, inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    events("store_available")
    assert inbox.posted == []
