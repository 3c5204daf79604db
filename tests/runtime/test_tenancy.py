"""Tenancy: who listens is told before a partition is consumed, and before the next owner may have it."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator

import pytest
from stage import eventually
from tenancy_stage import LEASE, TenancyStage, some


@pytest.fixture
def stage() -> Iterator[TenancyStage]:
    stage = TenancyStage()
    yield stage
    stage.crowd.functions.clear()
    stage.tenancy.close(5)


def test_where_nobody_listens_every_order_is_passed_on_at_once_and_there_is_no_thread(stage: TenancyStage) -> None:
    before = set(threading.enumerate())
    stage.tenancy.start(some(1, 2))
    assert stage.surface.calls == [("start", some(1, 2))] and stage.tenancy.held == {1, 2}
    assert stage.tenures.of(1) and stage.tenures.of(2)
    stage.tenancy.stop(some(1))
    assert stage.tenancy.held == {2} and stage.released == set()
    stage.tenancy.ended(some(1))
    assert stage.released == {1} and stage.tenures.of(1) == 0
    stage.tenancy.post("node_left", name="b")
    stage.tenancy.reconsider({"key": 3})
    assert stage.surface.locked == [{"key": 3}]
    assert "jobsync-listeners" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_a_partition_is_consumed_only_when_the_receivers_of_assigned_have_returned(stage: TenancyStage) -> None:
    ready = threading.Event()
    stage.listen(assigned=ready)
    stage.tenancy.start(some(1))
    eventually(lambda: stage.said)
    assert stage.tenancy.held == {1}  # a receiver may ask what it has
    assert stage.surface.calls == [] and stage.tenures.of(1) == 0
    ready.set()
    eventually(lambda: stage.surface.consumed == {1})
    assert stage.tenures.of(1)


def test_a_partition_is_released_only_when_it_is_consumed_no_more_and_the_receivers_of_revoked_have_returned(
    stage: TenancyStage,
) -> None:
    clean = threading.Event()
    stage.listen(revoked=clean)
    stage.give(1, 2)
    stage.tenancy.stop(some(1))
    assert ("stop", some(1)) in stage.surface.calls and stage.tenancy.held == {2}
    threading.Event().wait(0.05)
    assert stage.calls == [("assigned", some(1, 2))]  # it is still consumed: what has not started goes back first
    stage.tenancy.ended(some(1))
    eventually(lambda: ("revoked", some(1)) in stage.said)
    assert stage.tenures.of(1) == 0 and stage.released == set() and stage.tenancy.busy
    clean.set()
    eventually(lambda: stage.released == {1})
    assert not stage.tenancy.busy and stage.tenures.of(2)


def test_at_the_deadline_revoked_is_called_at_once_though_the_node_stands_still(stage: TenancyStage) -> None:
    stage.listen()
    stage.give(1, 2)
    stage.expire()
    eventually(lambda: ("revoked returned", some(1, 2)) in stage.said)
    assert stage.calls[-1] == ("lost", some(1, 2))
    assert stage.surface.consumed == set() and not stage.tenancy.held and not stage.tenures.all()
    stage.tenancy.stop(some(1, 2))  # the node's loop comes by at last
    stage.tenancy.ended(some(1, 2))
    assert stage.released == {1, 2}  # nothing left to wait for; the ownership did not ask, and ignores it
    assert len(stage.calls) == 2


def test_a_lease_that_is_renewed_after_all_is_assigned_again_and_only_then_consumed(stage: TenancyStage) -> None:
    ready = threading.Event()
    stage.listen()
    stage.give(1)
    first = stage.tenures.of(1)
    stage.expire()
    eventually(lambda: len(stage.calls) == 2)
    stage.crowd.functions["partitions_assigned"].clear()
    stage.listen(assigned=ready)
    stage.renew()
    eventually(lambda: len(stage.calls) == 3)
    assert stage.surface.consumed == set()
    ready.set()
    eventually(lambda: stage.surface.consumed == {1})
    assert stage.tenures.of(1) > first


def test_the_node_s_own_suspension_and_resumption_change_nothing_about_that(stage: TenancyStage) -> None:
    stage.listen()
    stage.give(1)
    stage.clock.pass_by(LEASE)
    stage.tenancy.stop(some(1))
    stage.tenancy.ended(some(1))
    stage.lease.renew(1, stage.clock.now + LEASE)
    stage.tenancy.start(some(1))
    eventually(lambda: stage.surface.consumed == {1})
    assert stage.calls == [("assigned", some(1)), ("lost", some(1)), ("assigned", some(1))]


@pytest.mark.parametrize("how", ["owned", "handed over"])
def test_what_was_lost_and_is_back_before_the_receivers_heard_of_it_is_revoked_first(
    stage: TenancyStage, how: str
) -> None:
    """Another node may have had it meanwhile."""
    busy = threading.Event()
    stage.listen()
    stage.give(1)
    stage.crowd.on("node_left", lambda: busy.wait(10))
    stage.tenancy.post("node_left")
    eventually(lambda: stage.tenancy.busy)
    if how == "handed over":
        stage.tenancy.stop(some(1))  # and the surface does not report
        stage.lease.close()
    else:
        stage.clock.pass_by(LEASE)
        stage.tenancy.stop(some(1))
    stage.lease.renew(2, stage.clock.now + LEASE)
    stage.tenancy.start(some(1))
    busy.set()
    eventually(lambda: stage.surface.consumed == {1})
    assert stage.calls == [("assigned", some(1)), ("lost", some(1)), ("assigned", some(1))]


def test_what_is_lost_before_its_assigned_call_began_is_never_told(stage: TenancyStage) -> None:
    busy = threading.Event()
    stage.listen()
    stage.crowd.on("node_left", lambda: busy.wait(10))
    stage.tenancy.post("node_left")
    stage.tenancy.start(some(1, 2))
    stage.tenancy.stop(some(1))
    stage.tenancy.ended(some(1))
    assert stage.released == {1}  # nobody is waited for
    busy.set()
    eventually(lambda: stage.surface.consumed == {2})
    assert stage.calls == [("assigned", some(2))]


@pytest.mark.parametrize("how", ["stopped", "expired", "expired and renewed"])
def test_what_is_lost_while_it_is_assigned_is_never_consumed_and_then_revoked(stage: TenancyStage, how: str) -> None:
    ready = threading.Event()
    stage.listen(assigned=ready)
    stage.tenancy.start(some(1))
    eventually(lambda: stage.said)
    if how == "stopped":
        stage.tenancy.stop(some(1))
        stage.tenancy.ended(some(1))
    else:
        stage.expire()
    if how == "expired and renewed":
        stage.tenancy.stop(some(1))
        stage.renew(2)
    assert stage.released == set()
    ready.set()
    eventually(lambda: len(stage.said) == 4)
    assert stage.calls == [("assigned", some(1)), ("revoked" if how == "stopped" else "lost", some(1))]
    assert "start" not in [order for order, _ in stage.surface.calls]
    eventually(lambda: stage.released == ({1} if how == "stopped" else set()))


def test_a_lost_incarnation_revokes_also_what_was_being_handed_over(stage: TenancyStage) -> None:
    stage.listen()
    stage.give(1, 2)
    busy = threading.Event()
    stage.crowd.on("node_left", lambda: busy.wait(10))
    stage.tenancy.post("node_left")
    stage.tenancy.stop(some(1))  # and the surface does not report
    stage.lease.close()
    stage.tenancy.stop(some(2))
    stage.lease.renew(2, stage.clock.now + LEASE)  # at once, before the receivers' thread comes to look
    busy.set()
    eventually(lambda: sorted(number for _, told in stage.calls[1:] for number in told) == [1, 2])
    assert {signal for signal, _ in stage.calls[1:]} == {"lost"}


def test_a_partition_that_the_database_denies_is_lost(stage: TenancyStage) -> None:
    stage.listen()
    stage.give(1)
    stage.tenancy.disown(some(1))
    eventually(lambda: stage.calls[-1] == ("lost", some(1)))
    assert not stage.tenancy.held and not stage.tenures.all()
    stage.renew()
    threading.Event().wait(0.05)
    assert len(stage.calls) == 2  # not before the node says so


def test_a_receiver_that_raises_is_logged_without_passwords_and_counts_as_returned(
    stage: TenancyStage, caplog: pytest.LogCaptureFixture
) -> None:
    def careless(**_: object) -> None:
        raise ValueError("cannot reach redis://user:p@ss:word@host/0 at all")

    stage.crowd.on("partitions_assigned", careless)
    stage.crowd.on("partitions_assigned", lambda **_: sys.exit("as a program would"))
    stage.listen()
    with caplog.at_level(logging.ERROR, "jobsync_celery"):
        stage.give(1)
    assert stage.calls == [("assigned", some(1))]
    assert "careless" in caplog.text and "redis://user:***@host/0 at all" in caplog.text
    assert "word" not in caplog.text.replace("password", "")
    assert len(stage.facts.of("listener_failed")) == 2


def test_a_receiver_that_hangs_is_named_and_holds_up_nothing_that_is_not_its_own(stage: TenancyStage) -> None:
    hung = threading.Event()

    def stubborn(partitions: frozenset[int], **_: object) -> None:
        hung.wait(10)

    stage.give(1, 2)
    stage.crowd.on("partitions_revoked", stubborn)
    stage.give(3)
    stage.tenancy.stop(some(3))
    stage.tenancy.ended(some(3))
    eventually(lambda: len(stage.facts.of("listener_slow")) >= 2)
    slow = stage.facts.of("listener_slow")
    assert {(fact["receiver"], fact["signal"]) for fact in slow} == {("stubborn", "partitions_revoked")}
    assert [fact["seconds"] for fact in slow][:2] == [0.1, 0.2]
    assert stage.surface.consumed == {1, 2} and stage.released == set()
    stage.tenancy.stop(some(1))  # nobody was told of it, so nobody is waited for
    stage.tenancy.ended(some(1))
    assert stage.released == {1}
    hung.set()
    eventually(lambda: stage.released == {1, 3})


def test_closing_revokes_what_is_left_and_says_whether_the_receivers_have_returned(stage: TenancyStage) -> None:
    clean = threading.Event()
    stage.listen(revoked=clean)
    stage.give(1)
    assert not stage.tenancy.close(0.05)
    assert stage.calls[-1] == ("revoked", some(1)) and not stage.tenancy.held
    stage.tenancy.start(some(2))
    clean.set()
    assert stage.tenancy.close(5)
    assert len(stage.calls) == 2 and stage.surface.consumed == {1}


def test_a_surface_that_is_cut_off_and_reports_at_once_is_understood(stage: TenancyStage) -> None:
    stage.listen()
    stage.give(1)
    stage.surface.stopped = stage.tenancy.ended
    stage.tenancy.stop(some(1))
    eventually(lambda: stage.released == {1})
    stage.tenancy.ended(some(1))  # and once more, when it is connected again
    assert stage.calls == [("assigned", some(1)), ("revoked", some(1))]
