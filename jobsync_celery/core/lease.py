"""Lease arithmetic: how long a node may trust itself, and when another may declare it dead.

All times are seconds; a node's own are of its boot clock, which counts suspension and never steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from jobsync_celery.core.model import Member

DRIFT = 0.001  # twice the fastest slew of NTP (500 ppm)
MARGIN_SHARE = 0.1
MARGIN_LIMIT = 2.0


def margin_for(timeout: float) -> float:
    """Return what a node keeps in reserve at the end of a lease: a tenth of it, 2 s at most."""
    return min(MARGIN_LIMIT, timeout * MARGIN_SHARE)


def trusted_until(sent_at: float, timeout: float, *, drift: float = DRIFT, margin: float) -> float:
    """Return when a node's trust in its lease ends, for a renewal whose sending began at `sent_at`."""
    return sent_at + timeout * (1 - drift) - margin


def gap_limit(interval: float, timeout: float) -> float:
    """Return how far apart two answers may be before the later one starts a new watch.

    A heartbeat that fails and is not made good at once always shows. Lateness of half an interval
    passes, if what such a pause could hide still leaves every live node the time to renew; an interval
    plus the margin always passes, or a busy observer could never evict.
    """
    margin = margin_for(timeout)
    return max(interval + margin, min(1.5 * interval, timeout - interval - margin))


@dataclass(frozen=True, slots=True)
class Sighting:
    """A member's counter, and a moment on the observer's clock not before that counter was written."""

    name: str
    renewals: int
    since: float
    timeout: float


@dataclass(frozen=True, slots=True)
class _Answer:
    sent_at: float
    received_at: float
    database_time: float


@dataclass(frozen=True, slots=True)
class Watch:
    """What one node has seen of the others' heartbeats in the answers to its own.

    `incarnation` is the observer's own, `interval` and `timeout` its heartbeat settings in seconds.
    Each `observe` gives a new value; a node that registers anew starts a new watch.

    The rule: a lease has ended when its counter stayed the same for a whole timeout, by the observer's boot
    clock. It is counted from the answer that first brought the counter; or, if the database's clock
    kept step with the observer's since the answer before, from the heartbeat's age that came with it,
    but not from before that earlier answer was asked for, in which the counter was still another. So a
    stepped database clock can delay an eviction and never cause one, except a clock that steps
    forth and back again between two answers. After a gap nothing seen before counts.
    """

    incarnation: int
    interval: float
    timeout: float
    drift: float = DRIFT
    _last: _Answer | None = field(default=None, repr=False)
    _sightings: Mapping[int, Sighting] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def observe(self, sent_at: float, received_at: float, database_time: float, members: Iterable[Member]) -> Watch:
        """Return the watch after one answer: all members that are not dead, as the database showed them.

        `sent_at` and `received_at` enclose the statement on the boot clock; `database_time` is the
        database's clock, in seconds, where it took the members' ages.
        """
        answer = _Answer(sent_at, received_at, database_time)
        previous = None if self._broken_at(received_at) else self._last
        known = self._sightings if previous else {}
        late = self._lateness(previous, answer)
        sightings: dict[int, Sighting] = {}
        for member in members:
            if member.state not in ("live", "draining") or member.incarnation == self.incarnation:
                continue
            seen = known.get(member.incarnation)
            if seen is None or seen.renewals != member.renewals:
                since = _written_by(member, previous, answer, late)
                seen = Sighting(member.name, member.renewals, since, member.timeout or self.timeout)
            sightings[member.incarnation] = seen
        return replace(self, _last=answer, _sightings=MappingProxyType(sightings))

    def suspects(self, now: float) -> tuple[tuple[str, int, int], ...]:
        """Return (name, incarnation, renewals) of those who may be declared dead, oldest first.

        Declaring dead must compare and set on incarnation and renewals: the answer may be out of date.
        Nobody is suspect while the observer itself is overdue.
        """
        if self._broken_at(now):
            return ()
        return tuple(
            (seen.name, incarnation, seen.renewals)
            for incarnation, seen in sorted(self._sightings.items())
            if now >= self._end(seen)
        )

    def next_check(self, now: float) -> float | None:
        """Return when the next lease could end that has not ended by `now`; None if there is none."""
        ends = (self._end(seen) for seen in self._sightings.values())
        return min((end for end in ends if end > now), default=None)

    def _end(self, seen: Sighting) -> float:
        return seen.since + seen.timeout * (1 + self.drift)

    def _broken_at(self, now: float) -> bool:
        # From before it was sent: an answer that came late says nothing of the time since.
        return self._last is None or now - self._last.sent_at > gap_limit(self.interval, self.timeout)

    def _lateness(self, previous: _Answer | None, answer: _Answer) -> float | None:
        """Return by how much ages may be too large, in seconds; None if the clocks did not keep step."""
        if previous is None:
            return None
        elapsed = answer.database_time - previous.database_time
        shortest = answer.sent_at - previous.received_at
        longest = answer.received_at - previous.sent_at
        # Half the margin: an age that is wrong by less cannot reach into the victim's lease.
        tolerance = margin_for(self.timeout) / 2
        if not longest - tolerance <= elapsed <= shortest + tolerance:
            return None
        return max(0.0, elapsed - shortest)


def _written_by(member: Member, previous: _Answer | None, answer: _Answer, late: float | None) -> float:
    """Return a moment on the observer's clock by which the member's counter had surely been written."""
    if previous is None or late is None:
        return answer.received_at
    by_age = answer.received_at - max(0.0, member.age - late)
    return max(by_age, previous.sent_at)
