"""Every exception that jobsync_celery raises, under one root.

They cross Celery's result backend (pickle, or class name and ``args`` as JSON): every class takes
plain values only, keeps them in ``args``, and can be built again from them.
"""

from __future__ import annotations


class JobsyncError(Exception):
    """Root of the tree; catch it to catch everything that this package raises by itself."""


class SettingsError(JobsyncError, ValueError):
    """Raised at construction of a CoordinationConfig: unknown name, wrong value, impossible combination."""


class KeyInvalid(JobsyncError, ValueError):
    """Raised when a value cannot be a key: wrong type, empty, too long, or not storable as text."""


class LockInvalid(JobsyncError, ValueError):
    """Raised when node patterns cannot make a task lock: none or too many, wrong type or length, not storable."""


class KeyMissing(JobsyncError, ValueError):
    """Raised at publish when a task's key cannot be computed from its arguments.

    `task` is the task's name, `key` what was declared as its key (argument name, position, or the
    name of the callable), `reason` why it failed.
    """

    def __init__(self, task: str, key: str | int, reason: str = "it is missing") -> None:
        super().__init__(task, key, reason)
        self.task = task
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"task {self.task!r} has no usable key {self.key!r}: {self.reason}"


class StoreError(JobsyncError):
    """Raised when the database refuses a statement for a reason that a retry does not mend."""


class StoreUnavailable(StoreError):
    """Raised when the database cannot be reached or does not answer in time; trying again may help."""


class SchemaOutdated(StoreError):
    """Raised at start when tables and code are of different versions and cannot work together."""


class ClusterMismatch(StoreError):
    """Raised at start when the cluster was created with other total_tokens, partitions or hash_function."""


class StillRunning(JobsyncError):
    """Raised when something needs the cluster stopped, and nodes are there: ``args`` are their names."""

    def __str__(self) -> str:
        named = f"{len(self.args)} nodes are" if len(self.args) > 1 else "a node is"
        return f"{named} live: stop all workers first ({', '.join(map(str, self.args))})"


class BrokerUnavailable(JobsyncError):
    """Raised when the broker cannot be reached, or refuses what is asked of it."""


class NodeUnknown(JobsyncError, LookupError):
    """Raised when no live node has the `name` that was given; `hint` says what may have been meant."""

    def __init__(self, name: str, hint: str) -> None:
        super().__init__(name, hint)
        self.name = name
        self.hint = hint

    def __str__(self) -> str:
        return f"no live node is called {self.name!r}: {self.hint}"


class ObservedOnly(JobsyncError):
    """Raised when an app with ``mode="observe"``, `who`, is asked for its cluster: it has none."""

    def __init__(self, who: str = "this app") -> None:
        super().__init__(who)
        self.who = who

    def __str__(self) -> str:
        return (
            f'{self.who} is only observed (mode="observe"): any worker runs any key, and nobody owns one;'
            " `celery jobsync observe` tells what coordination would prevent"
        )


class TooManyPools(JobsyncError):
    """Raised when a lock has patterns of its own, and there are too many different lists of patterns already."""


class JoinTimeout(JobsyncError, TimeoutError):
    """Raised on entering a Job whose node has not got its share in time; says what it waits for."""


class LeaseLost(JobsyncError):
    """Raised when this node's right to run has ended: deadline passed, evicted, or registered anew."""


class Fenced(LeaseLost):
    """Raised by a claim's guard or complete when the claim is no longer ours: somebody may have taken over."""


class GaveUp(JobsyncError):
    """Raised by the result of a task that was lost ``max_lost_runs`` times: a worker or pool child died under it."""


class UnsupportedPool(JobsyncError):
    """Raised at worker start when the Celery pool cannot be coordinated (gevent, eventlet)."""
