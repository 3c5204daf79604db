"""What is fetched and not acknowledged: settled, swept, restored, given back, and odd messages."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue
from redis_scene import (
    body_number,
    publish,
    queued,
    unacked,
)

from jobsync_celery.plugin.redis_channel import (
    SET_ASIDE,
    give_back,
    restore_unacked,
)


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


def test_a_closed_channel_gives_everything_back_in_order(redis_url, client, worker) -> None:
    publish(redis_url, "q", range(9))
    one = worker("q", prefetch=6)
    one.drain(6)
    one.messages[2].ack()
    one.channel.close()
    assert not client.exists("unacked", "unacked_index")
    assert worker("q").drain(8) == [0, 1, 3, 4, 5, 6, 7, 8]


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
    one = worker("q", look_sec=600)
    one.settle_idle()
    if moment == "asked":
        one.channel._stale = True
        one.connection.transport.cycle.on_poll_start()
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(one.connection.connection_errors):
        one.drain(1, timeout=3)
    one.settle_idle()
    publish(redis_url, "q", [1])
    assert one.drain(1) == [1]


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
