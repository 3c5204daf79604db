"""A cluster whose doctor is asked, again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.servers import WallClock

from e2e.site import Site
from e2e.waiting import until
from jobsync_celery.doctor.doctor import CHECKS, Diagnosis, examine
from jobsync_celery.doctor.finding import Finding
from jobsync_celery.servers import PrivatePostgres
from jobsync_celery.servers.process import bare_environment


class Clocked(PrivatePostgres):
    """A PostgreSQL whose clock may be set wrong."""

    def __init__(self, clock: WallClock | None) -> None:
        super().__init__()
        self._clock = clock

    def _run(self, argv: list[str | Path]) -> int:
        env = {**bare_environment(self.directory), **(self._clock.environment() if self._clock else {})}
        return self._known(self._guard).run(
            argv, env=env, cwd=self.directory, log=self._log, user=self._user, farewell=self.farewell
        )


def diagnosis(site: Site) -> Diagnosis:
    cluster = site.app.jobsync.cluster
    return examine(cluster.store, site.app, cluster)


def names(diagnosis: Diagnosis) -> set[str]:
    """Of the checks that found something."""
    return {each.check for each in diagnosis.findings}


def found(site: Site, check: str) -> list[Finding]:
    """What one check finds now."""
    # What is in the tables alone need not ask the broker, which takes a second.
    only_tables = any(each.name == check and each.parts == {"cluster"} for each in CHECKS)
    seen = examine(site.app.jobsync.cluster.store, None, None) if only_tables else diagnosis(site)
    return [each for each in seen.findings if each.check == check]


def finding(site: Site, check: str, timeout: float = 30.0) -> Finding:
    """The finding, once it is there; it says what was seen, why, and what to do."""
    until(lambda: found(site, check), f"the doctor names {check}", timeout, every=0.5)
    [each, *_] = found(site, check)
    assert each.evidence and each.cause and each.fix
    return each


def nothing_found_anew(site: Site) -> bool:
    """Forget what was seen; whether the doctor finds nothing then."""
    forget(site)
    return diagnosis(site).findings == ()


def forget(site: Site) -> None:
    """Let what was seen be long ago."""
    site.rows("DELETE FROM sync_sighting")
    site.rows("DELETE FROM sync_rebalance")
    site.rows("DELETE FROM sync_claim WHERE state <> 'running'")
    site.rows("DELETE FROM sync_node WHERE state = 'dead'")


@contextmanager
def beside(site: Site, name: str, *options: str, **how: Any) -> Iterator[Any]:
    """Another worker, for a while."""
    worker = site.worker(name, *options, **how)
    try:
        yield worker
    finally:
        worker.kill("SIGTERM")
        worker.container.wait()
        site.workers.remove(worker)
