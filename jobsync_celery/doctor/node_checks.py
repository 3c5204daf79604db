"""Checks of nodes and of how the partitions lie."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from jobsync_celery.core.model import spans
from jobsync_celery.doctor.case import Case, TablesSeen
from jobsync_celery.doctor.finding import Checks, Finding, problem, risk
from jobsync_celery.doctor.words import listed, many, span
from jobsync_celery.store.nodes import NodeRow
from jobsync_celery.store.reports import NodeShare

checks = Checks()

#: How far a node's tokens may be from its share, in percent; with so many partitions for each node they are not.
BALANCE = 10.0
PARTITIONS_PER_NODE = 10
#: The part of a lease after which a heartbeat is late: two intervals, as the settings have it by default.
_LATE = 2 / 3
_LOG = "look into its log"


@checks("no-leader", "cluster")
def no_leader(case: Case) -> Iterator[Finding]:
    """No node is live, so nothing coordinated runs."""
    seen = case.seen
    if seen.status.state != "no leader":
        return
    rows = [share.node for share in seen.status.nodes]
    if not rows and seen.status.leader.node is None:
        yield problem(
            "no node has ever registered",
            f"the tables are there since {seen.info.created_on:%Y-%m-%d %H:%M} UTC, and have no node",
            cause="no worker of the app has started, or each was started with -Q and without jobsync among its queues",
            fix="start a worker; if one runs, look into its log for 'jobsync'",
        )
        return
    yield problem(
        "no node is live: nothing coordinated runs",
        *(f"{node.name}: {_state(node)}, last heard {_ago(node)}" for node in rows[:5]),
        f"{seen.status.leader.node} led last",
        cause="all workers are stopped, were killed, or do not reach the database",
        fix="start a worker; if workers run, look into their logs for 'jobsync'",
    )


@checks("node-died", "cluster")
def node_died(case: Case) -> Iterator[Finding]:
    """A node was declared dead, and its name has not come back."""
    for node in (share.node for share in case.seen.status.nodes if share.node.state == "dead"):
        yield problem(
            f"{node.name} died",
            f"its last heartbeat was {_ago(node)}; host {node.hostname}, pid {node.pid}",
            cause="it was killed (SIGKILL, out of memory), its machine went down, or it was cut off or stopped for"
            " longer than its lease. Others have taken over what it had",
            fix="look into its log and the machine's; start it again under its name. If it is gone for good, its row"
            f" goes with maintenance, or once it has been dead for a while: jobsync cleanup --dead-node-retention"
            f" {_least_retention(case.seen, node)}",
        )


@checks("node-silent", "cluster")
def node_silent(case: Case) -> Iterator[Finding]:
    """A node's lease has ended, and nobody has declared it dead."""
    if case.seen.status.state == "no leader":
        return
    for node in (node for node in case.seen.present if node.silent):
        yield problem(
            f"{node.name} is silent",
            f"its last heartbeat was {_ago(node)}, its lease is {span(node.lease_sec or 0)}",
            cause="it hangs, was killed, or does not reach the database",
            fix="the other nodes evict it within a second or so; if they do not, look into the leader's log",
        )


@checks("heartbeat-lag", "cluster")
def heartbeat_lag(case: Case) -> Iterator[Finding]:
    """A node renews its lease late: it may lose it."""
    for node in case.seen.present:
        if not node.silent and node.lag is not None and node.lag > _LATE * (node.lease_sec or 0):
            yield problem(
                f"{node.name} is late with its heartbeat",
                f"the last one was {_ago(node)}, its lease is {span(node.lease_sec or 0)}",
                cause="its process was stopped, or does not get the processor; or the way to the database is slow",
                fix="look at load and memory of its machine, and at the network; if that is how it is there, set a"
                " longer heartbeat_timeout_sec",
            )


