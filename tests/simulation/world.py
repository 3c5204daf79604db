"""The simulated cluster: nodes, a broker, a network that fails, and time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from jobsync_celery.core.model import Run
from jobsync_celery.core.tokens import TokenMap
from jobsync_celery.store.outcomes import Wanted
from jobsync_celery.store.schema import ensure_schema
from jobsync_celery.store.watchdog import shut

from .invariants import Broken, Ledger
from .schedule import Actor, Point, Scheduler, Status, current
from .sim_database import SimDatabase, SimLink
from .sim_gate import Message
from .sim_node import INTERVAL, SHAPE, TIMEOUT, SimNode
from .virtual_server import VirtualServer

_LOCK_SEC = 1.0  # the product's lock timeout
_IDLE_SEC = 3.0  # and how long it lets a transaction be idle
_NAME_LENGTH = 400


class Playground:
    """A database for one simulation after the other."""

    def __init__(self, url: str) -> None:
        self.server = VirtualServer(url)
        self.database = SimDatabase(url, self.server)
        ensure_schema(self.database, SHAPE)
        self.server.record_changes()

    def close(self) -> None:
        """Let go of the database."""
        self.server.close()


@dataclass(frozen=True)
class Ambush:
    """Where some actor of a role is to be held up, for how long, and whether its whole process with it."""

    role: str
    point: Point
    seconds: float
    whole: bool


class World(Scheduler):
    """Everything that is simulated, from the empty database on.

    Arguments:
        interval, timeout: the heartbeat settings of all nodes, in seconds.
    """

    def __init__(self, playground: Playground, interval: float = INTERVAL, timeout: float = TIMEOUT) -> None:
        super().__init__(playground.server)
        self.interval, self.timeout = interval, timeout
        self.server.empty()
        self.server.news()
        self.database = playground.database
        self.tokens = TokenMap(SHAPE.total_tokens, SHAPE.partitions, SHAPE.hash_function)
        self.nodes: list[SimNode] = []
        self.messages: list[Message] = []
        self.published = 0
        self.ambushes: list[Ambush] = []
        self.provably_gone: set[str] = set()
        self.complaints: list[str] = []
        self.trace: deque[str] = deque(maxlen=_NAME_LENGTH)
        self.ledger = Ledger(self)
        self.broken: Broken | None = None
        self.database.deadlocks.clear()
        self._wall_clock = time.time
        time.time = self._stepped_wall_clock

    # -- what the parts ask and say ---------------------------------------------------------------------------------

    @property
    def current_actor(self) -> Actor | None:
        """The actor whose thread this is."""
        return current.actor

    def start(self, name: str, role: str, node: SimNode, work: Callable[[], None]) -> Actor:
        """A new actor, asleep until its first turn."""
        actor = Actor(self, name, role, node, work)
        actor.due = self.now
        self.actors.append(actor)
        return actor

    def note(self, line: str) -> None:
        """Remember what happened, for the report of a failure."""
        self.trace.append(f"{self.now:9.3f}  {line}")

    def reached(self, node: SimNode, actor: Actor, point: Point) -> bool:
        """An actor is at a point: whether somebody lies in wait for it there."""
        self.note(f"{actor.name}: {point}")
        try:
            self.ledger.check()
        except Broken as broken:  # in the thread of a node, whose loop would swallow it
            self.broken = self.broken or broken
        ambush = next((each for each in self.ambushes if (each.role, each.point) == (actor.role, point)), None)
        if ambush is None:
            return False
        self.ambushes.remove(ambush)
        self.note(f"{actor.name}: held for {ambush.seconds} s{', with its whole process' if ambush.whole else ''}")
        if ambush.whole:
            self.pause(node, ambush.seconds, children=True)
        else:
            actor.held_until = self.now + ambush.seconds
        return True

    def acknowledge(self, message: Message) -> None:
        """The broker forgets a message."""
        if message in self.messages:
            self.messages.remove(message)

    def _stepped_wall_clock(self) -> float:
        node = current.actor.host if current.actor is not None else None
        return self._wall_clock() + (node.wall_clock_offset if isinstance(node, SimNode) else 0.0)

    # -- what happens to the cluster --------------------------------------------------------------------------------

    def join(self, name: str, rate: float = 1.0, offset: float = 0.0) -> SimNode:
        """Start a worker's process."""
        node = SimNode(self, len(self.nodes) + 1, name, rate=rate, offset=1000.0 + offset)
        self.nodes.append(node)
        return node

    def publish(self, key: str, seconds: float, guarded: str) -> None:
        """Send a task."""
        self.published += 1
        token = self.tokens.token(key)
        run = Run(f"task {self.published}", "o", 0)
        wanted = Wanted(run, "proj.task", key, token, self.tokens.partition(token))
        self.messages.append(Message(wanted, seconds, guarded))

    def crash(self, node: SimNode, *, provably: bool) -> None:
        """SIGKILL of the worker and its pool: the server notices at once, except what waits for a lock."""
        node.alive = False
        if provably:
            self.provably_gone.add(node.node.membership.identity.presence)
        for actor in self.actors:
            if actor.host is node:
                actor.killed = True
        node.bodies.clear()
        self._hang_up(node)
        self._reap()

    def _reap(self) -> None:
        """Let the threads of dead processes end."""
        for actor in self.actors:
            if actor.killed and actor.status in (Status.PARKED, Status.ASLEEP):
                actor.turn()
                self.settle()
        self.actors = [actor for actor in self.actors if actor.status is not Status.ENDED]
        for node in self.nodes:
            if not node.alive:
                self._hang_up(node)

    def _hang_up(self, node: SimNode) -> None:
        """End the sessions of a dead process, but not a statement that waits for a lock: the server goes on with it."""
        waiting = {actor.pid for actor in self.blocked if actor.host is node}
        for link in list(node.links):
            backend = link.backend
            if backend is not None and backend.info.backend_pid not in waiting:
                self.server.terminate(backend.info.backend_pid)
                node.links.remove(link)

    def pause(self, node: SimNode, seconds: float, *, children: bool) -> None:
        """SIGSTOP, and SIGCONT later; without ``children`` the pool's processes go on."""
        node.paused_until = max(node.paused_until, self.now + seconds)
        if children:
            node.children_paused_until = node.paused_until

    def cut(self, actor: Actor) -> None:
        """The actor's connection breaks where it stands: the request does not arrive, or its answer is lost."""
        if actor.status is Status.PARKED and actor.point is not None and actor.pid is not None:
            actor.unanswered = actor.point.executed
            self.server.terminate(actor.pid)
            shut(actor.socket)
            self.settle()
        elif actor.status is Status.BLOCKED and actor.pid is not None:
            self.server.terminate(actor.pid)
            self.interrupted(actor)

    def cut_off(self, node: SimNode, seconds: float) -> None:
        """For so long this node cannot reach the database: open connections break, new ones are refused."""
        node.cut_off_until = self.now + seconds
        actors = [actor for actor in self.actors if actor.host is node]
        for actor in actors:
            self.cut(actor)
        busy = {actor.pid for actor in actors if actor.status is not Status.ASLEEP}
        for link in node.links:
            backend = link.backend
            if backend is not None and backend.info.backend_pid not in busy:
                self.database.break_off(backend)

    # -- time -------------------------------------------------------------------------------------------------------

    def step(self, actor: Actor) -> None:
        """One actor goes on to its next point."""
        self.run(actor, free=False)
        self.look()

    def live(self, seconds: float) -> None:
        """Time passes, and whoever can do something does it as soon as it is due."""
        end = self.now + seconds
        rounds = 0
        while True:
            busy = self._round()
            rounds += 1
            if busy and rounds < 100:
                continue
            assert rounds < 100, "nobody comes to rest:\n" + self.story()
            if self.now >= end:
                return
            rounds = 0
            self.now = min(end, max(self.now + 0.001, self._next()))

    def stall(self, seconds: float) -> None:
        """Time passes, and nobody does anything: the whole machine stands still."""
        self.now += seconds

    def _round(self) -> bool:
        busy = False
        for actor in list(self.actors):
            if actor.runnable:
                points = self.points
                self.run(actor, free=True)
                if self.points > points:
                    self.look()
                busy = True
        self._time_out()
        for node in self.nodes:
            busy |= node.turn()
        self._reap()
        return busy

    def _next(self) -> float:
        times = [actor.awake_at for actor in self.actors]
        times += [actor.rests_since + _LOCK_SEC for actor in self.blocked]
        times += [until for node in self.nodes for until in (node.paused_until, node.children_paused_until)]
        return min((time for time in times if time > self.now), default=float("inf"))

    def _time_out(self) -> None:
        """The server's timeouts: of a statement that waits for a lock, and of whoever holds it and says nothing."""
        for actor in list(self.blocked):
            if actor in self.blocked and self.now >= actor.rests_since + _LOCK_SEC and actor.pid is not None:
                blockers = self.server.waits([actor.pid]).get(actor.pid, [])
                self.note(f"{actor.name}: lock timeout")
                self.server.cancel(actor.pid)
                self.interrupted(actor)
                for idle in self.actors:
                    overdue = self.now >= idle.rests_since + _IDLE_SEC
                    if idle.status is Status.PARKED and idle.pid in blockers and overdue:
                        self.note(f"{idle.name}: idle in transaction for too long")
                        self.cut(idle)
                self.look()

    # -- the truth --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """See what was committed, hand out notifications, and check every promise."""
        if self.broken:
            raise self.broken
        news = self.server.news()
        for entry in news:
            if entry.source == "notice":
                for link in self._listeners():
                    link.receive(entry.after)
        self.ledger.take([entry for entry in news if entry.source != "notice"])
        self.ledger.check()

    def _listeners(self) -> list[SimLink]:
        return [link for node in self.nodes if node.alive for link in node.links if link.listening]

    def story(self) -> str:
        """What happened last, a line each."""
        return "\n".join(self.trace)

    def close(self) -> None:
        """End every thread and session."""
        time.time = self._wall_clock
        for node in self.nodes:
            node.alive = False
        for actor in self.actors:
            actor.killed = True
            if actor.status is Status.BLOCKED and actor.pid is not None:
                self.server.terminate(actor.pid)
                self.interrupted(actor)
        self._reap()
        for node in self.nodes:
            for link in node.links:
                link.close()
