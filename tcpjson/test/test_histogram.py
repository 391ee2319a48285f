"""Histograms, against a model."""

from __future__ import annotations

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.histogram import BATCH, Histogram
from tcpjson.test.hypo import given

# Eighths: their sums are exact.
_NUMBERS = st.integers(-(2**20), 2**20).map(lambda number: number / 8)
_BOUNDS = st.lists(_NUMBERS, unique=True, max_size=6).map(sorted)
# Each with whether it has to wait.
_VALUES = st.lists(st.tuples(_NUMBERS, st.booleans()), max_size=40)


class HistogramTests(SynchronousTestCase):
    def test_at_the_start(self) -> None:
        histogram = Histogram([1, 2.5])
        self.assertEqual((histogram.bounds, histogram.counts), ((1, 2.5), [0, 0, 0]))
        self.assertEqual((histogram.sum, histogram.count), (0.0, 0))
        histogram.settle()
        self.assertEqual(histogram.counts, [0, 0, 0])

    def test_a_value_at_a_bound(self) -> None:
        """It is not above it, whichever way it came."""
        for wait in (False, True):
            histogram = Histogram([1, 2])
            for value in (1, 2, 0.5, 1.5, 2.5, 1):
                histogram.pending.append(value) if wait else histogram.observe(value)
            self.assertEqual((histogram.counts, histogram.sum, histogram.count), ([3, 2, 1], 8.5, 6))

    def test_the_bounds_are_its_own(self) -> None:
        bounds = [1.0]
        histogram = Histogram(bounds)
        bounds.append(2.0)
        histogram.observe(1.5)
        self.assertEqual((histogram.bounds, histogram.counts), ((1.0,), [0, 1]))

    def test_what_is_pending_is_counted_once(self) -> None:
        histogram = Histogram([1])
        histogram.pending += [0.5] * BATCH
        histogram.settle()
        self.assertEqual(histogram.pending, [])
        histogram.settle()
        self.assertEqual((histogram.count, histogram.sum), (BATCH, BATCH / 2))

    @given(_BOUNDS, _VALUES, st.sampled_from(["counts", "sum", "count", "settle"]), st.integers(0, 40))
    def test_whatever_comes(
        self, bounds: list[float], values: list[tuple[float, bool]], look: str, when: int
    ) -> None:
        """Each belongs to the first bound that is not less than it, however often one looks."""
        histogram = Histogram(bounds)
        counts = [0] * (len(bounds) + 1)
        for number, (value, wait) in enumerate(values):
            histogram.pending.append(value) if wait else histogram.observe(value)
            counts[sum(bound < value for bound in bounds)] += 1
            if number == when:
                looked = getattr(histogram, look)
                if look == "settle":
                    looked()
        self.assertEqual(histogram.counts, counts)
        self.assertEqual(histogram.sum, sum(value for value, _ in values))
        self.assertEqual(histogram.count, len(values))
