"""The product with one of its precautions taken out, to prove that the simulation would notice."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from jobsync_celery.core.lease import Watch, trusted_until
from jobsync_celery.runtime import membership
from jobsync_celery.runtime.lease import Lease
from jobsync_celery.store.contest import Contest
from jobsync_celery.store.guard import Guard
from jobsync_celery.store.nodes import Nodes

from .schedule import current
from .world import Playground


def eviction_without_compare_and_set(patch: pytest.MonkeyPatch, _: Playground) -> None:
    """Whoever renewed since it was last looked at is declared dead all the same."""
    declare_dead = Nodes.declare_dead

    def at_once(self: Nodes, tx: Any, name: str, incarnation: int, _: int | None, *rest: Any) -> bool:
        return declare_dead(self, tx, name, incarnation, None, *rest)

    patch.setattr(Nodes, "declare_dead", at_once)


def claim_without_share_lock(patch: pytest.MonkeyPatch, playground: Playground) -> None:
    """Owner and node are looked at and not locked."""
    playground.server.replace_function("sync_commit_claims", {"FOR KEY SHARE": "", "FOR SHARE": ""})
    _without(patch, Contest, "_owned", "FOR KEY SHARE", "FOR SHARE OF p")


def deadline_from_the_answer(patch: pytest.MonkeyPatch, _: Playground) -> None:
    """Trust is counted from when the answer arrived."""

    def later(_: float, timeout: float, **rest: float) -> float:
        assert current.actor is not None
        return trusted_until(current.actor.host.clock(), timeout, **rest)

    patch.setattr(membership, "trusted_until", later)


def watch_without_gaps(patch: pytest.MonkeyPatch, _: Playground) -> None:
    """What was seen before an outage still counts after it."""
    patch.setattr(Watch, "_broken_at", lambda self, _: self._last is None)


def child_without_deadline(patch: pytest.MonkeyPatch, _: Playground) -> None:
    """Pool children start what they are given."""
    patch.setattr(Lease, "permits", lambda *_: True)


def late_end_without_fence(_: pytest.MonkeyPatch, playground: Playground) -> None:
    """An end counts whoever has the run now."""
    playground.server.replace_function("sync_commit_claims", {"AND c.fence = e.fence": ""})


def guard_without_state(patch: pytest.MonkeyPatch, _: Playground) -> None:
    """The user's transaction commits whatever became of the claim."""
    _without(patch, Guard, "_hold", "AND state = 'running'")
    _without(patch, Guard, "_complete", "AND state = 'running'")


def _without(patch: pytest.MonkeyPatch, owner: type, name: str, *words: str) -> None:
    """Take words out of a statement."""
    make = owner.__init__  # type: ignore[misc]

    def changed(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        sql = getattr(self, name).text
        for word in words:
            assert word in sql, f"{word!r} is not in {name} any more"
            sql = sql.replace(word, "")
        setattr(self, name, text(sql))

    patch.setattr(owner, "__init__", changed)
