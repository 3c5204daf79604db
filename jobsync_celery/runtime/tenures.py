"""Which partitions this node has, as every process of it sees that: in memory shared with the pool children.

Each time that the node gains a partition a new *tenure* of it begins. What a process keeps for a partition is good for
as long as its tenure stands, and for no later one: between two tenures another node may have had the partition.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

#: Room for partitions that are made while the worker runs, as those of task locks.
_SPARE = 4096
_CHANGES, _FIRST = 0, 1


class Tenures:
    """A number per partition, 0 while the node does not have it; one writer at a time, readers in every child.

    Create it before the pool forks. Numbers grow within the life of a worker, over all partitions. Partitions with
    numbers beyond the table have the tenure 0, and the last check before a body leaves them out.

    Arguments:
        partitions: how many partitions there are for sure.
    """

    def __init__(self, partitions: int) -> None:
        self.size = partitions + _SPARE
        self._cells = memoryview(mmap.mmap(-1, 8 * (_FIRST + self.size))).cast("q")
        self._last = 0

    # The cell is stored before the count of changes, and read after it: who sees the new count sees the new cells.

    def begin(self, partitions: Iterable[int]) -> None:
        """The node has these partitions from now on."""
        for number in sorted(partitions):
            if 0 <= number < self.size:
                self._last += 1
                self._cells[_FIRST + number] = self._last
        self._cells[_CHANGES] += 1

    def end(self, partitions: Iterable[int]) -> None:
        """The node has these partitions no longer: nothing of them starts here."""
        changed = False
        for number in partitions:
            if self.of(number):
                self._cells[_FIRST + number] = 0
                changed = True
        if changed:
            self._cells[_CHANGES] += 1

    def of(self, partition: int) -> int:
        """The tenure of a partition; 0 while the node does not have it."""
        return self._cells[_FIRST + partition] if 0 <= partition < self.size else 0

    def stands(self, partition: int, tenure: int) -> bool:
        """Whether a job that was handed to the pool in this tenure of the partition may still start."""
        if not 0 <= partition < self.size:
            return True
        return tenure != 0 and self._cells[_FIRST + partition] == tenure

    @property
    def changes(self) -> int:
        """How often the table has changed."""
        return self._cells[_CHANGES]

    def all(self) -> dict[int, int]:
        """Partition -> its tenure, of all that the node has."""
        return {number: tenure for number, tenure in enumerate(self._cells[_FIRST:].tolist()) if tenure}
