"""Nodes that are rows, and watch and lead when a test tells them to."""

from __future__ import annotations

from stage import SHAPE, Clock, Facts, join, rows

from jobsync_celery.runtime.leadership import FirstPlan, Leadership
from jobsync_celery.store.store import Store

INTERVAL, TIMEOUT = 2.0, 10.0


class Watcher:
    """A node that beats and leads when told to."""

    def __init__(self, cluster: Cluster, name: str, incarnation: int) -> None:
        self.name, self.incarnation = name, incarnation
        self.clock, self.store, self.facts = cluster.clock, cluster.store, Facts()
        self.link = cluster.store.database.link(name)
        self.leadership = Leadership(
            cluster.store,
            self.link,
            SHAPE,
            self.facts.events,
            name=name,
            interval=INTERVAL,
            timeout=TIMEOUT,
            first_plan=cluster.first_plan,
            rejoin_grace=cluster.rejoin_grace,
            clock=cluster.clock,
        )
        self.leadership.reset(incarnation)

    def beat(self) -> None:
        answer = self.store.nodes.renew(self.link, self.name, self.incarnation)
        assert answer is not None
        self.leadership.observe(answer, self.clock.now, self.clock.now)

    def tick(self, *, shaken: bool = False) -> None:
        self.leadership.tick(self.clock.now, shaken=shaken)


class Cluster:
    """Several watchers on one database and one clock."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock = store, Clock()
        self.first_plan, self.rejoin_grace = FirstPlan(), 0.0
        self.watchers: dict[str, Watcher] = {}

    def join(self, name: str) -> Watcher:
        watcher = Watcher(self, name, join(self.store, name))
        self.watchers[name] = watcher
        return watcher

    def silence(self, name: str) -> Watcher:
        return self.watchers.pop(name)

    def leave(self, name: str) -> None:
        watcher = self.watchers.pop(name)
        with self.store.database.transaction() as tx:
            self.store.nodes.remove(tx, name, watcher.incarnation)
            self.store.partitions.free_orphans(tx)
        watcher.link.close()

    def run(self, seconds: float) -> None:
        """Let everybody beat at their interval and tick in between; time passes like on a real clock, if coarsely."""
        elapsed = 0.0
        while elapsed < seconds:
            for watcher in list(self.watchers.values()):
                if elapsed % INTERVAL == 0:
                    watcher.beat()
            for watcher in list(self.watchers.values()):
                watcher.tick()
            elapsed += 0.25
            self.clock.pass_by(0.25)

    def settled(self, *names: str) -> None:
        """Let these join, be planned for and own their share."""
        for name in names:
            self.join(name)
        self.run(2.0)
        self.obey()

    def obey(self) -> None:
        """Every partition goes to its target."""
        rows(
            self.store,
            "UPDATE {partition} p SET last_owner = p.owner, owner = n.name, owner_incarnation = n.incarnation"
            " FROM {node} n WHERE n.name = p.target AND n.state = 'live' AND p.owner IS DISTINCT FROM n.name",
        )

    def history(self) -> list[tuple[object, ...]]:
        return rows(
            self.store,
            "SELECT trigger_reason, leader_node, nodes_before, nodes_after, tokens_moved FROM {rebalance} ORDER BY id",
        )

    def states(self) -> dict[object, object]:
        return dict(rows(self.store, "SELECT name, state FROM {node}"))

    def leader(self) -> tuple[object, ...]:
        return rows(self.store, "SELECT node, term FROM {leader}")[0]
