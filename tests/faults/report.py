"""What a run leaves behind: the JSON of it, and on failure all that is needed to understand it."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.faults import timeline
from tests.faults.runner import Outcome, Plan, Struck

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("jobsync_celery", "celery", "kombu", "SQLAlchemy", "psycopg2-binary", "redis")
_SERVER_VERSION = re.compile(r"(?:Redis version=|RabbitMQ )(\d+\.[\d.]*\d)")
_WIDTH = 140


def versions(kind: str, broker_log: str, postgres: str) -> dict[str, str]:
    """Of everything that took part; the broker's own is in its log."""
    found = {name: version(name) for name in _PACKAGES}
    server = _SERVER_VERSION.search(broker_log)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        **found,
        "postgresql": postgres,
        f"{kind} server": server.group(1) if server else "?",
    }


def as_json(plan: Plan, outcome: Outcome, versions_: dict[str, str]) -> str:
    """Everything about a run but its history."""
    verdict = outcome.verdict
    return json.dumps(
        {
            "broker": plan.broker,
            "seed": plan.seed,
            "minutes": plan.minutes,
            "build": plan.build,
            "ok": outcome.ok,
            "versions": versions_,
            "published": outcome.published,
            "faults": len(outcome.struck),
            "nemeses": by_nemesis(outcome.struck),
            "left_out": outcome.left_out,
            "findings": outcome.findings,
            "verdict": json.loads(verdict.to_json()) if verdict else None,
            "timeline": [_fault(struck) for struck in outcome.struck],
        },
        indent=2,
        default=str,
    )


def by_nemesis(struck: list[Struck]) -> dict[str, dict[str, Any]]:
    """How often each one struck, how many running bodies it hit, and the longest time until all was well again."""
    grouped: dict[str, list[Struck]] = defaultdict(list)
    for each in struck:
        grouped[each.fault.nemesis].append(each)
    return {
        name: {
            "times": len(each),
            "hit": sum(one.fault.hit for one in each),
            "longest_healing_sec": round(max((one.healed_sec or 0.0 for one in each), default=0.0), 2),
        }
        for name, each in sorted(grouped.items())
    }


def explanation(outcome: Outcome) -> str:
    """For people: the faults one after the other, what was found, and the offending runs on a time line."""
    first = outcome.struck[0].fault.at if outcome.struck else 0.0
    lines = ["faults:"]
    for each in outcome.struck:
        fault = each.fault
        lines.append(
            f"  {fault.at - first:8.2f} to {fault.until - first:8.2f}  {fault.nemesis:24} {fault.target:14}"
            f" hit {fault.hit:2}  {fault.detail}"
        )
    lines += ["findings:", *(f"  {finding}" for finding in outcome.findings)]
    if outcome.verdict is not None:
        lines += ["violations:", *(f"  {violation}" for violation in outcome.verdict.violations), ""]
        lines.append(timeline.render(outcome.verdict, outcome.lines, outcome.faults, _WIDTH))
    return "\n".join(lines)


def _fault(struck: Struck) -> dict[str, Any]:
    fault = struck.fault
    return {
        "at": round(fault.at, 3),
        "until": round(fault.until, 3),
        "nemesis": fault.nemesis,
        "target": fault.target,
        "detail": fault.detail,
        "hit": fault.hit,
        "healed_sec": None if struck.healed_sec is None else round(struck.healed_sec, 2),
    }
