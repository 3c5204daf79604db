"""Everything that may happen to members happens at random, several at once; never do two have one id at one instant.

``JOBSYNC_JOB_EVENTS=200`` makes it as long as that, ``JOBSYNC_JOB_SEED`` another one.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from faults.proxy import PASS, Mode

from crews.crew import TIMEOUT, Crew, Member
from jobsync_celery.servers import PrivatePostgres

EVENTS = int(os.environ.get("JOBSYNC_JOB_EVENTS", "2"))
SEED = int(os.environ.get("JOBSYNC_JOB_SEED", "1"))
FEWEST, MOST = 2, 5
#: How long a fault lasts: moments, and just under, just over and well over a lease.
SPANS = (0.1, 0.5, TIMEOUT - 0.6, TIMEOUT, TIMEOUT + 0.4, 2 * TIMEOUT)
PAUSES = (0.0, 0.2, 1.0, 2.5)
Note = Callable[[str, object], None]

pytestmark = pytest.mark.slow


class Turmoil:
    """Events drawn at random, and those faults that end later."""

    def __init__(self, crew: Crew, postgres: PrivatePostgres, chance: random.Random) -> None:
        self._crew, self._postgres, self._chance = crew, postgres, chance
        self._pending: list[tuple[float, Callable[[], object]]] = []
        self._touched: set[Member] = set()
        self.story: list[str] = []

    def step(self) -> None:
        """One event, and a pause in which faults may end."""
        kinds: list[Callable[[], None]] = [self._join, self._stop, self._hole, self._outage]
        if len(self._untouched()) > FEWEST:
            kinds += [self._kill, self._leave, self._replace, self._massacre]
        self._chance.choice(kinds)()
        self.live(self._chance.choice(PAUSES))

    def live(self, seconds: float) -> None:
        """Let so much time pass, and faults end that are to end meanwhile."""
        end = time.monotonic() + seconds
        while True:
            due = [each for each in self._pending if each[0] <= time.monotonic()]
            self._pending = [each for each in self._pending if each not in due]
            for _, undo in due:
                undo()
            if time.monotonic() >= end:
                return
            time.sleep(0.01)

    def rest(self) -> None:
        """Every fault ends."""
        for _, undo in self._pending:
            undo()
        self._pending.clear()

    def _untouched(self) -> list[Member]:
        return [member for member in self._crew.living() if member not in self._touched]

    def _for_a_while(self, member: Member | None, undo: Callable[[], object], what: str) -> None:
        seconds = self._chance.choice(SPANS)
        self.story.append(f"{what} for {seconds:g} s")
        if member is not None:
            self._touched.add(member)

        def over() -> None:
            undo()
            if member is not None:
                self._touched.discard(member)

        self._pending.append((time.monotonic() + seconds, over))

    def _join(self) -> None:
        if len(self._crew.living()) < MOST:
            self.story.append(f"join {self._crew.start().label}")

    def _kill(self) -> None:
        member = self._chance.choice(self._untouched())
        self.story.append(f"kill {member.label}")
        member.kill()

    def _massacre(self) -> None:
        """All are killed but the youngest."""
        for member in self._untouched()[:-1]:
            self.story.append(f"kill {member.label} too")
            member.kill()

    def _leave(self) -> None:
        member = self._chance.choice(self._untouched())
        self.story.append(f"leave {member.label}")
        member.signal(signal.SIGTERM)

    def _replace(self) -> None:
        """Another process of the same name comes while the first is there, and the first is killed."""
        member = self._chance.choice(self._untouched())
        way = self._chance.choice((member.way, None))  # with another address it cannot see that the first is gone
        self.story.append(f"replace {member.label} by {self._crew.start(member.name, way).label}")
        self.live(self._chance.choice(PAUSES))
        member.kill()

    def _stop(self) -> None:
        if members := self._untouched():
            member = self._chance.choice(members)
            member.signal(signal.SIGSTOP)
            self._for_a_while(member, lambda: member.signal(signal.SIGCONT), f"stop {member.label}")

    def _hole(self) -> None:
        if members := self._untouched():
            member, kind = self._chance.choice(members), self._chance.choice(("drop", "stall", "reset", "refuse"))
            member.way.set(Mode(kind))
            self._for_a_while(member, lambda: member.way.set(PASS), f"{kind} what {member.label} says")

    def _outage(self) -> None:
        if self._postgres.running:
            self._postgres.stop(immediate=self._chance.random() < 0.5)
            self._for_a_while(None, self._postgres.start, "no database")


@pytest.mark.timeout(120 + 10 * EVENTS)
def test_whatever_happens_no_two_have_one_id_at_one_instant(
    crew: Crew, postgres: PrivatePostgres, record_property: Note
) -> None:
    turmoil = Turmoil(crew, postgres, random.Random(SEED))
    crew.settle(3)
    try:
        for _ in range(EVENTS):
            turmoil.step()
    finally:
        turmoil.rest()
        postgres.start()
    record_property("story", "; ".join(turmoil.story))
    crew.until_shared(timeout=120)
    record_property("stays", len(crew.stays()))
    record_property("rounds", sum(member.record.rounds for member in crew.members))
    crew.assert_one_owner()
