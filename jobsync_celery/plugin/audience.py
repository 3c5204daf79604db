"""The user's receivers: what is connected to the signals, and the callbacks of ``on_rebalance``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.utils.dispatch import Signal

from jobsync_celery import signals
from jobsync_celery.core.tokens import TokenMap, TokenSet
from jobsync_celery.runtime.callbacks import Rebalances, name_of
from jobsync_celery.runtime.listeners import Receiver

if TYPE_CHECKING:
    from jobsync_celery.plugin.install import JobSync

_REBALANCES = ("partitions_assigned", "partitions_revoked")


class Audience:
    """Who listens to one worker's signals; see :class:`jobsync_celery.runtime.listeners.Audience`."""

    def __init__(self, jobsync: JobSync, node: str, tokens: TokenMap) -> None:
        self._jobsync = jobsync
        self._node = node
        self._tokens = tokens
        self._rebalances = Rebalances()

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
            yield Receiver(name_of(receiver), partial(receiver, signal=sent, sender=self._jobsync, **told))
        if signal in _REBALANCES:
            event = self._rebalances.event(told["partitions"], told["tokens"], gained=signal == "partitions_assigned")
            for callback in tuple(self._jobsync.callbacks):
                yield Receiver(callback.name, partial(callback, event))


def _signal(name: str) -> Signal:
    return getattr(signals, name)
