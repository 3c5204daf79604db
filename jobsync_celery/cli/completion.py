"""Names that a shell completes: nodes, creators of locks, locked keys. Asked of the database, if it is quick.

Whatever goes wrong, nothing is offered and nothing said: somebody is in the middle of a line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import click

from jobsync_celery.cli.site import Site, site_of

#: Seconds that somebody who has pressed TAB waits.
_PATIENCE = 1.5

Names = Callable[[Site], Iterable[str]]
Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def _completer(names: Names) -> Completer:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        found: list[str] = []

        def ask() -> None:
            try:
                found.extend(names(_site(context)))
            except BaseException:  # noqa: BLE001 - also what a user's app raises while it is loaded
                return

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_PATIENCE)
        return sorted({name for name in found if name.startswith(incomplete)})

    return complete


def _site(context: click.Context) -> Site:
    url, appname, schema = (context.params.get(name) for name in ("url", "appname", "schema"))
    return site_of(None if url else _app(context), url, appname, schema)


def _app(context: click.Context) -> Any:
    """The app that the line names; commands are only looked at while it is completed, so nobody has loaded it."""
    app = context.find_root().params.get("app")
    if isinstance(app, str):
        from celery.app.utils import find_app

        return find_app(app)
    return app


def _live_nodes(site: Site) -> Iterable[str]:
    with site.reading() as tx:
        return [each.name for each in site.store.nodes.everyone(tx) if each.present]


def _all_nodes(site: Site) -> Iterable[str]:
    with site.reading() as tx:
        return [each.name for each in site.store.nodes.everyone(tx)]


def _creators(site: Site) -> Iterable[str]:
    with site.reading() as tx:
        return [each.created_by for each in site.store.locks.list(tx) if each.created_by]


def _keys(site: Site) -> Iterable[str]:
    with site.reading() as tx:
        return [each.key for each in site.store.locks.list(tx)]


live_nodes, all_nodes, lock_creators, locked_keys = map(_completer, (_live_nodes, _all_nodes, _creators, _keys))
