"""A run that keeps dying is given up, and a run that only stood next to one that dies is not."""

from __future__ import annotations

from contextlib import closing

import pytest
from cluster import Cluster, wanted

from jobsync_celery.core.model import Run
from jobsync_celery.store.outcomes import Busy, Ending, GivenUp, Granted, Known, Outcome

ONE, TWO = wanted("one"), wanted("two", "other")


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    return Cluster(database_url)


def granted(outcome: Outcome) -> Granted:
    assert isinstance(outcome, Granted), outcome
    return outcome


def begin(cluster: Cluster, run: Run, fence: int) -> bool:
    with closing(cluster.link("begin")) as link:
        return cluster.store.claims.begin(link, run, fence)


def dies(cluster: Cluster, name: str, incarnation: int) -> None:
    """The whole node: nobody can say what it had begun."""
    assert cluster.bury(name, incarnation)
    cluster.within(cluster.store.claims.settle)
    cluster.within(cluster.store.partitions.free_orphans)


def lost_runs(cluster: Cluster) -> dict[str, int]:
    return dict(cluster.rows("SELECT task_id, lost_runs FROM {claim}"))


def crash(cluster: Cluster, fence: int) -> None:
    """Only the pool child: its worker knows that the run had begun."""
    cluster.end(Ending(ONE.run, fence, "lost", 0, crashed=True))


def test_a_run_whose_pool_child_dies_three_times_is_failed_with_the_reason(cluster: Cluster) -> None:
    a = cluster.join("a", 0)
    for number in range(3):
        [outcome] = cluster.claim("a", a, ONE)
        assert granted(outcome)[1:] == (number + 1, number, number == 2)
        crash(cluster, granted(outcome).fence)
    [given_up] = cluster.claim("a", a, ONE)
    assert given_up == GivenUp("lost 3 times: its worker or pool child died while it ran")
    assert cluster.rows("SELECT state, reason FROM {claim}") == [("failed", given_up.reason)]


def test_whoever_asks_again_for_a_run_that_was_given_up_gets_the_same_answer(cluster: Cluster) -> None:
    """Its worker may have died before it could fail the task and reject the message."""
    a = cluster.join("a", 0)
    for _ in range(3):
        crash(cluster, granted(cluster.claim("a", a, ONE)[0]).fence)
    first = cluster.claim("a", a, ONE)
    assert cluster.claim("a", a, ONE) == first


def test_its_key_moves_on(cluster: Cluster) -> None:
    a = cluster.join("a", 0)
    for _ in range(3):
        crash(cluster, granted(cluster.claim("a", a, ONE)[0]).fence)
    assert isinstance(cluster.claim("a", a, ONE)[0], GivenUp)
    assert granted(cluster.claim("a", a, wanted("next"))[0]).lost_runs == 0


def test_a_run_that_takes_its_whole_worker_down_is_given_up_as_well(cluster: Cluster) -> None:
    for number in range(3):
        incarnation = cluster.join("a", 0)
        [outcome] = cluster.claim("a", incarnation, ONE)
        assert granted(outcome).lost_runs == number
        if number:
            assert begin(cluster, ONE.run, granted(outcome).fence)
        dies(cluster, "a", incarnation)
    assert isinstance(cluster.claim("a", cluster.join("a", 0), ONE)[0], GivenUp)


def test_a_run_that_waits_next_to_it_is_not(cluster: Cluster) -> None:
    for number in range(6):
        incarnation = cluster.join("a", 0)
        killer, bystander = cluster.claim("a", incarnation, ONE, TWO)
        assert granted(bystander).lost_runs <= 1
        if number and isinstance(killer, Granted):
            begin(cluster, ONE.run, killer.fence)
        dies(cluster, "a", incarnation)
    assert cluster.states() == {"one": "failed", "two": "lost"}
    assert lost_runs(cluster) == {"one": 3, "two": 1}


def test_a_loss_that_may_not_have_begun_is_never_the_last_word(cluster: Cluster) -> None:
    incarnation = cluster.join("a", 0)
    cluster.claim("a", incarnation, ONE)
    dies(cluster, "a", incarnation)
    again = cluster.join("a", 0)
    outcome = cluster.within(lambda tx: cluster.store.claims.claim(tx, "a", again, [ONE], max_lost_runs=1))[ONE.run]
    assert granted(outcome).lost_runs == 1
    assert begin(cluster, ONE.run, granted(outcome).fence)
    dies(cluster, "a", again)
    last = cluster.join("a", 0)
    outcome = cluster.within(lambda tx: cluster.store.claims.claim(tx, "a", last, [ONE], max_lost_runs=1))[ONE.run]
    assert isinstance(outcome, GivenUp)


def test_what_is_given_back_does_not_count(cluster: Cluster) -> None:
    a = cluster.join("a", 0)
    for _ in range(5):
        [outcome] = cluster.claim("a", a, ONE)
        cluster.end(Ending(ONE.run, granted(outcome).fence, "lost", 0))
    assert lost_runs(cluster) == {"one": 0}
    assert granted(cluster.claim("a", a, ONE)[0]).attempt == 6


def test_a_crash_that_was_counted_at_the_eviction_is_not_counted_again(cluster: Cluster) -> None:
    a = cluster.join("a", 0)
    [outcome] = cluster.claim("a", a, ONE)
    dies(cluster, "a", a)
    crash(cluster, granted(outcome).fence)
    assert lost_runs(cluster) == {"one": 1}


def test_a_run_whose_claim_was_lost_meanwhile_does_not_begin(cluster: Cluster) -> None:
    a = cluster.join("a", 0)
    [outcome] = cluster.claim("a", a, ONE)
    dies(cluster, "a", a)
    assert not begin(cluster, ONE.run, granted(outcome).fence)
    b = cluster.join("b", 0)
    assert granted(cluster.claim("b", b, ONE)[0]).fence > granted(outcome).fence
    assert not begin(cluster, ONE.run, granted(outcome).fence)


def test_an_ordinary_failure_is_known_and_not_given_up(cluster: Cluster) -> None:
    a = cluster.join("a", 0)
    [outcome] = cluster.claim("a", a, ONE)
    cluster.end(Ending(ONE.run, granted(outcome).fence, "failed", 0))
    assert cluster.claim("a", a, ONE) == [Known("failed")]


def test_a_run_is_given_up_only_while_its_key_is_free_to_say_so(cluster: Cluster) -> None:
    """Another run of the key may run meanwhile: the one that is given up does not disturb it."""
    a = cluster.join("a", 0)
    for _ in range(3):
        crash(cluster, granted(cluster.claim("a", a, ONE)[0]).fence)
    [running] = cluster.claim("a", a, wanted("next"))
    assert isinstance(cluster.claim("a", a, ONE)[0], (GivenUp, Busy))
    assert begin(cluster, wanted("next").run, granted(running).fence)
