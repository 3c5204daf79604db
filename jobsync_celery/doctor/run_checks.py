"""Checks of runs, task locks and what nodes have to agree on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from jobsync_celery.doctor.case import Case
from jobsync_celery.doctor.finding import Checks, Finding, problem, risk
from jobsync_celery.doctor.words import listed, many, span
from jobsync_celery.plugin.beat import MAINTENANCE, REBALANCE
from jobsync_celery.plugin.profile import broker_of, settings_of, tasks_of
from jobsync_celery.store.sightings import Sighting

checks = Checks()

#: What only the node itself goes by: others may have another value.
_MAY_DIFFER = {"hold_limit", "max_lost_runs", "rebalance_check_interval_sec"}
_FIXED = ("total_tokens", "partitions", "hash_function", "lock_partitions")
_AGREE = "give all workers and producers the same settings, and restart those that differ"


@checks("run-twice", "cluster")
def run_twice(case: Case) -> Iterator[Finding]:
    """Runs were begun more than once within the hour."""
    examination = case.seen.examination
    if not examination.repeated:
        return
    killers = [each for each in examination.repeated if each.lost_runs >= 2]
    make = problem if killers else risk
    yield make(
        f"{many(examination.repeated_total, 'run')} began more than once in the last hour",
        *(
            f"{each.task_name or 'a task'} {each.task_id}, key {each.key}: {each.attempt} attempts, {each.state},"
            f" last on {each.node}"
            for each in examination.repeated
        ),
        cause="these tasks kill the process that runs them: out of memory, a crash, a hard time limit"
        if killers
        else "a worker or pool child was killed or lost its lease half-way, or the broker connection was lost. Not each"
        " attempt had begun to run",
        fix="look at what they do, and at memory; after max_lost_runs they are failed"
        if killers
        else "stop workers with SIGTERM; guard effects with current_claim().guard(session), or complete(session) for"
        " those that must happen once",
    )


@checks("orphaned-locks", "cluster")
def orphaned_locks(case: Case) -> Iterator[Finding]:
    """Task locks are in force whose creator is gone."""
    examination = case.seen.examination
    if not examination.orphaned_locks:
        return
    creators = sorted({each.created_by or "nobody" for each in examination.orphaned_locks})
    yield risk(
        f"{many(examination.orphaned_locks_total, 'task lock')} of creators that are gone",
        f"keys {listed(each.key for each in examination.orphaned_locks)}, set by {listed(creators)}",
        cause="a worker or script set them and has left; whether they are meant to stay, only you know",
        fix=f"jobsync locks clear-by {creators[0]}, or jobsync cleanup --orphaned-locks for all of them; better use"
        " locks that expire",
    )


@checks("locked-keys-wait", "cluster")
def locked_keys_wait(case: Case) -> Iterator[Finding]:
    """Keys are locked to nodes that are not there, so their tasks wait."""
    examination = case.seen.examination
    if not examination.unserved_locks:
        return
    first, total = examination.unserved_locks[0], examination.unserved_locks_total
    yield problem(
        f"{many(total, 'locked key waits', 'locked keys wait')} for nodes that are not there",
        *(f"{each.key} is locked to {listed(each.patterns)}" for each in examination.unserved_locks),
        f"live nodes: {listed(node.name for node in case.seen.present) or 'none'}",
        cause="no live node has a name that matches the lock's patterns",
        fix=f"start such a node, or unlock: jobsync locks remove {first.key}",
    )


@checks("settings-differ", "cluster")
def settings_differ(case: Case) -> Iterator[Finding]:
    """Nodes, or this app as a producer, have other settings, tasks, versions or another broker than the others."""
    seen = case.seen
    for each in seen.seen("schema_refused"):
        yield problem(
            f"{each.node} was refused",
            f"{span(each.age)} ago: {each.detail.get('error')}",
            cause="its settings are not those with which the cluster was created, or its code is older than the tables",
            fix=_AGREE,
        )
    profiles = dict(seen.profiles)
    if case.cluster is not None and profiles:
        profiles["this app"] = {
            "broker": broker_of(case.the_app),
            "settings": settings_of(case.cluster.config),
            "tasks": tasks_of(case.cluster),
        }
    yield from _fixed(case)
    for name, values in _differences(profiles, "settings").items():
        if name not in _MAY_DIFFER | set(_FIXED):
            yield problem(
                f"{name} differs",
                *_said(values),
                cause="workers or producers were started with different settings, or a deployment is under way",
                fix=_AGREE,
            )
    yield from _tasks(profiles)
    brokers = _grouped({name: profile.get("broker") for name, profile in profiles.items()})
    if len(brokers) > 1:
        # Seen from here the same broker may have another name.
        make = (
            risk if len(_grouped({name: each.get("broker") for name, each in seen.profiles.items()})) == 1 else problem
        )
        yield make(
            "not all use one broker",
            *_said(brokers),
            cause="they were started with different broker_url settings",
            fix="give all workers and producers the same broker_url",
        )
    versions = _grouped({node.name: node.version for node in seen.present})
    if len(versions) > 1:
        yield risk(
            "nodes run different versions of jobsync_celery",
            *_said(versions),
            cause="a deployment is under way, or has left some out",
            fix="bring all to one version",
        )


def _fixed(case: Case) -> Iterator[Finding]:
    """What the cluster was created with, against the app's settings."""
    if case.cluster is None:
        return
    stored, here = case.seen.info.shape, case.cluster.shape
    differing = [name for name in _FIXED if getattr(stored, name) != getattr(here, name)]
    if differing:
        yield problem(
            "this app's settings are not the cluster's",
            *(f"{name} is {getattr(stored, name)!r} there, {getattr(here, name)!r} here" for name in differing),
            cause="the settings were changed after the cluster was created, or the cluster was reshaped. Its workers"
            " are refused, and what it publishes lands in wrong queues and is sent on",
            fix="set them as stored; or stop the cluster and jobsync schema reshape",
        )


