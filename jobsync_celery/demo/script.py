"""What the seed decides: the tasks, who is killed, who is stopped, and when. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One task to publish: number, account (its key), and how long its work takes."""

    n: int
    account: str
    seconds: float


@dataclass(frozen=True)
class Script:
    """One performance, the same for the same seed.

    ``before_*`` are the seconds for which the cluster is left alone before something happens to it.
    """

    seed: int
    first: tuple[str, ...]
    joiner: str
    victim: str
    leaver: str
    jobs: tuple[Job, ...]
    before_join: float
    before_kill: float
    before_stop: float
    before_end: float

    @property
    def names(self) -> tuple[str, ...]:
        """All workers, in order of appearance."""
        return (*self.first, self.joiner)


def write_script(seed: int, workers: int, tasks: int, keys: int) -> Script:
    """Draw everything from the seed."""
    chance = random.Random(seed)
    names = [f"worker-{number:02}" for number in range(1, workers + 2)]
    victim, leaver = chance.sample(names, 2)
    before_join, before_kill, before_stop = (chance.uniform(2.5, 4.0) for _ in range(3))
    jobs = tuple(Job(n, f"account-{chance.randrange(keys):03}", _work_sec(chance)) for n in range(tasks))
    return Script(
        seed=seed,
        first=tuple(names[:-1]),
        joiner=names[-1],
        victim=victim,
        leaver=leaver,
        jobs=jobs,
        before_join=before_join,
        before_kill=before_kill,
        before_stop=before_stop,
        before_end=2.5,
    )


def _work_sec(chance: random.Random) -> float:
    """Mostly short; one in fifty so long that a kill meets it half-way."""
    return round(chance.uniform(0.3, 0.8) if chance.random() < 0.02 else chance.uniform(0.002, 0.02), 4)
