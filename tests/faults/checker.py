"""The judge: from the history, the claims and the samples alone, which promises of the design were broken. Pure.

What is a violation, by promise:

- S1: a body starts while an older one of its key runs, unless the older one's claim was lost before and the newer
  one has the larger fence. Under ``"terminate"`` the older one must be silent 100 ms later, not counting the time for
  which it was stopped.
- S2: a body starts without a claim, or with one that the table contradicts; a claim is committed for a node that does
  not own the partition at that moment.
- S5: a run is recorded done under a fence under which no body finished.
- S6: a published task that nobody finished, or whose finish is not recorded, once; a run that starts again after it
  was recorded done, or after it finished and no fault can have lost its end; an older try after a later one.
- S7: a body starts with a fence that is not larger than that of every earlier start of its key, whatever happened;
  a fence that was given twice.
- L1: outside of faults a partition has no owner for longer than the timeout and a second; in the quiet phase nothing
  runs for twice the timeout and a second, although there is work.
- L2: in the quiet phase at the end, after as long, shares differ by more than one, or a partition moves.
- record: the history itself cannot be right.

Excused are commits that a failover of the database lost, which the design does not promise; their fences grow still.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from .history import SLACK_SEC, Case, Execution, Row, executions, rows_of
from .model import Fault, Published, Sample, Stale, Verdict, Violation
from .standstill import allowed, standstills

#: Within this an older body is silent after its successor's start; also how exactly the times of a fault are known.
SILENT_SEC = 0.1
#: A body that is silent for longer than this was stopped: it ticks every 50 ms.
_AWAKE_SEC = 0.25


def check(
    history: Iterable[Mapping[str, Any]],
    published: Mapping[int, Published],
    claims: Sequence[Mapping[str, object]],
    faults: Sequence[Fault],
    *,
    timeout: float,
    samples: Sequence[Sample] = (),
    quiet_from: float | None = None,
    live: Collection[str] = (),
    may_fail: Collection[int] = (),
    max_lost_runs: int = 3,
    stale: Sequence[Stale] = (),
) -> Verdict:
    """Judge a finished history.

    Arguments:
        published: what the broker confirmed. Tasks whose confirmation got lost may run as well.
        claims: all rows of ``sync_claim`` in the end; none may be older than the retention.
        timeout: ``heartbeat_timeout_sec``.
        samples: the owners of partitions, in order of time.
        quiet_from: from when on nothing was broken, and nodes neither came nor went.
        live: the nodes of the quiet phase, so that one without a partition is seen.
        stale: the claims that the database saw committed for somebody who was not the owner.
        may_fail: tasks that may fail for good; others only after ``max_lost_runs`` lost claims.
    """
    runs, strays = executions(history)
    case = Case(runs, rows_of(claims), published, faults, timeout, may_fail, max_lost_runs)
    by_key, by_task = _grouped(runs, "key"), _grouped(runs, "n")
    violations = [
        *(Violation("record", f"a line without a start: {dict(line)}", (), line["at"]) for line in strays),
        *(violation for run in runs for violation in _contradicted(case, run)),
        *(violation for each in by_key.values() for violation in _overlaps(case, each)),
        *(violation for each in by_key.values() for violation in _fences(case, each)),
        *_shared_fences(case),
        *(violation for n in published for violation in _task(case, published[n], by_task.get(n, []))),
        *(violation for each in _grouped(runs, "run").values() for violation in _reruns(case, each)),
        *(violation for each in by_task.values() for violation in _tries(each)),
        *_ownerless(case, samples),
        *_committed_for_others(case, stale),
        *_stood_still(case, samples, quiet_from),
        *_balance(case, samples, quiet_from, live),
    ]
    return Verdict(tuple(sorted(violations, key=lambda each: each.at)), _figures(case, by_key, samples))


def with_hits(runs: Sequence[Execution], faults: Iterable[Fault]) -> list[Fault]:
    """The faults, with the number of executions that were running on the target, if nobody counted them at the time.

    ``runs`` must be in order of start.
    """
    begun = [run.began for run in runs]
    longest = max((run.gone_by - run.began for run in runs), default=0.0)
    counted = []
    for fault in faults:
        near = runs[bisect_left(begun, fault.at - longest) : bisect_left(begun, fault.until)]
        hit = sum(run.gone_by >= fault.at and fault.touches(run.node) for run in near)
        counted.append(replace(fault, hit=fault.hit or hit))
    return counted


def _grouped(runs: Iterable[Execution], field: str) -> dict[Any, list[Execution]]:
    groups: defaultdict[Any, list[Execution]] = defaultdict(list)
    for run in runs:
        groups[getattr(run, field)].append(run)
    return groups


def _broken(promise: str, text: str, *runs: Execution) -> Violation:
    """A violation, at the start of the last of these executions."""
    return Violation(promise, text, tuple(run.name for run in runs), runs[-1].began)


def _contradicted(case: Case, run: Execution) -> Iterator[Violation]:
    """S2: every start has a claim of its own in the table, unless that was taken over under a larger fence."""
    row = case.rows.get(run.run)
    if not run.node or not run.fence:
        yield _broken("S2", f"{run} started without a claim", run)
    elif case.forgotten(run):
        return
    elif row is None:
        yield _broken("S2", f"{run} has no claim in the table", run)
    elif row.fence < run.fence:
        yield _broken("S2", f"{run} has a fence that its claim, at {row.fence}, never had", run)
    elif row.fence == run.fence and (row.key, row.node, row.attempt) != (run.key, run.node, run.attempt):
        claim = f"key {row.key} on {row.node}, attempt {row.attempt}"
        yield _broken("S2", f"{run} of key {run.key} contradicts its claim: {claim}", run)


def _overlaps(case: Case, runs: Sequence[Execution]) -> Iterator[Violation]:
    """S1, for the executions of one key."""
    for older, newer in _pairs(runs):
        both = f"{older} was running when {newer} started"
        if newer.fence <= older.fence:
            yield _broken("S1", f"{both}, with no larger fence{_stopped_before(case, newer)}", older, newer)
        elif not case.forgotten(older) and not _was_lost(case, older, newer):
            yield _broken("S1", f"{both}, and nothing shows that it had lost its claim", older, newer)
        elif older.policy == "terminate" and (late := _awake(case, older, newer)) > SILENT_SEC:
            yield _broken("S1", f"{both}, and was not terminated for {late:.3f} s of its own", older, newer)


def _pairs(runs: Iterable[Execution]) -> Iterator[tuple[Execution, Execution]]:
    """Executions of one key of which the older gave a sign of life after the newer had started."""
    running: list[Execution] = []
    for newer in runs:
        running = [older for older in running if older.last > newer.began]
        yield from ((older, newer) for older in running)
        running.append(newer)


def _was_lost(case: Case, older: Execution, newer: Execution) -> bool:
    """Whether the older claim had been lost when the newer one, of a larger fence, was made.

    A run goes to its next attempt only after it was lost. One that was lost and became done late keeps attempt and
    fence; it shows by an end later than the newer claim, and by a fault that can have cost its node the lease.
    """
    if older.run == newer.run:
        return newer.attempt > older.attempt
    row, other = case.rows.get(older.run), case.rows.get(newer.run)
    if row is None:
        return False
    if row.attempt > older.attempt or row.state in ("lost", "running"):
        return row.attempt > older.attempt or row.state == "lost"
    if other is None or other.fence != newer.fence or None in (row.finished, other.created) or case.clock_stepped:
        return case.evictable(older, newer)
    return bool(row.finished > other.created) and case.evictable(older, newer)


def _awake(case: Case, older: Execution, newer: Execution) -> float:
    """For how long the older execution went on beside the newer one, without the time for which it was stopped.

    A pause of its node stopped it from its last line before the pause was over; a body that gave signs of life until
    then was not stopped.
    """
    begin, end = newer.began, older.last
    awake = end - begin
    for fault in case.faults:
        if fault.pauses and fault.touches(older.node) and fault.at <= end:
            stopped = max((at for at in older.lines if at < fault.until - SILENT_SEC), default=older.began)
            if fault.until - max(stopped, fault.at) > _AWAKE_SEC:
                awake -= max(0.0, min(end, fault.until) - max(begin, stopped, fault.at))
    return awake


def _fences(case: Case, runs: Sequence[Execution]) -> Iterator[Violation]:
    """S7, for the executions of one key."""
    highest: Execution | None = None
    for run in runs:
        if highest is not None and run.fence <= highest.fence:
            text = f"{run} started after {highest}, with no larger fence{_stopped_before(case, run)}"
            yield _broken("S7", text, highest, run)
        if highest is None or run.fence > highest.fence:
            highest = run


def _stopped_before(case: Case, run: Execution) -> str:
    """A hint: a pause between the last look at the deadline and the first line cannot be told from a late start."""
    for fault in case.faults:
        if fault.pauses and fault.touches(run.node) and abs(run.began - fault.until) <= SILENT_SEC:
            return f" ({1000 * (run.began - fault.until):.0f} ms after its node was stopped)"
    return ""


def _shared_fences(case: Case) -> Iterator[Violation]:
    """S7: no fence is given twice, to whichever key."""
    first: dict[int, Execution] = {}
    for run in case.runs:
        other = first.setdefault(run.fence, run)
        if run.fence and other.key != run.key:
            yield _broken("S7", f"{run} of key {run.key} has the fence of {other} of key {other.key}", other, run)
    times = Counter(row.fence for row in case.rows.values() if row.fence)
    for fence in (fence for fence, count in times.items() if count > 1):
        at = first[fence].began if fence in first else 0.0
        yield Violation("S7", f"{times[fence]} claims have fence {fence}", (), at)


def _task(case: Case, sent: Published, runs: Sequence[Execution]) -> Iterator[Violation]:
    """S5 and S6: a published task finishes, and is recorded done once, under the fence of a body that finished."""
    names = tuple(run.name for run in runs)
    for run in runs:
        if (run.run.task_id, run.key) != (sent.task_id, sent.key):
            yield _broken("S6", f"{run} is of another task or key than was published as {sent.n}", run)
    rows = case.of_task.get(sent.task_id, ())
    done = [(run, row) for run, row in rows if row.state == "done"]
    if len(done) > 1:
        yield Violation("S6", f"task {sent.n} was recorded done {len(done)} times", names, sent.at)
    elif not done:
        yield from _undone(case, sent, runs, [row for _, row in rows if row.state == "failed"])
    for which, row in done:
        bodies = [run for run in runs if run.run == which and run.fence == row.fence]
        if not any(run.ended is not None for run in bodies) and not any(map(case.forgotten, runs)):
            what = "whose body never finished" if bodies else "under which no body ran"
            yield Violation("S5", f"task {sent.n} was recorded done with fence {row.fence}, {what}", names, sent.at)
        over = min((run.ended for run in bodies if run.ended is not None), default=float("inf"))
        for again in (run for run in runs if run.began > over):
            yield _broken("S6", f"{again} started although the task was done with fence {row.fence}", *bodies, again)


def _undone(case: Case, sent: Published, runs: Sequence[Execution], failed: Sequence[Row]) -> Iterator[Violation]:
    """S6: a task that is not done failed for good, for a reason."""
    names = tuple(run.name for run in runs)
    finished = [run for run in runs if run.ended is not None]
    if any(map(case.forgotten, finished)):
        return
    if failed:
        if not all((sent.n in case.may_fail or row.losses >= case.max_lost_runs) and row.reason for row in failed):
            yield Violation("S6", f"task {sent.n} failed for good without a reason", names, sent.at)
    elif finished:
        row = case.rows.get(finished[-1].run)
        state = "not at all" if row is None else row.state
        yield Violation("S6", f"task {sent.n} finished as {finished[-1]}, but is recorded {state}", names, sent.at)
    else:
        text = f"task {sent.n} of key {sent.key} was lost: it started {len(runs)} times and never finished"
        yield Violation("S6", text, names, sent.at)


def _reruns(case: Case, runs: Sequence[Execution]) -> Iterator[Violation]:
    """S6, for the executions of one run: after its end it runs again only if that end cannot have been recorded."""
    for older, newer in pairwise(runs):
        if older.ended is None or newer.began <= older.ended or case.forgotten(older):
            continue
        if newer.attempt <= older.attempt:
            yield _broken("S6", f"{newer} runs again what {older} finished, in the same attempt", older, newer)
        elif not case.disturbed(older):
            yield _broken("S6", f"{newer} runs again what {older} finished, though nothing was broken", older, newer)


def _tries(runs: Sequence[Execution]) -> Iterator[Violation]:
    """S6, for the executions of one task: once a retry has started, no earlier try starts."""
    latest: dict[str, Execution] = {}
    for run in runs:
        before = latest.setdefault(run.run.origin, run)
        if run.run.retries < before.run.retries:
            yield _broken("S6", f"{run} is an older try than {before}, and started after it", before, run)
        else:
            latest[run.run.origin] = run


def _ownerless(case: Case, samples: Sequence[Sample]) -> Iterator[Violation]:
    """L1: outside of faults every partition has an owner again in time."""
    allowed = case.timeout + SLACK_SEC
    for partition, begin, end in _stretches(samples):
        quiet = _undisturbed(case.faults, begin, end)
        if quiet > allowed:
            text = f"partition {partition} had no owner for {end - begin:.1f} s, {quiet:.1f} s of it without a fault"
            yield Violation("L1", text, (), begin)


def _committed_for_others(case: Case, stale: Iterable[Stale]) -> Iterator[Violation]:
    """S2: no claim is committed for a node that had been evicted or had handed the partition over."""
    for each in stale:
        names = tuple(run.name for run in case.runs if run.run.task_id == each.task_id and run.node == each.node)
        claim = f"a claim of key {each.key} in partition {each.partition} was committed for {each.node}"
        yield Violation("S2", f"{claim}, when the owner was {each.owner or 'nobody'}", names, each.at)


def _stood_still(case: Case, samples: Sequence[Sample], quiet_from: float | None) -> Iterator[Violation]:
    """L1: every message has a consumer, also one that somebody had fetched who is dead."""
    end = samples[-1].at if samples else 0.0
    for each in standstills(case, quiet_from, end) if quiet_from is not None else ():
        if each.end - each.begin > allowed(case.timeout):
            names = tuple(run.name for run in case.runs if run.n in each.waiting)
            text = (
                f"nothing ran for {each.end - each.begin:.1f} s in the quiet phase, though tasks {each.waiting} waited"
            )
            yield Violation("L1", text, names, each.begin)


def _stretches(samples: Sequence[Sample]) -> Iterator[tuple[int, float, float]]:
    """Each partition and time, from first to last sample, in which it was seen without an owner."""
    since: dict[int, tuple[float, float]] = {}
    partitions = {partition for sample in samples for partition in sample.owners}
    for sample in samples:
        for partition in partitions:
            if sample.owners.get(partition) is None:
                since[partition] = (since.get(partition, (sample.at, 0.0))[0], sample.at)
            elif partition in since:
                yield (partition, *since.pop(partition))
    yield from ((partition, begin, end) for partition, (begin, end) in since.items())


def _undisturbed(faults: Iterable[Fault], begin: float, end: float) -> float:
    """The longest time between these two in which no fault went on."""
    longest, free_from = 0.0, begin
    for fault in sorted(faults, key=lambda fault: fault.at):
        if fault.until >= free_from and fault.at <= end:
            longest, free_from = max(longest, fault.at - free_from), fault.until
    return max(longest, end - free_from)


def _balance(
    case: Case, samples: Sequence[Sample], quiet_from: float | None, live: Collection[str]
) -> Iterator[Violation]:
    """L2: when recovery is over, shares are even and nothing moves."""
    if quiet_from is None or not samples:
        return
    settled = [sample for sample in samples if sample.at >= quiet_from + case.timeout + SLACK_SEC]
    if not settled:
        yield Violation("L2", "no sample is late enough in the quiet phase to tell the balance", (), samples[-1].at)
    for sample in settled:
        shares = Counter(dict.fromkeys(live, 0))
        shares.update(owner for owner in sample.owners.values() if owner is not None)
        if shares and max(shares.values()) - min(shares.values()) > 1:
            uneven = dict(sorted(shares.items()))
            yield Violation("L2", f"shares are uneven in the quiet phase: {uneven}", (), sample.at)
            break
    for before, after in pairwise(settled):
        moved = sorted(each for each in after.owners if before.owners.get(each) != after.owners[each])
        if moved:
            yield Violation("L2", f"partitions {moved} moved in the quiet phase", (), after.at)
            break


def _figures(case: Case, by_key: Mapping[str, Sequence[Execution]], samples: Sequence[Sample]) -> dict[str, Any]:
    runs, begun = case.runs, [run.began for run in case.runs]
    faults = with_hits(runs, case.faults)
    waits = [begun[first] - fault.until for fault in faults if (first := bisect_left(begun, fault.until)) < len(begun)]
    started: dict[int, float] = {}
    for run in runs:
        started.setdefault(run.n, run.began)
    waits_to_start = [at - case.published[n].at for n, at in started.items() if n in case.published]
    stretches = list(_stretches(samples))
    all_of = Counter(fault.nemesis for fault in faults)
    hits = Counter(fault.nemesis for fault in faults if fault.hit)
    return {
        "published": len(case.published),
        "unconfirmed": len(started.keys() - case.published.keys()),
        "executions": len(runs),
        "reruns": len(runs) - len({run.run for run in runs}),
        "overlaps": sum(1 for each in by_key.values() for _ in _pairs(each)),
        "failed": sum(row.state == "failed" for row in case.rows.values()),
        "worst_wait_sec": max(waits_to_start, default=0),
        "worst_wait_after_fault_sec": max(waits, default=0),
        "worst_ownerless_sec": max((end - begin for _, begin, end in stretches), default=0),
        "worst_ownerless_without_fault_sec": max((_undisturbed(faults, *times) for _, *times in stretches), default=0),
        "faults": len(faults),
        "faults_that_hit": sum(fault.hit > 0 for fault in faults),
        "nemeses": {name: {"faults": count, "hit": hits[name]} for name, count in sorted(all_of.items())},
    }
