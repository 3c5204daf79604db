"""What receivers wrote down, and whether it agrees with what ran."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

#: Between a child's last look at its tenure and the first line of the body.
LOOK_TO_LINE = 0.25


@dataclass(frozen=True)
class Stay:
    """One worker's time with one partition, as its receivers saw it; ``left`` is infinite while it lasts."""

    worker: int
    partition: int
    called: float
    ready: float
    revoked: float
    left: float
    lost: bool


class Ledger:
    """The file that :mod:`e2e.listening` writes, and the bodies of a history.

    Arguments:
        ended: worker's main process -> when it was killed, or at the latest: from then on it is not live.
    """

    def __init__(self, path: Path, bodies: list[dict[str, Any]], ended: Mapping[int, float]) -> None:
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        self.lines = [json.loads(line) for line in whole.split("\n") if line]
        self.starts = [line for line in bodies if line["event"] == "start" and line["partition"] is not None]
        self._ended = ended
        self.stays: list[Stay] = []
        self.broken: list[str] = []
        by_worker: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for line in self.lines:
            if line["event"].partition(" ")[0] in ("assigned", "revoked"):
                by_worker[line["worker"]].append(line)
        for worker, calls in by_worker.items():
            self._read(worker, calls)

    def _read(self, worker: int, calls: list[dict[str, Any]]) -> None:
        """Calls come one at a time, and alternate per partition."""
        for first, second in pairwise(calls):
            if ("returned" in first["event"]) == ("returned" in second["event"]):
                self.broken.append(f"two calls at a time: {first} {second}")
        end = float("inf")
        here: dict[int, dict[str, Any]] = {}
        for number, line in enumerate(calls):
            returned = calls[number + 1]["at"] if number + 1 < len(calls) else end
            for partition in line["partitions"] if "returned" not in line["event"] else ():
                if (line["event"] == "revoked") != (partition in here):
                    self.broken.append(f"{line['event']} does not alternate for {partition}: {line}")
                elif line["event"] == "assigned":
                    here[partition] = {"called": line["at"], "ready": returned}
                else:
                    times = here.pop(partition)
                    self.stays.append(
                        Stay(worker, partition, **times, revoked=line["at"], left=returned, lost=line["lost"])
                    )
        for partition, times in here.items():
            self.stays.append(Stay(worker, partition, **times, revoked=end, left=end, lost=False))

    def of(self, event: str, worker: int | None = None) -> list[dict[str, Any]]:
        """The lines of one kind."""
        return [line for line in self.lines if line["event"] == event and worker in (None, line["worker"])]

    def problems(self) -> list[str]:
        """Everything that is not as promised."""
        return [*self.broken, *self._outside(), *self._early(), *self._two_owners()]

    def _outside(self) -> Iterator[str]:
        """Bodies that began before their worker's assigned call had returned, or after its revoked call began."""
        for start in self.starts:
            if not any(
                stay.ready <= start["at"] <= stay.revoked + LOOK_TO_LINE for stay in self._stays(start, mine=True)
            ):
                yield f"a body began outside of its worker's stay: {start}"

    def _early(self) -> Iterator[str]:
        """Bodies that began before a live former owner's revoked call had returned, or, lost, had begun."""
        for start in self.starts:
            for stay in self._stays(start, mine=False):
                done = stay.revoked if stay.lost else stay.left
                if stay.called < start["at"] < min(done, self._ended.get(stay.worker, float("inf"))):
                    yield f"a body began before the former owner was done: {start} {stay}"

    def _two_owners(self) -> Iterator[str]:
        """Workers whose ``owns`` is true while another's receivers have the partition."""
        for line in self.of("owns"):
            for partition in line["partitions"]:
                for stay in self.stays:
                    if stay.partition != partition or stay.worker == line["worker"]:
                        continue
                    if stay.called < line["asked"] < min(stay.revoked, self._ended.get(stay.worker, float("inf"))):
                        yield f"owned by two: {line} {stay}"

    def _stays(self, start: dict[str, Any], *, mine: bool) -> list[Stay]:
        return [
            stay
            for stay in self.stays
            if stay.partition == start["partition"] and (stay.worker == start["worker"]) is mine
        ]
