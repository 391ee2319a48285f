"""Jobs that wait for their turn."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.fairqueue import FairQueue
from tcpjson.test.hypo import given


class Hands:
    """What runs jobs elsewhere, when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def submit(self, function: Callable[[], Any]) -> Deferred[Any]:
        """Take a job."""
        done: Deferred[Any] = Deferred()
        self.jobs.append((function, done))
        return done

    def run(self) -> None:
        """Do the oldest job."""
        function, done = self.jobs.pop(0)
        try:
            outcome = function()
        except Exception:
            done.errback(Failure())
        else:
            done.callback(outcome)


class FairQueueTests(SynchronousTestCase):
    """`FairQueue`."""

    def setUp(self) -> None:
        self.hands = Hands()
        self.queue = FairQueue(self.hands.submit, 2)
        self.ran: list[str] = []

    def _queued(self, name: str) -> Deferred[str]:
        """A job of the key that its name begins with."""
        return self.queue.run(name[0], self._job, name)

    def _job(self, name: str) -> str:
        self.ran.append(name)
        return name

    def _finish(self) -> None:
        while self.hands.jobs:
            self.hands.run()

    def test_the_outcome(self) -> None:
        result = self._queued("a")
        self.assertNoResult(result)
        self.hands.run()
        self.assertEqual(self.successResultOf(result), "a")

    def test_what_it_raises(self) -> None:
        result = self.queue.run("a", int, "x")
        self.hands.run()
        self.failureResultOf(result, ValueError)

    def test_as_many_at_once_as_there_are_workers(self) -> None:
        for name in ("a1", "b1", "c1"):
            self._queued(name)
        self.assertEqual((len(self.hands.jobs), len(self.queue)), (2, 1))
        self.hands.run()
        self.assertEqual((len(self.hands.jobs), len(self.queue)), (2, 0))
        self._finish()
        self._queued("a2")
        self._queued("a3")
        self.assertEqual(len(self.hands.jobs), 2)

    def test_a_worker_is_free_after_a_failure(self) -> None:
        for _ in range(5):
            self.queue.run("a", int, "x").addErrback(lambda failure: None)
        last = self._queued("a")
        self._finish()
        self.assertEqual(self.successResultOf(last), "a")

    def test_a_worker_is_free_when_nobody_takes_the_job(self) -> None:
        def closed(function: Callable[[], Any]) -> Deferred[Any]:
            raise RuntimeError

        queue = FairQueue(closed, 1)
        for _ in range(2):
            self.failureResultOf(queue.run("a", self._job, "a"), RuntimeError)

    def test_one_of_each_in_turn(self) -> None:
        for name in ("a1", "a2", "a3", "a4", "a5", "b1", "b2", "c1"):
            self._queued(name)
        self._finish()
        self.assertEqual(self.ran, ["a1", "a2", "a3", "b1", "c1", "a4", "b2", "a5"])

    def test_who_hears_an_outcome_is_not_before_those_that_wait(self) -> None:
        queue = FairQueue(self.hands.submit, 1)
        queue.run("a", self._job, "a1").addCallback(lambda _: queue.run("c", self._job, "c1"))
        queue.run("b", self._job, "b1")
        self._finish()
        self.assertEqual(self.ran, ["a1", "b1", "c1"])

    def test_cancelled_while_it_waits(self) -> None:
        results = {name: self._queued(name) for name in ("a1", "a2", "a3", "a4", "b1")}
        for name in ("a3", "b1"):
            results[name].cancel()
            self.failureResultOf(results[name], CancelledError)
        self.assertEqual(len(self.queue), 1)
        self._finish()
        self.assertEqual(self.ran, ["a1", "a2", "a4"])

    def test_nothing_is_kept_of_what_was_cancelled(self) -> None:
        class Password(str):
            """A text that can be watched."""

        for name in ("a1", "a2"):
            self._queued(name)
        password = Password("secret")
        gone = weakref.ref(password)
        result = self.queue.run("b", len, password)
        del password
        result.cancel()
        self.failureResultOf(result, CancelledError)
        gc.collect()
        self.assertIsNone(gone())
        self.assertEqual(len(self.queue._waiting), 0)

    def test_keys_without_jobs_are_forgotten(self) -> None:
        for number in range(10):
            self.queue.run(number, self._job, "x")
        self._finish()
        self.assertEqual(len(self.queue._waiting), 0)

    def test_cancelled_while_it_runs(self) -> None:
        """It keeps its worker to its end, and others of its key stay."""
        results = [self._queued(name) for name in ("a1", "a2", "a3")]
        results[0].cancel()
        self.failureResultOf(results[0], CancelledError)
        self.assertEqual((len(self.hands.jobs), len(self.queue)), (2, 1))
        self._finish()
        self.assertEqual(self.ran, ["a1", "a2", "a3"])
        self.assertEqual([self.successResultOf(result) for result in results[1:]], ["a2", "a3"])

    def test_a_failure_that_nobody_hears(self) -> None:
        result = self.queue.run("a", int, "x")
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self._finish()
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    @given(st.lists(st.sampled_from(["a", "b", "c", "cancel", "run"]), max_size=40))
    def test_nobody_waits_long(self, steps: list[str]) -> None:
        """While a job waits, no other key gets two turns more than its own."""
        hands = Hands()
        queue = FairQueue(hands.submit, 1)
        waiting: list[tuple[str, Deferred[str]]] = []
        ran: list[str] = []

        def job(key: str) -> str:
            ran.append(key)
            return key

        for step in steps:
            if step == "run":
                if hands.jobs:
                    hands.run()
            elif step == "cancel":
                if waiting:
                    waiting.pop()[1].addErrback(lambda failure: None).cancel()
            else:
                waiting.append((step, queue.run(step, job, step)))
        others = {key: [k for k, d in waiting if k == key and not d.called] for key in "abc"}
        expected = sum(map(len, others.values()))
        before = len(ran)
        while hands.jobs:
            hands.run()
        turns = ran[before:]
        # What was cancelled while it ran came to its end.
        self.assertIn(len(turns), (expected, expected + 1))
        self.assertEqual(len(queue), 0)
        for key, jobs in others.items():
            places = [place for place, ran_key in enumerate(turns) if ran_key == key]
            if jobs:
                for other in set("abc") - {key}:
                    for start, end in zip([0, *places], places, strict=False):
                        self.assertLessEqual(turns[start:end].count(other), 2)
