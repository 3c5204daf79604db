"""``schema show | upgrade | reshape``: the tables, what they were created with, and changing that."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import click

from jobsync_celery.cli.answer import TROUBLED, WELL, Answer, Grid, counted, moment, text
from jobsync_celery.cli.backlog import emptied, former_queues, queue_data, queue_grids
from jobsync_celery.cli.command import order, question
from jobsync_celery.cli.site import Site
from jobsync_celery.core.locks import patterns_in
from jobsync_celery.runtime.reshape import check_shape, reshape
from jobsync_celery.runtime.standstill import Standstill
from jobsync_celery.settings import HASH_NAMES, CoordinationConfig
from jobsync_celery.store.migrations import NEWEST
from jobsync_celery.store.revisions import written
from jobsync_celery.store.schema import ClusterInfo, ClusterShape, known_revision, upgrade_schema
from jobsync_celery.store.sizes import TableSize, table_sizes

_NUMBERS = ("total_tokens", "partitions", "hash_function", "lock_partitions")
_UNITS = ("B", "kB", "MB", "GB", "TB")


@click.group("schema")
def schema() -> None:
    """Show, make and change the tables.

    They belong to one cluster, whose number of partitions and the like were fixed when it was created.
    """


def _shaped(command: Callable[..., Answer]) -> Callable[..., Answer]:
    """Add the options that name a shape; the command gets those that were given."""

    @functools.wraps(command)
    def run(site: Site, **given: Any) -> Answer:
        numbers = {name: value for name in _NUMBERS if (value := given.pop(name)) is not None}
        return command(site, numbers, **given)

    for name, kind, metavar, what in reversed(
        (
            ("total-tokens", int, "N", "Hash slots."),
            ("partitions", int, "N", "Queues that carry them."),
            ("hash-function", click.Choice(HASH_NAMES), None, "Maps keys to tokens."),
            ("lock-partitions", int, "N", "Partitions of each pool of task locks."),
        )
    ):
        run = click.option(f"--{name}", type=kind, metavar=metavar, help=f"{what}  [default: the app's]")(run)
    return run


@question(
    "show", epilog="Exit status: 0 all is well, 1 an upgrade is due or the app differs, 2 no tables, or newer ones."
)
def show_schema(site: Site) -> Answer:
    """Show the tables and the cluster that they belong to.

    Their version and this code's, what the cluster was created with, its pools of task locks, and how large each
    table is.
    """
    revision = known_revision(site.database)
    due = revision != NEWEST
    with site.database.transaction("jobsync command") as tx:
        sizes = table_sizes(site.database, tx)
        pools = [] if due else _pools(site, tx)
    cluster = None if due else site.cluster
    differences = [] if cluster is None else list(_differences(site, cluster.shape))
    notes = ["an upgrade is due: run schema upgrade"] if due else []
    notes += [f"the app's settings differ, so its workers are refused: {'; '.join(differences)}"] if differences else []
    data = {
        "database": site.database.where,
        "schema": site.database.schema,
        "prefix": site.database.prefix,
        "revision": revision,
        "newest_revision": NEWEST,
        "upgrade_due": due,
        "cluster": None if cluster is None else _cluster_data(cluster),
        "differences": differences,
        "pools": pools,
        "tables": [{"table": each.name, "rows": each.rows, "bytes": each.size} for each in sizes],
    }
    return Answer(
        data, list(_sentences(site, revision, cluster)), _grids(pools, sizes), notes, TROUBLED if notes else WELL
    )


@order("upgrade", epilog="Exit status: 0 the tables are up to date, or were written down; 2 they are not.")
@click.option("--sql", is_flag=True, help="Run nothing; print the statements, for somebody else to run.")
@_shaped
def upgrade(site: Site, numbers: dict[str, Any], sql: bool) -> Answer:
    """Create the tables, or bring older ones up to date.

    Workers do that by themselves when they start, if their role may. Otherwise run this once, as a role that may,
    before newer workers start. A cluster that is created gets the app's settings; one that is there keeps its own.
    """
    shape = _shape_of(_config(site, numbers))
    if sql:
        statements = written(site.database, known_revision(site.database, missing=True), shape)
        lines = statements.splitlines() or ["-- nothing is to be done"]
        return Answer({"before": None, "revision": None, "cluster": None, "sql": statements}, lines)
    before, cluster = upgrade_schema(site.database, shape)
    data = {"before": before, "revision": NEWEST, "cluster": _cluster_data(cluster), "sql": None}
    return Answer(data, [_done(before), *_created(cluster)])


@order(
    "reshape",
    epilog="Exit status: 0 done; 1 messages are left in queues that nobody consumes any more; 2 refused.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would change.")
@_shaped
def reshape_cluster(site: Site, numbers: dict[str, Any], dry_run: bool) -> Answer:
    """Give the cluster another number of partitions, or of tokens.

    Only while all its workers are stopped. Task locks, history and claims stay. With an app, messages are moved out
    of queues that nobody will consume any more; run again, this moves what came into them since.
    """
    before = site.cluster
    shape = _wanted(site, before.shape, numbers)
    changes = shape != before.shape
    if changes:
        check_shape(shape)
        standstill = Standstill(site.store, site.config.heartbeat_timeout_sec, lambda line: click.echo(line, err=True))
        if dry_run:
            standstill.look()
        else:
            if site.app is not None:
                with site.app.jobsync.cluster.backlog():  # that the broker is there, before anything is changed
                    pass
            reshape(site.store, standstill, shape)
    former = [*before.former, *([before.shape] if changes else [])]
    stranded = former_queues(site, former, shape)
    swept = [] if dry_run or site.app is None else emptied(site, stranded, site.app.jobsync.cluster.places(shape))
    left = sum(each.left for each in swept)
    looked_at = stranded if site.app is None else []
    data = {
        "dry_run": dry_run,
        "changed": changes and not dry_run,
        "before": asdict(before.shape),
        "after": asdict(shape),
        "queues": queue_data(swept),
        "left": left,
        "look_at": looked_at,
    }
    lines = list(_changes(before.shape, shape, dry_run))
    notes = list(_next_steps(changes, dry_run, looked_at))
    return Answer(data, lines, queue_grids(swept), notes, TROUBLED if left else WELL)


for _command in (show_schema, upgrade, reshape_cluster):
    schema.add_command(_command)


def _config(site: Site, numbers: dict[str, Any]) -> CoordinationConfig:
    """The settings with these numbers, checked as a whole."""
    return replace(site.config, **numbers)


def _shape_of(config: CoordinationConfig) -> ClusterShape:
    return ClusterShape(
        config.total_tokens, config.partitions, config.hash_function, lock_partitions=config.lock_partitions
    )


def _wanted(site: Site, stored: ClusterShape, numbers: dict[str, Any]) -> ClusterShape:
    """What was given; else what the app's settings say; without an app what is stored."""
    if site.app is None:
        numbers = {**{name: getattr(stored, name) for name in _NUMBERS}, **numbers}
    return replace(_shape_of(_config(site, numbers)), kind=stored.kind)


