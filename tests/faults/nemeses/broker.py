"""What a broker does to its clients: restarts, dies, hangs, delivers twice."""

from __future__ import annotations

import signal
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import redis

from tests.faults.nemeses.base import BROKER, Nemesis, Strike, Surroundings
from tests.faults.waiting import hold

if TYPE_CHECKING:
    from tests.faults.stage import Stage


class BrokerStopped(Nemesis):
    """The broker is stopped in good order, stays away, and comes back with its messages."""

    name = "broker-stopped"

    def run(self, at: Surroundings) -> Strike:
        hit, sec = len(at.stage.busy()), at.rng.choice((0.0, 0.5, 3.0))
        try:
            at.stage.broker.stop()
            hold(sec)
        finally:
            at.stage.broker.start()
        return Strike(BROKER, f"stopped, away for {sec:.1f} s", hit)


class BrokerKilled(Nemesis):
    """SIGKILL; what the broker had confirmed is on its disk."""

    name = "broker-killed"

    def run(self, at: Surroundings) -> Strike:
        self._write_through(at.stage)
        hit = len(at.stage.busy())
        try:
            at.stage.broker.kill()
            hold(at.rng.choice((0.0, 1.0)))
        finally:
            at.stage.broker.start()
        return Strike(BROKER, "SIGKILL", hit)

    def _write_through(self, stage: Stage) -> None:
        """Redis may hold writes back for a moment while it syncs; from here until it is killed it does not."""
        if stage.kind == "redis":
            with closing(redis.Redis.from_url(stage.broker.url)) as client:
                client.config_set("appendfsync", "always")


class BrokerHangs(Nemesis):
    """The broker is stopped by SIGSTOP: connections stand, and nobody answers."""

    name = "broker-hangs"

    def run(self, at: Surroundings) -> Strike:
        hit, sec = len(at.stage.busy()), at.rng.uniform(1.0, 5.0)
        try:
            at.stage.broker.signal(signal.SIGSTOP)
            hold(sec)
        finally:
            at.stage.broker.signal(signal.SIGCONT)
        return Strike(BROKER, f"no answer for {sec:.1f} s", hit)


class Duplicates(Nemesis):
    """Copies of messages that are not finished, and of some that are, under the same id and headers."""

    name = "duplicates"

    def run(self, at: Surroundings) -> Strike:
        copies, hit = 0, 0
        for _ in range(at.rng.randint(5, 15)):
            running = [body.n for body in at.stage.busy()]
            known = sorted(at.publisher.published)
            finished = at.rng.sample(known, min(2, len(known)))
            with suppress(IndexError):  # nothing runs
                copies += at.publisher.again(at.rng.choice(running))
                hit += 1
            copies += sum(at.publisher.again(n) for n in [*finished, *known[-2:]])
        return Strike(BROKER, f"{copies} copies", hit)


NEMESES: tuple[Nemesis, ...] = (BrokerStopped(), BrokerKilled(), BrokerHangs(), Duplicates())
