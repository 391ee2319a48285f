"""Waits between attempts to connect: random, bounded, and no shorter than the server says."""

from __future__ import annotations

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.retry import FullJitter
from tcpjson.test.hypo import given

fractions = st.floats(0, 1, exclude_max=True)
HOUR = 3600.0


class FullJitterTests(SynchronousTestCase):
    """`FullJitter`."""

    def test_the_bound_doubles_up_to_half_a_minute(self) -> None:
        waits = FullJitter(lambda: 1.0)
        self.assertEqual([waits.next() for _ in range(9)], [0.5, 1, 2, 4, 8, 16, 30, 30, 30])

    def test_it_begins_anew(self) -> None:
        waits = FullJitter(lambda: 1.0)
        for _ in range(3):
            waits.next()
        waits.reset()
        self.assertEqual([waits.next() for _ in range(2)], [0.5, 1])

    def test_any_time_up_to_the_bound(self) -> None:
        """From nothing on: who all wait at least some time come back all at once after it."""
        numbers = [0.0, 0.25, 0.5]
        waits = FullJitter(lambda: numbers.pop(0))
        self.assertEqual([waits.next() for _ in range(3)], [0.0, 0.25, 1.0])

    def test_as_the_server_says(self) -> None:
        """It counts as an attempt, and it is no shorter than the wait would be."""
        waits = FullJitter(lambda: 1.0)
        self.assertEqual([waits.next(told) for told in (7.5, 0.0, None)], [7.5, 1, 2])

    def test_but_for_an_hour_at_most(self) -> None:
        waits = FullJitter(lambda: 0.0)
        self.assertEqual([waits.next(told) for told in (HOUR, HOUR + 1, 1e308)], [HOUR] * 3)

    @given(st.lists(st.none() | st.tuples(fractions, st.none() | st.floats(0, 1e308)), max_size=30))
    def test_the_bounds(self, steps: list[tuple[float, float | None] | None]) -> None:
        """`None` stands for an attempt that went well."""
        number = 0.0
        waits = FullJitter(lambda: number)
        bound = 0.5
        for step in steps:
            if step is None:
                waits.reset()
                bound = 0.5
                continue
            number, told = step
            wait = waits.next(told)
            least = min(told or 0.0, HOUR)
            self.assertLessEqual(least, wait)
            self.assertLessEqual(wait, max(least, bound))
            self.assertEqual(wait, max(least, number * bound))
            bound = min(2 * bound, 30.0)
