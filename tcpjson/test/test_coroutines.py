"""Coroutines that are run until they wait."""

from __future__ import annotations

import gc
import sys
import weakref
from contextvars import ContextVar
from typing import Any

from hypothesis import strategies
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.coroutines import forget_cancelled, start
from tcpjson.test.hypo import given

_name = ContextVar("_name", default="outside")


class Wrong(Exception):
    """What a coroutine raises here."""


class ForgetTests(SynchronousTestCase):
    def test_what_was_cancelled(self) -> None:
        """It keeps nothing that a coroutine held."""
        kept: list[weakref.ref[Wrong]] = []

        async def act() -> None:
            held = Wrong()
            kept.append(weakref.ref(held))
            await Deferred()

        results: list[bool] = []
        _, deferred = start(act())
        deferred.addErrback(lambda failure: results.append(forget_cancelled(failure)))
        gc.disable()
        self.addCleanup(gc.enable)
        deferred.cancel()
        del deferred
        self.assertEqual((results, kept[0]()), ([True], None))

    def test_what_failed(self) -> None:
        """It is left as it is: it is to be logged."""
        failure = Failure(Wrong())
        self.assertFalse(forget_cancelled(failure))
        self.assertIsInstance(failure.value, Wrong)


class StartTests(SynchronousTestCase):
    def test_what_waits_for_nothing(self) -> None:
        async def act() -> int:
            return 7

        self.assertEqual(start(act()), (True, 7))

    def test_what_fails_before_it_waits(self) -> None:
        async def act(error: BaseException) -> None:
            raise error

        for error in (Wrong(), SystemExit(), GeneratorExit()):
            self.assertIs(self.assertRaises(type(error), start, act(error)), error)

    def test_what_waits(self) -> None:
        first: Deferred[int] = Deferred()
        second: Deferred[int] = Deferred()

        async def act() -> int:
            return await first + await second

        done, deferred = start(act())
        self.assertFalse(done)
        self.assertNoResult(deferred)
        first.callback(1)
        self.assertNoResult(deferred)
        second.callback(2)
        self.assertEqual(self.successResultOf(deferred), 3)

    def test_a_failure_is_raised_where_it_waits(self) -> None:
        waiting: Deferred[None] = Deferred()

        async def act() -> str:
            try:
                await waiting
            except Wrong:
                return await succeed("mended")
            return "never"

        _, deferred = start(act())
        waiting.errback(Wrong())
        self.assertEqual(self.successResultOf(deferred), "mended")

    def test_what_fails_later(self) -> None:
        waiting: Deferred[None] = Deferred()

        async def act() -> None:
            await waiting
            raise Wrong

        _, deferred = start(act())
        waiting.callback(None)
        self.failureResultOf(deferred, Wrong)

    def test_cancelled(self) -> None:
        """What it waits for is cancelled, and it can tidy up."""
        cancelled: list[Deferred[None]] = []
        tidied: list[str] = []

        async def act() -> None:
            try:
                await Deferred(cancelled.append)
            finally:
                tidied.append(_name.get())

        _, deferred = start(act())
        deferred.cancel()
        self.failureResultOf(deferred, CancelledError)
        self.assertEqual((len(cancelled), tidied), (1, ["outside"]))

    def test_what_is_no_deferred(self) -> None:
        """As an asyncio future in Twisted's own coroutines: the coroutine is told."""

        class Strange:
            def __await__(self) -> Any:
                came = yield self
                raise Wrong(came)

        async def act() -> None:
            await Strange()

        _, deferred = start(act())
        self.failureResultOf(deferred, Wrong)

    def test_a_context_of_its_own(self) -> None:
        """It keeps it where it goes on, and leaves nothing behind."""
        waiting: Deferred[None] = Deferred()

        async def act() -> str:
            _name.set("inside")
            await waiting
            return _name.get()

        _, deferred = start(act())
        self.assertEqual(_name.get(), "outside")
        waiting.callback(None)
        self.assertEqual(self.successResultOf(deferred), "inside")
        self.assertEqual(_name.get(), "outside")

    def test_one_that_is_given_up(self) -> None:
        """It is closed, as any coroutine is."""
        tidied: list[bool] = []

        async def act() -> None:
            try:
                await Deferred()
            finally:
                tidied.append(True)

        _, deferred = start(act())
        del deferred
        gc.collect()
        self.assertEqual(tidied, [True])

    def test_one_that_is_closed_before_it_is_given_up(self) -> None:
        """As the collector may do it: nothing is raised where nobody could catch it."""

        async def act() -> None:
            await Deferred()

        lost: list[object] = []
        self.patch(sys, "unraisablehook", lost.append)
        closed = act()
        _, deferred = start(closed)
        closed.close()
        del deferred
        gc.collect()
        self.assertEqual(lost, [])

    @given(strategies.lists(strategies.sampled_from(["value", "failure", "now"]), max_size=6))
    def test_as_twisted_does_it(self, steps: list[str]) -> None:
        """What comes of it is what comes of `Deferred.fromCoroutine`."""

        async def act(waited: list[Deferred[int]]) -> list[object]:
            seen: list[object] = []
            for step in steps:
                try:
                    if step == "now":
                        seen.append(await (succeed(1) if len(seen) % 2 else fail(Wrong())))
                    else:
                        waited.append(Deferred())
                        seen.append(await waited[-1])
                except Wrong as error:
                    seen.append(type(error))
            return seen

        def result(deferred: Deferred[list[object]], waited: list[Deferred[int]]) -> list[object]:
            fired = 0
            for step in steps:
                if step != "now":
                    waiting = waited[fired]
                    fired += 1
                    if step == "value":
                        waiting.callback(fired)
                    else:
                        waiting.errback(Wrong())
            return self.successResultOf(deferred)

        ours: list[Deferred[int]] = []
        theirs: list[Deferred[int]] = []
        done, came = start(act(ours))
        expected = result(Deferred.fromCoroutine(act(theirs)), theirs)
        self.assertEqual(done, set(steps) <= {"now"})
        self.assertEqual(came if done else result(came, ours), expected)
