"""What happens again and again is told once a minute, and nothing of it is left out."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

import tcpjson.notices
from tcpjson.logs import traceback_of
from tcpjson.notices import Notices
from tcpjson.test.hypo import given


@implementer(ILogObserver)
class Events(list[LogEvent]):
    """What was logged."""

    def __call__(self, event: LogEvent) -> None:
        self.append(event)


class Payload:
    """Something of which one can see whether it is still there."""

    def __repr__(self) -> str:
        return "a payload"


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.events = Events()
        self.notices = Notices(self.clock, Logger(namespace="test", observer=self.events))

    def lines(self) -> list[str]:
        """What was logged since the last look."""
        lines = [formatEvent(event) for event in self.events]
        self.events.clear()
        return lines

    def warn(self, number: int, item: str = "") -> None:
        self.notices.warn("odd", "it was {number}", item=item, number=number)

    def breaks(self, error: BaseException, item: str = "", **fields: Any) -> None:
        """As where a handler fails."""
        try:
            raise error
        except BaseException:
            self.notices.failure("failed", "handler of {kind} failed", item=item, kind=item, **fields)


class WarningTests(Case):
    """`warn`."""

    def test_the_first_at_once(self) -> None:
        self.warn(1)
        [event] = self.events
        self.assertEqual((event["event"], event["number"], event["log_level"]), ("odd", 1, LogLevel.warn))
        self.assertNotIn("unsaid", event)
        self.assertEqual(self.lines(), ["it was 1"])
        # Nothing is there to be told later.
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_others_once_a_minute(self) -> None:
        for number in range(534):
            self.warn(number)
        self.assertEqual(self.lines(), ["it was 0"])
        self.clock.advance(59.9)
        self.assertEqual(self.lines(), [])
        self.clock.advance(0.1)
        [event] = self.events
        self.assertEqual((event["event"], event["unsaid"], event["number"]), ("odd", 532, 533))
        self.assertEqual(self.lines(), ["it was 533 (and 532 more in 60 s)"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(1000)
        self.assertEqual(self.lines(), [])

    def test_one_that_was_silent_is_told_as_it_was(self) -> None:
        self.warn(1)
        self.warn(2)
        self.clock.advance(60)
        self.assertNotIn("unsaid", self.events[-1])
        self.assertEqual(self.lines(), ["it was 1", "it was 2"])

    def test_a_minute_from_the_last_line(self) -> None:
        self.warn(1)
        self.clock.advance(59)
        self.warn(2)
        self.clock.advance(1)
        self.assertEqual(self.lines(), ["it was 1", "it was 2"])
        self.warn(3)
        self.clock.advance(59)
        self.assertEqual(self.lines(), [])
        self.clock.advance(1)
        self.assertEqual(self.lines(), ["it was 3"])
        self.clock.advance(60)
        self.warn(4)
        self.assertEqual(self.lines(), ["it was 4"])

    def test_each_item_for_itself(self) -> None:
        self.warn(1, "a")
        self.clock.advance(30)
        self.warn(2, "b")
        self.warn(3, "b")
        # It is due before that for which the clock is set.
        self.warn(4, "a")
        self.notices.warn("strange", "it was strange")
        self.assertEqual(self.lines(), ["it was 1", "it was 2", "it was strange"])
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(30)
        self.assertEqual(self.lines(), ["it was 4"])
        self.clock.advance(30)
        self.assertEqual(self.lines(), ["it was 3"])

    def test_one_after_the_other(self) -> None:
        for number, item in enumerate("abc"):
            self.warn(number, item)
            self.warn(number, item)
            self.clock.advance(10)
        self.lines()
        self.clock.advance(30)
        for number in range(3):
            self.assertEqual(self.lines(), [f"it was {number}"])
            self.clock.advance(10)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_another_interval(self) -> None:
        self.notices = Notices(self.clock, Logger(observer=self.events), 5)
        for number in range(3):
            self.warn(number)
        self.clock.advance(5)
        self.assertEqual(self.lines(), ["it was 0", "it was 2 (and 1 more in 5 s)"])

    def test_a_clock_that_comes_late(self) -> None:
        """What happens when a line is overdue belongs to it."""
        self.warn(1)
        self.warn(2)
        self.clock.rightNow += 75
        self.warn(3)
        self.assertEqual(self.lines(), ["it was 1"])
        self.clock.advance(0)
        self.assertEqual(self.lines(), ["it was 3 (and 1 more in 75 s)"])

    def test_what_is_kept_is_small(self) -> None:
        kept = Payload()
        there = weakref.ref(kept)

        class Error(Exception):
            pass

        self.warn(1)
        self.notices.warn("odd", "{text} {error}", text="y" * 10_000, error=Error(kept), number=1.5, no=None)
        del kept
        gc.collect()
        self.assertIsNone(there())
        self.clock.advance(60)
        event = self.events[-1]
        self.assertEqual((event["number"], event["no"], event["error"]), (1.5, None, "a payload"))
        self.assertTrue(0 < len(event["text"]) < 2000)

    def test_braces(self) -> None:
        """Of what is told, none is a format."""
        for text in ("{a}", "}{", "{unsaid}"):
            self.notices.warn("odd", "it was {text}", text=text)
        self.clock.advance(60)
        self.assertEqual(self.lines(), ["it was {a}", "it was {unsaid} (and 1 more in 60 s)"])


class FailureTests(Case):
    """`failure`."""

    def test_the_first_with_its_failure(self) -> None:
        error = ValueError("no")
        self.breaks(error, "Move")
        [event] = self.events
        self.assertIs(event["log_failure"].value, error)
        self.assertEqual((event["event"], event["log_level"]), ("failed", LogLevel.critical))
        self.assertEqual(self.lines(), ["handler of Move failed"])

    def test_a_failure_that_is_given(self) -> None:
        failure = Failure(ValueError("no"))
        self.notices.failure("failed", "it failed", failure)
        self.notices.failure("failed", "it failed", failure)
        self.clock.advance(60)
        self.assertIs(self.events[0]["log_failure"], failure)
        self.assertNotIn("log_failure", self.events[1])
        self.assertIn("ValueError: no", self.events[1]["log_traceback"])

    def test_the_others_with_one_traceback(self) -> None:
        """That of the first of them, made then, and its fields."""
        made: list[object] = []

        def counted(failure: Failure) -> str:
            made.append(failure.value)
            return traceback_of(failure)

        self.patch(tcpjson.notices, "traceback_of", counted)
        errors = [KeyError(number) for number in range(10_000)]
        for number, error in enumerate(errors):
            self.breaks(error, "Move", number=number)
        self.assertEqual(made, [errors[1]])
        self.clock.advance(60)
        _, event = self.events
        self.assertEqual((event["number"], event["unsaid"], event["event"]), (1, 9998, "failed"))
        self.assertEqual(event["log_level"], LogLevel.critical)
        self.assertIn("KeyError: 1\n", event["log_traceback"])
        self.assertIn("in breaks", event["log_traceback"])
        self.assertEqual(self.lines()[1], "handler of Move failed (and 9998 more in 60 s)")
        self.breaks(errors[5], "Move")
        self.assertEqual((made, self.events), ([errors[1], errors[5]], []))
        self.clock.advance(60)
        self.assertIn("KeyError: 5\n", self.events[0]["log_traceback"])

    def test_no_failure_is_made_that_is_not_told(self) -> None:
        made: list[Failure] = []

        class Counted(Failure):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                made.append(self)

        self.patch(tcpjson.notices, "Failure", Counted)
        for number in range(100):
            self.breaks(KeyError(number))
        # Of the first, the logger makes one.
        self.assertEqual(len(made), 1)

    def test_it_is_not_kept(self) -> None:
        """Neither what its frames have, nor what it says without end."""
        kept = Payload()
        there = weakref.ref(kept)

        def handler(payload: object) -> None:
            raise ValueError(payload, "y" * 1_000_000)

        for payload in ("first", kept):
            try:
                handler(payload)
            except ValueError:
                self.notices.failure("failed", "it failed")
        del kept, payload
        gc.collect()
        self.assertIsNone(there())
        self.clock.advance(60)
        self.assertTrue(0 < len(self.events[-1]["log_traceback"]) < 10_000)

    def test_with_warnings_of_one_name(self) -> None:
        for _ in range(2):
            self.notices.warn("failed", "it failed")
        self.breaks(ValueError())
        self.clock.advance(60)
        self.assertEqual(self.lines(), ["it failed", "it failed (and 1 more in 60 s)"])


class ItemTests(Case):
    """However many items there are."""

    def test_more_than_are_told_apart(self) -> None:
        for number in range(300):
            self.warn(number, f"item {number}")
        # One more stands for all others.
        self.assertEqual(self.lines(), [f"it was {number}" for number in range(257)])
        self.warn(1000, "item 255")
        self.notices.warn("strange", "so it was", item="item 1")
        self.clock.advance(60)
        self.assertEqual(self.lines(), ["so it was", "it was 1000", "it was 299 (and 42 more in 60 s)"])

    def test_those_of_before_make_room(self) -> None:
        for number in range(256):
            self.warn(number, f"item {number}")
        self.warn(1000, "item 0")
        self.clock.advance(60)
        self.lines()
        for number in range(200):
            self.warn(number, f"new {number}")
            self.warn(number, f"new {number}")
        self.assertEqual(self.lines(), [f"it was {number}" for number in range(200)])

    def test_all_of_them_make_room(self) -> None:
        for number in range(256):
            self.warn(number, f"item {number}")
        self.clock.advance(60)
        for number in range(2):
            self.warn(number, "new")
            self.warn(number, f"item {number}")
        self.assertEqual(self.lines()[256:], ["it was 0", "it was 0", "it was 1"])

    def test_those_that_are_silent_do_not(self) -> None:
        """A line that is overdue is told all the same."""
        for number in range(256):
            self.warn(number, f"item {number}")
            self.warn(number, f"item {number}")
        self.lines()
        self.clock.rightNow += 61
        self.warn(0, "new")
        self.assertEqual(self.lines(), ["it was 0"])
        self.clock.advance(0)
        self.assertEqual(len(self.events), 256)


class StopTests(Case):
    """`stop`."""

    def test_with_nothing(self) -> None:
        self.notices.stop()
        self.warn(1)
        self.notices.stop()
        self.assertEqual(self.lines(), ["it was 1"])

    def test_what_was_not_told_is(self) -> None:
        for number in range(3):
            self.warn(number, "a")
            self.warn(number, "b")
        self.clock.advance(12.3)
        self.notices.stop()
        more = "it was 2 (and 1 more in 12 s)"
        self.assertEqual(self.lines(), ["it was 0", "it was 0", more, more])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.notices.stop()
        self.assertEqual(self.lines(), [])

    def test_it_may_go_on(self) -> None:
        self.warn(1)
        self.warn(2)
        self.notices.stop()
        self.lines()
        self.warn(3)
        self.warn(4)
        self.assertEqual(self.lines(), ["it was 3"])
        self.clock.advance(60)
        self.assertEqual(self.lines(), ["it was 4"])


STEPS = st.lists(
    st.tuples(st.just("pass"), st.sampled_from([0.0, 0.5, 7.0, 30.0, 59.5, 60.0, 61.0, 200.0]))
    | st.tuples(st.sampled_from(["warn", "fail"]), st.sampled_from("abcde"))
    | st.tuples(st.just("stop"), st.just("")),
    max_size=40,
)


class ModelTests(Case):
    """Against what is to come of it, told in the plainest way."""

    @given(STEPS, examples=300)
    def test_any_steps(self, steps: list[tuple[str, Any]]) -> None:
        self.setUp()
        self.patch(tcpjson.notices, "_ITEMS", 3)
        told: dict[tuple[str, str], float] = {}
        silent: dict[tuple[str, str], list[int]] = {}
        expected: list[tuple[str, int, int]] = []
        now = 0.0

        def tell(key: tuple[str, str]) -> None:
            numbers = silent.pop(key)
            number = numbers[-1] if key[0] == "warn" else numbers[0]
            expected.append((key[0], number, len(numbers) - 1))
            told[key] = now

        for number, (step, value) in enumerate([*steps, ("stop", "")]):
            if step == "pass":
                until = now + value
                while due := sorted((told[key] + 60, key) for key in silent if told[key] + 60 <= until):
                    moment, key = due[0]
                    if moment > now:
                        # Until then, nothing.
                        self.clock.advance((moment - now) / 2)
                        self.assertEqual(len(self.events), len(expected))
                        self.clock.advance((moment - now) / 2)
                    now = moment
                    tell(key)
                self.clock.advance(until - now)
                now = until
            elif step == "stop":
                for key in tuple(silent):
                    tell(key)
                told.clear()
                self.notices.stop()
                self.assertEqual(self.clock.getDelayedCalls(), [])
            else:
                key = step, value
                if key not in told and len(told) >= 3:
                    for old in [old for old in told if old not in silent and told[old] + 60 <= now]:
                        del told[old]
                    if len(told) >= 3:
                        key = step, "other"
                if key in silent or (key in told and told[key] + 60 > now):
                    silent.setdefault(key, []).append(number)
                else:
                    told[key] = now
                    expected.append((step, number, 0))
                if step == "warn":
                    self.notices.warn("warn", "{number}", item=value, number=number)
                else:
                    self.notices.failure("fail", "{number}", Failure(ValueError()), item=value, number=number)
            self.assertEqual(len(self.clock.getDelayedCalls()), bool(silent))
            found = [(event["event"], event["number"], event.get("unsaid", 0)) for event in self.events]
            self.assertEqual(sorted(found), sorted(expected))
