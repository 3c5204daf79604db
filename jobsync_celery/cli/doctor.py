"""``doctor``: what is wrong, why, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from jobsync_celery.cli.answer import TROUBLED, WELL, Answer, counted
from jobsync_celery.cli.command import question
from jobsync_celery.cli.site import site_of
from jobsync_celery.doctor.doctor import Diagnosis, examine, examine_app
from jobsync_celery.doctor.finding import Finding
from jobsync_celery.errors import JobsyncError

_EXIT_CODES = (
    "Exit status: 0 no problem was found (with --strict: and no risk), 1 one was, 2 no database, or no such app."
)


class Patient:
    """What the command line names: an app, or the tables at a URL."""

    def __init__(
        self, app: Any, url: str | None, appname: str | None, schema: str | None, observing: bool = False
    ) -> None:
        self._app = app
        self._named = (url, appname, schema)

    def examine(self) -> Diagnosis:
        """Database, cluster, and if an app is named, app and broker."""
        site = site_of(self._app, *self._named)
        return examine(site.store, site.app, None if site.app is None else site.app.jobsync.cluster)

    def examine_app(self) -> Diagnosis:
        """The app, before it is deployed."""
        if self._app is None or any(self._named):
            raise JobsyncError("--config looks at an app: celery -A proj jobsync doctor --config, without --url")
        plugin = getattr(self._app, "jobsync", None)
        if plugin is None:
            raise JobsyncError(f"the app {self._app.main!r} has no JobSync: write JobSync(app)")
        try:
            self._app.loader.import_default_modules()
            self._app.finalize(auto=True)
        except Exception as error:  # whatever a user's module raises when it is imported
            raise JobsyncError(f"the modules of the app cannot be imported: {type(error).__name__}: {error}") from error
        return examine_app(self._app, plugin.cluster)


@question("doctor", find=Patient, epilog=_EXIT_CODES)
@click.option("--config", is_flag=True, help="Only look at the app, before it is deployed. Asks no server.")
@click.option("--strict", is_flag=True, help="Exit with 1 for risks, too.")
def doctor(patient: Patient, config: bool, strict: bool) -> Answer:
    """Say what is wrong, why, and what to do.

    Looks at nodes, partitions, runs, task locks, the database server, and if an app is named at its configuration and
    its broker. A problem is wrong now; a risk may become one, or was one within the hour.
    """
    found = patient.examine_app() if config else patient.examine()
    lines = [_headline(found), *(line for each in found.findings for line in _lines(each))]
    failed = bool(found.problems or (strict and found.findings))
    return Answer(_data(found), lines, notes=list(_notes(found)), code=TROUBLED if failed else WELL)


def _headline(found: Diagnosis) -> str:
    checks = counted(len(found.checked), "check")
    risks = len(found.findings) - found.problems
    if not found.findings:
        return f"nothing is wrong: {checks}"
    told = " and ".join(
        counted(number, noun) for number, noun in ((found.problems, "problem"), (risks, "risk")) if number
    )
    return f"{told} by {checks}"


def _lines(finding: Finding) -> Iterator[str]:
    yield ""
    yield f"{finding.severity}: {finding.what} ({finding.check})"
    for each in finding.evidence:
        yield f"  seen: {each}"
    yield f"  cause: {finding.cause}"
    yield f"  fix: {finding.fix}"


def _notes(found: Diagnosis) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for name, reason in found.left_out:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield f"{counted(len(names), 'check')} left out, for {reason}"


def _data(found: Diagnosis) -> dict[str, Any]:
    return {
        "problems": found.problems,
        "risks": len(found.findings) - found.problems,
        "findings": [
            {
                "check": each.check,
                "severity": each.severity,
                "what": each.what,
                "evidence": list(each.evidence),
                "cause": each.cause,
                "fix": each.fix,
            }
            for each in found.findings
        ],
        "checked": list(found.checked),
        "left_out": [{"check": name, "reason": reason} for name, reason in found.left_out],
    }
