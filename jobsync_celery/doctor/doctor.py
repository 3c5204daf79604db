"""Puts a case together, and has all checks look at it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from celery import Celery

from jobsync_celery.doctor import app_checks, broker_checks, database_checks, node_checks, run_checks
from jobsync_celery.doctor.broker_view import NoBroker, look_at_broker
from jobsync_celery.doctor.case import Case, TablesSeen
from jobsync_celery.doctor.finding import Check, Finding, problem
from jobsync_celery.plugin.cluster import Cluster
from jobsync_celery.plugin.places import queues_of
from jobsync_celery.store.database import set_patience
from jobsync_celery.store.examination import LATELY_SEC, Examination, Examinations
from jobsync_celery.store.history import History
from jobsync_celery.store.pooling import shares_sessions
from jobsync_celery.store.reports import Reports
from jobsync_celery.store.schema import ClusterInfo, stored_cluster
from jobsync_celery.store.store import Store

#: All checks, in the order in which they are told.
CHECKS: tuple[Check, ...] = (
    *node_checks.checks,
    *run_checks.checks,
    *broker_checks.checks,
    *database_checks.checks,
    *app_checks.checks,
)

#: What is seen on the move is looked at again after so many seconds, for a hand-over takes a moment.
_MOMENT_SEC = 2.0
_LOOK_SEC = 0.4
_PATIENCE = 30.0


@dataclass(frozen=True)
class Diagnosis:
    """What was found, the worst first; and what was not looked at, with the reason."""

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def problems(self) -> int:
        """How many are wrong now."""
        return sum(each.severity == "problem" for each in self.findings)


def examine_app(app: Celery, cluster: Cluster | None) -> Diagnosis:
    """What can be said of an app before it is deployed; asks no server."""
    return judge(Case(app, cluster), dict.fromkeys(("cluster", "broker"), "only the configuration was asked for"))


def examine(store: Store, app: Celery | None, cluster: Cluster | None, *, moment: float = _MOMENT_SEC) -> Diagnosis:
    """What can be said of a running cluster; of its app and broker too, if an app is given.

    Raises:
        StoreUnavailable, SchemaOutdated: there is no answer, or there are no tables.
    """
    case = Case(app, cluster, look_at_tables(store, moment))
    reasons, found = {"app": "no app is named (celery -A)", "broker": "no app is named (celery -A)"}, []
    if app is not None and cluster is not None:
        try:
            case = replace(
                case, broker=look_at_broker(app, cluster, *_queues(case.seen, cluster), len(case.seen.present))
            )
        except NoBroker as error:
            reasons["broker"] = "it does not answer"
            found.append(_no_broker(str(error)))
    return judge(case, reasons, found)


def look_at_tables(store: Store, moment: float = _MOMENT_SEC) -> TablesSeen:
    """Ask the database; again for ``moment`` seconds, while something may be on the move."""
    info = stored_cluster(store.database)
    pooled = shares_sessions(store.database)
    began = time.monotonic()
    first = seen = _look(store, info)
    while (waited := time.monotonic() - began) < moment and _moves(seen):
        time.sleep(_LOOK_SEC)
        seen = _look(store, info)
    return replace(seen, examination=_still(first, seen), pooled=pooled, waited=waited)


def _still(first: TablesSeen, last: TablesSeen) -> Examination:
    """The last one, but of what is on the move only what was so all the time, without a step in between."""
    known = {(each.partition, each.version) for each in first.examination.unsettled}
    still = [each for each in last.examination.unsettled if (each.partition, each.version) in known]
    return replace(last.examination, unsettled=still)


def _look(store: Store, info: ClusterInfo) -> TablesSeen:
    database = store.database
    with database.transaction("jobsync doctor") as tx:
        set_patience(tx, _PATIENCE)
        return TablesSeen(
            info,
            status=Reports(database).status(tx),
            examination=Examinations(database).take(tx),
            partitions=History(database).partitions(tx),
            profiles=store.profiles.present(tx),
            sightings=store.sightings.since(tx, LATELY_SEC),
        )


def _queues(seen: TablesSeen, cluster: Cluster) -> tuple[list[str], list[str]]:
    """The partitions' queues, those of lock pools too; and those of partitions that there are no more."""
    prefix, shape = cluster.config.queue_prefix, seen.info.shape
    queues = queues_of(prefix, shape)
    pools = [str(queues.of_pool(each.pool, each.position).name) for each in seen.partitions if each.pool]
    here = [*(queues.name(number) for number in range(shape.partitions)), *pools]
    before = [
        queues_of(prefix, former).name(number) for former in seen.info.former for number in range(former.partitions)
    ]
    return here, sorted(set(before) - set(here))


def _moves(seen: TablesSeen) -> bool:
    """Whether what is seen may be over in a moment."""
    late = any(True for _ in node_checks.heartbeat_lag(Case(tables=seen)))
    idle = any(not share.owned and share.node.state == "live" for share in seen.status.live)
    return late or idle or bool(seen.examination.unsettled) or any(node.silent for node in seen.present)


def judge(case: Case, reasons: dict[str, str], found: Iterable[Finding] = ()) -> Diagnosis:
    """Have every check look that has what it needs.

    Arguments:
        reasons: part of the case -> why it is not there.
        found: what was found on the way.
    """
    findings, checked, left_out = list(found), [], []
    for check in CHECKS:
        missing = sorted(part for part in check.parts if not case.has(part))
        if missing:
            left_out.append((check.name, reasons.get(missing[0], "")))
            continue
        checked.append(check.name)
        findings.extend(_looked(check, case))
    findings.sort(key=lambda each: each.severity != "problem")
    return Diagnosis(tuple(findings), tuple(checked), tuple(left_out))


def _looked(check: Check, case: Case) -> Iterator[Finding]:
    for each in check.look(case):
        yield replace(each, check=check.name)


def _no_broker(said: str) -> Finding:
    found = problem(
        "the broker does not answer",
        said,
        cause="it is down, or cannot be reached from here",
        fix="start it; workers connect again by themselves, and give up their partitions if it takes longer than a"
        " lease",
    )
    return replace(found, check="broker-unreachable")
