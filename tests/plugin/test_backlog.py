"""Moving a backlog: whole, in order, as it was, and from where it was broken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Consumer, Queue

from jobsync_celery.errors import BrokerUnavailable
from jobsync_celery.plugin.backlog import Backlog
from jobsync_celery.plugin.letters import Letter, Place

COUNT = 12
KEPT = ("correlation_id", "reply_to", "priority", "delivery_mode", "expiration")


class Post:
    """Two queues of an app, the second with a way of its own to it."""

    def __init__(self, broker_url: str, prefix: str) -> None:
        self.app = Celery("post", broker=broker_url, set_as_current=False)
        self.url = broker_url
        self.source, self.target = (Queue(f"{prefix}{end}", routing_key=f"{prefix}{end}") for end in ("from", "to"))

    def publish(self, n: int, **options: Any) -> None:
        self.app.send_task("proj.task", (n,), queue=self.source, **options)

    def place(self, letter: Letter) -> Place:
        return Place(self.target, "", self.target.name, frozenset({"ours"}))

    def received(self, queue: Queue) -> list[Any]:
        with Connection(self.url) as connection:
            bound = queue(connection.default_channel)
            return list(iter(lambda: bound.get(no_ack=True), None))

    def close(self) -> None:
        with Connection(self.url) as connection:
            for queue in (self.source, self.target):
                queue(connection.default_channel).delete()


@pytest.fixture
def post(broker_url: str, queue_prefix: str) -> Iterator[Post]:
    post = Post(broker_url, queue_prefix)
    yield post
    post.close()


def failing_at(post: Post, last: int) -> Callable[[Letter], Place]:
    """A way of placing that ends, as a kill would, between reading a message and moving it."""

    def place(letter: Letter) -> Place:
        if letter.args[0] == last:
            raise KeyboardInterrupt
        return post.place(letter)

    return place


def test_a_move_that_is_broken_off_goes_on_where_it_was(post: Post) -> None:
    for n in range(COUNT):
        post.publish(n)
    with pytest.raises(KeyboardInterrupt), Backlog(post.app) as backlog:
        backlog.move(post.source.name, failing_at(post, COUNT // 2))
    with Backlog(post.app) as backlog:
        assert backlog.waiting(post.source.name) == COUNT // 2
        assert backlog.move(post.source.name, post.place) == {post.target.name: COUNT // 2}
        assert backlog.waiting(post.source.name) == 0
    assert [message.payload[0][0] for message in post.received(post.target)] == list(range(COUNT))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip", "headers": {"theirs": "kept", "ours": "dropped"}},
        {"expires": 60, "priority": 6, "countdown": 3600, "retries": 2},
        {"serializer": "pickle"},
        {"task_id": "id", "reply_to": "somebody"},
    ],
    ids=str,
)
def test_a_moved_message_is_the_message_that_was_published(post: Post, options: dict[str, Any]) -> None:
    post.publish(1, **options)
    with Connection(post.url) as connection:
        before = post.source(connection.default_channel).get(accept=["json", "pickle"])
        before.requeue()
    with Backlog(post.app) as backlog:
        assert backlog.move(post.source.name, post.place) == {post.target.name: 1}
    with Connection(post.url) as connection:
        after = post.target(connection.default_channel).get(no_ack=True, accept=["json", "pickle"])
    headers = {name: value for name, value in before.headers.items() if name != "ours"}
    after.headers.pop("redelivered", None), headers.pop("redelivered", None)
    assert (after.body, after.headers) == (before.body, headers)
    assert [after.properties.get(name) for name in KEPT] == [before.properties.get(name) for name in KEPT]
    assert after.content_type == before.content_type


@pytest.mark.rabbitmq
def test_a_queue_that_somebody_consumes_is_left_alone(rabbitmq_url: str, queue_prefix: str) -> None:
    post = Post(rabbitmq_url, queue_prefix)
    refused = pytest.raises(BrokerUnavailable, match="is still consumed: stop all workers first")
    with Connection(post.url) as connection, Consumer(connection, [post.source]), Backlog(post.app) as backlog, refused:
        backlog.waiting(post.source.name)
    post.close()


def test_what_can_be_put_nowhere_stays_where_it_is(post: Post) -> None:
    post.publish(1)
    nowhere = Place(post.target, f"{post.target.name}-exchange", "nowhere")
    with Connection(post.url) as connection:
        exchange = Queue(f"{post.target.name}-other", f"{post.target.name}-exchange", routing_key="somewhere")
        exchange(connection.default_channel).declare()
        with pytest.raises(BrokerUnavailable), Backlog(post.app) as backlog:
            backlog.move(post.source.name, lambda letter: nowhere)
        assert len(post.received(post.source)) == 1
        exchange(connection.default_channel).delete()


def test_queues_that_are_empty_can_be_deleted_and_others_not(post: Post) -> None:
    post.publish(1)
    with Backlog(post.app) as backlog:
        assert not backlog.delete(post.source.name) or backlog.waiting(post.source.name)
        backlog.move(post.source.name, post.place)
        assert backlog.delete(post.source.name)
        assert backlog.waiting(post.target.name) == 1


def test_a_queue_is_deleted_with_what_lies_in_it_if_that_was_said(post: Post) -> None:
    post.publish(1)
    with Backlog(post.app) as backlog:
        assert backlog.delete(post.source.name, filled=True)
        assert backlog.waiting(post.source.name) == 0
