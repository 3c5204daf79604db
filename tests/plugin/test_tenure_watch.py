"""The last look before a body: what its process is told of its worker's partitions, and when the body may not start."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from jobsync_celery import current_claim
from jobsync_celery.plugin.audience import Audience
from jobsync_celery.plugin.coordinated import Coordination
from jobsync_celery.plugin.pool_child import Starter
from jobsync_celery.plugin.tenure_watch import TenureWatch
from jobsync_celery.runtime.claim import Ticket
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.events import Events
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.listeners import Listeners
from jobsync_celery.runtime.tenures import Tenures
from jobsync_celery.signals import tenure_changed


class Stage:
    """A process that runs tasks: a traced task, its worker's lease and tenures, and what the receivers heard."""

    def __init__(self) -> None:
        self.lease, self.tenures = Lease(), Tenures(8)
        self.lease.renew(7, boot_clock() + 60)
        audience = Audience(SimpleNamespace(callbacks=[]), "me", None)  # type: ignore[arg-type] # tells no tokens
        listeners = Listeners(audience, Events(), let_pass=(SoftTimeLimitExceeded,))
        self.watch = TenureWatch(self.tenures, listeners)
        starter = Starter(self.lease, None, self.tenures, self.watch)  # type: ignore[arg-type] # guards nothing
        self.task: Any = SimpleNamespace(__trace__=lambda *_: current_claim().tenure)
        starter.wrap([(self.task, Coordination("t", "key", lambda *_: None))])
        self.heard: list[tuple[set[int], set[int]]] = []

    def listen(self, receiver: Callable[..., None] | None = None) -> None:
        def note(gained: set[int], lost: set[int], tenures: dict[int, int], **_: object) -> None:
            assert set(tenures) >= gained
            self.heard.append((set(gained), set(lost)))

        tenure_changed.connect(receiver or note, weak=False)

    def run(self, partition: int, tenure: int | None = None) -> Any:
        """What the body returned: its claim's tenure; or True if it was refused."""
        given = self.tenures.of(partition) if tenure is None else tenure
        ticket = Ticket("k", 5, partition, "me", 41, 1, ("id", "o", 0), (7, 0), given)
        answer = self.task.__trace__("id", (), {}, {"properties": {"jobsync_ticket": tuple(ticket)}})
        return answer if isinstance(answer, int) else answer[1]


@pytest.fixture
def stage() -> Iterator[Stage]:
    yield Stage()
    tenure_changed.receivers = []


def test_a_new_process_learns_what_its_worker_has_before_its_first_body_and_changes_before_the_next(
    stage: Stage,
) -> None:
    stage.listen()
    stage.tenures.begin([1, 2])
    assert stage.run(1) == 1 and stage.heard == [({1, 2}, set())]
    assert stage.run(2) == 2 and len(stage.heard) == 1
    stage.tenures.end([1])
    stage.tenures.begin([3])
    stage.run(3)
    assert stage.heard[1:] == [({3}, {1})]
    stage.tenures.end([3])
    stage.tenures.begin([3])
    assert stage.run(3) == 4  # lost and back again: another may have had it
    assert stage.heard[2:] == [({3}, {3})]


def test_where_nothing_has_changed_one_cell_is_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.listen()
    stage.tenures.begin([1])
    stage.run(1)
    monkeypatch.setattr(stage.tenures, "all", lambda: pytest.fail("not looked through"))
    stage.run(1)
    assert len(stage.heard) == 1


def test_whoever_connects_late_hears_of_all_there_is(stage: Stage) -> None:
    stage.tenures.begin([1, 2])
    stage.run(1)
    stage.listen()
    stage.run(1)
    assert stage.heard == [({1, 2}, set())]


def test_a_body_whose_partition_is_given_up_does_not_start_nor_in_a_later_tenure(stage: Stage) -> None:
    stage.tenures.begin([1])
    given = stage.tenures.of(1)
    stage.tenures.end([1])
    assert stage.run(1, given) is True
    stage.tenures.begin([1])
    assert stage.run(1, given) is True and stage.run(1) == stage.tenures.of(1)


def test_a_receiver_that_takes_longer_than_the_lease_lasts_keeps_the_body_from_starting(stage: Stage) -> None:
    stage.listen(lambda **_: stage.lease.close())
    stage.tenures.begin([1])
    assert stage.run(1) is True


def test_a_receiver_that_fails_is_logged_and_the_body_starts(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    def careless(**_: object) -> None:
        raise ValueError("no cache today")

    stage.listen(careless)
    stage.tenures.begin([1])
    assert stage.run(1) == 1
    assert "careless" in caplog.text and "no cache today" in caplog.text


def test_a_soft_time_limit_is_not_the_receiver_s_to_lose(stage: Stage) -> None:
    def too_long(**_: object) -> None:
        raise SoftTimeLimitExceeded

    stage.listen(too_long)
    stage.tenures.begin([1])
    with pytest.raises(SoftTimeLimitExceeded):
        stage.run(1)


def test_threads_wait_for_the_one_that_prepares(stage: Stage) -> None:
    ready, prepared = threading.Event(), threading.Event()

    def prepare(**_: object) -> None:
        assert ready.wait(10)
        prepared.set()

    stage.listen(prepare)
    stage.tenures.begin([1])
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: (stage.run(1), found.append(prepared.is_set()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.set()
    for thread in threads:
        thread.join(10)
    assert found == [True] * 3


def test_a_forked_child_begins_with_everything(stage: Stage) -> None:
    stage.listen()
    stage.tenures.begin([1, 2])
    child = os.fork()
    if child == 0:
        stage.run(1)
        os._exit(0 if stage.heard == [({1, 2}, set())] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
