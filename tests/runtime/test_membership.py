"""Membership: registering, renewing, and until when a node trusts itself; time is the test's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from member_stage import INTERVAL, LEASE, Stage
from stage import Facts, FakeHold, Outage, counts, identity, join, rows, store_at, wanted

from jobsync_celery.core.lease import DRIFT, margin_for, trusted_until
from jobsync_celery.errors import StoreUnavailable
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.membership import Membership
from jobsync_celery.store.nodes import Renewal
from jobsync_celery.store.store import Store


@pytest.fixture
def store(database_url: str) -> Store:
    return store_at(database_url)


@pytest.fixture
def stage(store: Store) -> Iterator[Stage]:
    stage = Stage(store)
    yield stage
    stage.link.close()


def at_renew(stage: Stage, monkeypatch: pytest.MonkeyPatch, event: Callable[[], None]) -> None:
    """Let something happen while the heartbeat is under way."""
    renew = stage.store.nodes.renew

    def slow(*arguments: object) -> Renewal | None:
        answer = renew(*arguments)  # type: ignore[arg-type] # passed on
        event()
        return answer

    monkeypatch.setattr(stage.store.nodes, "renew", slow)


def test_the_first_tick_registers_and_renews(stage: Stage) -> None:
    answer = stage.tick()
    assert answer is not None and answer.state == "live" and answer.watching
    assert stage.member.incarnation == stage.lease.incarnation
    assert stage.lease.trusted
    assert stage.member.next_due == stage.clock.now + INTERVAL
    assert stage.facts.of("node_registered") == [{"name": "a", "incarnation": stage.member.incarnation}]


def test_trust_is_counted_from_before_the_heartbeat_was_sent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    at_renew(stage, monkeypatch, lambda: stage.clock.pass_by(4))
    sent = stage.clock.now
    stage.tick()
    assert stage.lease.deadline == pytest.approx(trusted_until(sent, LEASE, margin=margin_for(LEASE)))
    assert stage.lease.deadline < sent + LEASE


def test_an_answer_later_than_the_lease_gives_no_trust(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    at_renew(stage, monkeypatch, lambda: stage.clock.pass_by(LEASE))
    assert stage.tick() is not None
    assert not stage.lease.trusted


def test_renewals_move_the_deadline_and_their_absence_ends_trust(stage: Stage) -> None:
    stage.tick()
    first = stage.lease.deadline
    stage.clock.pass_by(INTERVAL)
    stage.tick()
    assert stage.lease.deadline == pytest.approx(first + INTERVAL)
    stage.clock.pass_by(LEASE)
    assert not stage.lease.trusted
    assert stage.tick() is not None  # nobody declared it dead: it resumes
    assert stage.lease.trusted and not stage.facts.of("lease_lost")


@pytest.mark.parametrize("end", ["UPDATE {node} SET state = 'dead'", "DELETE FROM {node}"])
def test_a_node_declared_dead_registers_again_as_a_new_incarnation(stage: Stage, end: str) -> None:
    stage.tick()
    first = stage.member.incarnation
    rows(stage.store, end)
    assert stage.tick() is None
    assert stage.member.incarnation is None and not stage.lease.trusted
    assert stage.member.next_due <= stage.clock.now  # at once
    assert stage.tick() is not None
    assert first is not None and stage.member.incarnation is not None and stage.member.incarnation > first
    assert stage.lease.incarnation == stage.member.incarnation and stage.lease.trusted


def test_an_outage_raises_and_keeps_the_incarnation(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.tick()
    incarnation, deadline = stage.member.incarnation, stage.lease.deadline
    with Outage(stage.link, monkeypatch), pytest.raises(StoreUnavailable):
        stage.tick()
    stage.member.retry_soon()
    assert stage.clock.now < stage.member.next_due <= stage.clock.now + INTERVAL / 4
    assert (stage.member.incarnation, stage.lease.deadline) == (incarnation, deadline)


# the name is in use


def test_a_name_whose_process_is_provably_gone_is_taken_over_at_once(stage: Stage) -> None:
    old = join(stage.store, "a", 0, presence="theirs")
    claimed(stage.store, old)
    stage.hold.gone.add("theirs")
    assert stage.tick() is not None
    assert stage.member.incarnation is not None and stage.member.incarnation > old
    assert counts(stage.store) == {None: 64}
    assert rows(stage.store, "SELECT state FROM {claim}") == [("lost",)]
    assert not stage.facts.of("waiting_for_name")


def test_a_name_in_use_is_waited_for_until_its_lease_has_ended(stage: Stage) -> None:
    old = join(stage.store, "a", presence="theirs")
    assert stage.tick() is None
    assert stage.facts.of("waiting_for_name") == [{"name": "a", "holder_host": "host", "holder_pid": 7}]
    stage.clock.pass_by(LEASE)
    assert stage.tick() is None  # the clocks may differ a little
    assert stage.member.next_due - stage.clock.now <= 1.0
    stage.clock.pass_by(0.02)
    assert stage.tick() is not None
    assert stage.member.incarnation is not None and stage.member.incarnation > old
    assert len(stage.facts.of("waiting_for_name")) == 1 and not stage.facts.of("name_taken")


def test_a_name_that_renews_meanwhile_is_refused_once_and_waited_for(stage: Stage) -> None:
    old = join(stage.store, "a", presence="theirs")
    for _ in range(4):
        assert stage.tick() is None
        stage.clock.pass_by(LEASE - 1)
        rows(stage.store, "UPDATE {node} SET renewals = renewals + 1")
    assert len(stage.facts.of("name_taken")) == 1
    assert rows(stage.store, "SELECT incarnation, state FROM {node}") == [(old, "live")]
    assert stage.tick() is None
    stage.clock.pass_by(LEASE + 1)
    assert stage.tick() is not None


def test_a_renewal_in_the_last_moment_saves_the_name(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    old = join(stage.store, "a", presence="theirs")
    stage.tick()
    stage.clock.pass_by(LEASE + 1)
    lock = stage.store.leaders.lock

    def late(tx: object) -> object:
        rows(stage.store, "UPDATE {node} SET renewals = renewals + 1")
        return lock(tx)  # type: ignore[arg-type] # passed on

    monkeypatch.setattr(stage.store.leaders, "lock", late)
    assert stage.tick() is None
    assert stage.member.incarnation is None
    assert rows(stage.store, "SELECT incarnation, state FROM {node}") == [(old, "live")]


def test_the_lease_that_is_waited_for_is_the_other_processs_not_our_own(store: Store) -> None:
    old = join(store, "a", presence="theirs", lease_sec=60.0)
    hasty = Stage(store, lease_sec=5.0)
    assert hasty.tick() is None
    hasty.clock.pass_by(20)
    assert hasty.tick() is None
    assert rows(store, "SELECT incarnation, state FROM {node}") == [(old, "live")]
    hasty.clock.pass_by(41)
    assert hasty.tick() is not None
    hasty.link.close()


def test_a_name_that_left_or_died_is_free_at_once(stage: Stage) -> None:
    join(stage.store, "a", presence="theirs")
    rows(stage.store, "UPDATE {node} SET state = 'dead'")
    assert stage.tick() is not None


def test_a_registration_whose_answer_was_lost_is_made_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    unheard = join(stage.store, "a", presence="mine")  # committed, but we do not know
    assert stage.tick() is not None
    assert stage.member.incarnation is not None and stage.member.incarnation > unheard


# failover


def fail_over(store: Store, timeline: int = 2) -> None:
    rows(
        store,
        f"CREATE OR REPLACE FUNCTION {{timeline}}() RETURNS bigint LANGUAGE sql AS 'SELECT {timeline}::bigint'",
    )


def test_a_new_timeline_of_the_database_takes_all_rights_for_a_whole_timeout(stage: Stage) -> None:
    stage.tick()
    first = stage.member.incarnation
    fail_over(stage.store)
    stage.clock.pass_by(INTERVAL)
    assert stage.tick() is None
    assert not stage.lease.trusted and stage.member.incarnation is None
    stage.clock.pass_by(LEASE)
    assert stage.tick() is None
    stage.clock.pass_by(LEASE * DRIFT + 0.1)
    assert stage.tick() is not None
    assert first is not None and stage.member.incarnation is not None and stage.member.incarnation > first
    assert [fields["reason"] for fields in stage.facts.of("lease_lost")] == ["the database failed over"]
    stage.clock.pass_by(INTERVAL)
    assert stage.tick() is not None  # once


def test_a_process_that_starts_after_a_failover_waits_as_well(store: Store) -> None:
    """It cannot know what the new primary has lost: another node may still trust a lease that is not there."""
    fail_over(store)
    late = Stage(store)
    assert late.tick() is None
    late.clock.pass_by(LEASE)
    assert late.tick() is None and late.state() is None
    late.clock.pass_by(LEASE * DRIFT + 0.1)
    assert late.tick() is not None


def test_a_failover_that_somebody_has_outlived_is_waited_for_by_nobody_else(store: Store) -> None:
    fail_over(store)
    first = Stage(store)
    first.tick()
    first.clock.pass_by(LEASE * (1 + DRIFT) + 0.1)
    assert first.tick() is not None
    second = Membership(
        store, store.database.link("second"), identity("b"), Lease(first.clock), FakeHold("other"),
        Facts().events, interval=INTERVAL, clock=first.clock,
    )  # fmt: skip
    assert second.tick() is not None


def test_a_failover_while_one_waits_is_waited_for_anew(store: Store) -> None:
    fail_over(store, 2)
    stage = Stage(store)
    stage.tick()
    stage.clock.pass_by(LEASE)
    fail_over(store, 3)
    assert stage.tick() is None
    stage.clock.pass_by(LEASE)
    assert stage.tick() is None
    stage.clock.pass_by(LEASE * DRIFT + 0.1)
    assert stage.tick() is not None


def test_a_failover_between_registration_and_first_heartbeat_takes_the_rights(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew = stage.store.nodes.renew

    def after_a_failover(*arguments: object) -> Renewal | None:
        fail_over(stage.store)
        return renew(*arguments)  # type: ignore[arg-type] # passed on

    monkeypatch.setattr(stage.store.nodes, "renew", after_a_failover)
    assert stage.tick() is None
    assert not stage.lease.trusted and stage.member.incarnation is None


def test_no_incarnation_is_given_twice_though_the_sequence_went_back(stage: Stage) -> None:
    stage.tick()
    first = stage.member.incarnation
    fail_over(stage.store)
    rows(stage.store, "SELECT setval('{incarnation_seq}', 1, false)")
    stage.tick()
    stage.clock.pass_by(LEASE * (1 + DRIFT) + 0.1)
    assert stage.tick() is not None
    assert first is not None and stage.member.incarnation is not None and stage.member.incarnation > first


def test_nobody_is_declared_dead_on_another_timeline_than_its_heartbeats_were_counted_on(store: Store) -> None:
    incarnation = join(store, "victim")
    fail_over(store)
    with store.database.transaction() as tx:
        assert not store.nodes.declare_dead(tx, "victim", incarnation, 0, timeline=1)
        assert store.nodes.declare_dead(tx, "victim", incarnation, 0, timeline=2)


# drain and leave


def test_draining_is_said_once_and_goes_on_renewing(stage: Stage) -> None:
    stage.tick()
    stage.member.drain()
    stage.member.drain()
    assert stage.state() == "draining"
    assert len(stage.facts.of("node_draining")) == 1
    answer = stage.tick()
    assert answer is not None and answer.state == "draining"


def test_a_drain_that_the_database_did_not_hear_can_be_said_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.tick()
    with Outage(stage.link, monkeypatch), pytest.raises(StoreUnavailable):
        stage.member.drain()
    assert not stage.member.draining
    stage.member.drain()
    assert stage.state() == "draining"


def test_leaving_gives_everything_up_and_removes_the_row(stage: Stage) -> None:
    stage.tick()
    incarnation = stage.member.incarnation
    assert incarnation is not None
    with stage.store.database.transaction() as tx:
        stage.store.partitions.assign(tx, {0: "a", 1: "a"})
        stage.store.partitions.take(tx, [0, 1], "a", incarnation)
    claimed(stage.store, incarnation)
    stage.member.leave()
    assert stage.state() is None
    assert counts(stage.store) == {None: 64}
    assert rows(stage.store, "SELECT state FROM {claim}") == [("lost",)]
    assert not stage.lease.trusted and stage.member.incarnation is None
    stage.member.leave()  # twice is no error
    assert len(stage.facts.of("node_left")) == 1


def claimed(store: Store, incarnation: int) -> None:
    with store.database.transaction() as tx:
        store.claims.claim(tx, "a", incarnation, [wanted("t")])