def _differences(site: Site, stored: ClusterShape) -> Iterator[str]:
    if site.app is None or stored.kind != "celery":
        return
    ours = _shape_of(site.config)
    for name in _NUMBERS:
        if getattr(stored, name) != getattr(ours, name):
            yield f"{name}={getattr(ours, name)!r}, here {getattr(stored, name)!r}"


def _pools(site: Site, tx: Any) -> list[dict[str, Any]]:
    locks = [each.patterns for each in site.store.locks.list(tx)]
    return [
        {"patterns": list(patterns_in(pool)), "partitions": list(numbers), "locks": locks.count(patterns_in(pool))}
        for pool, numbers in site.store.partitions.pools(tx).items()
    ]


def _cluster_data(cluster: ClusterInfo) -> dict[str, Any]:
    return {
        "cluster_id": cluster.cluster_id,
        "created_on": cluster.created_on,
        **asdict(cluster.shape),
        "former": [asdict(each) for each in cluster.former],
    }


def _sentences(site: Site, revision: str | None, cluster: ClusterInfo | None) -> Iterator[str]:
    known = "as this code" if revision == NEWEST else f"this code needs {NEWEST}"
    named = f"{site.database.schema}.{site.database.prefix}" if site.database.schema else site.database.prefix
    yield f"tables {named}… in {site.database.where}: revision {revision}, {known}"
    if cluster is not None:
        yield from _created(cluster)


def _created(cluster: ClusterInfo) -> Iterator[str]:
    yield f"cluster {cluster.cluster_id}, {cluster.shape.kind}, since {moment(cluster.created_on)}"
    yield _told(cluster.shape)


def _told(shape: ClusterShape) -> str:
    partitions = counted(shape.partitions, "partition")
    return (
        f"{shape.total_tokens} tokens in {partitions} by {shape.hash_function}, {shape.lock_partitions} for each pool"
        " of locks"
    )


def _done(before: str | None) -> str:
    if before is None:
        return f"the tables were created, of revision {NEWEST}"
    return f"the tables are of revision {NEWEST} already" if before == NEWEST else f"upgraded from {before} to {NEWEST}"


def _changes(before: ClusterShape, after: ClusterShape, dry_run: bool) -> Iterator[str]:
    if before == after:
        yield f"nothing is to be changed: {_told(after)}"
        return
    yield f"{'now' if dry_run else 'before'}: {_told(before)}"
    yield f"{'it would have' if dry_run else 'now'}: {_told(after)}"


def _next_steps(changes: bool, dry_run: bool, look_at: list[str]) -> Iterator[str]:
    if look_at:
        yield (
            "nobody consumes these queues any more; named by celery -A, an app has messages moved out of them:"
            f" {_shortened(look_at)}"
        )
    if changes and not dry_run:
        yield "set the same numbers in the settings of workers and producers, and start them"


def _shortened(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, … {names[-1]} ({len(names)})"


def _grids(pools: list[dict[str, Any]], sizes: list[TableSize]) -> list[Grid]:
    grids = []
    if pools:
        rows = [
            (", ".join(each["patterns"]), ", ".join(map(str, each["partitions"])), str(each["locks"])) for each in pools
        ]
        grids.append(
            Grid(("patterns", "partitions", "locks"), rows, frozenset(("locks",)), title="pools of task locks:")
        )
    cells = [(each.name, text(each.rows), _size(each.size)) for each in sizes]
    grids.append(Grid(("table", "rows, about", "size"), cells, frozenset(("rows, about", "size")), title="tables:"))
    return grids


def _size(size: float) -> str:
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"
