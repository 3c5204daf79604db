"""The verdict in words: what the records prove, and whether that is what was promised."""

from __future__ import annotations

from collections.abc import Iterator

from jobsync_celery.demo.checker import Findings
from jobsync_celery.demo.scenario import Timings
from jobsync_celery.demo.script import Script
from jobsync_celery.demo.stage import Stage

_MOST_OFFENCES = 20


def lines(findings: Findings, timings: Timings, script: Script, stage: Stage) -> Iterator[str]:
    """The verdict, line by line."""
    yield f"Verdict, from {findings.starts} recorded starts of a task and the demo's own table"
    yield ""
    yield _row("published", findings.published)
    yield _row("done", findings.done, "effects, each committed together with its claim")
    yield _row("lost", len(findings.lost))
    yield _row("doubled", len(findings.doubled) + len(findings.strangers), "effects that are there twice")
    yield _row("overlapping", len(findings.overlaps), "two tasks of one key at one time, by the boot clock")
    yield _row("out of order", len(findings.disorder), "fences that did not grow from task to task of a key")
    yield _row("run again", findings.rerun_killed, "killed half-way, without an effect: allowed")
    if findings.survived:
        yield _row("not again", findings.survived, "killed just after its commit: its effect is there, once")
    if findings.rerun_fenced:
        yield _row("", findings.rerun_fenced, "fenced after their lease had ended, no effect: allowed")
    if findings.again:
        yield _row("", len(findings.again), "WITHOUT A REASON")
    yield from _times(findings, timings, script, stage)


def conclusion(findings: Findings) -> Iterator[str]:
    """The last words, with the offending rows if there are any."""
    if findings.clean:
        yield f"All {findings.done} tasks took effect exactly once; no key was run twice at a time."
        return
    offences = list(findings.offences())
    yield f"NOT what was promised: {len(offences)} findings."
    yield from offences[:_MOST_OFFENCES]
    if len(offences) > _MOST_OFFENCES:
        yield f"... and {len(offences) - _MOST_OFFENCES} more"


def _times(findings: Findings, timings: Timings, script: Script, stage: Stage) -> Iterator[str]:
    yield _row("join", timings.join, f"until {script.joiner} had its share, once registered")
    yield _row("hand-over", timings.handover, f"until all of {script.leaver}'s had a new owner, from SIGTERM")
    for one in findings.failovers:
        yield _row("fail-over", one.first, f"until the first task of {one.node}'s ran, from SIGKILL")
        yield _row("", one.last, f"until each of its partitions ran one ({one.waited} of {one.owned} had one)")
    if not findings.failovers:
        yield _row("fail-over", None, "measured: no task waited for the killed worker")
    yield ""
    interval, lease = stage.heartbeat_interval_sec, stage.heartbeat_timeout_sec
    yield f"Times are for a heartbeat of {interval} s and a lease of {lease} s (defaults: 5 s, 15 s)."


def _row(name: str, value: float | None, meaning: str = "") -> str:
    shown = "never" if value is None else str(value) if isinstance(value, int) else f"{value:.2f} s"
    return f"  {name:<12} {shown:>7}  {meaning}".rstrip()
