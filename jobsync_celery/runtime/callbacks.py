"""The callbacks of ``on_rebalance``, and the events that they get."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from jobsync_celery.core.model import RebalanceEvent
from jobsync_celery.core.tokens import TokenSet
from jobsync_celery.errors import SettingsError


class Callback:
    """A callback of ``on_rebalance``, which takes an event or nothing.

    Raises:
        SettingsError: it is not callable so, or a coroutine function.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        self.name = name_of(function)
        self._function = function
        self._takes_event = _takes_event(function, self.name)

    def __call__(self, event: RebalanceEvent) -> object:
        return self._function(event) if self._takes_event else self._function()


class Rebalances:
    """Counts the changes of what one node has, and makes an event of each."""

    def __init__(self) -> None:
        self._version = 0
        self._initial = True

    def event(self, partitions: frozenset[int], tokens: TokenSet, *, gained: bool) -> RebalanceEvent:
        """The event of a gain or a loss."""
        self._version += 1
        initial = gained and self._initial
        self._initial = self._initial and not gained
        return RebalanceEvent(
            is_initial=initial,
            token_version=self._version,
            tokens_added=len(tokens) if gained else 0,
            tokens_removed=0 if gained else len(tokens),
            partitions_added=partitions if gained else frozenset(),
            partitions_removed=frozenset() if gained else partitions,
        )


def name_of(function: Callable[..., object]) -> str:
    """What a log line calls a function, or what wraps it."""
    inner = function.func if isinstance(function, partial) else function
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    return f"{getattr(inner, '__module__', None) or '?'}.{name}"


def _takes_event(function: Callable[..., object], name: str) -> bool:
    if not callable(function):
        raise SettingsError(f"on_rebalance: {function!r} cannot be called")
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004 - its kind, not whether it is there
        raise SettingsError(f"on_rebalance: {name} is a coroutine function, and nobody would await it")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in ones have none
        return True
    for arguments in ((object(),), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return bool(arguments)
    raise SettingsError(f"on_rebalance: {name}{signature} has to take the event, or nothing")
