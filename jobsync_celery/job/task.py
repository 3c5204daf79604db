"""A task as a ``Job`` knows it: its id, by which it belongs to a node."""

from __future__ import annotations

from functools import total_ordering
from uuid import UUID

from jobsync_celery.core.tokens import key_text
from jobsync_celery.errors import KeyInvalid

TaskId = str | int | UUID


@total_ordering
class Task:
    """Something to do, by its id. Tasks with the same id are the same: ``42`` and ``"42"`` are one id.

    Arguments:
        id: a string, an integer or a UUID, of 1 to 255 characters. For other values give a text of them, ``str(id)``.
        name: what is done, for reports.

    Raises:
        KeyInvalid: it cannot be an id, or the name cannot be stored.
    """

    __slots__ = ("id", "key", "name")

    def __init__(self, id: TaskId, name: str | None = None) -> None:  # noqa: A002 - the word of its users
        self.id = id
        self.name = None if name is None else _name(name)
        #: The id as text, as it is hashed and stored.
        self.key = key_text(id)

    def __repr__(self) -> str:
        return f"Task({self.id!r})" if self.name is None else f"Task({self.id!r}, {self.name!r})"

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Task):
            return NotImplemented
        return self._order < other._order

    @property
    def _order(self) -> tuple[bool, int, str]:
        """Numbers come first, as numbers; so does a text that is one, since it is the same id."""
        number = self.key if self.key.isascii() and self.key.removeprefix("-").isdigit() else None
        return (number is None, int(number or 0), self.key)


def task_of(value: Task | TaskId) -> Task:
    """A task, given as such or by its id; raises KeyInvalid."""
    return value if isinstance(value, Task) else Task(value)


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise KeyInvalid(f"a task's name must be a string, not {type(name).__name__}")
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise KeyInvalid("a task's name must be storable: it contains NUL or a lone surrogate")
    return name
