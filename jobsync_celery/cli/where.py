"""``where KEY`` and ``why TASK_ID``: for one key or task, what is going on and for what reason."""

from __future__ import annotations

from collections.abc import Iterator

import click

from jobsync_celery.cli.answer import TROUBLED, WELL, Answer, counted, duration, moment
from jobsync_celery.cli.claims import claim_data, claim_grid
from jobsync_celery.cli.command import question
from jobsync_celery.cli.place import Place, place_of
from jobsync_celery.cli.queues import Depth, choosy_tasks, depth_of
from jobsync_celery.cli.site import Site
from jobsync_celery.core.tokens import key_text
from jobsync_celery.store.claim_reports import ClaimReports, ClaimRow

_RECENT = 5
_ENDED = ("done", "failed", "retried", "lost")


@question("where")
@click.argument("key")
def where(site: Site, key: str) -> Answer:
    """Show where the tasks of KEY run, and why there.

    KEY is what the tasks are coordinated by, such as an account's number. Told are its token, partition, queue and
    owner; what of it runs and ran; and how many messages wait in its queue, which are of other keys too.
    """
    key = key_text(key)
    reports = ClaimReports(site.database)
    with site.reading() as tx:
        place = place_of(site, tx, key)
        since = reports.window(tx)
        recent = reports.latest(tx, _ENDED, key=key, since=since, limit=_RECENT)
    depth = depth_of(site, place.queue) if place.queue else Depth(None, _no_queue(site))
    lines = [_headline(place), *(f"  {why}" for why in place.reasons()), f"  {_running(place)}", f"  {_waiting(depth)}"]
    data = {
        **place.data(),
        "running": None if place.running is None else claim_data(place.running),
        "recent": [claim_data(each) for each in recent],
        "waiting_in_queue": depth.waiting,
    }
    grids = [claim_grid(recent, "recent claims:")] if recent else []
    notes = [] if recent else [f"no claim of it has ended{f' in the last {duration(since)}' if since else ''}"]
    if place.lock is None and (choosy := choosy_tasks(site)):
        notes.append(f"declared with nodes=, and so in partitions of their own: {', '.join(choosy)}")
    return Answer(data, lines, grids, notes, WELL if place.settled else TROUBLED)


@question("why")
@click.argument("task_id")
@click.option("--key", help="The task's key, if it has no claim yet: then it can be told what the task waits for.")
def why(site: Site, task_id: str, key: str | None) -> Answer:
    """Tell where the task TASK_ID ran, or why it waits.

    A task that has not been claimed yet is known to the broker only. Give its --key, and it is told what holds it up.
    """
    with site.reading() as tx:
        claims = ClaimReports(site.database).of_task(tx, task_id)
        key = claims[-1].key if claims else None if key is None else key_text(key)
        place = None if key is None else place_of(site, tx, key)
    last = claims[-1] if claims else None
    waits = last is None or last.lone or last.state in ("lost", "retried")
    lines = [*(_last(last) if last else _unclaimed(task_id, place))]
    if place is not None and waits:
        lines += [f"  {reason}" for reason in _hindrances(site, place, last)]
    data = {
        "task_id": task_id,
        "state": "unknown" if last is None else last.state,
        "waits": waits,
        "why": [line.strip() for line in lines],
        "place": None if place is None else place.data(),
        "claims": [claim_data(each) for each in claims],
    }
    return Answer(data, lines, [claim_grid(claims)] if len(claims) > 1 else [], code=TROUBLED if waits else WELL)


def _headline(place: Place) -> str:
    owner = place.owner_name or ("no node that matches" if place.unserved else "nobody just now")
    queue = f", queue {place.queue}" if place.queue else ""
    return f"{place.key}: {owner}; token {place.token}, partition {place.partition.number}{queue}"


def _running(place: Place) -> str:
    claim = place.running
    if claim is None:
        return "nothing of it runs"
    return f"{_named(claim)} runs at {claim.node}, for {duration(claim.seconds)}{_attempt(claim)}{_gone(claim)}"


def _waiting(depth: Depth) -> str:
    if depth.waiting is None:
        return f"how many messages wait is not known: {depth.unknown}"
    return (
        f"{counted(depth.waiting, 'message')} of this partition wait in its queue, besides what its owner has fetched"
    )


def _no_queue(site: Site) -> str:
    if site.cluster.shape.kind != "celery":
        return "the programs of this cluster have no queues"
    if site.app is None:
        return "queues are known to the app only, name it with celery -A"
    return "the app's settings are not those of this cluster"


def _last(claim: ClaimRow) -> Iterator[str]:
    """What became of the last run of a task."""
    at = f"at {claim.node}{_attempt(claim)}"
    if claim.state == "running":
        yield f"{_named(claim)} of key {claim.key} runs {at}, for {duration(claim.seconds)}{_gone(claim)}"
        return
    ended = f"{moment(claim.finished_on)}, after {duration(claim.seconds)}"
    because = f": {claim.reason}" if claim.reason else ""
    yield f"{_named(claim)} of key {claim.key} {_ENDS[claim.state]} {at}, {ended}{because}"


_ENDS = {
    "done": "was done",
    "failed": "failed",
    "retried": "asked for a retry, which has not begun yet,",
    "lost": "was lost, and is to be run again: it was last",
}


def _unclaimed(task_id: str, place: Place | None) -> Iterator[str]:
    yield f"{task_id}: no claim of this task, so it has not begun, as far as the database can tell"
    yield (
        "  it waits in its queue, or with its worker for an ETA or a free slot; or it is no coordinated task; or its"
        " claim is past its retention. Only the broker could tell"
    )
    if place is None:
        yield "  with --key KEY it can be told what tasks of that key wait for"


def _hindrances(site: Site, place: Place, last: ClaimRow | None) -> Iterator[str]:
    """What stands between a task and its run, by all that is known."""
    rival = place.running
    if rival is not None and (last is None or (rival.task_id, rival.retries) != (last.task_id, last.retries)):
        yield f"its key is taken: {_running(place)}, and one task of a key runs at a time"
    if not place.settled:
        yield from place.reasons()
    elif rival is None:
        yield f"nothing holds it up in the database: {place.owner_name} has its partition, and nothing of its key runs"
        yield "it may wait for its ETA or retry's countdown, for a slot of the pool, or behind others in the queue"
    if place.queue:
        yield _waiting(depth_of(site, place.queue))


def _named(claim: ClaimRow) -> str:
    return f"{claim.task_name or 'a task'} {claim.task_id}"


def _attempt(claim: ClaimRow) -> str:
    retry = f", retry {claim.retries}" if claim.retries else ""
    return f" (attempt {claim.attempt}{retry})" if claim.attempt > 1 or retry else ""


def _gone(claim: ClaimRow) -> str:
    return "; but that node is gone: the claim is taken over when the message is delivered again" if claim.lone else ""
