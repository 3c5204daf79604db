"""Builds with a protection switched off: what the harness must find, or its verdicts are worth nothing.

Each is the product with one thing changed in memory, in every worker process. The product's own words are looked for
when they are changed, so that a build whose protection has moved fails at once instead of being whole by mistake.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from jobsync_celery.plugin import courier, redis_channel
from jobsync_celery.runtime import membership
from jobsync_celery.runtime.lease import Lease, Pass
from jobsync_celery.runtime.tenures import Tenures
from jobsync_celery.store import revisions
from jobsync_celery.store.claims import Claims
from jobsync_celery.store.contest import Contest
from jobsync_celery.store.guard import Guard

_FOR_EVER_SEC = 3600.0
_FUNCTION = "CREATE FUNCTION {commit_claims}"


@dataclass(frozen=True)
class Build:
    """A build without one of its protections.

    Arguments:
        missing: what is switched off, for people.
        serves: the promises one of which is broken without it.
        nemesis: breaks things in the way that this protection is there for.
        switch_off: does so in this process, before the app is made.
        rounds: how often the nemesis is to strike, at most, to meet the moment for sure.
    """

    name: str
    missing: str
    serves: frozenset[str]
    nemesis: str
    switch_off: Callable[[], None]
    rounds: int = 1


def _no_fence() -> None:
    _without_in_function("AND c.fence = e.fence")
    _without(Claims, "_missed", "AND c.fence = e.fence")
    _without(Claims, "_begin", "AND fence = :fence")
    _without(Guard, "_hold", "AND fence = :fence")
    _without(Guard, "_complete", "AND fence = :fence")


def _no_deadline() -> None:
    membership.trusted_until = lambda sent_at, *_, **__: sent_at + _FOR_EVER_SEC


def _no_share_lock() -> None:
    _without_in_function("FOR KEY SHARE", "FOR SHARE")
    _without(Contest, "_owned", "FOR KEY SHARE", "FOR SHARE OF p")


def _no_incarnation() -> None:
    def permits(self: Lease, given: Pass) -> bool:
        return self.trusted and self.current.epoch == given.epoch

    Lease.permits = permits  # type: ignore[method-assign]
    # A tenure ends with its incarnation, so that asking for one is asking for the other.
    Tenures.stands = lambda self, partition, tenure: True  # type: ignore[method-assign]


def _no_restore() -> None:
    assert redis_channel.restore_unacked.__name__ in inspect.getsource(courier.Courier._recover)  # imported there
    redis_channel.restore_unacked = lambda *_: 0


BUILDS = {
    build.name: build
    for build in (
        Build(
            "no-fence",
            "ends and guards count whichever fence they bear",
            frozenset({"S5"}),
            "late-end",
            _no_fence,
        ),
        Build(
            "no-deadline",
            "a node trusts its lease until it is told that it is dead",
            frozenset({"S7"}),
            "pool-stopped-past-lease",
            _no_deadline,
        ),
        Build(
            "no-share-lock",
            "who claims looks at node and partitions without locking them",
            frozenset({"S2"}),
            "claims-at-eviction",
            _no_share_lock,
            rounds=3,
        ),
        Build(
            "no-incarnation",
            "a job starts whichever incarnation of its node it was handed to the pool under",
            frozenset({"S7"}),
            "pool-stopped-past-return",
            _no_incarnation,
            rounds=2,
        ),
        Build(
            "no-restore",
            "what a dead worker had fetched from Redis stays unacknowledged until the visibility timeout",
            frozenset({"L1"}),
            "fetched-and-killed",
            _no_restore,
        ),
    )
}


def _without_in_function(*words: str) -> None:
    """Take words out of the function that commits claims, before a worker of this build creates it."""
    module: Any
    for revision in revisions.script().walk_revisions():
        module = revision.module
        for name, script in vars(module).items():
            if isinstance(script, str) and _FUNCTION in script:
                setattr(module, name, _stripped(script, words, name))
                return
    raise LookupError(f"no revision has {_FUNCTION!r}")


def _without(owner: type, name: str, *words: str) -> None:
    """Take words out of a statement of each ``owner`` that is made from now on."""
    make: Any = owner.__init__  # type: ignore[misc]

    def changed(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        setattr(self, name, text(_stripped(getattr(self, name).text, words, name)))

    owner.__init__ = changed  # type: ignore[misc]


def _stripped(sql: str, words: tuple[str, ...], name: str) -> str:
    for word in words:
        if word not in sql:
            raise LookupError(f"{word!r} is not in {name} any more")
        sql = sql.replace(word, "")
    return sql
