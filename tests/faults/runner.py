"""A whole run: work comes in, one fault follows the other or two strike at once, all is undone, the rest is judged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any

import psycopg2

from jobsync_celery.servers import ServerError
from tests.faults import audit, checker, history, ledger, standstill
from tests.faults.model import Fault, Stale, Verdict
from tests.faults.nemeses import Nemesis, Surroundings, pairs
from tests.faults.publisher import Publisher
from tests.faults.stage import MAX_LOST_RUNS, TIMEOUT, Stage
from tests.faults.tables import Rows, Sampler
from tests.faults.waiting import Stuck, hold, now, until

Say = Callable[[str], None]

_HEALED_SEC = 60.0
_FINISHED_SEC = 180.0
_WATCHED_SEC = 1.0
_CLAIMS = "SELECT * FROM sync_claim ORDER BY fence"


@dataclass(frozen=True)
class Plan:
    """What a run is to be; the same plan gives the same faults in the same order.

    Arguments:
        rounds: after so many rounds of all nemeses it is enough, though there are minutes left.
        build: which build the workers are of; None for the product as it is.
    """

    broker: str
    minutes: float
    seed: int
    nemeses: tuple[Nemesis, ...]
    rate: float = 32.0
    rounds: int | None = None
    build: str | None = None


@dataclass
class Struck:
    """One fault, and how long it took until all was well after it."""

    fault: Fault
    healed_sec: float | None = None


@dataclass
class Outcome:
    """What a run has shown. ``findings`` are what no history tells: what got stuck, who died by himself."""

    struck: list[Struck] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    published: int = 0
    claims: Rows = field(default_factory=list)
    stale: list[Stale] = field(default_factory=list)
    ledger: Rows = field(default_factory=list)
    losses: Rows = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    verdict: Verdict | None = None

    @property
    def faults(self) -> list[Fault]:
        """What was broken, in order."""
        return [struck.fault for struck in self.struck]

    @property
    def ok(self) -> bool:
        """No promise was broken, nothing got stuck, nobody died by himself."""
        return self.verdict is not None and self.verdict.ok and not self.findings


class Run:
    """One run on a stage."""

    def __init__(self, stage: Stage, plan: Plan, say: Say) -> None:
        self._stage = stage
        self._plan = plan
        self._say = say
        self._publisher = Publisher(stage.producer(), plan.seed, plan.rate, stage.tail.done)
        self._sampler = Sampler(lambda: stage.dsn)
        self._quiet_from: float | None = None
        self._live: list[str] = []
        self._able: list[Nemesis] = []
        self.outcome = Outcome()

    def play(self) -> Outcome:
        """All phases, from the first worker to the verdict."""
        self._set_up()
        try:
            self._break_things()
        except Stuck as stuck:
            self._found(f"stuck: {stuck}")
        self._finish()
        self._judge()
        return self.outcome

    # -- phases -------------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        self._say("servers are up, workers start")
        self._stage.start()
        self._sampler.start()
        self._publisher.start()
        until(lambda: self._stage.tail.done() > 50, "the load is on")

    def _break_things(self) -> None:
        end = now() + self._plan.minutes * 60
        for number, nemesis in enumerate(self._schedule()):
            if now() > end:
                return
            self._strike(number, nemesis)
            self._look_after(self._publisher)

    def _finish(self) -> None:
        """The quiet phase: everything that was published is done, and nothing is held or claimed any more."""
        stage, publisher = self._stage, self._publisher
        try:
            stage.heal()
            publisher.stop()
            until(stage.settled, "the workers share the partitions in the end", _HEALED_SEC)
            self._quiet_from, self._live = now(), [worker.name for worker in stage.wanted]
            wanted = len(publisher.published)
            self._say(f"quiet now: {wanted - stage.tail.done()} of {wanted} tasks are still to be done")
            until(self._all_done, "all that was published is done", _FINISHED_SEC)
            until(self._nothing_runs, "no claim is running", 30.0)
            late = self._quiet_from + TIMEOUT + checker.SLACK_SEC + _WATCHED_SEC
            until(lambda: self._sampler.samples[-1].at > late, "the quiet was long enough to tell the balance", 30.0)
            self._sampler.stop()
            codes = stage.stop_workers()
            if any(codes.values()):
                self._found(f"after SIGTERM workers ended with {codes}")
        except Stuck as stuck:
            self._found(f"stuck at the end: {stuck}")
        self._sampler.stop()
        self.outcome.published = len(publisher.published)
        self.outcome.claims = stage.tables.rows(_CLAIMS)
        self.outcome.stale = audit.stale(stage.tables)
        self.outcome.ledger = stage.tables.rows(ledger.ENTRIES)
        self.outcome.losses = stage.tables.rows(ledger.LOSSES)
        self.outcome.findings += stage.deaths

    def _judge(self) -> None:
        outcome = self.outcome
        outcome.lines = history.read(self._stage.history)
        outcome.verdict = checker.check(
            outcome.lines,
            self._publisher.published,
            outcome.claims,
            outcome.faults,
            timeout=TIMEOUT,
            samples=self._sampler.samples,
            quiet_from=self._quiet_from,
            live=self._live,
            may_fail=self._publisher.may_fail,
            max_lost_runs=MAX_LOST_RUNS,
            stale=outcome.stale,
            ledger=outcome.ledger,
            losses=outcome.losses,
        )

    # -- details ------------------------------------------------------------------------------------------------

    def _schedule(self) -> Iterator[Nemesis]:
        """Round after round of all nemeses, each round in an order of its own."""
        able = []
        for nemesis in self._plan.nemeses:
            reason = nemesis.left_out(self._stage)
            if reason is None:
                able.append(nemesis)
            else:
                self.outcome.left_out[nemesis.name] = reason
                self._say(f"left out: {nemesis.name}: {reason}")
        self._able = able
        rng = Random(f"{self._plan.seed}-schedule")
        for _ in (itertools.count() if self._plan.rounds is None else range(self._plan.rounds)) if able else ():
            rng.shuffle(able)
            yield from tuple(able)

    def _strike(self, number: int, nemesis: Nemesis) -> None:
        """One fault, or two of which the second begins while the first lasts; then wait until all is well."""
        rng = Random(f"{self._plan.seed}-{number}-{nemesis.name}")
        hold(rng.uniform(0.2, 1.5))
        second = pairs.company(nemesis, self._able, Random(f"{self._plan.seed}-{number}-second"))
        before = len(self.outcome.struck)
        try:
            if second is None:
                self._do(nemesis, rng)
            else:
                self._do_both(nemesis, second, rng)
        finally:
            struck = sorted(self.outcome.struck[before:], key=lambda each: each.fault.at)
            self.outcome.struck[before:] = struck
            self._stage.heal()
        self._stage.await_settled(_HEALED_SEC)
        for each in struck:
            each.healed_sec = now() - max(one.fault.until for one in struck)
            self._tell(number, each)

    def _do_both(self, first: Nemesis, second: Nemesis, rng: Random) -> None:
        pause, other = rng.uniform(0.3, 1.0), Random(f"{rng.random()}")
        with ThreadPoolExecutor(1, "first-fault") as pool:
            lasting = pool.submit(self._do, first, rng)
            hold(pause)
            self._do(second, other, f", during {first.name}")
            lasting.result()

    def _do(self, nemesis: Nemesis, rng: Random, remark: str = "") -> None:
        began, fault = now(), None
        try:
            strike = nemesis.run(Surroundings(self._stage, self._publisher, rng))
            detail = strike.detail + remark
            fault = Fault(strike.began or began, now(), nemesis.name, strike.target, detail, strike.hit)
        except (psycopg2.Error, ServerError, OSError) as error:
            raise Stuck(f"{nemesis.name} itself failed: {error!r}") from error
        finally:
            self.outcome.struck.append(Struck(fault or Fault(began, now(), nemesis.name, "all", "given up")))

    def _tell(self, number: int, struck: Struck) -> None:
        fault = struck.fault
        done, published = self._stage.tail.done(), len(self._publisher.published)
        self._say(
            f"{number + 1:4} {fault.nemesis:24} {fault.target:12} {fault.until - fault.at:5.1f} s, hit {fault.hit:2},"
            f" healed in {struck.healed_sec:4.1f} s  {done}/{published}  {fault.detail}"
        )

    def _look_after(self, publisher: Publisher) -> None:
        if publisher.error is not None:
            raise publisher.error
        for death in self._stage.deaths:
            self._say(f"!!! {death}")

    def _all_done(self) -> bool:
        """Whether all is done; raises :class:`Stuck` if it never will be.

        A body that was killed, or lost the answer to its commit, may have completed without a line that says so.
        """
        missing = self._stage.tail.missing(self._publisher.published)
        rows = self._stage.tables.ask(ledger.COMPLETED) if missing else []
        if rows is not None and missing <= {row["n"] for row in rows}:
            return True
        idle = now() - max(self._stage.tail.last, self._quiet_from or 0.0)
        if idle > standstill.allowed(TIMEOUT) + _WATCHED_SEC:
            raise Stuck(f"nothing has run for {idle:.1f} s, and {len(missing)} tasks are still to be done")
        return False

    def _nothing_runs(self) -> bool:
        rows = self._stage.tables.ask("SELECT count(*) AS running FROM sync_claim WHERE state = 'running'")
        return rows is not None and rows[0]["running"] == 0

    def _found(self, finding: str) -> None:
        self.outcome.findings.append(finding)
        self._say(f"!!! {finding}")
