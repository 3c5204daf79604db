"""What pool children have written and the worker has not read, across a lost broker connection.

Celery reads a large message in parts, with a generator that waits in the event loop. A lost connection resets the loop
and drops the generator: the rest of the message would be read as the beginning of another, nothing that this child
writes would be understood any more, and its slot would be gone for good.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Generator
from inspect import isgenerator
from typing import Any

_DONE = object()


class PoolResults:
    """The result pipes of a prefork pool; made once, before the first connection is lost."""

    def __init__(self, pool: Any, hub: Any) -> None:
        self._pool = pool
        self._hub = hub
        self._begun: dict[int, Generator[Any, Any, Any]] = {}
        self._reset: Callable[[], None] = hub.reset
        hub.reset = self._keep_and_reset

    def read(self) -> None:
        """Let the pool read what its children have written so far."""
        if "handle_event" not in vars(self._pool._result_handler):
            return  # the event loop has never turned, so the pool has run nothing, and cannot read
        for fileno in list(self._pool._fileno_to_outq):
            while fileno in self._pool._fileno_to_outq and select.select([fileno], [], [], 0)[0]:
                self._read(fileno)

    def resume(self) -> None:
        """The pool is in the event loop again: let it go on with what it has read in part."""
        begun, self._begun = self._begun, {}
        for fileno, reader in begun.items():
            if fileno in self._pool._fileno_to_outq:
                self._hub.add_reader(fileno, reader)

    def bury(self) -> bool:
        """Notice which children have died, as a pool does not that is closing; false if none is left.

        Their tasks fail as they would have before, or are given to another child if no body had begun.
        """
        self._pool._join_exited_workers()
        return bool(self._pool._pool)

    def _read(self, fileno: int) -> None:
        reader = self._begun.pop(fileno, None) or self._waiting(fileno)
        if reader is None:
            self._pool.handle_result_event(fileno)
            if (begun := self._waiting(fileno)) is not None:
                self._begun[fileno] = begun
            return
        try:
            if next(reader, _DONE) is not _DONE:
                self._begun[fileno] = reader
        except (OSError, EOFError):  # the child has died in the middle
            self._hub.remove_reader(fileno)

    def _waiting(self, fileno: int) -> Generator[Any, Any, Any] | None:
        """The generator that waits in the event loop for the rest of a message."""
        reader = self._hub.readers.get(fileno, (None, ()))[0]
        return reader if isgenerator(reader) else None

    def _keep_and_reset(self) -> None:
        pipes = self._pool._fileno_to_outq
        begun = {fileno: reader for fileno in pipes if (reader := self._waiting(fileno)) is not None}
        self._reset()
        self._begun.update(begun)
