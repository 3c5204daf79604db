"""A black hole swallows what goes through one port, and is gone afterwards."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.faults import black_hole

_HOST = "127.0.0.1"
_SHORT = 0.3


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    if reason := black_hole.missing():
        pytest.skip(f"left out, {reason}")
    with socket.create_server((_HOST, 0)) as listening:
        yield listening


def rules(port: int) -> list[str]:
    listed = subprocess.run(["iptables", "-w", "5", "-S", "INPUT"], check=True, capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if f" {port} " in line]


def test_nothing_gets_through_in_either_direction_and_everything_afterwards(listener: socket.socket) -> None:
    address = listener.getsockname()
    with socket.create_connection(address) as client, listener.accept()[0] as server:
        client.settimeout(_SHORT)
        server.settimeout(_SHORT)
        with black_hole.black_hole(address[1]):
            client.sendall(b"to")
            server.sendall(b"fro")
            for end in (client, server):
                with pytest.raises(TimeoutError):
                    end.recv(10)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=_SHORT)
        for end in (client, server):
            end.settimeout(10)  # TCP sends it again
        assert (server.recv(10), client.recv(10)) == (b"to", b"fro")
    assert rules(address[1]) == []


def test_its_rules_go_with_the_block_whatever_ends_it(listener: socket.socket) -> None:
    port = listener.getsockname()[1]

    def fails() -> None:
        with black_hole.black_hole(port):
            assert len(rules(port)) == 2
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert rules(port) == []
