"""A proxy before the server, to count what is sent and to fail on purpose."""

from __future__ import annotations

import socket
import threading

from sqlalchemy import make_url


class Relay:
    """A TCP proxy before the server that counts queries and can stop answering."""

    def __init__(self, database_url: str) -> None:
        self._upstream = make_url(database_url)
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.queries: list[bytes] = []
        target = self._upstream.set(host="127.0.0.1", port=self._listener.getsockname()[1])
        self.url = target.set(query={"sslmode": "disable", "gssencmode": "disable"}).render_as_string(False)
        threading.Thread(target=self._accept, daemon=True).start()

    def stop_answering(self) -> None:
        self._flowing.clear()

    def answer_again(self) -> None:
        self._flowing.set()

    def close(self) -> None:
        self._flowing.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = self._connect()
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _connect(self) -> socket.socket:
        host = self._upstream.host or str(self._upstream.query.get("host", "localhost"))
        port = self._upstream.port or int(str(self._upstream.query.get("port", 5432)))
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(65536):
                self._flowing.wait()
                if counted and data[:1] == b"Q":
                    self.queries.append(data[5:].rstrip(b"\0"))
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()
