"""``flush-back``: the partitions' backlog into ordinary queues, for leaving the plugin."""

from __future__ import annotations

import click

from jobsync_celery.cli.answer import TROUBLED, WELL, Answer, counted
from jobsync_celery.cli.backlog import cluster_queues, emptied, lying, queue_data, queue_grids, unmarked
from jobsync_celery.cli.command import order
from jobsync_celery.cli.site import Site
from jobsync_celery.errors import JobsyncError
from jobsync_celery.runtime.standstill import Standstill


@order(
    "flush-back",
    epilog="Exit status: 0 every queue is empty; 1 messages are left, or came meanwhile: run it again; 2 refused.",
)
@click.option("--queue", metavar="NAME", help="Move everything into this queue.  [default: where the app routes it]")
@click.option("--dry-run", is_flag=True, help="Move nothing; count what would be moved.")
@click.option("--delete-queues", is_flag=True, help="Delete the queues too, once no producer has the plugin any more.")
def flush_back(site: Site, queue: str | None, dry_run: bool, delete_queues: bool) -> Answer:
    """Move the backlog of the partitions into ordinary queues, to leave the plugin.

    First switch it off in all producers, and stop all workers that have it: they would send the tasks back. Messages
    keep everything but the plugin's own headers, and the order of each queue. If it is broken off, run it again: a
    message that was on its way may then be there twice, but none is lost.
    """
    if site.app is None:
        raise JobsyncError("flush-back has to know the app's queues and broker: name it with celery -A")
    if site.cluster.shape.kind != "celery":
        raise JobsyncError("the programs of this cluster have no queues: there is nothing to flush back")
    names = cluster_queues(site, [site.cluster.shape, *site.cluster.former])
    placing = site.app.jobsync.cluster.ordinary_places(queue, frozenset(names))
    standstill = Standstill(site.store, site.config.heartbeat_timeout_sec, _say)
    if dry_run:
        standstill.look()
        queues, fetched = lying(site, names)
    else:
        standstill.watch()
        with site.changing() as tx:
            standstill.enforce(tx)  # so that none of them resumes meanwhile
        queues, fetched = emptied(site, names, placing, delete=delete_queues, say=_say), 0
        queues += unmarked(site) if delete_queues else []
    moved, left = sum(sum(each.moved.values()) for each in queues), sum(each.left for each in queues) + fetched
    data = {"dry_run": dry_run, "moved": moved, "left": left, "queues": queue_data(queues)}
    if dry_run:
        return Answer(data, [f"{counted(left, 'message')} would be moved"], queue_grids(queues))
    lines = [f"{counted(moved, 'message')} moved, {left} left"]
    return Answer(data, lines, queue_grids(queues), list(_notes(left, delete_queues)), TROUBLED if left else WELL)


def _notes(left: int, deleted: bool) -> list[str]:
    if left:
        return ["some are left, or came meanwhile: is the plugin switched off in every producer? Run this again"]
    return ["start workers without the plugin now"] + (
        []
        if deleted
        else ["the queues are still there: delete them with --delete-queues when no producer has the plugin"]
    )


def _say(line: str) -> None:
    click.echo(line, err=True)
