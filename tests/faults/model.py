"""The words that the harness and the checker share: what was published, what was broken, who owned what, the verdict.

All times are seconds of the boot clock, on which the history is written too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Policy = Literal["finish", "terminate"]
#: What a body does beside staying: nothing; an effect under ``guard``; one under ``complete``; it is retried some
#: times; it is replaced by another task; it fails for good.
Kind = Literal["plain", "guard", "complete", "retry", "replace", "fail"]

#: First words of targets that all nodes share: ``Fault.target`` is one of these or names nodes, joined by commas.
SHARED = ("all", "cluster", "database", "postgres", "pgbouncer", "broker", "redis", "rabbitmq")
_PAUSING = ("pause", "sigstop", "freeze")
_LOSING_COMMITS = ("promot", "failover")


@dataclass(frozen=True, slots=True)
class Published:
    """A task that was sent, and confirmed by the broker; ``retries`` is the try at which it is to finish."""

    n: int
    key: str
    task_id: str
    at: float
    kind: Kind = "plain"
    retries: int = 0
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that a nemesis broke, from ``at`` to ``until``; for a kill both are the same moment.

    ``target`` is the name of the node as claims have it, several joined by commas, or one of ``SHARED``; ``detail``
    is for people. Names of nemeses that stop processes begin with pause, sigstop or freeze; names of those that lose
    commits contain promot or failover, and their ``at`` is not after the standby stopped receiving. ``hit`` is how many
    executions were running on the target; if nobody counted them, the checker does.
    """

    at: float
    until: float
    nemesis: str
    target: str
    detail: str
    hit: int = 0

    @property
    def pauses(self) -> bool:
        """Whether processes of the target were stopped and continued at ``until``."""
        return self.nemesis.lower().startswith(_PAUSING)

    @property
    def loses_commits(self) -> bool:
        """Whether the database forgot commits made from ``at`` to ``until``."""
        return any(word in self.nemesis.lower() for word in _LOSING_COMMITS)

    def touches(self, node: str) -> bool:
        """Whether it could be felt on this node."""
        names = [name.strip() for name in self.target.split(",")]
        return node in names or names[0].lower().startswith(SHARED)


@dataclass(frozen=True, slots=True)
class Sample:
    """Who owned each partition at one moment; partitions of task locks are left out."""

    at: float
    owners: dict[int, str | None]


@dataclass(frozen=True, slots=True)
class Stale:
    """A claim of ``node``'s that was committed when ``owner``, or nobody, was its partition's owner."""

    at: float
    task_id: str
    key: str
    partition: int
    node: str
    owner: str | None


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise broken at a moment, by the executions named in ``runs``."""

    promise: str
    text: str
    runs: tuple[str, ...]
    at: float

    def __str__(self) -> str:
        return f"{self.promise} at {self.at:.3f}: {self.text}"


@dataclass(frozen=True)
class Verdict:
    """Everything that a history proves: what was broken, and how things went."""

    violations: tuple[Violation, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """No promise was broken."""
        return not self.violations

    def to_json(self) -> str:
        """As text that :meth:`from_json` turns into an equal verdict."""
        violations = [asdict(violation) for violation in self.violations]
        return json.dumps({"ok": self.ok, "violations": violations, "figures": dict(self.figures)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        """The verdict that :meth:`to_json` wrote."""
        read = json.loads(text)
        violations = (Violation(**{**each, "runs": tuple(each["runs"])}) for each in read["violations"])
        return cls(tuple(violations), read["figures"])
