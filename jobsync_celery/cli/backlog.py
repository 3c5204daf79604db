"""Emptying queues that nobody is to consume any more: what ``flush-back`` and ``schema reshape`` share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobsync_celery.cli.answer import NOTHING, Grid
from jobsync_celery.cli.site import Site
from jobsync_celery.store.schema import ClusterShape

_HEADINGS = ("queue", "moved to", "messages", "left")


@dataclass(frozen=True)
class Emptied:
    """A queue: how many messages went into which queues, and how many are ``left``, or came meanwhile."""

    queue: str
    moved: dict[str, int]
    left: int = 0
    deleted: bool = False

    @property
    def notable(self) -> bool:
        """Whether there is anything to tell of it."""
        return bool(self.moved or self.left or self.deleted)


def lock_pools(site: Site) -> set[str]:
    """The pools of locked keys: those of the tables, and those that the app's tasks declare."""
    with site.reading() as tx:
        pools = set(site.store.partitions.pools(tx))
    registry = None if site.app is None else site.app.jobsync.cluster.registry
    return pools if registry is None else pools | {how.pool for how in registry.all().values() if how.pool}


def cluster_queues(site: Site, shapes: Iterable[ClusterShape]) -> list[str]:
    """The queues of a cluster that has, or had, these shapes; each once, in order."""
    from jobsync_celery.plugin.places import names_of  # it loads Celery, which other commands do without

    pools = lock_pools(site)
    named = (name for shape in shapes for name in names_of(site.config.queue_prefix, shape, pools))
    return list(dict.fromkeys(named))


def former_queues(site: Site, former: Iterable[ClusterShape], shape: ClusterShape) -> list[str]:
    """The queues that the cluster had, and has no more."""
    current = set(cluster_queues(site, [shape]))
    return [name for name in cluster_queues(site, former) if name not in current]


def emptied(
    site: Site, names: Sequence[str], placing: Any, *, delete: bool = False, say: Callable[[str], None] = lambda _: None
) -> list[Emptied]:
    """Move everything out of these queues; those of which there is anything to tell."""
    found = []
    with site.app.jobsync.cluster.backlog() as backlog:
        if restored := backlog.restore(names):
            say(f"{restored} messages that workers had fetched are back in their queues")
        for name in names:
            moved = dict(backlog.move(name, placing)) if backlog.waiting(name) else {}
            each = Emptied(name, moved, backlog.waiting(name))
            if delete and not each.left:
                each = replace(each, deleted=backlog.delete(name))
            found += [each] if each.notable else []
    return found


def unmarked(site: Site) -> list[Emptied]:
    """Delete the queue with the mark by which clusters that share their queues notice each other."""
    from jobsync_celery.plugin.lookout import mark_queue  # it loads Celery, too

    name = mark_queue(site.config.queue_prefix)
    with site.app.jobsync.cluster.backlog() as backlog:
        return [Emptied(name, {}, deleted=True)] if backlog.delete(name, filled=True) else []


def lying(site: Site, names: Collection[str]) -> tuple[list[Emptied], int]:
    """What lies in these queues, nothing moved; and how many of their messages workers have fetched."""
    with site.app.jobsync.cluster.backlog() as backlog:
        found = [Emptied(name, {}, waiting) for name in names if (waiting := backlog.waiting(name))]
        return found, backlog.fetched(names)


def queue_data(queues: Iterable[Emptied]) -> list[dict[str, Any]]:
    """The queues as JSON knows them."""
    return [{"queue": each.queue, "moved": each.moved, "left": each.left, "deleted": each.deleted} for each in queues]


def queue_grids(queues: Sequence[Emptied]) -> list[Grid]:
    """The queues as a table; none if there is nothing to tell."""
    rows = []
    for each in queues:
        targets = list(each.moved.items()) or [(NOTHING, 0)]
        for at, (target, count) in enumerate(targets):
            rows.append((each.queue, target, str(count), str(each.left) if at == 0 else NOTHING))
    return [Grid(_HEADINGS, rows, frozenset(_HEADINGS[2:]), frozenset(("queue",)))] if rows else []