@checks("node-restless", "cluster")
def node_restless(case: Case) -> Iterator[Finding]:
    """A node lost its lease and went on as a new incarnation, or its event loop hung."""
    for each in case.seen.seen("lease_lost"):
        yield risk(
            f"{each.subject} lost its lease {_times(each.times)}",
            f"the last time {span(each.age)} ago: {each.detail.get('reason', 'unknown reason')}",
            cause="its process was stopped or starved, or it was cut off from the database, for longer than its lease;"
            " what ran there may have run again elsewhere",
            fix="look at load, memory and network of its machine; if pauses are normal there, set a longer"
            " heartbeat_timeout_sec",
        )
    for each in case.seen.seen("loop_hangs"):
        yield risk(
            f"the event loop of {each.subject} hung {_times(each.times)}",
            f"the last time {span(each.age)} ago, at {each.detail.get('where', 'an unknown place')}",
            cause="something blocks the worker's main process: code in a signal receiver, a broker that does not"
            " answer, or the solo pool while a task runs",
            fix="do not block in receivers of Celery's signals; use the pool prefork or threads",
        )


@checks("node-cut-off", "cluster")
def node_cut_off(case: Case) -> Iterator[Finding]:
    """A node could not consume from the broker, and gave its partitions up."""
    for each in case.seen.seen("cannot_consume"):
        node = case.seen.node(each.subject)
        lately = each.age < 10 * (node.lease_sec or 0) if node is not None else False
        still = lately and node is not None and node.state == "draining" and not node.drain_ordered
        make = problem if still else risk
        yield make(
            f"{each.subject} {'has' if still else 'had'} no connection to the broker",
            f"it gave its partitions up {span(each.age)} ago",
            cause="the broker, or the way from this worker to it, was down for as long as a lease",
            fix="let it reach the broker; it takes part again by itself",
        )


@checks("node-without-tokens", "cluster")
def node_without_tokens(case: Case) -> Iterator[Finding]:
    """A live node owns nothing, or drains."""
    seen = case.seen
    live = [share for share in seen.status.live if not share.node.silent]
    if live and not any(share.targets for share in seen.status.nodes) and seen.status.unowned:
        yield _held_back(seen)
        return
    for share in live:
        node = share.node
        if node.state == "draining":
            yield from _draining(node, seen)
        elif not share.owned:
            yield _idle(share, seen)


def _draining(node: NodeRow, seen: TablesSeen) -> Iterator[Finding]:
    if node.drain_ordered:
        yield risk(
            f"{node.name} drains by order, and takes no work",
            "somebody ordered it: jobsync drain",
            cause="it is to be stopped, or was forgotten",
            fix=f"stop it, or have it take part again: jobsync undrain {node.name}",
        )
    elif not any(each.subject == node.name for each in seen.seen("cannot_consume")):
        yield risk(
            f"{node.name} is stopping",
            "it has handed its partitions over, and waits for what runs there",
            cause="it was told to stop, and a task still runs",
            fix=f"nothing, unless it takes too long: jobsync claims --running --node {node.name}",
        )


def _idle(share: NodeShare, seen: TablesSeen) -> Finding:
    node = share.node
    nodes = sum(each.node.state == "live" for each in seen.status.live)
    if node.weight == 0:
        return risk(
            f"{node.name} has no tokens",
            "its weight is 0",
            cause="its settings say so",
            fix="start it with a weight above 0 if it is to work",
        )
    if share.targets:
        return problem(
            f"{node.name} has no tokens",
            f"{many(share.targets, 'partition')} are planned for it, and it has taken none",
            cause="it cannot consume them: it is still starting, or does not reach the broker, or a receiver of"
            " partitions_assigned or partitions_revoked does not return",
            fix=f"{_LOG} for 'jobsync'",
        )
    if nodes > seen.status.partitions:
        return problem(
            f"{node.name} has no tokens",
            f"{many(nodes, 'node')} share {many(seen.status.partitions, 'partition')}",
            cause="there are more nodes than partitions",
            fix="stop the cluster and give it more: jobsync schema reshape --partitions N, and the settings",
        )
    if awaited := [share.node.name for share in seen.status.nodes if _awaited(seen, share.node.name) is not None]:
        return risk(
            f"{node.name} has no tokens yet",
            f"{listed(awaited)} {'is' if len(awaited) == 1 else 'are'} waited for",
            cause="rejoin_grace_sec has the partitions of nodes that are gone wait for their names",
            fix="nothing; or jobsync rebalance --no-wait if they are gone for good",
        )
    return problem(
        f"{node.name} has no tokens",
        f"it is live for {span((seen.status.at - node.created_on).total_seconds())}, and no plan gives it any",
        cause="its weight is small beside the others', or the leader does not plan",
        fix="jobsync rebalance --dry-run says what a plan would move, jobsync rebalance makes one; look into the"
        " leader's log",
    )


