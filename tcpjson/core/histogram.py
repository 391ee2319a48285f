"""How often a value was how large."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

#: How many values may wait to be counted: together they cost less than one by one.
BATCH = 512


class Histogram:
    """
    Counts values by bounds.

    Args:
        bounds: rising; a value belongs to the first that is not less than it.
    """

    __slots__ = ("_counts", "_sum", "bounds", "pending")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0
        #: Values not counted yet. On the hot path values
        #: are put here, and `settle` is called when there are `BATCH`.
        self.pending: list[float] = []

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self._sum += value

    def settle(self) -> None:
        """Count what is pending."""
        pending = self.pending
        self._sum += sum(pending)
        pending.sort()
        before = 0
        for index, bound in enumerate(self.bounds):
            after = bisect_right(pending, bound, before)
            self._counts[index] += after - before
            before = after
        self._counts[-1] += len(pending) - before
        pending.clear()

    @property
    def counts(self) -> list[int]:
        """How many values belong to each bound, and, at the end, how many are above all of them."""
        self.settle()
        return self._counts

    @property
    def sum(self) -> float:
        """All values added up."""
        self.settle()
        return self._sum

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)
