"""The judge: from the history, the claims and the samples alone, which promises of the design were broken. Pure.

What is a violation, by promise:

- S1: a body starts while an older one of its key runs, unless the older one's claim was lost before and the newer
  one has the larger fence. Under ``"terminate"`` the older one must be silent 100 ms later, not counting the time for
  which it was stopped.
- S2: a body starts without a claim, or with one that the table contradicts; a claim is committed for a node that does
  not own the partition at that moment.
- S5: a run is recorded done under a fence under which no body finished; an effect that was committed under ``guard``
  or ``complete`` after its claim was lost or taken over (the database noted which transactions had been committed
  then), under a fence that no body had, or that its claim did not have at that time; a run completed twice, or under
  another fence than the one that is recorded done; an effect that a body had committed and that is not there; a body
  that was told that its claim was lost, which it was not.
- S6: a published task that nobody finished, or whose finish is not recorded, once; a run that starts again after it
  was recorded done or failed, or after it finished and no fault can have lost its end, or at all after ``complete``;
  an older try after a later one; a task that is retried and finishes at another try than it was to; one that is
  replaced and not recorded done, or replaced more often than its body ran; one that fails and is recorded done.
- S7: a body starts with a fence that is not larger than that of every earlier start of its key, whatever happened;
  a fence that was given twice.
- L1: outside of faults a partition has no owner for longer than the timeout and a second; in the quiet phase nothing
  runs for twice the timeout and a second, although there is work.
- L2: in the quiet phase at the end, after as long, shares differ by more than one, or a partition moves.
- record: the history itself cannot be right.

With ``complete`` a body ends its claim by its own word. The next task of the key may start beside the rest of that
body, so for overlaps it counts as ended at its line ``completing``, just before that commit, if the ledger has what
was committed with it.

A body starts when its first line says so; if its node was demonstrably stopped between the last look at the lease and
that line, which nothing can prevent, it is judged as if it had started when its process looked.

Excused are commits that a failover of the database lost, which the design does not promise; their fences grow still.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests.faults.checks import ends, fences, grouped, ledgers, owners, starts
from tests.faults.history import SLACK_SEC, Case, Execution, entries_of, executions, losses_of, rows_of
from tests.faults.model import Fault, Published, Sample, Stale, Verdict, Violation

__all__ = ["SLACK_SEC", "check", "with_hits"]


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
    ledger: Sequence[Mapping[str, Any]] = (),
    losses: Sequence[Mapping[str, Any]] = (),
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
        ledger: the effects that bodies committed, each with the id of its transaction.
        losses: for each claim that was lost or taken over, a snapshot of that moment.
    """
    begun, strays = executions(history)
    runs, stopped = starts.by_look(begun, faults)
    case = Case(
        runs,
        rows_of(claims),
        published,
        faults,
        timeout,
        may_fail,
        max_lost_runs,
        ledger=entries_of(ledger),
        losses=losses_of(losses),
    )
    by_key, by_task = grouped(runs, "key"), grouped(runs, "n")
    violations = [
        *(Violation("record", f"a line without a start: {dict(line)}", (), line["at"]) for line in strays),
        *(violation for run in runs for violation in starts.contradicted(case, run)),
        *(violation for each in by_key.values() for violation in starts.overlaps(case, each)),
        *(violation for each in by_key.values() for violation in fences.growing(case, each)),
        *fences.shared(case),
        *ledgers.effects(case),
        *(violation for n in published for violation in ends.task(case, published[n], by_task.get(n, []))),
        *(violation for each in grouped(runs, "run").values() for violation in ends.reruns(case, each)),
        *(violation for each in by_task.values() for violation in ends.tries(each)),
        *owners.ownerless(case, samples),
        *owners.committed_for_others(case, stale),
        *owners.stood_still(case, samples, quiet_from),
        *owners.balance(case, samples, quiet_from, live),
    ]
    return Verdict(
        tuple(sorted(violations, key=lambda each: each.at)),
        {**_figures(case, by_key, samples), "stopped_before_start": stopped},
    )


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


def _figures(case: Case, by_key: Mapping[str, Sequence[Execution]], samples: Sequence[Sample]) -> dict[str, Any]:
    runs, begun = case.runs, [run.began for run in case.runs]
    faults = with_hits(runs, case.faults)
    waits = [begun[first] - fault.until for fault in faults if (first := bisect_left(begun, fault.until)) < len(begun)]
    started: dict[int, float] = {}
    for run in runs:
        started.setdefault(run.n, run.began)
    waits_to_start = [at - case.published[n].at for n, at in started.items() if n in case.published]
    stretches = list(owners.stretches(samples))
    all_of = Counter(fault.nemesis for fault in faults)
    hits = Counter(fault.nemesis for fault in faults if fault.hit)
    return {
        "published": len(case.published),
        "unconfirmed": len(started.keys() - case.published.keys()),
        "executions": len(runs),
        "reruns": len(runs) - len({run.run for run in runs}),
        "overlaps": sum(1 for each in by_key.values() for _ in starts.pairs(case, each)),
        "ends": dict(sorted(Counter(run.over or "killed" for run in runs).items())),
        "effects": len(case.ledger),
        "completions": sum(entry.completes for entry in case.ledger),
        "effects_of_lost_claims": len({(each.run, each.fence) for each in case.losses} & case.entries.keys()),
        "failed": sum(row.state == "failed" for row in case.rows.values()),
        "worst_wait_sec": max(waits_to_start, default=0),
        "worst_wait_after_fault_sec": max(waits, default=0),
        "worst_ownerless_sec": max((end - begin for _, begin, end in stretches), default=0),
        "worst_ownerless_without_fault_sec": max(
            (owners.undisturbed(faults, *times) for _, *times in stretches), default=0
        ),
        "faults": len(faults),
        "faults_that_hit": sum(fault.hit > 0 for fault in faults),
        "nemeses": {name: {"faults": count, "hit": hits[name]} for name, count in sorted(all_of.items())},
    }
