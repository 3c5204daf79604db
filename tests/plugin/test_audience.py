"""Who listens to a worker: receivers of signals, and callbacks of on_rebalance with or without an event."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from jobsync_celery import CoordinationConfig, JobSync, RebalanceEvent
from jobsync_celery.core.tokens import TokenMap, TokenSet
from jobsync_celery.errors import SettingsError
from jobsync_celery.plugin.audience import Audience
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.listeners import Listeners
from jobsync_celery.signals import leader_changed, partitions_assigned, partitions_revoked

URL = "postgresql+psycopg2://nobody@localhost/none"
TOKENS = TokenMap(100, 10, "md5")


@pytest.fixture
def jobsync() -> JobSync:
    return JobSync(Celery("heard", broker="memory://"), CoordinationConfig(url=URL))


@pytest.fixture
def listeners(jobsync: JobSync) -> Listeners:
    return Listeners(Audience(jobsync, "me", TOKENS), Events())


@pytest.fixture
def connected() -> Iterator[Callable[..., None]]:
    made: list[tuple[Any, Callable[..., None]]] = []

    def connect(signal: Any, receiver: Callable[..., None], sender: object = None) -> None:
        made.append((signal, receiver))
        signal.connect(receiver, sender=sender, weak=False)

    yield connect
    for signal, receiver in made:
        signal.receivers = [each for each in signal.receivers if each[1] is not receiver]


def assign(listeners: Listeners, *numbers: int) -> None:
    listeners.call("partitions_assigned", {"partitions": frozenset(numbers)})


def test_a_receiver_gets_the_partitions_and_their_tokens(
    jobsync: JobSync, listeners: Listeners, connected: Callable[..., None]
) -> None:
    heard: list[dict[str, Any]] = []
    assert not listeners.hear("partitions_assigned", "partitions_revoked")
    connected(partitions_assigned, lambda **told: heard.append(told))
    connected(partitions_revoked, lambda **told: heard.append(told), sender=jobsync)
    assert listeners.hear("partitions_revoked")
    assign(listeners, 2, 4)
    listeners.call("partitions_revoked", {"partitions": frozenset({4}), "lost": True})
    first, second = heard
    assert first["sender"] is jobsync and first["node"] == "me" and first["partitions"] == {2, 4}
    assert first["tokens"] == {*range(20, 30), *range(40, 50)}
    assert second["signal"] is partitions_revoked and second["lost"] is True and second["partitions"] == {4}


def test_a_receiver_of_another_app_s_signals_is_not_called(
    listeners: Listeners, connected: Callable[..., None]
) -> None:
    connected(partitions_assigned, lambda **_: pytest.fail("not for me"), sender=object())
    assert not listeners.hear("partitions_assigned")
    assign(listeners, 1)


def test_a_new_leader_is_known_to_be_this_worker_or_not(listeners: Listeners, connected: Callable[..., None]) -> None:
    heard: list[bool] = []
    connected(leader_changed, lambda me, **_: heard.append(me))
    for name in ("me", "other"):
        listeners.call("leader_changed", {"name": name, "incarnation": 1, "previous": None})
    assert heard == [True, False]


def test_callbacks_with_and_without_an_event_hear_of_every_change_in_order() -> None:
    heard: list[object] = []
    jobsync = JobSync(
        Celery("heard", broker="memory://"), CoordinationConfig(url=URL), on_rebalance=lambda: heard.append("first")
    )
    listeners = Listeners(Audience(jobsync, "me", TOKENS), Events())

    @jobsync.on_rebalance
    def changed(event: RebalanceEvent) -> None:
        heard.append(event)

    assert changed.__name__ == "changed" and listeners.hear("partitions_revoked") and not listeners.hear("node_left")
    assign(listeners, 1, 2)
    listeners.call("partitions_revoked", {"partitions": frozenset({2}), "lost": False})
    assign(listeners, 3)
    assert heard == [
        "first",
        RebalanceEvent(True, 1, 20, 0, frozenset({1, 2}), frozenset()),
        "first",
        RebalanceEvent(False, 2, 0, 10, frozenset(), frozenset({2})),
        "first",
        RebalanceEvent(False, 3, 10, 0, frozenset({3}), frozenset()),
    ]


class Cache:
    def refresh(self, event: RebalanceEvent) -> None: ...

    def clear(self) -> None: ...

    def __call__(self, event: RebalanceEvent | None = None) -> None:
        assert event is not None


@pytest.mark.parametrize(
    "callback",
    [
        Cache().refresh,
        Cache().clear,
        Cache(),
        functools.partial(lambda other, event: event.tokens_added, 1),
        lambda *events: events[0].tokens_added,
        lambda **named: None,
        [].append,
    ],
)
def test_any_callable_that_takes_an_event_or_nothing_will_do(
    jobsync: JobSync, listeners: Listeners, callback: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    jobsync.on_rebalance(callback)
    assign(listeners, 1)
    assert "failed" not in caplog.text


def test_what_cannot_be_called_so_is_refused_where_it_is_registered(jobsync: JobSync) -> None:
    async def later(event: RebalanceEvent) -> None: ...

    wrong: list[tuple[Any, str]] = [
        (lambda event, more: None, "the event, or nothing"),
        (lambda *, must: None, "the event, or nothing"),
        (later, "coroutine"),
        ("changed", "cannot be called"),
    ]
    for callback, reason in wrong:
        with pytest.raises(SettingsError, match=reason):
            jobsync.on_rebalance(callback)
    assert jobsync.callbacks == []


def test_the_tokens_of_partitions_are_a_set_that_is_not_worked_out() -> None:
    tokens = TokenSet(TOKENS, [1, 3, 4096])
    assert len(tokens) == 20 and 10 in tokens and 20 not in tokens and 100 not in tokens and "10" not in tokens
    assert tokens == {*range(10, 20), *range(30, 40)} and tokens & {5, 15} == {15}
    assert frozenset(tokens) == tokens and hash(tokens) == hash(TokenSet(TOKENS, [3, 1]))
    assert repr(tokens) == "<20 tokens of 2 partitions>"