def _tasks(profiles: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    for task, values in _differences(profiles, "tasks").items():
        known = {how: names for how, names in values.items() if how != "None"}
        if len(known) > 1:
            yield problem(
                f"nodes do not agree on the key of {task}",
                *_said(known),
                cause="they run different code; two runs of one key may have different owners meanwhile",
                fix="bring all to the same code; stop the cluster for such a change",
            )
        elif missing := [name for name in values.get("None", ()) if name != "this app"]:
            yield risk(
                f"{listed(missing)} {'does' if len(missing) == 1 else 'do'} not know the task {task}",
                *_said(known),
                cause="they run older code, or do not import its module. A worker discards tasks that it does not know",
                fix="bring all to the same code, workers before producers; see that all import the same modules",
            )


def _differences(profiles: Mapping[str, Mapping[str, Any]], part: str) -> dict[str, dict[str, list[str]]]:
    """Name -> value -> who has it; only of names of which there are several values."""
    names = sorted({name for profile in profiles.values() for name in profile.get(part, {})})
    found = {
        name: _grouped({who: profile.get(part, {}).get(name) for who, profile in profiles.items()}) for name in names
    }
    return {name: values for name, values in found.items() if len(values) > 1}


def _grouped(values: Mapping[str, Any]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for who, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        groups[f"{value:g}" if number and value < 1e6 else str(value)].append(who)
    return dict(groups)


def _said(values: Mapping[str, list[str]]) -> list[str]:
    return [f"{value}: {listed(names)}" for value, names in values.items()]


@checks("name-taken", "cluster")
def name_taken(case: Case) -> Iterator[Finding]:
    """A worker was refused because another live one has its name."""
    for each in case.seen.seen("name_taken"):
        yield problem(
            f"two workers want the name {each.subject}",
            f"{span(each.age)} ago; the one that has it runs on host {each.detail.get('holder_host')}, pid"
            f" {each.detail.get('holder_pid')}",
            cause="they were started with the same -n or --node-name",
            fix="give each a name of its own, such as -n worker-2@%h",
        )


@checks("clock-set", "cluster")
def clock_set(case: Case) -> Iterator[Finding]:
    """The database server's clock was set."""
    seen = case.seen.seen("clock_stepped")
    for each in seen[:1]:  # one step is seen by all nodes
        yield risk(
            f"the database's clock was set by {float(each.detail.get('seconds', 0)):+.1f} s",
            f"{listed(one.node for one in seen)} saw it {span(each.age)} ago",
            cause="somebody set it, or time synchronisation steps it instead of slewing. Nobody is evicted by that, but"
            " an eviction may take a lease longer, and times and retentions are off",
            fix="have the server's time kept by chrony or ntpd, which slew it",
        )


@checks("two-beats", "cluster")
def two_beats(case: Case) -> Iterator[Finding]:
    """Two beat processes publish the schedule."""
    every = max((_interval(profile) for profile in case.seen.profiles.values()), default=30.0)
    beats = sorted(case.seen.seen("beat", within=2.5 * every), key=lambda each: each.first_on)
    both = [(older, newer) for older, newer in pairwise(beats) if _overlap(older, newer)]
    if both:
        names = sorted({each.subject for pair in both for each in pair})
        yield problem(
            f"{many(len(names), 'beat process', 'beat processes')} publish the schedule",
            *(f"{each.subject}, last {span(each.age)} ago" for each in beats if each.subject in names),
            cause=f"celery beat runs more than once, or workers with -B; each publishes every entry of the schedule,"
            f" not only {REBALANCE} and {MAINTENANCE}",
            fix="run one beat: the names are those of processes, genPID@HOST",
        )


def _interval(profile: Mapping[str, Any]) -> float:
    return float(profile.get("settings", {}).get("rebalance_check_interval_sec") or 30.0)


def _overlap(older: Sighting, newer: Sighting) -> bool:
    """Whether the older one went on after the newer one had begun: otherwise beat was only started again."""
    return older.last_on > newer.first_on and older.times > 1
