"""What the audience sees at one moment: tasks done, and how fast, by node."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobsync_celery.demo.records import Record
from jobsync_celery.store.reports import ClusterStatus, NodeShare

_WINDOW_SEC = 2.0
_SILENT_SEC = 1.0


@dataclass(frozen=True)
class NodeLine:
    """A worker as it is shown."""

    name: str
    state: str
    pid: int
    partitions: int
    tokens: int
    done: int
    rate: float


@dataclass(frozen=True)
class Picture:
    """Everything that is shown at one moment."""

    seconds: float
    published: int
    total: int
    done: int
    rate: float
    status: ClusterStatus
    nodes: Sequence[NodeLine]


class Tally:
    """Counts the tasks done, and those of the last two seconds."""

    def __init__(self, names: Sequence[str]) -> None:
        self._done: Counter[str] = Counter()
        self._recent: deque[tuple[float, str]] = deque()
        self._began: float | None = None
        self._now = 0.0

    @property
    def done(self) -> int:
        """All tasks done so far."""
        return self._done.total()

    def add(self, records: Iterable[Record], now: float) -> None:
        """Count new records."""
        for record in records:
            if record.what == "done":
                self._began = self._began or record.at
                self._done[record.node] += 1
                self._recent.append((record.at, record.node))
        self._now = now
        while self._recent and self._recent[0][0] < now - _WINDOW_SEC:
            self._recent.popleft()

    def rate(self, node: str | None = None) -> float:
        """Tasks done per second, by one node or all."""
        window = min(_WINDOW_SEC, max(0.5, self._now - (self._began or self._now)))
        return sum(node in (None, name) for _, name in self._recent) / window

    def line(self, name: str, pid: int | None, share: NodeShare | None, ending: bool) -> NodeLine:
        """A worker's line: what the cluster knows of it, and what it did."""
        return NodeLine(
            name=name,
            state=_state(share, ending),
            pid=pid or 0,
            partitions=share.owned if share else 0,
            tokens=share.tokens if share else 0,
            done=self._done[name],
            rate=self.rate(name),
        )


def _state(share: NodeShare | None, ending: bool) -> str:
    """The state in the database; that of a silent node is still live until its lease has ended."""
    if share is None:
        return "left" if ending else "starting"
    lag = share.node.lag or 0.0
    if share.node.state == "live" and lag > _SILENT_SEC:
        return f"silent {lag:.1f} s"
    return share.node.state
