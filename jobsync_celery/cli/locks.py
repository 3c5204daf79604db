"""``locks list | add | remove | clear-by``: which keys are tied to which nodes, and changing that."""

from __future__ import annotations

from typing import Any

import click

from jobsync_celery.cli.answer import TROUBLED, WELL, Answer, Grid, counted, moment, nearest, text
from jobsync_celery.cli.command import order, question
from jobsync_celery.cli.completion import lock_creators, locked_keys
from jobsync_celery.cli.site import Site
from jobsync_celery.core.tokens import key_text
from jobsync_celery.errors import JobsyncError
from jobsync_celery.runtime.lock_desk import LockDesk, creator_of
from jobsync_celery.store.locks import TaskLock

_HEADINGS = ("key", "patterns", "served", "set by", "since", "expires", "reason")
_SPARE = ("reason", "since", "expires")


@click.group("locks")
def locks() -> None:
    """List and change task locks.

    A lock ties a key to nodes by patterns for their names.
    """


@question("list")
@click.option("--by", metavar="CREATOR", shell_complete=lock_creators, help="Only those set by this node or script.")
@click.option("--unserved", is_flag=True, help="Only those that no live node matches.")
def list_locks(site: Site, by: str | None, unserved: bool) -> Answer:
    """List the task locks, the oldest first."""
    with site.reading() as tx:
        every = site.store.locks.list(tx)
    creators = {each.created_by for each in every if each.created_by}
    if by is not None and by not in creators:
        raise JobsyncError(f"no lock was set by {by!r}{nearest(by, creators)}")
    found = [each for each in every if by in (None, each.created_by) and (each.unserved or not unserved)]
    rows = [
        (
            each.key,
            ", ".join(each.patterns),
            "no" if each.unserved else "yes",
            text(each.created_by),
            moment(each.created_at),
            moment(each.expires_at),
            text(each.reason),
        )
        for each in found
    ]
    waiting = sum(each.unserved for each in found)
    lines = [f"{counted(len(found), 'lock')}, {waiting} of them to nodes that are not there" if found else "no locks"]
    grids = [Grid(_HEADINGS, rows, whole=frozenset(("served",)), spare=_SPARE)] if rows else []
    return Answer({"locks": [_data(each) for each in found]}, lines, grids, code=TROUBLED if waiting else WELL)


@order("add")
@click.argument("key")
@click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
@click.option("--reason", help="Why, for those who read the list.")
@click.option("--expires-in-days", metavar="DAYS", type=float, help="After so many days, or part of one, it goes.")
@click.option("--by", metavar="NAME", help="Who sets it.  [default: the app's node_name, or admin@ this host]")
def add_lock(
    site: Site, key: str, patterns: tuple[str, ...], reason: str | None, expires_in_days: float | None, by: str | None
) -> Answer:
    """Lock KEY to nodes whose names match PATTERN, in place of the lock that it had.

    Patterns are those of SQL's LIKE: % is any text, _ any one character. Of several the first counts that any live node
    matches.
    """
    desk = _desk(site, by)
    desk.register([(key, patterns, reason, expires_in_days)])
    with site.reading() as tx:
        lock = site.store.locks.of_key(tx, key_text(key))
    if lock is None:
        raise JobsyncError(f"the lock of {key!r} was cleared again by somebody at once")
    waits = "; no live node matches, so its tasks wait" if lock.unserved else ""
    line = f"{key} is locked to {', '.join(lock.patterns)}, by {lock.created_by}{waits}"
    return Answer({"lock": _data(lock)}, [line])


@order("remove")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...", shell_complete=locked_keys)
def remove_locks(site: Site, keys: tuple[str, ...]) -> Answer:
    """Unlock each KEY: its tasks go back to where its hash says."""
    wanted = {key_text(key) for key in keys}
    with site.reading() as tx:
        locked = set(site.store.locks.locked(tx, wanted))
    if missing := sorted(wanted - locked):
        raise JobsyncError(f"not locked, so nothing was unlocked: {', '.join(map(repr, missing))}")
    removed = _desk(site, None).clear(sorted(wanted))
    return Answer({"removed": removed}, [f"{counted(removed, 'key')} unlocked"])


@order("clear-by")
@click.argument("creator", shell_complete=lock_creators)
def clear_locks_by(site: Site, creator: str) -> Answer:
    """Unlock every key that CREATOR, a node or a script, had locked."""
    with site.reading() as tx:
        creators = {each.created_by for each in site.store.locks.list(tx) if each.created_by}
    if creator not in creators:
        raise JobsyncError(f"no lock was set by {creator!r}{nearest(creator, creators)}")
    removed = _desk(site, None).clear_by_creator(creator)
    return Answer({"removed": removed}, [f"{counted(removed, 'key')} unlocked"])


for _command in (list_locks, add_lock, remove_locks, clear_locks_by):
    locks.add_command(_command)


def _desk(site: Site, by: str | None) -> LockDesk:
    creator = creator_of(None, by or site.config.node_name)
    return LockDesk(site.store, site.cluster.shape, creator)


def _data(lock: TaskLock) -> dict[str, Any]:
    return {
        "key": lock.key,
        "patterns": list(lock.patterns),
        "served": not lock.unserved,
        "partition": lock.partition,
        "created_by": lock.created_by,
        "created_at": lock.created_at,
        "expires_at": lock.expires_at,
        "reason": lock.reason,
    }
