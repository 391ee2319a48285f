"""Who had a share of a turn of the reactor goes on in order, some in each turn."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.test.wires import run_due
from tcpjson.turns import Turns

# Seconds in which many short turns fit, and none long.
SHORT, LONG = 0.00001, 0.002


class Worker:
    """Works for some time in each of its turns, and has work for some turns."""

    def __init__(self, case: TurnsTests, name: str, seconds: float, turns: int = 1) -> None:
        self._case = case
        self._name = name
        self._seconds = seconds
        self._left = turns

    def go_on(self) -> None:
        self._case.done.append(self._name)
        # Time passes, and nothing that is due happens meanwhile.
        self._case.clock.rightNow += self._seconds
        self._left -= 1
        if self._left:
            self._case.turns.add(self)


class Failing:
    """Whose turn fails."""

    def go_on(self) -> None:
        raise ArithmeticError


class TurnsTests(SynchronousTestCase):
    """`Turns`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.turns = Turns(self.clock)
        self.done: list[str] = []

    def add(self, names: str, seconds: float, turns: int = 1) -> None:
        for name in names:
            self.turns.add(Worker(self, name, seconds, turns))

    def turn(self) -> str:
        """Who goes on in the next turn of the reactor."""
        self.done.clear()
        run_due(self.clock)
        return "".join(self.done)

    def test_not_at_once(self) -> None:
        self.add("a", SHORT)
        self.assertEqual(self.done, [])
        self.assertEqual(self.turn(), "a")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_in_order_all_that_fit(self) -> None:
        self.add("abcde", SHORT)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertEqual(self.turn(), "abcde")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_takes_long_is_the_last_of_its_turn(self) -> None:
        self.add("a", SHORT)
        self.add("bcd", LONG)
        self.assertEqual([self.turn() for _ in range(4)], ["ab", "c", "d", ""])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_has_more_to_do_goes_behind_the_others(self) -> None:
        self.add("ab", SHORT, turns=2)
        self.add("c", SHORT)
        self.assertEqual([self.turn() for _ in range(3)], ["abc", "ab", ""])

    def test_long_ones_take_turns(self) -> None:
        self.add("ab", LONG, turns=2)
        self.assertEqual([self.turn() for _ in range(5)], ["a", "b", "a", "b", ""])

    def test_one_that_fails_stops_nobody(self) -> None:
        self.turns.add(Failing())
        self.add("a", SHORT)
        self.assertRaises(ArithmeticError, run_due, self.clock)
        self.assertEqual(self.turn(), "a")

    def test_again_after_all_were_done(self) -> None:
        self.add("a", SHORT)
        self.turn()
        self.add("b", SHORT)
        self.assertEqual(self.turn(), "b")

    def test_stop(self) -> None:
        self.turns.stop()
        self.add("a", SHORT)
        self.turns.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.turn(), "")
        self.add("b", SHORT)
        self.assertEqual(self.turn(), "b")
