"""What is asked of claims, and what the answers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jobsync_celery.core.model import Run


class Wanted(NamedTuple):
    """A run that asks for its claim.

    ``partition`` is where its message was found, ``home`` where it belongs while its key is not locked (None: there).
    """

    run: Run
    task_name: str | None
    key: str
    token: int
    partition: int
    home: int | None = None

    def record(self) -> dict[str, object]:
        """By the names of columns."""
        task_id, origin, retries = self.run
        return {
            "task_id": task_id,
            "origin": origin,
            "retries": retries,
            "task_name": self.task_name,
            "task_key": self.key,
            "token_id": self.token,
            "partition_id": self.partition,
            "home_id": self.partition if self.home is None else self.home,
        }


class Ending(NamedTuple):
    """How a claimed run ended: ``state`` is done, failed, retried, or lost (to be run again)."""

    run: Run
    fence: int
    state: str
    partition: int
    #: Lost because its pool child died under it.
    crashed: bool = False

    def record(self) -> dict[str, object]:
        """By the names of columns."""
        task_id, origin, retries = self.run
        return {
            "task_id": task_id,
            "origin": origin,
            "retries": retries,
            "fence": self.fence,
            "state": self.state,
            "crashed": self.crashed,
        }


class Granted(NamedTuple):
    """The run may start, under this fence.

    ``lost_runs``: how often it was lost after it had begun, or may have. If any, its beginning has to be recorded
    before it starts (:meth:`Claims.begin`). ``last_chance``: if it is lost once more, it will be given up.
    """

    fence: int
    attempt: int
    lost_runs: int = 0
    last_chance: bool = False


@dataclass(frozen=True)
class Known:
    """The run ended before, or a later try of it exists: acknowledge and forget it."""

    state: str


@dataclass(frozen=True)
class GivenUp:
    """The run was lost too often, and is recorded as failed: fail its task, and reject its message."""

    reason: str


@dataclass(frozen=True)
class Busy:
    """The key (or the run itself) is running; ``node`` says where.

    Unless ``told``, its end may not be announced: it was ending just then.
    """

    node: str
    told: bool = True


@dataclass(frozen=True)
class NotOurs:
    """The partition is not owned by this incarnation: give the message back."""


@dataclass(frozen=True)
class Elsewhere:
    """The key belongs to another partition, for a task lock was set or cleared: send the message there.

    ``pool`` and ``position`` name a partition of a lock pool; for an ordinary one they are "" and its number.
    """

    partition: int
    pool: str
    position: int
    locked: bool


@dataclass(frozen=True)
class Unserved:
    """No live node matches the key's task lock, or none that has its queue yet: hold the message until one does."""

    pool: str


Outcome = Granted | Known | GivenUp | Busy | NotOurs | Elsewhere | Unserved


@dataclass(frozen=True)
class Committed:
    """The answer to a batch: ends that are recorded, ends that wait for a lock on their claim, and outcomes.

    An end in neither set was overtaken: another node has the run. If ``unsure``, the database fell silent half-way:
    a run without an outcome may be claimed or not. If ``awaited``, another node waits for one of these ends.
    """

    recorded: set[Run]
    delayed: set[Run]
    outcomes: dict[Run, Outcome]
    unsure: bool = False
    awaited: bool = False
