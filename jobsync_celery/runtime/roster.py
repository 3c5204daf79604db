"""Who else is in the cluster, for those who listen to that: learned from heartbeats, and told as it changes.

The few nodes that watch get the members with every heartbeat. The others ask for a fingerprint of them, which costs
the database no more than their heartbeat does anyway, and read the members only when it has changed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from jobsync_celery.core.model import Member
from jobsync_celery.runtime.rebalancing import leads
from jobsync_celery.store.database import Link
from jobsync_celery.store.nodes import Renewal
from jobsync_celery.store.store import Store

SIGNALS = ("node_joined", "node_left", "leader_changed")


class Herald(Protocol):
    """Has receivers called. Any thread may ask it; it returns at once."""

    def hear(self, *signals: str) -> bool:
        """Whether somebody listens to one of these now."""
        ...

    def post(self, signal: str, **fields: Any) -> None:
        """Have the receivers of a signal called, some time."""


class Silence:
    """A herald whom nobody hears."""

    def hear(self, *signals: str) -> bool:
        """Never."""
        return False

    def post(self, signal: str, **fields: Any) -> None:
        """Nothing."""


class Roster:
    """The other members as this node last knew them; belongs to the node's thread.

    Arguments:
        name: this node's own, which is not told.
    """

    def __init__(self, store: Store, link: Link, name: str, herald: Herald) -> None:
        self._store = store
        self._link = link
        self._name = name
        self._herald = herald
        self._post = herald.post
        self._seen: str | None = None
        self._known: dict[int, Member] = {}
        self._leader: Member | None = None

    def curious(self) -> bool:
        """Whether somebody listens to what is told here."""
        return self._herald.hear(*SIGNALS)

    def learn(self, answer: Renewal) -> None:
        """Take in the answer to a heartbeat; one statement more if the members have changed and are not in it."""
        if not self.curious():
            self._seen, self._known, self._leader = None, {}, None
        elif answer.members:
            self._tell(answer.members)
            self._seen = answer.roster
        elif answer.roster != self._seen:
            with self._link.transaction() as tx:
                members = self._store.nodes.members(tx)
            self._tell(members)
            self._seen = answer.roster

    def _tell(self, members: Collection[Member]) -> None:
        here = {member.incarnation: member for member in members if member.name != self._name}
        # The reasons first: if the database does not give them, nothing is told and the next heartbeat tries again.
        gone = [(member, self._fate(member)) for incarnation, member in self._known.items() if incarnation not in here]
        for member, reason in gone:
            self._post("node_left", name=member.name, incarnation=member.incarnation, reason=reason)
        for incarnation, member in sorted(here.items()):
            if incarnation not in self._known:
                self._post("node_joined", name=member.name, incarnation=incarnation)
        self._known = here
        self._tell_leader(leads(members))

    def _tell_leader(self, leader: Member | None) -> None:
        before, self._leader = self._leader, leader
        if leader is not None and (before is None or before.incarnation != leader.incarnation):
            self._post(
                "leader_changed",
                name=leader.name,
                incarnation=leader.incarnation,
                previous=None if before is None else before.name,
            )

    def _fate(self, member: Member) -> str:
        """``"left"`` in good order, or ``"dead"``.

        The row of a name that is back already says nothing of its former life; who leaves in good order drains first.
        """
        row = self._store.nodes.find(self._link, member.name)
        if row is None:
            return "left"
        if row.incarnation == member.incarnation:
            return "left" if row.state == "left" else "dead"
        return "left" if member.draining else "dead"
