"""A message that belongs into another queue arrives there as it was, holds up no other, and does not spin."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu import Consumer, Queue

from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.plugin.border import Border
from jobsync_celery.plugin.coordinated import Registry
from jobsync_celery.plugin.courier import Courier
from jobsync_celery.plugin.delivery import Delivery, Stage
from jobsync_celery.plugin.forwarding import MOST_HOPS
from jobsync_celery.plugin.gate import Gate
from jobsync_celery.plugin.inbox import Inbox
from jobsync_celery.plugin.router import HOPS, ORIGIN, PartitionQueues, TokenRouter
from jobsync_celery.runtime.events import Events
from jobsync_celery.store.outcomes import Elsewhere, Ending, Granted

TOKENS = TokenMap(100, 8, "md5")
POOL = 64
LOCKED = Elsewhere(POOL, '["gpu-%"]', 0, locked=True)
AT_HOME = Elsewhere(5, "", 0, locked=False)


def _task(n: int) -> int:
    return n


# -- the courier, on a broker in memory -------------------------------------------------------------------------------


class Post:
    """A courier and two queues."""

    def __init__(self, name: str) -> None:
        self.app = Celery("post", broker="memory://", set_as_current=False)
        self.app.conf.accept_content = ["json", "pickle"]
        self.app.task(name="proj.task", shared=False)(_task)
        self.source, self.target = (Queue(f"{name}-{end}", routing_key=f"{name}-{end}") for end in ("from", "to"))
        self.courier = Courier(self.app, lambda runs: [], Events())
        self.failed: list[BaseException] = []
        self._turn = threading.Semaphore(0)
        with self.app.connection_for_write() as connection:
            for queue in (self.source, self.target):
                queue(connection.default_channel).declare()

    def publish(self, **options: Any) -> Any:
        """Publish a task; its message, as it was received."""
        self.app.tasks["proj.task"].apply_async((7,), queue=self.source, **options)
        return self.receive(self.source)

    def receive(self, queue: Queue) -> Any:
        found: list[Any] = []
        with (
            self.app.connection_for_read() as connection,
            Consumer(connection, [queue], on_message=found.append, no_ack=True, accept=["json", "pickle"]),
        ):
            connection.drain_events(timeout=5)
        return found[0]

    def forward(self, message: Any, **how: Any) -> None:
        def failed(error: BaseException) -> None:
            self.failed.append(error)
            self._turn.release()

        self.courier.forward(message, self.target, self._turn.release, failed, **how)

    def wait(self, errands: int = 1) -> None:
        for _ in range(errands):
            assert self._turn.acquire(timeout=30)


@pytest.fixture
def post(request: pytest.FixtureRequest) -> Any:
    post = Post(request.node.name)
    post.courier.start()
    yield post
    post.courier.stop(5.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip"},
        {"expires": 60},
        {"priority": 3},
        {"serializer": "pickle"},
        {"serializer": "pickle", "compression": "bzip2"},
        {"delivery_mode": "transient"},
        {"headers": {"theirs": "kept"}},
    ],
    ids=str,
)
def test_a_forwarded_message_is_the_message_that_was_published(post: Post, options: dict[str, Any]) -> None:
    message = post.publish(**options)
    post.forward(message)
    post.wait()
    arrived = post.receive(post.target)
    assert not arrived.errors and arrived.payload == message.payload
    assert arrived.headers == {**message.headers, HOPS: 1}
    for name in ("correlation_id", "reply_to", "priority", "delivery_mode", "expiration"):
        assert arrived.properties.get(name) == message.properties.get(name)
    assert (arrived.content_type, arrived.content_encoding) == (message.content_type, message.content_encoding)


def test_hops_that_follow_a_task_lock_are_not_counted(post: Post) -> None:
    message = post.publish()
    post.forward(message, counted=False)
    post.wait()
    assert post.receive(post.target).headers[HOPS] == 0


def test_a_message_that_can_never_be_published_does_not_hold_up_the_others(post: Post) -> None:
    bad, good = post.publish(), post.publish()
    bad.properties["expiration"] = "soon"
    post.forward(bad)
    post.forward(good)
    post.wait(2)
    assert [type(error) for error in post.failed] == [ValueError]
    assert post.receive(post.target).headers["id"] == good.headers["id"]


def test_a_broker_that_is_away_is_waited_for(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    message, asked = post.publish(), []
    connect = post.app.connection_for_write

    def refuse_twice(**options: Any) -> Any:
        asked.append(options)
        if len(asked) <= 2:
            raise ConnectionRefusedError
        return connect(**options)

    monkeypatch.setattr(post.app, "connection_for_write", refuse_twice)
    monkeypatch.setattr("jobsync_celery.plugin.courier._RETRY_SEC", 0.0)
    post.forward(message)
    post.wait()
    assert not post.failed and post.receive(post.target).headers["id"] == message.headers["id"]


def test_a_retry_begins_to_count_its_hops_anew() -> None:
    registry = Registry(Celery("router", set_as_current=False), {"proj.task": "key"})
    options = {"headers": {ORIGIN: "first", HOPS: 7, "theirs": "kept"}}
    TokenRouter(registry, PartitionQueues("t-", TOKENS))("proj.task", (), {"key": "k"}, options)
    assert options["headers"] == {ORIGIN: "first", "theirs": "kept"}


# -- the gate and the border, without a broker ------------------------------------------------------------------------


class Request(SimpleNamespace):
    """Celery remembers its requests weakly."""

    __hash__ = object.__hash__


class Hands:
    """A gate and its border; whatever they ask of others is written down."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, str, bool]] = []
        self.outcome: BaseException | None = None
        self.done: list[tuple[object, ...]] = []
        self.timers: list[Callable[[], None]] = []
        self.held: set[Delivery] = set()
        self.endings: list[tuple[Ending, Any]] = []
        self.asked: list[tuple[Any, Any]] = []
        self.queues = PartitionQueues("t-", TOKENS)
        self.queues.learn(POOL, LOCKED.pool, LOCKED.position)
        courier: Any = SimpleNamespace(forward=self._forward)
        inbox = Inbox(
            SimpleNamespace(
                call_soon=lambda call: call(), call_later=lambda seconds, post, call: self.timers.append(call)
            )
        )
        consumption: Any = SimpleNamespace(cancel=lambda number: None)
        scribe: Any = SimpleNamespace(
            claim=lambda incarnation, wanted, reply: self.asked.append((wanted, reply)),
            end=lambda ending, reply: self.endings.append((ending, reply)),
        )
        lease: Any = SimpleNamespace(incarnation=1, trusted=True)
        held: Any = SimpleNamespace(add=self.held.add, discard=self.held.discard)
        nobody: Any = None
        self.gate = Gate(
            node="cpu-1", arrivals=nobody, lease=lease, scribe=scribe, held=held, ordinary=nobody, unwelcome=nobody,
            misplaced=lambda delivery: self.border.misplaced(delivery),
            relocated=lambda *relocated: self.border.relocated(*relocated),
            gone=lambda: None,
        )  # fmt: skip
        self.border = Border(inbox, self.gate, consumption, courier, held, self.queues, Events())
        self.border.consumer = SimpleNamespace(task_buckets={})
        self.gate.broker = SimpleNamespace(  # type: ignore[assignment]
            acknowledge=lambda message: self.done.append(("acknowledged", message.delivery_tag)),
            flush=lambda: None,
            give_back=lambda messages: self.done.extend(("returned", each.delivery_tag) for each in messages),
        )
        self.gate.slots = SimpleNamespace(want=lambda waiting: None)  # type: ignore[assignment]
        self.gate.accepting = {3}

    def _forward(self, message: Any, target: Queue, then: Any, failed: Any, *, counted: bool) -> None:
        self.sent.append((message.delivery_tag, target.name, counted))
        then() if self.outcome is None else failed(self.outcome)

    def arrives(self, tag: str, run: str = "run", key: str = "key", hops: int = 0) -> Delivery:
        """A message comes by partition 3, where its key belongs while it is not locked."""
        message = SimpleNamespace(delivery_tag=tag, headers={HOPS: hops}, acknowledged=False)
        request = Request(
            id=run,
            request_dict={},
            message=message,
            task=SimpleNamespace(name="proj.task"),
            delivery_info={"routing_key": "t-003"},
        )
        delivery = Delivery(request, key, 1, 3, self.gate.connection)
        self.gate._admit(delivery)
        return delivery

    def answer(self, outcome: Any) -> None:
        """The database answers what was asked first."""
        self.asked.pop(0)[1](outcome)

    def wake(self) -> None:
        """The timers are due."""
        due, self.timers = self.timers, []
        for timer in due:
            timer()


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.mark.parametrize("later", [False, True], ids=["forwarded at once", "published by a second try"])
def test_copies_of_a_relocated_message_are_settled_with_it(hands: Hands, later: bool) -> None:
    hands.arrives("first")
    hands.arrives("copy")
    hands.outcome = ValueError() if later else None
    hands.answer(LOCKED)
    if later:
        hands.outcome = None
        hands.wake()
    assert {tag for tag, _, _ in hands.sent} == {"first"}
    assert hands.done == [("acknowledged", "first"), ("acknowledged", "copy")]
    assert not hands.held and not len(hands.gate.lanes)


