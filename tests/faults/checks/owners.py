"""S2, L1 and L2: claims are the owners', partitions have owners, messages consumers, and these share evenly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise

from tests.faults.history import SLACK_SEC, Case
from tests.faults.model import Fault, Sample, Stale, Violation
from tests.faults.standstill import allowed, standstills


def committed_for_others(case: Case, stale: Iterable[Stale]) -> Iterator[Violation]:
    """S2: no claim is committed for a node that had been evicted or had handed the partition over."""
    for each in stale:
        names = tuple(run.name for run in case.runs if run.run.task_id == each.task_id and run.node == each.node)
        claim = f"a claim of key {each.key} in partition {each.partition} was committed for {each.node}"
        yield Violation("S2", f"{claim}, when the owner was {each.owner or 'nobody'}", names, each.at)


def stood_still(case: Case, samples: Sequence[Sample], quiet_from: float | None) -> Iterator[Violation]:
    """L1: every message has a consumer, also one that somebody had fetched who is dead."""
    end = samples[-1].at if samples else 0.0
    for each in standstills(case, quiet_from, end) if quiet_from is not None else ():
        if each.end - each.begin > allowed(case.timeout):
            names = tuple(run.name for run in case.runs if run.n in each.waiting)
            text = (
                f"nothing ran for {each.end - each.begin:.1f} s in the quiet phase, though tasks {each.waiting} waited"
            )
            yield Violation("L1", text, names, each.begin)


def ownerless(case: Case, samples: Sequence[Sample]) -> Iterator[Violation]:
    """L1: outside of faults every partition has an owner again in time."""
    most = case.timeout + SLACK_SEC
    for partition, begin, end in stretches(samples):
        quiet = undisturbed(case.faults, begin, end)
        if quiet > most:
            text = f"partition {partition} had no owner for {end - begin:.1f} s, {quiet:.1f} s of it without a fault"
            yield Violation("L1", text, (), begin)


def stretches(samples: Sequence[Sample]) -> Iterator[tuple[int, float, float]]:
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


def undisturbed(faults: Iterable[Fault], begin: float, end: float) -> float:
    """The longest time between these two in which no fault went on."""
    longest, free_from = 0.0, begin
    for fault in sorted(faults, key=lambda fault: fault.at):
        if fault.until >= free_from and fault.at <= end:
            longest, free_from = max(longest, fault.at - free_from), fault.until
    return max(longest, end - free_from)


def balance(
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
