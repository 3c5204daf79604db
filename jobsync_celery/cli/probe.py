"""``probe liveness`` and ``probe readiness``: one worker, as its own file has it; see :mod:`runtime.vitals`.

A probe starts a Python process each time, so this imports next to nothing.
"""

from __future__ import annotations

import sys
import time

import click

from jobsync_celery.cli.numbers import FiniteRange
from jobsync_celery.errors import JobsyncError
from jobsync_celery.runtime.clock import boot_clock
from jobsync_celery.runtime.vitals import FILE_VARIABLE, Verdict, Vitals, as_dict, liveness, read, readiness

_PROBES = {"liveness": liveness, "readiness": readiness}
_WORDS = {"liveness": ("live", "not live"), "readiness": ("ready", "not ready")}
#: A restart ends what runs, so it takes longer than a pause of the machine.
_LIMIT_SEC = 60.0
_SHORTEST_LIMIT_SEC = 2.0
_LOOK_SEC = 0.2
_NO, _NO_ANSWER = 1, 2


@click.command("probe", epilog="Exit status: 0 yes, 1 no, 2 no file was named, or it is none of a worker.")
@click.argument("question", type=click.Choice(tuple(_PROBES)))
@click.option(
    "--file",
    "path",
    metavar="PATH",
    envvar=FILE_VARIABLE,
    show_envvar=True,
    help="The file that the worker writes, see celery worker --probe-file.",
)
@click.option(
    "--limit",
    metavar="SECONDS",
    type=FiniteRange(min=_SHORTEST_LIMIT_SEC),
    default=_LIMIT_SEC,
    show_default=True,
    help="How long its event loop may stand still.",
)
@click.option("--wait", metavar="SECONDS", type=FiniteRange(min=0), default=0.0, help="Wait at most so long for a yes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def probe(question: str, path: str | None, limit: float, wait: float, as_json: bool) -> None:
    """Ask whether the worker at hand is well.

    liveness: its main process runs, and its event loop goes round; if not, it has to be restarted. readiness: it takes
    part in coordination with a lease that it trusts, or is not meant to. Both read the file that the worker writes, and
    ask neither database nor broker.
    """
    try:
        if not path:
            raise JobsyncError(f"no file is named: give --file PATH, or set {FILE_VARIABLE}, here and for the worker")
        seen, verdict = _ask(question, path, limit, wait)
    except JobsyncError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(_NO_ANSWER)
    word = _WORDS[question][0 if verdict.well else 1]
    click.echo(_json(question, verdict, seen) if as_json else f"{word}: {verdict.why}")
    sys.exit(0 if verdict.well else _NO)


def _ask(question: str, path: str, limit: float, wait: float) -> tuple[Vitals | None, Verdict]:
    end = time.monotonic() + wait
    while True:
        seen = read(path)
        verdict = (
            _PROBES[question](seen, boot_clock(), limit)
            if seen is not None
            else Verdict(False, f"no worker has written {path} yet")
        )
        if verdict.well or time.monotonic() >= end:
            return seen, verdict
        time.sleep(_LOOK_SEC)


def _json(question: str, verdict: Verdict, seen: Vitals | None) -> str:
    import json  # a probe needs it only here

    worker = None if seen is None else as_dict(seen, boot_clock())
    return json.dumps({"probe": question, "well": verdict.well, "why": verdict.why, "worker": worker}, indent=2)
