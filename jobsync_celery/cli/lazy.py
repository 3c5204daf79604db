"""Commands that are imported when they are asked for.

Celery imports ours at each start of a worker and of its own commands, and a probe of ours has to be quick.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module

import click


class LazyCommands(MutableMapping[str, click.Command]):
    """The commands of a :class:`click.Group` by name.

    Arguments:
        places: where each is defined: name -> ``module:attribute``.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)
        self._given: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name in self._given:
            return self._given[name]
        module, _, attribute = self._places[name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._given[name] = command

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._given.pop(name, None)
        self._places.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._places, **self._given})

    def __len__(self) -> int:
        return len({**self._places, **self._given})

    def __contains__(self, name: object) -> bool:
        return name in self._given or name in self._places
