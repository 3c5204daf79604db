"""A message is settled as its run ended, and acknowledgements of one batch travel together."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from jobsync_celery.plugin.brokers import AmqpBroker
from jobsync_celery.plugin.delivery import Delivery, Stage
from jobsync_celery.plugin.settlement import settle
from jobsync_celery.plugin.surrender import return_ended

CONNECTION = 3


class Recording:
    """Stands for a broker: what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.asked.append((name, *args, *kwargs.values()))


@pytest.fixture
def broker() -> Recording:
    return Recording()


def test_a_run_that_ended_is_acknowledged_with_all_its_copies(broker: Recording) -> None:
    run = _ended("done", acknowledges=True)
    run.duplicates.append(_delivery("copy"))
    settle(run, broker, CONNECTION, ours=True)
    assert broker.asked == [("acknowledge", "message"), ("acknowledge", "copy")]


def test_a_run_that_another_node_took_over_is_never_acknowledged(broker: Recording) -> None:
    run = _ended("done", acknowledges=True)
    run.duplicates.append(_delivery("copy"))
    settle(run, broker, CONNECTION, ours=False)
    assert broker.asked == [("drop", ["message", "copy"])]


def test_the_message_of_a_lost_connection_is_left_to_the_broker(broker: Recording) -> None:
    run = _ended("done", acknowledges=True, connection=CONNECTION - 1)
    run.duplicates.append(_delivery("copy"))
    settle(run, broker, CONNECTION, ours=True)
    assert broker.asked == [("settle_stale", "message", False), ("acknowledge", "copy")]


def test_a_run_to_be_run_again_is_settled_celerys_way_and_its_copies_return(broker: Recording) -> None:
    run = _ended("lost", acknowledges=False)
    run.duplicates.append(_delivery("copy"))
    run.settlement = lambda: broker.asked.append(("rejected",))
    settle(run, broker, CONNECTION, ours=True)
    assert broker.asked == [("rejected",), ("return_copies", "message", ["copy"])]


def test_what_came_again_after_its_message_went_back_early_goes_back_too(broker: Recording) -> None:
    """On Redis it has the tag of the first, which would have returned it: that is over, and it would stay."""
    run = _ended("lost", acknowledges=False)
    run.stage = Stage.ENDING
    return_ended(run)
    run.duplicates.append(_delivery("copy"))
    settle(run, broker, CONNECTION, ours=True)
    assert broker.asked == [("give_back", ["copy"])]


def test_what_went_back_early_is_not_given_back_again_when_another_node_has_the_run(broker: Recording) -> None:
    """Celery's own rejection may still wait for a turn of the loop, and a second one would end the worker."""
    run = _ended("lost", acknowledges=False)
    run.stage = Stage.ENDING
    return_ended(run)
    run.duplicates.append(_delivery("copy"))
    settle(run, broker, CONNECTION, ours=False)
    assert broker.asked == [("drop", ["copy"])]


@pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="only Linux lets packets wait for each other")
def test_acknowledgements_of_a_batch_share_a_packet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        broker = AmqpBroker(SimpleNamespace(transport=SimpleNamespace(sock=ours)), (OSError,))
        for _ in range(20):
            broker.acknowledge(SimpleNamespace(ack_log_error=lambda *_: ours.sendall(b"ack.")))
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(4096)  # nothing before the flush
        theirs.settimeout(5)
        broker.flush()
        assert theirs.recv(4096) == b"ack." * 20


@pytest.mark.parametrize("transport", [None, SimpleNamespace(sock=None), SimpleNamespace(sock=socket.socket())])
def test_a_flush_on_a_dead_connection_is_left_to_the_messages_own_error_handling(transport: Any) -> None:
    if transport is not None and transport.sock is not None:
        transport.sock.close()
    broker = AmqpBroker(SimpleNamespace(transport=transport), (OSError,))
    logged: list[object] = []
    for _ in range(2):
        broker.acknowledge(SimpleNamespace(ack_log_error=lambda *args: logged.append(args)))
    broker.flush()
    broker.flush()
    assert len(logged) == 2


def _delivery(message: str, connection: int = CONNECTION) -> Delivery:
    request = SimpleNamespace(id=message, request_dict={}, message=message)
    return Delivery(request, "key", 0, 0, connection)


def _ended(outcome: str, *, acknowledges: bool, connection: int = CONNECTION) -> Delivery:
    delivery = _delivery("message", connection)
    delivery.outcome = outcome
    delivery.acknowledges = acknowledges
    delivery.settlement = lambda: None
    return delivery
