"""A TCP proxy of our own before a server: passes, and at a word stalls, drops, delays, resets or refuses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from jobsync_celery.servers.ports import HOST, free_port

T = TypeVar("T")

_CALL_SEC = 10.0
_CHUNK = 65536
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)

TO_SERVER = "to server"
TO_CLIENT = "to client"
BOTH = (TO_SERVER, TO_CLIENT)


@dataclass(frozen=True)
class Mode:
    """What the proxy does with connections.

    ``pass``; ``stall``: hold back what comes, for as long as the mode lasts, new connections included (a black hole
    that TCP survives); ``drop``: lose what comes, and reset the connections that lost something when the mode ends
    (a black hole that they do not survive); ``delay``: hand on each piece ``delay`` seconds late; ``reset``: reset
    what there is, and each new connection; ``refuse``: reset what there is, and listen no more.
    ``directions`` limits stall, drop and delay.
    """

    kind: str = "pass"
    delay: float = 0.0
    directions: tuple[str, ...] = BOTH

    def holds(self, direction: str) -> bool:
        """Whether nothing gets through in this direction."""
        return self.kind in ("stall", "drop") and direction in self.directions


PASS = Mode()


class Exchange:
    """The event loop that all proxies run in, in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run in the loop; the result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_CALL_SEC)

    def close(self) -> None:
        """Stop the loop and, with it, everything that passes through."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CALL_SEC)


class _Pair:
    """One client's connection, and the one to the server that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        self.lost = False

    def reset(self) -> None:
        """End both so that the other ends see a reset."""
        for writer in self.writers:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            writer.transport.abort()

    def close(self) -> None:
        """End both in good order."""
        for writer in self.writers:
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()


class Proxy:
    """Listens on a port of its own, kept for life, and connects to the server's."""

    def __init__(self, exchange: Exchange, port: int) -> None:
        self._exchange = exchange
        self._target = port
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.mode = PASS
        self.port = free_port()
        self._bound = _bound(self.port)
        self._changed = asyncio.Event()
        exchange.call(self._listen())

    def set(self, mode: Mode) -> None:
        """From now on this mode; returns when it is in force."""
        self._exchange.call(self._set(mode))

    def redirect(self, port: int) -> None:
        """Connect to another port from now on, and reset what is connected to the old one."""
        self._target = port
        self.reset()

    def reset(self) -> None:
        """Reset every connection there is now, whatever the mode."""
        self._exchange.call(self._reset())

    def close(self) -> None:
        """Listen no more and end what passes."""
        self._exchange.call(self._close())

    # -- in the loop --------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, sock=self._bound)

    async def _set(self, mode: Mode) -> None:
        before, self.mode = self.mode, mode
        self._changed.set()
        self._changed = asyncio.Event()
        if mode.kind in ("reset", "refuse"):
            await self._reset()
        elif before.kind == "drop":
            for pair in [pair for pair in self._pairs if pair.lost]:
                pair.reset()
        if mode.kind == "refuse":
            self._stop_listening()
            self._bound = _bound(self.port)  # bound but not listening: refused, and nobody else gets the port
        elif before.kind == "refuse":
            await self._listen()

    async def _reset(self) -> None:
        for pair in list(self._pairs):
            pair.reset()

    async def _close(self) -> None:
        self._stop_listening()
        self._bound.close()
        await self._reset()
        for task in list(self._tasks):
            task.cancel()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._exchange.loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer)
        self._pairs.add(pair)
        try:
            if self.mode.kind in ("reset", "refuse"):
                pair.reset()
                return
            while self.mode.holds(TO_SERVER):
                await self._changed.wait()
            answers, server = await asyncio.open_connection(HOST, self._target)
            pair.writers.append(server)
            await self._both_ways(
                self._pump(pair, reader, server, TO_SERVER), self._pump(pair, answers, writer, TO_CLIENT)
            )
        except OSError:
            pair.reset()  # the server is not there
        finally:
            self._pairs.discard(pair)
            pair.close()

    async def _both_ways(self, *pumps: Coroutine[Any, Any, None]) -> None:
        """Until one direction has ended."""
        ways = [self._exchange.loop.create_task(pump) for pump in pumps]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()

    async def _pump(
        self, pair: _Pair, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                if await self._let_through(pair, direction):
                    sink.write(data)
                    await sink.drain()
        while self.mode.holds(direction):  # an end does not get through either
            await self._changed.wait()

    async def _let_through(self, pair: _Pair, direction: str) -> bool:
        """Whether a piece is to be handed on, once that is known and it is time."""
        if self.mode.kind == "drop" and self.mode.holds(direction):
            pair.lost = True
            return False
        if self.mode.kind == "delay" and direction in self.mode.directions:
            await asyncio.sleep(self.mode.delay)
        while self.mode.kind == "stall" and self.mode.holds(direction):
            await self._changed.wait()
        return True


def _bound(port: int) -> socket.socket:
    """A socket that has the port and does not listen."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, port))
    sock.setblocking(False)
    return sock
