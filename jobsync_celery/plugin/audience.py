"""The user's receivers: what is connected to the signals, and the callbacks of ``on_rebalance``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.utils.dispatch import Signal

from jobsync_celery import signals
from jobsync_celery.core.model import RebalanceEvent
from jobsync_celery.core.tokens import TokenMap, TokenSet
from jobsync_celery.errors import SettingsError
from jobsync_celery.runtime.listeners import Receiver

if TYPE_CHECKING:
    from jobsync_celery.plugin.install import JobSync

_REBALANCES = ("partitions_assigned", "partitions_revoked")


class Callback:
    """A callback of ``on_rebalance``, which takes an event or nothing.

    Raises:
        SettingsError: it is not callable so, or a coroutine function.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        self.name = _name(function)
        self._function = function
        self._takes_event = _takes_event(function, self.name)

    def __call__(self, event: RebalanceEvent) -> object:
        return self._function(event) if self._takes_event else self._function()


class Audience:
    """Who listens to one worker's signals; see :class:`jobsync_celery.runtime.listeners.Audience`."""

    def __init__(self, jobsync: JobSync, node: str, tokens: TokenMap) -> None:
        self._jobsync = jobsync
        self._node = node
        self._tokens = tokens
        self._version = 0
        self._initial = True

    def hears(self, signal: str) -> bool:
        """Whether somebody listens to a signal now."""
        if signal in _REBALANCES and self._jobsync.callbacks:
            return True
        return bool(_signal(signal).has_listeners(self._jobsync))

    def receivers(self, signal: str, fields: Mapping[str, Any]) -> Iterator[Receiver]:
        """Who is to be called, in order, for a signal with these fields."""
        told = {**fields, "node": self._node}
        if signal in _REBALANCES:
            told["tokens"] = TokenSet(self._tokens, fields["partitions"])
        elif signal == "leader_changed":
            told["me"] = fields["name"] == self._node
        sent = _signal(signal)
        for receiver in sent._live_receivers(self._jobsync):
            yield Receiver(_name(receiver), partial(receiver, signal=sent, sender=self._jobsync, **told))
        if signal in _REBALANCES:
            event = self._event(signal, told["partitions"], told["tokens"])
            for callback in tuple(self._jobsync.callbacks):
                yield Receiver(callback.name, partial(callback, event))

    def _event(self, signal: str, partitions: frozenset[int], tokens: TokenSet) -> RebalanceEvent:
        gained = signal == "partitions_assigned"
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


def _signal(name: str) -> Signal:
    return getattr(signals, name)


def _name(function: Callable[..., object]) -> str:
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
