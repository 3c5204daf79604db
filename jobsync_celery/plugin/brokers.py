"""What brokers do differently: giving messages back in order, and two copies of one message."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Broker(Protocol):
    """Settling messages of the consuming connection; in the event loop's thread."""

    def acknowledge(self, message: Any) -> None:
        """Tell the broker to forget the message, with the next :meth:`flush`."""

    def flush(self) -> None:
        """Send the acknowledgements, all together."""

    def give_back(self, messages: Sequence[Any]) -> None:
        """Return messages, named in the order of arrival, so that they are fetched again in that order."""

    def drop(self, messages: Sequence[Any]) -> None:
        """Let go of messages whose run another node took over: never acknowledge them."""

    def return_copies(self, first: Any, copies: Sequence[Any]) -> None:
        """``first`` was returned to be run again: see to the other copies of it."""

    def settle_stale(self, message: Any, *, again: bool) -> None:
        """Settle a message that came on an earlier connection; ``again``: its run is to be run again."""

    def in_hand(self) -> set[str]:
        """The delivery tags that this process holds, if tags outlive a connection."""


class AmqpBroker(Broker):
    """RabbitMQ: each copy has its own delivery tag, and a rejected message keeps its place in a classic queue."""

    def __init__(self, connection: Any, errors: tuple[type[BaseException], ...]) -> None:
        self._connection = connection
        self._errors = errors
        self._done: list[Any] = []

    def acknowledge(self, message: Any) -> None:
        self._done.append(message)

    def flush(self) -> None:
        done, self._done = self._done, []
        if done:
            with _one_packet(getattr(self._connection.transport, "sock", None) if len(done) > 1 else None):
                for message in done:
                    message.ack_log_error(logger, self._errors)

    def give_back(self, messages: Sequence[Any]) -> None:
        for message in reversed(messages):
            if not message.acknowledged:
                message.reject_log_error(logger, self._errors, requeue=True)

    def drop(self, messages: Sequence[Any]) -> None:
        self.give_back(messages)

    def return_copies(self, first: Any, copies: Sequence[Any]) -> None:
        self.give_back(copies)

    def settle_stale(self, message: Any, *, again: bool) -> None:
        """Delivered again already, when that connection was lost: the copy is settled by itself."""

    def in_hand(self) -> set[str]:
        return set()


def broker_for(consumer: Any) -> Broker:
    """The broker behind a worker's consumer."""
    if consumer.connection.transport.driver_type == "redis":
        from jobsync_celery.plugin.redis_broker import RedisBroker  # needs the client library of Redis

        return RedisBroker(consumer.task_consumer.channel, consumer.connection_errors)
    return AmqpBroker(consumer.connection.connection, consumer.connection_errors)


@contextmanager
def _one_packet(sock: socket.socket | None) -> Iterator[None]:
    """Let what is written meanwhile travel together, where the system can: each packet costs both ends more."""
    if sock is None or not hasattr(socket, "TCP_CORK"):
        yield
        return
    with suppress(OSError):  # closed, here and below
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    try:
        yield
    finally:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