def _held_back(seen: TablesSeen) -> Finding:
    wanted = [
        f"{name} asks for minimum_nodes={settings.get('minimum_nodes')}, wait_on_enter={settings.get('wait_on_enter')}"
        for name, profile in seen.profiles.items()
        if (settings := profile.get("settings", {}))
    ]
    return problem(
        "there is no plan yet, so no node has tokens",
        f"{many(len(seen.present), 'node')} registered",
        *wanted[:1],
        cause="the first plan waits for minimum_nodes and wait_on_enter",
        fix="start the other nodes, or lower these settings",
    )


@checks("partitions-stuck", "cluster")
def partitions_stuck(case: Case) -> Iterator[Finding]:
    """Partitions have no owner, or another than planned, for longer than a hand-over takes."""
    seen = case.seen
    if seen.status.state == "no leader":
        return
    groups: dict[tuple[str | None, str | None], list[int]] = defaultdict(list)
    for each in seen.examination.unsettled:
        if each.target is not None and not each.pool:
            groups[each.owner, each.target].append(each.partition)
    for (owner, target), numbers in groups.items():
        if owner is None and (until := _awaited(seen, target)) is not None:
            yield risk(
                f"{many(len(numbers), 'partition')} ({spans(numbers)}) wait for {target} to return",
                f"for {span(until)} more",
                cause="it was stopped or died, and rejoin_grace_sec has its partitions wait for its name",
                fix=f"start {target}; or if it is gone for good, jobsync rebalance --no-wait",
            )
            continue
        cause, fix = _why_stuck(seen, owner, target)
        has = f"are still at {owner}" if owner else "have no owner"
        yield problem(
            f"{many(len(numbers), 'partition')} ({spans(numbers)}) {has}, and belong to {target}",
            f"and that for {span(seen.waited)} at least; planned {_planned(seen, numbers)}",
            cause=cause,
            fix=fix,
        )


def _awaited(seen: TablesSeen, name: str | None) -> float | None:
    """For how many seconds more the name of a node that is gone is waited for."""
    node = seen.node(name)
    if node is None or node.present or node.awaited_sec is None or node.awaited_sec <= 0:
        return None
    return node.awaited_sec


def _why_stuck(seen: TablesSeen, owner: str | None, target: str | None) -> tuple[str, str]:
    waiting_for = owner or target
    for kind in ("listener_slow", "listener_failed"):
        for each in seen.seen(kind):
            if each.node == waiting_for:
                return (
                    f"a receiver of {each.detail.get('signal', 'a signal')} does not return there: {each.subject}",
                    "see what it waits for; partitions move when it has returned",
                )
    node = seen.node(waiting_for)
    if node is None or node.state == "dead":
        return f"{waiting_for} is gone, and the leader has made no other plan", "look into the leader's log"
    if node.silent:
        return f"{waiting_for} is silent", "see node-silent"
    verb = "hand them over" if owner else "take them"
    return f"{waiting_for} does not {verb}: it hangs, or cannot reach the broker", f"look into the log of {waiting_for}"


