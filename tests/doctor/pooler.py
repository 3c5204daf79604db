"""A pooler in transaction mode, as small as one can be: many clients, one session of the server."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

import psycopg2

_OK, _READY = b"R\0\0\0\x08\0\0\0\0", b"Z\0\0\0\x05I"


class Pooler:
    """Hands its one session to whoever begins a transaction, and takes it back at the end.

    Clients need no password here: the pooler has the session already.
    """

    def __init__(self, dsn: str) -> None:
        self._turn = threading.Lock()
        self._session = psycopg2.connect(dsn, sslmode="disable", gssencmode="disable")
        self._server = socket.socket(fileno=socket.dup(self._session.fileno()))
        self._server.setblocking(True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self._server.close()
        self._session.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        [length] = struct.unpack("!I", _exactly(client, 4))
        _exactly(client, length - 4)
        status = b"".join(_parameter(name, value) for name, value in self._parameters())
        client.sendall(_OK + status + _READY)
        while (kind := client.recv(1)) not in (b"", b"X"):
            with self._turn:
                state = self._exchange(client, kind)
                while state != b"I":  # in a transaction: the session is this client's
                    state = self._exchange(client, client.recv(1))
        client.close()

    def _exchange(self, client: socket.socket, kind: bytes) -> bytes:
        """Pass a query on, and its answers back; the state in which the session then is."""
        self._server.sendall(kind + _body(client))
        while True:
            answer = _exactly(self._server, 1)
            body = _body(self._server)
            client.sendall(answer + body)
            if answer == b"Z":
                return body[-1:]

    def _parameters(self) -> list[tuple[str, Any]]:
        names = ("server_version", "client_encoding", "standard_conforming_strings", "DateStyle", "integer_datetimes")
        return [(name, self._session.get_parameter_status(name)) for name in names]


def _parameter(name: str, value: str) -> bytes:
    body = f"{name}\0{value}\0".encode()
    return b"S" + struct.pack("!I", len(body) + 4) + body


def _body(source: socket.socket) -> bytes:
    """A message after its kind: the length, and so many bytes."""
    length = _exactly(source, 4)
    return length + _exactly(source, struct.unpack("!I", length)[0] - 4)


def _exactly(source: socket.socket, number: int) -> bytes:
    read = b""
    while len(read) < number:
        more = source.recv(number - len(read))
        if not more:
            raise ConnectionError
        read += more
    return read
