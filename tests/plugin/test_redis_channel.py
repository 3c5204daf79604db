"""The safe Redis channel against a real server, beside kombu's own, and under SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from kombu import Connection, Producer
from kombu.asynchronous import Hub
from kombu.transport.redis import SentinelTransport, Transport
from redis_scene import (
    CHILD,
    FORBIDDEN,
    LAME,
    Worker,
    publish,
    queued,
    server,
    turn,
    unacked,
)

from jobsync_celery.plugin.redis_channel import (
    SafeTransport,
    restore_unacked,
    safe_transport,
)

#: Seconds, longer than any test waits: what comes nevertheless was told of.
NEVER = 600


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
    one = worker(*[f"q{n}" for n in range(32)], look_sec=NEVER)
    with Connection(redis_url) as connection:
        producer = Producer(connection)
        for n in range(20):
            one.settle_idle()
            commands = client.info("commandstats")["cmdstat_evalsha"]["calls"]
            producer.publish({"n": n}, routing_key=f"q{n}", priority=n % 10)
            assert one.drain(n + 1) == list(range(n + 1))
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] <= commands + 2


def test_an_idle_channel_hardly_asks(redis_url, client, worker) -> None:
    one = worker("q")
    one.settle_idle()
    client.config_resetstat()
    start = time.monotonic()
    one.drain(1, timeout=2.5)
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] <= 1 + time.monotonic() - start  # once a second


def test_a_queue_added_while_idle_is_served_at_once(redis_url, worker) -> None:
    publish(redis_url, "late", [1])
    one = worker("early", look_sec=NEVER)
    one.settle_idle()
    one.add("late")
    assert one.drain(1) == [1]


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


@pytest.mark.parametrize("options", [[], LAME])
def test_the_event_loop_wakes_adds_pauses_and_resumes(tmp_path, options) -> None:
    with server(tmp_path, *options) as url:
        one = Worker(url, "q", prefetch=2, look_sec=NEVER)
        hub = Hub()
        one.connection.register_with_event_loop(hub)
        turn(hub, lambda: one.channel._waiting)
        assert one.channel._tracking == (not options)
        for n in range(5):
            publish(url, "q", [n])
            if n < 2:
                turn(hub, lambda n=n: len(one.messages) == n + 1)
                turn(hub, lambda: one.channel._waiting or not one.channel.qos.can_consume())
        publish(url, "late", [10])
        one.add("late")
        hub.call_repeatedly(0.01, lambda: None)
        next(hub.loop)  # no credit: nothing comes
        assert one.numbers == [0, 1]
        one.messages[0].ack()
        one.messages[1].ack()
        turn(hub, lambda: len(one.messages) == 4)
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
        waits = []
        for n in range(5):
            publish(url, "q", [n])
            start = time.monotonic()
            assert one.drain(n + 1) == list(range(n + 1))
            waits.append(time.monotonic() - start)
        assert statistics.median(waits) < 0.5  # IDLE_POLL; not the second of a server that reports
        assert caplog.text.count("does not report pushes") == 1
        one.close()


def test_only_the_plain_transport_is_replaced(caplog) -> None:
    assert safe_transport(Transport) is safe_transport(Transport) is SafeTransport
    assert safe_transport(SafeTransport) is SafeTransport
    assert safe_transport(SentinelTransport) is SentinelTransport
    assert "no safe variant" in caplog.text