def test_only_who_follows_a_lock_is_not_counted(hands: Hands) -> None:
    hands.arrives("locked", hops=MOST_HOPS)
    hands.answer(LOCKED)
    hands.arrives("home")
    hands.answer(AT_HOME)
    assert [(tag, counted) for tag, _, counted in hands.sent] == [("locked", False), ("home", True)]
    assert not hands.timers


def test_a_message_that_was_forwarded_too_often_goes_on_slowly(hands: Hands, caplog: pytest.LogCaptureFixture) -> None:
    delivery = hands.arrives("tag", hops=MOST_HOPS)
    hands.answer(AT_HOME)
    assert not hands.sent and not hands.done and hands.held == {delivery}
    assert "nodes= of the task" in caplog.text
    hands.wake()
    assert hands.sent == [("tag", "t-005", True)] and hands.done == [("acknowledged", "tag")] and not hands.held


def test_a_misplaced_message_that_was_forwarded_too_often_goes_on_slowly_too(hands: Hands) -> None:
    delivery = hands.arrives("tag", hops=MOST_HOPS + 3)
    hands.gate.forget(delivery)
    hands.border.misplaced(delivery)
    assert not hands.sent and hands.held == {delivery}
    hands.wake()
    assert len(hands.sent) == 1 and hands.done == [("acknowledged", "tag")] and not hands.held


