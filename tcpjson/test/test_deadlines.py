"""One timer for many deadlines, on a clock of our own."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.deadlines import Deadlines
from tcpjson.test.hypo import given

# How late a deadline may be noticed, in seconds.
LATE = 0.1


class StrictClock(Clock):
    """Calls nothing in the past, as a reactor."""

    def callLater(self, delay: float, *call: Any, **keywords: Any) -> Any:
        assert delay >= 0
        return super().callLater(delay, *call, **keywords)


class DeadlinesTests(SynchronousTestCase):
    """`Deadlines`."""

    def setUp(self) -> None:
        self.clock = StrictClock()
        self.calls: list[tuple[str, float]] = []
        self.deadlines = Deadlines[str](self.clock, self._expired)

    def _expired(self, key: str) -> None:
        self.calls.append((key, self.clock.seconds()))

    def _timers(self) -> list[float]:
        return [call.getTime() for call in self.clock.getDelayedCalls()]

    def test_nothing_set_nothing_waits(self) -> None:
        self.assertEqual(self._timers(), [])
        self.deadlines.stop()
        self.assertEqual(self._timers(), [])

    def test_at_its_time_and_once(self) -> None:
        self.deadlines.set("a", 5)
        self.clock.advance(4.9)
        self.assertEqual(self.calls, [])
        self.clock.advance(0.1)
        self.assertEqual(self.calls, [("a", 5)])
        self.assertNotIn("a", self.deadlines)
        self.assertEqual(self._timers(), [])
        self.clock.advance(100)
        self.assertEqual(len(self.calls), 1)

    def test_past_when_it_is_set(self) -> None:
        self.clock.advance(5)
        self.deadlines.set("a", 4)
        self.clock.advance(0)
        self.assertEqual(self.calls, [("a", 5)])

    def test_one_timer_for_the_nearest(self) -> None:
        for key, when in (("b", 20), ("c", 30), ("a", 10), ("d", 15)):
            self.deadlines.set(key, when)
            self.assertEqual(len(self._timers()), 1)
        self.assertEqual(self._timers(), [10])
        self.clock.advance(10)
        self.assertEqual(self._timers(), [15])
        self.clock.pump([5, 5, 10])
        self.assertEqual(self.calls, [("a", 10), ("d", 15), ("b", 20), ("c", 30)])
        self.assertEqual(self._timers(), [])

    def test_cleared(self) -> None:
        self.deadlines.set("a", 5)
        self.deadlines.set("b", 6)
        self.assertEqual(self.deadlines.clear("a"), 5)
        self.assertNotIn("a", self.deadlines)
        self.assertIn("b", self.deadlines)
        self.clock.pump([5, 1])
        self.assertEqual(self.calls, [("b", 6)])

    def test_the_last_one_cleared(self) -> None:
        """No timer outlives its time."""
        self.deadlines.set("a", 5)
        self.deadlines.clear("a")
        self.clock.advance(5)
        self.assertEqual((self.calls, self._timers()), ([], []))

    def test_what_is_not_set_is_cleared_in_vain(self) -> None:
        self.assertIsNone(self.deadlines.clear("a"))

    def test_moved_earlier(self) -> None:
        self.deadlines.set("a", 50)
        self.deadlines.set("a", 5)
        self.clock.advance(5)
        self.assertEqual(self.calls, [("a", 5)])

    def test_moved_later(self) -> None:
        self.deadlines.set("a", 5)
        self.deadlines.set("a", 50)
        self.clock.pump([5, 44.9])
        self.assertEqual(self.calls, [])
        self.clock.advance(0.1)
        self.assertEqual(self.calls, [("a", 50)])

    def test_in_the_past(self) -> None:
        self.clock.advance(10)
        self.deadlines.set("a", 3)
        self.assertEqual(self.calls, [])
        self.clock.advance(0)
        self.assertEqual(self.calls, [("a", 10)])

    def test_set_again_when_expired(self) -> None:
        def again(key: str) -> None:
            self._expired(key)
            self.deadlines.set(key, self.clock.seconds() + 5)

        self.deadlines = Deadlines(self.clock, again)
        self.deadlines.set("a", 5)
        self.clock.pump([5, 5, 5])
        self.assertEqual(self.calls, [("a", 5), ("a", 10), ("a", 15)])

    def test_set_to_now_when_expired(self) -> None:
        """It does not turn on the spot."""

        def again(key: str) -> None:
            self._expired(key)
            if len(self.calls) < 3:
                self.deadlines.set(key, self.clock.seconds())

        self.deadlines = Deadlines(self.clock, again)
        self.deadlines.set("a", 5)
        self.clock.advance(5)
        self.assertEqual(len(self.calls), 1)
        self.clock.pump([LATE] * 3)
        self.assertEqual(len(self.calls), 3)

    def test_one_clears_another_of_the_same_time(self) -> None:
        def expired(key: str) -> None:
            self._expired(key)
            self.deadlines.clear("b" if key == "a" else "a")

        self.deadlines = Deadlines(self.clock, expired)
        self.deadlines.set("a", 5)
        self.deadlines.set("b", 5)
        self.clock.advance(5)
        self.assertEqual(self.calls, [("a", 5)])

    def test_one_moves_another_of_the_same_time(self) -> None:
        def expired(key: str) -> None:
            self._expired(key)
            if key == "a":
                self.deadlines.set("b", 7)

        self.deadlines = Deadlines(self.clock, expired)
        self.deadlines.set("a", 5)
        self.deadlines.set("b", 5)
        self.clock.pump([5, 2])
        self.assertEqual(self.calls, [("a", 5), ("b", 7)])

    def test_an_exception_stops_no_other(self) -> None:
        def expired(key: str) -> None:
            self._expired(key)
            if key == "a":
                raise LookupError(key)

        self.deadlines = Deadlines(self.clock, expired)
        for key in ("a", "b"):
            self.deadlines.set(key, 5)
        self.deadlines.set("c", 10)
        self.assertRaises(LookupError, self.clock.advance, 5)
        self.clock.pump([LATE, 5])
        self.assertEqual([key for key, _ in self.calls], ["a", "b", "c"])
        self.assertEqual(self._timers(), [])

    def test_stop(self) -> None:
        self.deadlines.set("a", 5)
        self.deadlines.set("b", 6)
        self.deadlines.stop()
        self.assertEqual(self._timers(), [])
        self.assertNotIn("a", self.deadlines)
        self.clock.advance(10)
        self.assertEqual(self.calls, [])

    def test_stop_when_expired(self) -> None:
        def expired(key: str) -> None:
            self._expired(key)
            self.deadlines.set("c", 20)
            self.deadlines.stop()

        self.deadlines = Deadlines(self.clock, expired)
        self.deadlines.set("a", 5)
        self.deadlines.set("b", 5)
        self.clock.advance(5)
        self.assertEqual((self.calls, self._timers()), ([("a", 5)], []))

    def test_set_after_stop(self) -> None:
        self.deadlines.set("a", 5)
        self.deadlines.stop()
        self.deadlines.set("b", 6)
        self.clock.advance(6)
        self.assertEqual(self.calls, [("b", 6)])

    def test_many_near_each_other_cost_few_walks(self) -> None:
        """A walk over all costs what all cost: there are at most ten in a second."""
        for number in range(1000):
            self.deadlines.set(f"k{number}", 1 + number / 1000)
        fired = 0
        while timers := self._timers():
            self.clock.advance(timers[0] - self.clock.seconds())
            fired += 1
        self.assertLessEqual(fired, 12)
        self.assertEqual(len(self.calls), 1000)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["set", "clear", "advance"]), st.sampled_from("abcde"), st.integers(0, 40)
            ),
            max_size=30,
        ),
        examples=300,
    )
    def test_any_run(self, steps: list[tuple[str, str, int]]) -> None:
        """Never early, never later than bound, and never more than one timer."""
        self.setUp()
        deadlines: dict[str, float] = {}
        for step, key, number in steps:
            if step == "set":
                deadlines[key] = self.clock.seconds() + number / 16
                self.deadlines.set(key, deadlines[key])
            elif step == "clear":
                self.assertEqual(self.deadlines.clear(key), deadlines.pop(key, None))
            else:
                for _ in range(number):
                    self.clock.advance(1 / 64)
                    now = self.clock.seconds()
                    for expired, when in self.calls:
                        self.assertEqual(when, now)
                        self.assertLessEqual(deadlines.pop(expired), now)
                    self.calls.clear()
                    for when in deadlines.values():
                        self.assertLess(now - when, LATE + 1 / 64)
            self.assertEqual({key for key in "abcde" if key in self.deadlines}, set(deadlines))
            self.assertLessEqual(len(self._timers()), 1)
            if deadlines:
                self.assertEqual(len(self._timers()), 1)
        self.deadlines.stop()
        self.assertEqual(self._timers(), [])
