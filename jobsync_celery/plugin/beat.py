"""Two jobs for beat: a backstop for the leader, and maintenance. Everything works without them."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task

from jobsync_celery.plugin.cluster import Cluster
from jobsync_celery.runtime.housekeeping import Housekeeping, Retention
from jobsync_celery.runtime.rebalancing import back_up
from jobsync_celery.store.schema import ensure_schema
from jobsync_celery.store.sightings import Seen

REBALANCE = "jobsync.rebalance"
MAINTENANCE = "jobsync.maintenance"
_MAINTENANCE_EVERY_SEC = 300.0
_LONGEST_MAINTENANCE_SEC = 240.0


def register(app: Celery, cluster: Cluster) -> None:
    """Add the two tasks, and their entries to the beat schedule unless the user has entries of those names."""

    every = cluster.config.rebalance_check_interval_sec

    @app.task(name=REBALANCE, bind=True, shared=False, ignore_result=True, expires=every)
    def rebalance_task(task: Task) -> int:
        """Plan under the leader's rules; never evicts."""
        ensure_schema(cluster.store.database, cluster.shape)
        with cluster.store.database.transaction("jobsync rebalance") as tx:
            made = back_up(tx, cluster.store, cluster.tokens)
            if beat := task.request.origin:
                cluster.store.sightings.add(tx, str(task.request.hostname), [Seen("beat", beat)])
        return 0 if made is None else len(made.moves)

    @app.task(name=MAINTENANCE, shared=False, ignore_result=True, expires=_MAINTENANCE_EVERY_SEC)
    def maintenance_task() -> dict[str, int]:
        """Delete what is past its retention; how many rows of each kind went."""
        ensure_schema(cluster.store.database, cluster.shape)
        retention = Retention.of(cluster.config, cluster.shape.kind)
        tidied = Housekeeping(cluster.store, cluster.shape, retention).clean(longest=_LONGEST_MAINTENANCE_SEC)
        if rows := sum(each.rows for each in tidied.cleaned):
            cluster.events("cleaned_up", rows=rows)
        for remark in tidied.remarks:
            cluster.events("not_vacuumed", remark=remark)
        return {each.what: each.rows for each in tidied.cleaned}

    def schedule(sender: Celery, **_: Any) -> None:
        entries = dict(sender.conf.beat_schedule or {})
        entries.setdefault(REBALANCE, {"task": REBALANCE, "schedule": cluster.config.rebalance_check_interval_sec})
        entries.setdefault(MAINTENANCE, {"task": MAINTENANCE, "schedule": _MAINTENANCE_EVERY_SEC})
        sender.conf.beat_schedule = entries

    app.on_after_finalize.connect(schedule, weak=False)
