"""A member of its own clock, with what it is made of."""

from __future__ import annotations

from stage import Clock, Facts, FakeHold, identity, rows

from jobsync_celery.runtime.lease import Lease
from jobsync_celery.runtime.membership import Membership
from jobsync_celery.store.nodes import Renewal
from jobsync_celery.store.store import Store

LEASE = 10.0
INTERVAL = 2.0


class Stage:
    """One member of name ``a``, and what it is made of."""

    def __init__(self, store: Store, *, lease_sec: float = LEASE, presence: str = "mine") -> None:
        self.store = store
        self.clock, self.facts, self.hold = Clock(), Facts(), FakeHold(presence)
        self.lease = Lease(self.clock)
        self.link = store.database.link("member")
        self.member = Membership(
            store,
            self.link,
            identity("a", lease_sec=lease_sec, presence=presence),
            self.lease,
            self.hold,
            self.facts.events,
            interval=INTERVAL,
            clock=self.clock,
        )

    def tick(self) -> Renewal | None:
        return self.member.tick()

    def state(self, name: str = "a") -> str | None:
        found = rows(self.store, "SELECT state FROM {node} WHERE name = :name", name=name)
        return str(found[0][0]) if found else None
