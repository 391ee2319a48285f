"""By how much the reactor is late."""

from __future__ import annotations

from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.lag import LagMeter
from tcpjson.test.hypo import given


class LagTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.seen: list[float] = []
        self.meter = LagMeter(self.clock, self.seen.append)

    def test_in_time(self) -> None:
        """Four times a second."""
        self.meter.start()
        self.assertEqual(self.seen, [])
        self.clock.advance(0.2421875)
        self.assertEqual(self.seen, [])
        self.clock.pump([0.0078125] + [0.25] * 3)
        self.assertEqual(self.seen, [0.0] * 4)

    def test_late(self) -> None:
        """It is told once how late it was, and the next is due a quarter of a second after that."""
        self.meter.start()
        self.clock.advance(1.75)
        self.assertEqual(self.seen, [1.5])
        self.clock.advance(0.125)
        self.assertEqual(self.seen, [1.5])
        self.clock.advance(0.125)
        self.assertEqual(self.seen, [1.5, 0.0])

    def test_too_early(self) -> None:
        """A timer that the system rounds down is not late, and the lag is no less than none."""
        self.meter.start()
        [call] = self.clock.getDelayedCalls()
        call.reset(0.125)
        self.clock.advance(0.125)
        self.assertEqual(self.seen, [0.0])

    def test_stop(self) -> None:
        """It may be stopped before it began, and be started again."""
        self.meter.stop()
        self.meter.start()
        self.clock.advance(0.25)
        self.meter.stop()
        self.meter.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(5)
        self.assertEqual(self.seen, [0.0])
        self.meter.start()
        self.clock.advance(0.5)
        self.assertEqual(self.seen, [0.0, 0.25])

    @given(st.lists(st.integers(1, 64).map(lambda eighths: eighths / 8), max_size=20))
    def test_whatever_takes_time(self, steps: list[float]) -> None:
        """Nothing of it is passed over, but for the quarters in which nobody looks."""
        clock = Clock()
        seen: list[float] = []
        meter = LagMeter(clock, seen.append)
        meter.start()
        clock.pump(steps)
        waited = 0.0
        expected = []
        for step in steps:
            waited += step
            if waited >= 0.25:
                expected.append(waited - 0.25)
                waited = 0.0
        self.assertEqual(seen, expected)
        self.assertEqual(len(clock.getDelayedCalls()), 1)
