"""jobsync_celery: every key belongs to exactly one Celery worker at a time.

The public names are loaded when they are first used, so that the pure core imports without Celery or SQLAlchemy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobsync_celery.core.model import RebalanceEvent
    from jobsync_celery.job.job import Job
    from jobsync_celery.job.task import Task
    from jobsync_celery.plugin.coordinated import coordinated
    from jobsync_celery.plugin.install import JobSync
    from jobsync_celery.runtime.claim import Claim, NullClaim, current_claim
    from jobsync_celery.settings import CoordinationConfig

__version__ = "0.1.0"
__all__ = [
    "Claim",
    "CoordinationConfig",
    "Job",
    "JobSync",
    "NullClaim",
    "RebalanceEvent",
    "Task",
    "coordinated",
    "current_claim",
]

_HOMES = {
    "Claim": "runtime.claim",
    "CoordinationConfig": "settings",
    "Job": "job.job",
    "JobSync": "plugin.install",
    "NullClaim": "runtime.claim",
    "RebalanceEvent": "core.model",
    "Task": "job.task",
    "coordinated": "plugin.coordinated",
    "current_claim": "runtime.claim",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(f"{__name__}.{home}"), name)
