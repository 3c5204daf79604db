"""How long work stands still when workers die, stop and join, and when PostgreSQL is away.

Real workers on private servers, N rounds of each case; prints the worst and the median against the bound.
`make recovery`, or `python benchmarks/recovery.py --broker redis --rounds 10 --out recovery.json`;
`--outage 60` measures an outage of PostgreSQL instead. An unloaded machine is what the bounds are for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from e2e.site import HEARTBEAT, TIMEOUT  # noqa: E402 - the tests' parts are no installed package
from recovery_cases import BOUNDS, CASES  # noqa: E402
from recovery_outage import BOUNDS as OUTAGE_BOUNDS  # noqa: E402
from recovery_outage import outage  # noqa: E402
from recovery_scene import NAMES, Scene, scene  # noqa: E402

from tests.faults import report  # noqa: E402

_CONCURRENCY = 2


def main() -> int:
    """Measure as the command line says; 1 if a bound was missed."""
    asked = _parsed()
    results = {broker: measure(broker, asked) for broker in asked.broker or ["redis", "rabbitmq"]}
    if asked.out is not None:
        asked.out.write_text(json.dumps(results, indent=2) + "\n")
    return int(any(each["missed"] for each in results.values()))


def measure(broker: str, asked: argparse.Namespace) -> dict[str, Any]:
    """All rounds on one broker."""
    bounds = {f"PostgreSQL away for {asked.outage:g} s": OUTAGE_BOUNDS} if asked.outage else dict(BOUNDS)
    cases = dict.fromkeys(bounds, partial(outage, seconds=asked.outage)) if asked.outage else CASES
    cases = {name: case for name, case in cases.items() if asked.only in name}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    load_before = os.getloadavg()
    with scene(broker, {"partitions": asked.partitions}) as made:
        versions = report.versions(broker, made.broker.log, _postgres(made))
        for number in range(1, asked.rounds + 1):
            for name, case in cases.items():
                rounds[name].append(case(made))
                made.rest()
            print(f"{broker}: round {number} of {asked.rounds}", file=sys.stderr, flush=True)
    tables = {name: _table(each, bounds[name]) for name, each in rounds.items()}
    _show(broker, tables)
    return {
        "rounds": asked.rounds,
        "workers": len(NAMES),
        "concurrency": _CONCURRENCY,
        "partitions": asked.partitions,
        "heartbeat_interval_sec": HEARTBEAT,
        "heartbeat_timeout_sec": TIMEOUT,
        "cpus": os.cpu_count(),
        "load average before and after": [load_before, os.getloadavg()],
        "versions": versions,
        "cases": tables,
        "missed": [f"{name}: {each}" for name, table in tables.items() for each, row in table.items() if row["missed"]],
    }


def _table(rounds: list[dict[str, float]], bounds: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Measure -> its figures."""
    table = {}
    for measure_ in rounds[0]:
        values = [each[measure_] for each in rounds]
        bound = bounds.get(measure_)
        table[measure_] = {
            "bound": bound,
            "worst": round(max(values), 3),
            "median": round(statistics.median(values), 3),
            "missed": bound is not None and max(values) > bound,
            "values": [round(value, 3) for value in values],
        }
    return table


def _show(broker: str, tables: dict[str, dict[str, dict[str, Any]]]) -> None:
    for name, table in tables.items():
        print(f"\n{broker}: {name}\n  {'':44} {'worst':>9} {'median':>9} {'bound':>7}")
        for measure_, row in table.items():
            bound = "" if row["bound"] is None else f"{row['bound']:g}"
            mark = "  MISSED" if row["missed"] else ""
            print(f"  {measure_:44} {row['worst']:9.3f} {row['median']:9.3f} {bound:>7}{mark}")
    sys.stdout.flush()


def _postgres(made: Scene) -> str:
    return str(made.site.rows("SHOW server_version")[0]["server_version"])


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], action="append", help="both if none is named")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--outage", type=float, help="measure an outage of PostgreSQL of so many seconds instead")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    asked = parser.parse_args()
    if asked.rounds < 1:
        parser.error("--rounds is at least 1")
    return asked


if __name__ == "__main__":
    sys.exit(main())
