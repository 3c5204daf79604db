"""``python -m tests.faults``: break a cluster for some minutes, and say whether the promises held."""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.faults import nemeses, report
from tests.faults.builds import BUILDS
from tests.faults.runner import Outcome, Plan, Run
from tests.faults.stage import Stage
from tests.faults.waiting import now

_OUT = Console(highlight=False, markup=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Run as the command line says; 0 if every promise held."""
    asked = _parsed(arguments)
    if asked.list:
        for nemesis in nemeses.everything():
            _OUT.print(f"{nemesis.name:24} {(type(nemesis).__doc__ or '').strip().splitlines()[0]}")
        for build in BUILDS.values():
            _OUT.print(f"--build {build.name:16} {build.missing}")
        return 0
    plan = Plan(asked.broker, asked.minutes, asked.seed, tuple(asked.nemeses), asked.rate, asked.rounds, asked.build)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # resets are what the proxies are for
    folder = Path(tempfile.mkdtemp(prefix=f"jobsync-faults-{plan.broker}-"))
    _OUT.print(f"seed {plan.seed}, {plan.broker}, {plan.minutes:g} minutes, {len(plan.nemeses)} nemeses, in {folder}")
    outcome = _play(plan, folder, asked.out)
    if outcome.ok and not asked.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _OUT.print(f"kept: {folder}")
    return 0 if outcome.ok else 1


def _play(plan: Plan, folder: Path, out: Path | None) -> Outcome:
    began = now()
    with Stage(plan.broker, folder, plan.build) as stage:
        rows = stage.tables.ask("SHOW server_version")
        versions = report.versions(stage.kind, stage.broker.log, rows[0]["server_version"] if rows else "?")
        _OUT.print(", ".join(f"{name} {version}" for name, version in versions.items()))
        outcome = Run(stage, plan, lambda text: _OUT.print(f"{now() - began:7.1f}  {text}")).play()
        text = report.as_json(plan, outcome, versions)
        for name, server in (("postgres", stage.postgres), (plan.broker, stage.broker)):
            (folder / f"{name}.log").write_text(server.log)
    (folder / "report.json").write_text(text + "\n")
    if out is not None:
        out.write_text(text + "\n")
    _sum_up(plan, outcome, folder)
    return outcome


def _sum_up(plan: Plan, outcome: Outcome, folder: Path) -> None:
    verdict = outcome.verdict
    for name, each in report.by_nemesis(outcome.struck).items():
        _OUT.print(
            f"  {name:24} {each['times']:3} times, hit {each['hit']:4} running bodies,"
            f" all well again in {each['longest_healing_sec']} s at most"
        )
    for name, value in (verdict.figures if verdict else {}).items():
        _OUT.print(f"  {name}: {value}")
    if not outcome.ok:
        text = report.explanation(outcome)
        (folder / "explanation.txt").write_text(text + "\n")
        _OUT.print(text)
    _OUT.print(
        f"{'OK' if outcome.ok else 'FAILED'}: seed {plan.seed}, {plan.broker}, {len(outcome.struck)} faults,"
        f" {outcome.published} tasks, {len(verdict.violations) if verdict else '?'} violations,"
        f" {len(outcome.findings)} other findings"
    )


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long things are broken (3)")
    parser.add_argument("--rounds", type=int, help="stop earlier, after so many rounds of all nemeses")
    parser.add_argument("--seed", type=int, default=None, help="gives the same faults in the same order again")
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--rate", type=float, default=32.0, help="tasks published in a second at most (32)")
    parser.add_argument("--out", type=Path, help="write the result there as JSON")
    parser.add_argument("--only", default="", help="nemeses by name, beginning or pattern, with commas between")
    parser.add_argument("--build", choices=sorted(BUILDS), help="let workers be of a build that must be found out")
    parser.add_argument("--list", action="store_true", help="list the nemeses, and the builds")
    parser.add_argument("--keep", action="store_true", help="keep the folder though all is well")
    asked = parser.parse_args(arguments)
    if asked.seed is None:
        asked.seed = random.SystemRandom().randrange(10**6)
    only = asked.only or (BUILDS[asked.build].nemesis if asked.build else "")
    try:
        asked.nemeses = nemeses.chosen([pattern for pattern in only.split(",") if pattern])
    except KeyError as error:
        parser.error(f"no nemesis is called {error.args[0]!r}: see --list")
    return asked


if __name__ == "__main__":
    sys.exit(main())
