"""One member of a crew: a program with a ``Job``, as a user would write it, that is sampled and does as it is told.

Its argument is a JSON object: ``name``, ``config`` and ``options`` of the Job, ``record`` and ``ids`` of the sampler,
``socket`` to be told by. The socket is there once the block has been entered; when the other side hangs up, it ends.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

from crews.record import Sampler
from jobsync_celery import CoordinationConfig, Job

#: Tasks that are claimed, or written down, at once.
_BATCH = 200
#: How often a member looks what is left for it to do.
_PACE_SEC = 0.25
#: Of so many batches one is claimed one by one.
_ONE_BY_ONE = 10
_AFTER_THE_END_SEC = 5.0


def main() -> None:
    """Join, obey, leave."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    job = Job(spec["name"], coordination_config=CoordinationConfig(**spec["config"]), **spec["options"])
    sampler = Sampler(Path(spec["record"]), spec["label"], spec["ids"], job.can_claim_task)
    entering = time.monotonic_ns()
    ORDERS["entering"] = lambda _: entering
    threading.Thread(target=_sample, args=(sampler,), daemon=True).start()
    with job, Listener(spec["socket"]) as listener, listener.accept() as told:
        _obey(job, told)
    _await_round(sampler)


def _sample(sampler: Sampler) -> None:
    try:
        sampler.run()
    finally:
        traceback.print_exc()
        os._exit(3)  # a record that ends early would hide what comes


def _await_round(sampler: Sampler) -> None:
    """It has left; what it answers now is still looked at."""
    seen, end = sampler.rounds, time.monotonic() + _AFTER_THE_END_SEC
    while sampler.rounds < seen + 10 and time.monotonic() < end:
        time.sleep(0.002)


def _obey(job: Job, told: Any) -> None:
    while True:
        try:
            name, arguments = told.recv()
        except EOFError:
            return
        try:
            told.send((True, ORDERS[name](job, *arguments)))
        except Exception as error:  # noqa: BLE001 - the test is to see it, whatever it is
            told.send((False, "".join(traceback.format_exception(error))))


def task_ids(count: int, seed: int) -> list[str]:
    """Random ids, the same in every process."""
    chance = random.Random(seed)
    return [f"{chance.getrandbits(128):032x}" for _ in range(count)]


def _ask(job: Job, name: str, *arguments: Any) -> Any:
    """What an attribute or a method of the Job says."""
    said = getattr(job, name)
    said = said(*arguments) if callable(said) else said
    return sorted(said) if isinstance(said, (set, frozenset)) else said


def _own(job: Job, ids: Sequence[str]) -> list[str]:
    return [id_ for id_ in ids if job.can_claim_task(id_)]


class Worker:
    """What this process has claimed, and done, of random ids that all processes try to get."""

    def __init__(self) -> None:
        self.won: set[str] = set()
        self.done: list[str] = []
        self._done: set[str] = set()

    def contest(self, job: Job, count: int, seed: int) -> list[str]:
        """Try to claim everything, whoever it belongs to, in an order of one's own; the ids that were won.

        Most are claimed many at once, the others one by one, as they are done.
        """
        for number, batch in enumerate(_batches(_in_own_order(job, task_ids(count, seed)))):
            if number % _ONE_BY_ONE:
                self.won.update(claim.key for claim in job.set_claim(batch))
            else:
                self._do(job, batch)
        return sorted(self.won)

    def work(self, job: Job, count: int, seed: int) -> list[str]:
        """Do what is mine, write it down now and then, and look again until everything is written down.

        The ids that were done here.
        """
        ids = _in_own_order(job, task_ids(count, seed))
        left = set(ids)
        while left:
            here = left - self._done
            for batch in _batches([id_ for id_ in ids if id_ in here and job.can_claim_task(id_)]):
                self.won.update(claim.key for claim in job.set_claim(batch))
                self._do(job, [id_ for id_ in batch if id_ in self.won])
                job.write_audit()
            job.write_audit()
            left -= {row["task_id"] for row in job.get_audit()}
            time.sleep(_PACE_SEC if left else 0)
        return self.done

    def _do(self, job: Job, ids: Sequence[str]) -> None:
        added = [id_ for id_ in ids if job.add_task(id_) is not None]
        self.won.update(added)
        self.done += added
        self._done.update(added)


def _batches(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[at : at + _BATCH] for at in range(0, len(ids), _BATCH)]


def _in_own_order(job: Job, ids: list[str]) -> list[str]:
    random.Random(job.node_name).shuffle(ids)
    return ids


WORKER = Worker()
ORDERS: dict[str, Callable[..., Any]] = {"ask": _ask, "own": _own, "contest": WORKER.contest, "work": WORKER.work}

if __name__ == "__main__":
    main()
