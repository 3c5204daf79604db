"""Threads that take turns at each database statement, in an order that the simulation chooses.

An actor runs until it reaches a *point* (a statement is about to be sent, or was executed and its answer is on the
way), falls asleep or ends. One actor runs at a time. One that waits for a row lock is *blocked*: PostgreSQL says so,
no clock is asked; it comes to rest at its next point when somebody lets it go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple, Protocol

from .virtual_server import VirtualServer

_LOOK_SEC = 0.004
_HANGS_SEC = 30.0
_FOREVER = float("inf")


class Killed(BaseException):
    """The actor's process is gone; nothing that it would do happens any more."""


class Status(Enum):
    """What an actor is doing."""

    RUNNING = auto()
    BLOCKED = auto()
    PARKED = auto()
    ASLEEP = auto()
    ENDED = auto()


class Point(NamedTuple):
    """Where a statement is: not sent yet, or executed and not answered yet."""

    statement: str
    executed: bool

    def __str__(self) -> str:
        return f"after {self.statement}" if self.executed else f"before {self.statement}"


class Host(Protocol):
    """What an actor runs in; ``cut_off`` while it reaches no database."""

    cut_off: bool

    def stops(self, actor: Actor) -> bool:
        """Whether the actor may not run now."""
        ...

    def reached(self, actor: Actor, point: Point) -> bool:
        """Take note of a point; true if the actor has to rest there."""
        ...

    def passed(self, point: Point) -> None:
        """The actor goes on from a point: its request leaves, or its answer has arrived."""


class Actor:
    """A thread that takes turns."""

    def __init__(self, scheduler: Scheduler, name: str, role: str, host: Host, work: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self.name = name
        self.role = role
        self.host = host
        self._work = work
        self._go = threading.Semaphore(0)
        self.status = Status.ASLEEP
        self.point: Point | None = None
        self.pid: int | None = None
        self.socket = -1
        self.due = 0.0
        self.ready: Callable[[], bool] | None = None
        self.held_until = 0.0
        self.rests_since = 0.0
        self.free = self.killed = self.unanswered = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"{self.name} ({self.status.name.lower()} {self.point or ''})"

    @property
    def moving(self) -> bool:
        """Whether it is in the middle of something."""
        return self.status in (Status.RUNNING, Status.BLOCKED)

    @property
    def awake_at(self) -> float:
        """When it can go on by itself, if nothing else stops it."""
        if self.status is Status.PARKED:
            return self.held_until
        return max(self.due, self.held_until) if self.status is Status.ASLEEP else _FOREVER

    @property
    def runnable(self) -> bool:
        """Whether a turn would do anything now."""
        now = self._scheduler.now
        if self.held_until > now or self.host.stops(self):
            return False
        if self.status is Status.ASLEEP:
            return self.due <= now or (self.ready is not None and self.ready())
        return self.status is Status.PARKED

    def reach(self, point: Point, pid: int | None = None) -> None:
        """In the actor's thread: a statement of session ``pid`` is at this point; None if it is no statement."""
        self.pid = pid
        self._scheduler.points += 1
        if self.killed:
            raise Killed
        rests = self.host.reached(self, point)
        if not self.free or rests or self._scheduler.blocked:
            self.point = point
            self._rest(Status.PARKED)
            self.point = None
        if not self.unanswered:
            self.host.passed(point)

    def sleep(self, seconds: float, ready: Callable[[], bool] | None = None) -> None:
        """In the actor's thread: sleep, at most so long, or until ``ready()``."""
        self.due, self.ready = self._scheduler.now + max(seconds, 0.001), ready
        self._rest(Status.ASLEEP)

    def turn(self) -> None:
        """In the scheduler's thread: run on."""
        self.status = Status.RUNNING
        self._go.release()

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join(_HANGS_SEC)
        assert not self._thread.is_alive(), f"{self} does not end"

    def _rest(self, status: Status) -> None:
        self.rests_since = self._scheduler.now
        self._scheduler.arrived(self, status)
        self._go.acquire()
        if self.killed:
            raise Killed

    def _run(self) -> None:
        self._go.acquire()
        current.actor = self
        try:
            if not self.killed:
                self._work()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - told to the test, in its thread
            self.failure = error
        self._scheduler.arrived(self, Status.ENDED)


class _Current(threading.local):
    actor: Actor | None = None


#: The actor whose thread this is.
current = _Current()


class Scheduler:
    """Virtual time, and whose turn it is."""

    def __init__(self, server: VirtualServer) -> None:
        self.server = server
        self.now = 0.0
        self.points = 0
        self.database_offset = 0.0
        self.actors: list[Actor] = []
        self.blocked: list[Actor] = []
        self._arrival = threading.Condition()

    def run(self, actor: Actor, *, free: bool) -> None:
        """Give one turn: to the next point, or if ``free`` as far as it comes; returns when everybody rests."""
        self.server.set_clock(self.now + self.database_offset)
        actor.free = free
        actor.turn()
        self.settle()

    def arrived(self, actor: Actor, status: Status) -> None:
        """In an actor's thread: it comes to rest."""
        with self._arrival:
            actor.status = status
            self._arrival.notify()

    def interrupted(self, actor: Actor) -> None:
        """The server was told to end a statement that waits for a lock: return when it has."""
        with self._arrival:
            assert self._arrival.wait_for(lambda: not actor.moving, _HANGS_SEC), f"{actor} goes on waiting"
        self.settle()

    def settle(self) -> None:
        """Return when every actor rests, sleeps, or waits for a lock that one at rest holds."""
        moving = [actor for actor in self.actors if actor.moving]
        known = self.blocked
        for _ in range(int(_HANGS_SEC / _LOOK_SEC)):
            moving = [actor for actor in moving if actor.moving]
            if not moving or (set(moving) <= set(known) and self._all_wait(moving)):
                break
            with self._arrival:
                self._arrival.wait_for(lambda still=moving: not any(actor.moving for actor in still), _LOOK_SEC)
            known = moving
        else:
            raise AssertionError(f"does not come to rest: {moving}")
        self.blocked = moving
        for actor in moving:
            if actor.status is Status.RUNNING:
                actor.status, actor.rests_since, actor.free = Status.BLOCKED, self.now, False
        for actor in self.actors:
            if actor.failure is not None:
                failure, actor.failure = actor.failure, None
                raise failure

    def _all_wait(self, moving: list[Actor]) -> bool:
        """Whether all of these wait for somebody who rests; a deadlock will be ended by PostgreSQL."""
        waits = self.server.waits([actor.pid for actor in moving if actor.pid is not None])
        reached: set[int] = set()
        resting = True
        while resting:
            found = {
                pid
                for pid, blockers in waits.items()
                if pid not in reached and any(other not in waits or other in reached for other in blockers)
            }
            resting = bool(found)
            reached |= found
        return all(actor.pid in reached for actor in moving)