def test_what_cannot_be_published_is_kept_reported_and_tried_again(
    hands: Hands, caplog: pytest.LogCaptureFixture
) -> None:
    hands.outcome = ValueError("too large")
    delivery = hands.arrives("tag")
    hands.answer(LOCKED)
    hands.wake()
    assert len(hands.sent) == 2 and not hands.done and hands.held == {delivery}
    assert "too large" in caplog.text and "cannot be published" in caplog.text


def test_what_rests_goes_back_at_once_with_its_partition_and_is_not_forwarded(hands: Hands) -> None:
    for number in range(3):
        hands.arrives(f"tag{number}", f"run{number}", f"key{number}", hops=MOST_HOPS)
        hands.answer(AT_HOME)
    stopped: list[frozenset[int]] = []
    hands.border.stopped = stopped.append
    hands.border.stop(frozenset({3}))
    assert hands.done == [("returned", f"tag{number}") for number in range(3)]
    assert stopped == [frozenset({3})] and not hands.held
    hands.wake()
    assert not hands.sent


def test_what_cannot_be_published_after_its_partition_went_follows_it(hands: Hands) -> None:
    hands.arrives("tag")
    hands.gate.accepting = set()
    hands.outcome = ValueError()
    hands.answer(LOCKED)
    assert hands.done == [("returned", "tag")] and not hands.held and not hands.timers


def test_what_rests_is_gone_with_its_connection(hands: Hands) -> None:
    hands.arrives("tag", hops=MOST_HOPS)
    hands.answer(AT_HOME)
    hands.gate.connection_lost()
    hands.border.disconnected()
    hands.wake()
    hands.border.stop(frozenset({3}))
    assert not hands.sent and not hands.done


# -- task locks that come while a granted run waits for a slot --------------------------------------------------------


def test_what_was_granted_and_has_not_begun_is_taken_back_when_its_key_goes(hands: Hands) -> None:
    goes, stays = hands.arrives("goes", "run1", "goes"), hands.arrives("stays", "run2", "stays")
    for _ in range(2):
        hands.answer(Granted(7, 1))
    hands.border.reconsider({"goes": POOL, "other": POOL})
    [(ending, _)] = hands.endings
    assert (ending.run, ending.state, ending.crashed) == (goes.run, "lost", False)
    assert (goes.stage, stays.stage) == (Stage.ENDING, Stage.READY)


def test_what_is_granted_by_what_was_true_before_is_taken_back_too(hands: Hands) -> None:
    late = hands.arrives("tag")
    hands.border.reconsider({"key": POOL})
    hands.answer(Granted(7, 1))
    assert [ending.state for ending, _ in hands.endings] == ["lost"] and late.stage is Stage.ENDING


def test_who_waits_behind_what_is_taken_back_comes_forward(hands: Hands) -> None:
    first, second = hands.arrives("first", "run1"), hands.arrives("second", "run2")
    hands.border.reconsider({"key": POOL})
    hands.answer(LOCKED)
    assert hands.done == [("returned", "first")] and first.stage is Stage.GONE
    hands.answer(LOCKED)
    assert [tag for tag, _, _ in hands.sent] == ["second"] and second.stage is Stage.GONE


def test_a_key_that_is_unlocked_leaves_its_pool(hands: Hands) -> None:
    in_pool = hands.arrives("tag")
    in_pool.partition, in_pool.home = POOL, 3
    hands.answer(Granted(7, 1))
    hands.border.reconsider({"key": POOL})
    assert in_pool.stage is Stage.READY
    hands.border.reconsider({})
    assert in_pool.stage is Stage.ENDING
