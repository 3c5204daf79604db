"""What a worker answers when it is asked what it owns: by its own clock, in its pool children too."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from jobsync_celery import CoordinationConfig, JobSync
from jobsync_celery.plugin.worker import WorkerNode
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.placement import Placement
from jobsync_celery.runtime.tenures import Tenures
from jobsync_celery.store.locks import Placements

URL = "postgresql+psycopg2://nobody@localhost/none"
HERE = "a key"


class Stage:
    """A JobSync in a worker that has one partition, the one of a key; time is the test's."""

    def __init__(self) -> None:
        self.now = 100.0
        self.jobsync = JobSync(Celery("owns", broker="memory://"), CoordinationConfig(url=URL, partitions=4))
        self.partition = self.jobsync.cluster.tokens.partition_for(HERE)  # type: ignore[union-attr] # there is one
        self.node: Any = object.__new__(WorkerNode)
        self.node.lease, self.node._tenures = Lease(lambda: self.now), Tenures(4)
        self.node._tenancy, self.node._pid = SimpleNamespace(held=frozenset({self.partition})), os.getpid()
        self.node._tenures.begin([self.partition])
        tokens = self.jobsync.cluster.tokens  # type: ignore[union-attr]
        placement = Placement(tokens, 0.0, lambda: self.now)
        placement.learn(Placements(1, 60.0, {}))
        self.node.node = SimpleNamespace(placement=placement, ownership=SimpleNamespace(caretaking=frozenset()))
        self.node.lease.renew(1, 110.0)
        self.jobsync.node = self.node

    @property
    def answers(self) -> tuple[bool, int]:
        return self.jobsync.owns(HERE), len(self.jobsync.my_tokens)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_worker_owns_what_it_has_until_its_deadline_though_nobody_has_told_it_yet(stage: Stage) -> None:
    assert stage.answers == (True, 2500)
    home = stage.jobsync.queue_for
    assert not stage.jobsync.owns(next(key for key in map(str, range(99)) if home(key) != home(HERE)))
    stage.now = 110.0
    assert stage.answers == (False, 0)
    stage.node.lease.renew(1, 120.0)
    assert stage.answers == (True, 2500)  # nobody could have had it: the same incarnation


def test_a_worker_that_is_not_one_owns_nothing(stage: Stage) -> None:
    stage.jobsync.node = None
    assert stage.answers == (False, 0)


def test_a_process_that_is_stopped_in_the_middle_of_the_answer_and_is_another_incarnation_then_says_no(
    stage: Stage,
) -> None:
    class Stopped:
        @property
        def held(self) -> frozenset[int]:
            stage.now = 500.0
            stage.node.lease.renew(2, 510.0)
            return frozenset({stage.partition})

    stage.node._tenancy = Stopped()
    assert not stage.jobsync.owns(HERE)
    stage.node.lease.renew(1, stage.now + 10)
    assert not stage.jobsync.my_tokens


def test_a_pool_child_sees_what_its_worker_has_now_and_not_what_it_had_at_the_fork(stage: Stage) -> None:
    told, tell = os.pipe()
    asked, ask = os.pipe()
    child = os.fork()
    if child == 0:
        before = stage.answers == (True, 2500)
        os.write(ask, b".")
        os.read(told, 1)
        os._exit(0 if before and stage.answers == (False, 0) else 1)
    os.read(asked, 1)
    stage.node._tenures.end([stage.partition])
    os.write(tell, b".")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for end in (told, tell, asked, ask):
        os.close(end)