@checks("unbalanced", "cluster")
def unbalanced(case: Case) -> Iterator[Finding]:
    """Tokens are further from even than ±10 %, though nothing moves."""
    seen = case.seen
    off, nodes = seen.status.imbalance, sum(share.node.state == "live" for share in seen.status.live)
    if off is None or off <= BALANCE or nodes > seen.status.partitions:
        return
    if seen.status.state not in ("stable", "degraded"):
        return
    evidence = [f"{share.node.name} has {many(share.tokens, 'token')}" for share in seen.status.live[:5]]
    if seen.status.partitions < PARTITIONS_PER_NODE * nodes:
        yield risk(
            f"shares are off by {off:.0f} %",
            *evidence,
            cause=f"{many(nodes, 'node')} share {many(seen.status.partitions, 'partition')}, and a partition is the"
            " least that moves",
            fix=f"have {PARTITIONS_PER_NODE} partitions for each node: stop the cluster, jobsync schema reshape"
            " --partitions N, and the settings",
        )
    else:
        yield risk(
            f"shares are off by {off:.0f} %",
            *evidence,
            cause="weights differ so much that a share is smaller than a partition, or a plan is missing",
            fix="jobsync rebalance --dry-run says whether a plan would move anything; else have more partitions",
        )


@checks("constant-rebalancing", "cluster")
def constant_rebalancing(case: Case) -> Iterator[Finding]:
    """More than five plans moved partitions within the hour."""
    by_reason = case.seen.examination.plans_by_reason
    deaths, total = by_reason.get("node dead", 0), sum(by_reason.values())
    if total <= 5:
        return
    evidence = (
        f"{many(total, 'rebalance')} in the last hour: "
        + ", ".join(f"{number} for {reason!r}" for reason, number in sorted(by_reason.items())),
    )
    if deaths > 2:
        restless = sorted({each.subject for each in case.seen.seen("lease_lost")})
        yield problem(
            "partitions move again and again",
            *evidence,
            *([f"lost their leases and came back: {listed(restless)}"] if restless else []),
            cause="nodes crash, or lose their leases: heartbeat_timeout_sec is short for these machines, or they lack"
            " processor time or memory",
            fix="look into the logs of the nodes that died; set heartbeat_timeout_sec=30, give them more, or lower -c",
        )
    else:
        yield risk(
            "partitions moved often",
            *evidence,
            cause="workers came and went: a deployment is two plans for each worker that restarts",
            fix="nothing, if that was a deployment; rejoin_grace_sec saves the moves of workers that return",
        )


@checks("leader-changed", "cluster")
def leader_changed(case: Case) -> Iterator[Finding]:
    """The leader changed in the last five minutes because one died, or changes often."""
    status, examination = case.seen.status, case.seen.examination
    since = status.leader.since
    if since is None or not status.leader_changes_last_hour:
        return
    ago = (status.at - since).total_seconds()
    died = examination.plans_by_reason.get("node dead", 0)
    if (ago < 300 and died) or status.leader_changes_last_hour > 5:
        yield risk(
            f"the leader changed {span(ago)} ago",
            f"{many(status.leader_changes_last_hour, 'change')} in the last hour;"
            f" {status.leader.node} leads, term {status.leader.term}",
            cause="the node that led died or was stopped: the oldest one leads",
            fix="nothing for the leader; look why nodes die",
        )


def _least_retention(seen: TablesSeen, node: NodeRow) -> int:
    """How long the rows of dead nodes are kept at least, in seconds: somebody may still wait for them."""
    settings = [profile.get("settings", {}) for profile in seen.profiles.values()]
    graces = [float(each.get("rejoin_grace_sec") or 0) for each in settings]
    leases = [float(each.get("heartbeat_timeout_sec") or 0) for each in settings]
    return math.ceil(
        max(60.0, (node.lease_sec or 0) + max(graces, default=0), max(leases, default=0) + max(graces, default=0))
    )


def _state(node: NodeRow) -> str:
    return "silent" if node.silent else node.state


def _ago(node: NodeRow) -> str:
    return "never" if node.lag is None else f"{span(node.lag)} ago"


def _times(times: int) -> str:
    return "once" if times == 1 else f"{times} times"


def _planned(seen: TablesSeen, numbers: list[int]) -> str:
    ages = [
        each.planned for each in seen.examination.unsettled if each.partition in numbers and each.planned is not None
    ]
    return f"{span(min(ages))} ago" if ages else "at no known time"
