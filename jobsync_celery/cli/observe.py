"""``observe``: what coordination would have prevented, from what workers with ``mode="observe"`` have seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from jobsync_celery.cli.answer import NO_ANSWER, TROUBLED, WELL, Answer, Grid, counted, duration, moment, nearest
from jobsync_celery.cli.command import question
from jobsync_celery.cli.numbers import FiniteRange
from jobsync_celery.cli.site import Site
from jobsync_celery.errors import JobsyncError
from jobsync_celery.store.observation_reports import ObservationReports, ObservedTask, Pair, Report

_EXIT_CODES = (
    "Exit status: 0 coordination would have prevented nothing, 1 it would have, 2 nothing was observed, or no answer."
)
#: Seconds for a report over tens of millions of runs.
_PATIENCE = 600.0
_TASKS = ("task", "runs", "keys", "overlaps", "longest", "spread keys", "re-runs", "no end", "no key")
_KEYS = ("key", "task", "runs", "overlaps", "longest", "workers")


@question("observe", observing=True, epilog=_EXIT_CODES)
@click.option(
    "--since", "hours", metavar="HOURS", default=24.0, show_default=True, help="How far back.",
    type=FiniteRange(min=0, min_open=True),
)  # fmt: skip
@click.option("--task", metavar="NAME", help="Only this task.")
@click.option("--keys", default=5, show_default=True, type=click.IntRange(min=0), help="How many of the worst keys.")
def observe(site: Site, hours: float, task: str | None, keys: int) -> Answer:
    """Tell what coordination would have prevented.

    Workers of an app with mode="observe" note how its tasks run, and change nothing about it. Reported are runs that
    overlapped another run of their key, keys that ran on several workers, and runs that began again.
    """
    with site.reading(_PATIENCE, observed=True) as tx:
        report = ObservationReports(site.database).report(tx, hours * 3600, task, keys)
    if task is not None and not report.tasks:
        with site.reading(_PATIENCE, observed=True) as tx:
            known = [each.task_name for each in ObservationReports(site.database).report(tx, hours * 3600).tasks]
        raise JobsyncError(f"no run of the task {task!r} was observed{nearest(task, known)}")
    told = conclusion(report.tasks)
    return Answer(
        _data(report, told, hours),
        [*_heading(report, hours), told],
        _grids(report),
        [*map(_pair, report.pairs.values()), *_notes(report)],
        code=_code(report),
    )


def conclusion(tasks: Sequence[ObservedTask]) -> str:
    """What coordination would have prevented, in a sentence."""
    if not tasks:
        return (
            'Nothing was observed. Start workers of an app with JobSync(app, CoordinationConfig(url=…, mode="observe",'
            ' tasks={"proj.settle": "account_id"})), and let them run tasks.'
        )
    late, again = sum(each.late for each in tasks), sum(each.ended_again for each in tasks)
    spread = sum(each.spread_keys for each in tasks)
    prevented = []
    if late:
        longest = max(each.longest or 0.0 for each in tasks)
        keys = counted(sum(each.overlapping_keys for each in tasks), "key")
        prevented.append(
            f"{counted(late, 'run')} of {keys} from beginning while another of the key was running (together for"
            f" {_span(longest)} at most)"
        )
    if again:
        prevented.append(f"{counted(again, 'run')} from being done again after it had ended")
    if not prevented:
        prevented.append("nothing: no two runs of a key overlapped, and none was done twice")
    rest = f"; {_stay(spread)}" if spread else ""
    return f"Coordination would have prevented {', and '.join(prevented)}{rest}."


def _stay(spread: int) -> str:
    return f"{counted(spread, 'key')} ran on several workers, and each would have stayed with one"


def _code(report: Report) -> int:
    if not report.tasks:
        return NO_ANSWER
    return TROUBLED if any(each.late or each.ended_again for each in report.tasks) else WELL


def _heading(report: Report, hours: float) -> list[str]:
    seen = report.observers
    if seen.since is None:
        return [f"no worker has observed in the last {hours:g} h"]
    left = f"; {counted(seen.dropped, 'run')} left out, for there was no room" if seen.dropped else ""
    error = f"; times are good to {seen.error * 1000:.1f} ms" if seen.error is not None else ""
    present = f"{counted(seen.workers, 'worker')}, {seen.present} of them observing now"
    return [f"the last {hours:g} h; observed since {moment(seen.since)}: {present}{error}{left}"]


def _grids(report: Report) -> list[Grid]:
    grids = []
    if report.tasks:
        rows = [_task(each) for each in report.tasks]
        spare = ("no key", "no end", "longest", "re-runs")
        grids.append(Grid(_TASKS, rows, frozenset(_TASKS[1:]), spare=spare))
    if report.worst:
        rows = [
            (str(each.task_key), each.task_name, f"{each.runs:,}", f"{each.overlapping:,}", _span(each.longest),
             str(each.workers))
            for each in report.worst
        ]  # fmt: skip
        grids.append(Grid(_KEYS, rows, frozenset(_KEYS[2:]), title="worst keys"))
    return grids


def _task(each: ObservedTask) -> tuple[str, ...]:
    numbers = (each.spread_keys, each.reruns, each.lost, each.keyless)
    head = (each.task_name, f"{each.runs:,}", f"{each.keys:,}", f"{each.overlapping:,}", _span(each.longest))
    return (*head, *(f"{number:,}" for number in numbers))


def _pair(pair: Pair) -> str:
    first = f"{pair.first_id} on {pair.first_node} from {_clock(pair.first_began)}"
    second = f"{pair.second_id} on {pair.second_node} from {_clock(pair.second_began)}"
    return f"{pair.key}: {first}, and {second}, ran together for {_span(pair.shared)}"


def _notes(report: Report) -> list[str]:
    notes = []
    for each in report.tasks:
        name = each.task_name
        if each.reruns:
            again = f"{counted(each.reruns, 'run')} began again, {each.redelivered_reruns} of them delivered again"
            notes.append(f"{name}: {again}, {each.ended_again} after it had ended; {each.example}, for one")
        if each.lost:
            notes.append(f"{name}: {counted(each.lost, 'run')} without an end: the process died, or was not seen again")
        if each.keyless:
            notes.append(
                f"{name}: {counted(each.keyless, 'run')} whose key could not be computed: see the worker's log"
            )
    return notes


def _span(seconds: float | None) -> str:
    if seconds is not None and seconds < 1:
        return f"{seconds * 1000:.1f}ms"
    return duration(seconds)


def _clock(at: Any) -> str:
    return str(at.astimezone().strftime("%H:%M:%S.%f")[:-3])


def _data(report: Report, told: str, hours: float) -> dict[str, Any]:
    seen = report.observers
    return {
        "at": seen.at,
        "hours": hours,
        "observed_since": seen.since,
        "workers": seen.workers,
        "workers_observing": seen.present,
        "runs_left_out": seen.dropped,
        "error_ms": None if seen.error is None else round(seen.error * 1000, 3),
        "conclusion": told,
        "tasks": [_task_data(each) for each in report.tasks],
        "worst_keys": [_key_data(each, report.pairs.get(str(each.task_key))) for each in report.worst],
    }


def _task_data(each: ObservedTask) -> dict[str, Any]:
    return {
        "task": each.task_name,
        "runs": each.runs,
        "keys": each.keys,
        "overlapping_runs": each.overlapping,
        "began_during_another": each.late,
        "longest_overlap_sec": each.longest,
        "overlapping_keys": each.overlapping_keys,
        "keys_on_several_workers": each.spread_keys,
        "delivered_again": each.redelivered,
        "reruns": each.reruns,
        "redelivered_reruns": each.redelivered_reruns,
        "ended_again": each.ended_again,
        "running": each.running,
        "without_end": each.lost,
        "without_key": each.keyless,
    }


def _key_data(each: ObservedTask, pair: Pair | None) -> dict[str, Any]:
    return {
        "key": each.task_key,
        "task": each.task_name,
        "runs": each.runs,
        "overlapping_runs": each.overlapping,
        "began_during_another": each.late,
        "longest_overlap_sec": each.longest,
        "workers": each.workers,
        "evidence": None if pair is None else _pair_data(pair),
    }


def _pair_data(pair: Pair) -> dict[str, Any]:
    told = asdict(pair)

    def run(which: str) -> dict[str, Any]:
        names = {"task": "task", "task_id": "id", "worker": "node", "began": "began", "ended": "until"}
        return {name: told[f"{which}_{field}"] for name, field in names.items()}

    return {"shared_sec": pair.shared, "first": run("first"), "second": run("second")}
