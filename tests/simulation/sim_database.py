"""The product's database access, with a point before and after every statement."""

from __future__ import annotations

import copy
import select
from typing import TYPE_CHECKING, Any

import psycopg2
from sqlalchemy import TextClause, event

from jobsync_celery.core.model import Run
from jobsync_celery.store.database import Database, Link, Timeouts
from jobsync_celery.store.guard import Guard
from jobsync_celery.store.store import Store
from jobsync_celery.store.watchdog import shut

from .schedule import Point, current
from .virtual_server import OPTIONS, VirtualServer

if TYPE_CHECKING:
    from .sim_node import SimNode

# Real time must end nothing: the simulation itself plays the server's timeouts.
_PATIENT = Timeouts(statement=60.0, lock=60.0, idle_in_transaction=60.0)


class SimLink(Link):
    """A link of one simulated node; its sleep is virtual, its notifications come through the simulation."""

    def __init__(self, node: SimNode, link: Link) -> None:
        super().__init__(f"{link.name}#{node.number}", link._connect, link._where)
        self._node = node
        node.links.append(self)

    @property
    def backend(self) -> Any:
        """psycopg2's connection, if there is one."""
        connection = self._connection
        if connection is None or connection.invalidated or connection.closed:
            return None
        backend = connection.connection.dbapi_connection
        return None if backend is None or backend.closed else backend

    @property
    def listening(self) -> bool:
        """Whether notifications are for it."""
        return bool(self._channels) and self.connected

    def receive(self, payload: str) -> None:
        """A notification has arrived."""
        self._received.append(payload)

    def wait(self, timeout: float, wake_fd: int | None = None) -> list[str]:
        """As the product's, on virtual time."""
        received = self.notifications()
        if not received:
            assert current.actor is not None and wake_fd is not None
            fd = wake_fd
            woken = select.poll()
            woken.register(fd, select.POLLIN)
            current.actor.sleep(timeout / self._node.rate, lambda: bool(self._received or woken.poll(0)))
            received = self.notifications()
        return received


class SimDatabase(Database):
    """One engine for all simulated nodes; :meth:`of` is a node's own view of it."""

    def __init__(self, url: str, server: VirtualServer) -> None:
        super().__init__(f"{url}?options={OPTIONS.replace(' ', '%20').replace('=', '%3D')}", timeouts=_PATIENT)
        self.server = server
        self.deadlocks: list[str] = []
        self._statements: dict[str, str] = {}
        self._known: set[str] = set()
        event.listen(self._engine, "do_connect", self._connecting)

    def know(self, store: Store) -> None:
        """Learn what the product calls its statements."""
        parts = [store, *vars(store).values(), *vars(store.claims).values(), Guard(self.tables.claim)]
        for part in parts:
            for name, clause in getattr(part, "__dict__", {}).items():
                if isinstance(clause, TextClause) and clause.text not in self._known:
                    self._known.add(clause.text)
                    self._statements[str(clause.compile(dialect=self._engine.dialect))] = name.strip("_")

    def of(self, node: SimNode) -> SimDatabase:
        """The same database, as one node uses it."""
        view = copy.copy(self)
        view.__dict__["_node"] = node
        return view

    def link(self, name: str) -> Link:
        """A link of this view's node."""
        link = super().link(name)
        node = self.__dict__.get("_node")
        return SimLink(node, link) if node else link

    def break_off(self, backend: Any) -> None:
        """Break a connection; both ends know at once."""
        self.server.terminate(backend.info.backend_pid)
        shut(backend.fileno())

    def _connecting(self, *_: Any) -> None:
        actor = current.actor
        if actor is not None and actor.host.cut_off:
            raise psycopg2.OperationalError("no route to host (simulated)")

    def _execute_watched(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        actor = current.actor
        if actor is None:
            return super()._execute_watched(cursor, statement, parameters, context)
        name = self._statements.get(statement) or " ".join(statement.split()[:2])
        pid = cursor.connection.info.backend_pid
        actor.socket = cursor.connection.fileno()
        actor.reach(Point(name, executed=False), pid)
        if actor.host.cut_off:
            self.break_off(cursor.connection)
        try:
            cursor.execute(statement, parameters)
        except psycopg2.Error as error:
            if error.pgcode == "40P01":
                self.deadlocks.append(f"{actor.name} at {name}: {error}")
            actor.reach(Point(name, executed=True), pid)
            raise
        actor.reach(Point(name, executed=True), pid)
        if actor.unanswered:
            actor.unanswered = False
            raise psycopg2.OperationalError("server closed the connection unexpectedly (simulated)")
        return True


def effect_statement() -> str:
    """What a guarded body does to the user's own table."""
    return "INSERT INTO sim.effect VALUES (:task_id, :origin, :retries, :fence)"


def identity_of(run: Run, fence: int) -> dict[str, object]:
    """The values of :func:`effect_statement`."""
    return {**run._asdict(), "fence": fence}
