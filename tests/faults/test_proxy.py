"""The proxy breaks connections as it says, or the faults that need it would prove nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.faults.proxy import PASS, TO_CLIENT, Exchange, Mode, Proxy
from tests.faults.waiting import now, until

_HOST = "127.0.0.1"
_SHORT = 0.3


class Echo:
    """Sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self._listener = socket.create_server((_HOST, 0))
        self.port = self._listener.getsockname()[1]
        self.received = b""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(100):
                    self.received += data
                    client.sendall(data)
            except OSError:
                pass


@pytest.fixture
def echo() -> Iterator[Echo]:
    with closing(Echo()) as server:
        yield server


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with closing(Exchange()) as exchange, closing(Proxy(exchange, echo.port)) as it:
        yield it


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    """A connection that works."""
    with _connected(proxy) as connection:
        assert _answer(connection, b"hello") == b"hello"
        yield connection


def _connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection((_HOST, proxy.port), timeout=5)


def _answer(connection: socket.socket, said: bytes = b"", timeout: float = 5.0) -> bytes | None:
    """The answer; None if there is none in time."""
    connection.settimeout(timeout)
    connection.sendall(said)
    try:
        return connection.recv(100)
    except TimeoutError:
        return None


def _use_a_new_one(proxy: Proxy) -> None:
    with _connected(proxy) as connection:  # the reset comes now, or with the first answer
        connection.recv(1)


def test_refusing_resets_what_there_is_and_refuses_what_comes(proxy: Proxy, client: socket.socket) -> None:
    proxy.set(Mode("refuse"))
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        _connected(proxy)
    proxy.set(PASS)
    with _connected(proxy) as again:
        assert _answer(again, b"back") == b"back"


def test_resetting_resets_what_comes_too(proxy: Proxy, client: socket.socket) -> None:
    proxy.set(Mode("reset"))
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionResetError):
        _use_a_new_one(proxy)


def test_one_reset_leaves_the_mode_as_it_is(proxy: Proxy, client: socket.socket) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with _connected(proxy) as again:
        assert _answer(again, b"back") == b"back"


def test_a_stalled_connection_goes_on_where_it_was(proxy: Proxy, client: socket.socket, echo: Echo) -> None:
    proxy.set(Mode("stall"))
    with _connected(proxy) as later:
        assert _answer(client, b"one", _SHORT) is None
        assert _answer(later, b"two", _SHORT) is None
        assert echo.received == b"hello"
        proxy.set(PASS)
        assert _answer(client) == b"one"
        assert _answer(later) == b"two"


def test_a_connection_that_lost_something_is_reset_when_the_black_hole_ends(
    proxy: Proxy, client: socket.socket, echo: Echo
) -> None:
    with _connected(proxy) as idle:
        assert _answer(idle, b"idle") == b"idle"
        proxy.set(Mode("drop"))
        assert _answer(client, b"lost", _SHORT) is None
        proxy.set(PASS)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert _answer(idle, b"well") == b"well"
    assert b"lost" not in echo.received


def test_what_a_deaf_connection_says_arrives(proxy: Proxy, client: socket.socket, echo: Echo) -> None:
    proxy.set(Mode("drop", directions=(TO_CLIENT,)))
    assert _answer(client, b"said", _SHORT) is None
    until(lambda: echo.received == b"hellosaid", "it arrived", 5.0)


def test_what_is_delayed_comes_late(proxy: Proxy, client: socket.socket) -> None:
    proxy.set(Mode("delay", 0.2))
    began = now()
    assert _answer(client, b"late") == b"late"
    assert now() - began >= 0.4


def test_another_server_can_take_the_place(proxy: Proxy, client: socket.socket) -> None:
    with closing(Echo()) as other:
        proxy.redirect(other.port)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with _connected(proxy) as again:
            assert _answer(again, b"other") == b"other"
        assert other.received == b"other"
