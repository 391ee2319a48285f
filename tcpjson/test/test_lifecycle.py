"""What an application does when the server and its clients come and go: the hooks of a router alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson.handlers import Router
from tcpjson.lifecycle import Lifecycle, StartFailed
from tcpjson.notices import Notices
from tcpjson.test.hypo import given

TIMEOUT = 30.0


class Wrong(Exception):
    """What a hook raises here."""


def notices(clock: Clock) -> Notices:
    """What tells the log of all that fails; the first at once."""
    return Notices(clock, Logger("tcpjson.lifecycle"))


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.router = Router()
        self.notices = notices(self.clock)
        #: What happened, in order.
        self.seen: list[Any] = []
        self.events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_namespace") == "tcpjson.lifecycle":
                self.events.append(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def lifecycle(self) -> Lifecycle:
        """Of the router as it is now."""
        return Lifecycle(self.clock, self.router, TIMEOUT, self.notices)

    def lines(self) -> list[str]:
        """What was logged since the last call."""
        lines = [formatEvent(event) for event in self.events]
        self.events.clear()
        return lines

    def note(self, what: str) -> Callable[[Any], None]:
        """A hook that notes its call."""

        def hook(subject: Any) -> None:
            self.seen.append((what, subject))

        return hook

    def waits(self, what: str, waiting: Deferred[Any]) -> Callable[[Any], Any]:
        """A hook that notes its call, and that it is done with what it waits for."""

        async def hook(subject: Any) -> None:
            self.seen.append((what, subject))
            try:
                self.seen.append((what, await waiting))
            except CancelledError:
                self.seen.append((what, "cancelled"))
                raise

        return hook

    def stubborn(self, what: str) -> Callable[[Any], Any]:
        """A hook that is never done, and notes each time that it is cancelled."""

        async def hook(subject: Any) -> None:
            while True:
                try:
                    await Deferred()
                except CancelledError:
                    self.seen.append((what, "cancelled"))

        return hook


class StartTests(Case):
    def test_in_order(self) -> None:
        for what in ("first", "second"):
            self.router.on_start(self.note(what))
        server: Any = object()
        self.lifecycle().start(server)
        self.assertEqual(self.seen, [("first", server), ("second", server)])

    def test_one_that_fails(self) -> None:
        """The server does not start, those behind it are not called, and the author learns where it was."""

        @self.router.on_start
        def fails(server: Any) -> None:
            raise Wrong("no such file")

        self.router.on_start(self.note("second"))
        self.router.on_stop(self.note("stop"))
        lifecycle = self.lifecycle()
        server: Any = object()
        error = self.assertRaises(StartFailed, lifecycle.start, server)
        self.assertEqual(str(error), f"on_start: {__name__}.{fails.__qualname__}: Wrong: no such file")
        self.assertEqual(self.lines(), ["on_start failed"])
        self.assertEqual(len(self.flushLoggedErrors(Wrong)), 1)
        lifecycle.stop(server)
        self.assertEqual(self.seen, [])

    def test_after_a_failure(self) -> None:
        """It can be tried again."""
        faults = [Wrong()]

        @self.router.on_start
        def fails_once(server: Any) -> None:
            if faults:
                raise faults.pop()

        self.router.on_stop(self.note("stop"))
        lifecycle = self.lifecycle()
        server: Any = object()
        self.assertRaises(StartFailed, lifecycle.start, server)
        self.flushLoggedErrors(Wrong)
        lifecycle.start(server)
        lifecycle.stop(server)
        self.assertEqual(self.seen, [("stop", server)])


class ConnectTests(Case):
    """`connected`."""

    def test_whether_anybody_watches(self) -> None:
        self.router.on_start(self.note("start"))
        self.router.on_stop(self.note("stop"))
        self.assertFalse(self.lifecycle().watches_clients)
        for moment in ("on_connect", "on_disconnect"):
            router = Router()
            getattr(router, moment)(self.note(moment))
            lifecycle = Lifecycle(self.clock, router, TIMEOUT, self.notices)
            self.assertTrue(lifecycle.watches_clients, moment)

    def test_one_after_the_other(self) -> None:
        waiting: Deferred[Any] = Deferred()
        self.router.on_connect(self.note("first"))
        self.router.on_connect(lambda session: succeed(None))
        self.router.on_connect(self.waits("second", waiting))
        self.router.on_connect(self.note("third"))
        session: Any = object()
        done = self.lifecycle().connected(session)
        self.assertEqual(self.seen, [("first", session), ("second", session)])
        self.assertNoResult(done)
        waiting.callback("came")
        self.assertEqual(self.seen[2:], [("second", "came"), ("third", session)])
        self.assertIsNone(self.successResultOf(done))

    def test_what_else_they_return(self) -> None:
        """It is nobody's."""
        self.router.on_connect(lambda session: 7)
        session: Any = object()
        self.assertIsNone(self.successResultOf(self.lifecycle().connected(session)))

    def test_one_that_fails(self) -> None:
        """Those behind it are not called: the client is refused."""

        @self.router.on_connect
        def fails(session: Any) -> None:
            raise Wrong

        self.router.on_connect(self.note("second"))
        session: Any = object()
        self.failureResultOf(self.lifecycle().connected(session), Wrong)
        self.assertEqual(self.seen, [])

    def test_cancelled(self) -> None:
        self.router.on_connect(self.waits("first", Deferred()))
        self.router.on_connect(self.note("second"))
        session: Any = object()
        done = self.lifecycle().connected(session)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertEqual(self.seen, [("first", session), ("first", "cancelled")])


class DisconnectTests(Case):
    """`disconnected`, `settled`, `cancel`."""

    def setUp(self) -> None:
        super().setUp()
        self.session: Any = object()

    def settled(self, lifecycle: Lifecycle) -> bool:
        """Whether all is done."""
        results: list[None] = []
        lifecycle.settled().addCallback(results.append)
        return results == [None]

    def test_nothing_to_do(self) -> None:
        lifecycle = self.lifecycle()
        lifecycle.disconnected(self.session)
        self.assertTrue(self.settled(lifecycle))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_all_are_called_whatever_comes_of_each(self) -> None:
        @self.router.on_disconnect
        def fails(session: Any) -> None:
            raise Wrong

        waiting: Deferred[Any] = Deferred()
        self.router.on_disconnect(self.note("second"))
        self.router.on_disconnect(self.waits("third", waiting))
        self.router.on_disconnect(self.note("fourth"))
        self.lifecycle().disconnected(self.session)
        self.assertEqual([what for what, _ in self.seen], ["second", "third", "fourth"])
        self.assertEqual(self.lines(), ["on_disconnect failed"])
        self.assertEqual(len(self.flushLoggedErrors(Wrong)), 1)

    def test_settled(self) -> None:
        """Whoever waits is told when the last is done, and as often as it asks."""
        first: Deferred[Any] = Deferred()
        second: Deferred[Any] = Deferred()
        waits = [first, second]
        self.router.on_disconnect(lambda session: waits.pop(0))
        lifecycle = self.lifecycle()
        lifecycle.disconnected(self.session)
        lifecycle.disconnected(self.session)
        settled = [lifecycle.settled(), lifecycle.settled()]
        second.callback(None)
        for each in settled:
            self.assertNoResult(each)
        first.callback(None)
        for each in settled:
            self.assertIsNone(self.successResultOf(each))
        self.assertTrue(self.settled(lifecycle))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_whoever_asks_is_told_of_each(self) -> None:
        """Once, when all that is to be done for that client is done, or waited for no more."""
        for end in ("done", "too long"):
            self.router = Router()
            waiting: list[Deferred[Any]] = [Deferred(), Deferred()]
            left = list(waiting)
            for _ in range(2):
                self.router.on_disconnect(lambda session, left=left: left.pop(0))
            lifecycle = self.lifecycle()
            told: list[str] = []
            lifecycle.disconnected(self.session, partial(told.append, "told"))
            waiting[0].callback(None)
            self.assertEqual(told, [])
            if end == "done":
                waiting[1].callback(None)
            else:
                self.clock.advance(TIMEOUT + 0.2)
            self.assertEqual(told, ["told"])
        self.router = Router()
        self.router.on_disconnect(self.note("at once"))
        lifecycle = self.lifecycle()
        lifecycle.disconnected(self.session, lambda: self.seen.append("told"))
        self.assertEqual(self.seen, [("at once", self.session), "told"])

    def test_one_that_takes_too_long(self) -> None:
        self.router.on_disconnect(self.waits("leave", Deferred()))
        lifecycle = self.lifecycle()
        lifecycle.disconnected(self.session)
        self.clock.advance(TIMEOUT - 0.01)
        self.assertFalse(self.settled(lifecycle))
        self.assertEqual(len(self.seen), 1)
        self.clock.advance(0.02)
        self.assertTrue(self.settled(lifecycle))
        self.assertEqual(self.seen[1:], [("leave", "cancelled")])
        self.assertEqual(self.lines(), ["on_disconnect was not done in time"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_each_has_its_own_time(self) -> None:
        waits: list[Deferred[Any]] = [Deferred(), Deferred()]
        self.router.on_disconnect(lambda session: waits.pop(0))
        lifecycle = self.lifecycle()
        lifecycle.disconnected(self.session)
        self.clock.advance(TIMEOUT / 2)
        lifecycle.disconnected(self.session)
        self.clock.advance(TIMEOUT / 2 + 0.2)
        self.assertEqual(self.lines(), ["on_disconnect was not done in time"])
        self.assertFalse(self.settled(lifecycle))
        self.clock.advance(TIMEOUT / 2)
        self.assertTrue(self.settled(lifecycle))
        # A minute after the first.
        self.assertEqual(self.lines(), [])
        self.clock.advance(60)
        self.assertEqual(self.lines(), ["on_disconnect was not done in time"])

    def test_a_late_one_is_no_other_hook(self) -> None:
        """Those of each moment are told apart, in time or not."""
        self.router.on_disconnect(self.waits("leave", Deferred()))
        self.router.on_stop(self.waits("stop", Deferred()))
        lifecycle = self.lifecycle()
        server: Any = object()
        lifecycle.start(server)
        lifecycle.disconnected(self.session)
        lifecycle.stop(server)
        self.clock.advance(TIMEOUT + 0.2)
        self.clock.advance(TIMEOUT + 0.2)
        self.assertEqual(self.lines(), ["on_disconnect was not done in time", "on_stop was not done in time"])
        self.assertTrue(self.settled(lifecycle))

    def test_those_that_fail_again_and_again(self) -> None:
        """The first is told at once; of the others the number, and one traceback."""
        waits: list[Deferred[Any]] = []

        @self.router.on_disconnect
        def leave(session: Any) -> Any:
            waits.append(Deferred())
            return waits[-1]

        lifecycle = self.lifecycle()
        for _ in range(5):
            lifecycle.disconnected(self.session)
        for deferred in waits:
            deferred.errback(Wrong())
        self.assertEqual(self.lines(), ["on_disconnect failed"])
        self.notices.stop()
        self.assertEqual(self.lines(), ["on_disconnect failed (and 3 more in 0 s)"])
        self.assertEqual(len(self.flushLoggedErrors(Wrong)), 1)

    def test_one_that_does_not_let_itself_be_cancelled(self) -> None:
        """Nothing waits for it any longer, and it is cancelled once."""
        self.router.on_disconnect(self.stubborn("leave"))
        lifecycle = self.lifecycle()
        lifecycle.disconnected(self.session)
        settled = lifecycle.settled()
        self.clock.advance(TIMEOUT + 0.2)
        self.assertIsNone(self.successResultOf(settled))
        self.assertEqual(self.seen, [("leave", "cancelled")])
        self.clock.advance(10 * TIMEOUT)
        self.assertEqual(self.seen, [("leave", "cancelled")])
        self.assertEqual(self.lines(), ["on_disconnect was not done in time"])

    def test_one_whose_canceller_fails(self) -> None:
        def canceller(deferred: object) -> None:
            raise Wrong

        waits: list[Deferred[Any]] = [Deferred(canceller), Deferred()]
        self.router.on_disconnect(lambda session: waits.pop(0))
        lifecycle = self.lifecycle()
        lifecycle.disconnected(self.session)
        lifecycle.disconnected(self.session)
        lifecycle.cancel()
        self.assertTrue(self.settled(lifecycle))
        self.flushLoggedErrors(Wrong)

    def test_a_failure_that_comes_too_late(self) -> None:
        """It is told all the same, and what came in time by then, not."""

        @self.router.on_disconnect
        async def fails(session: Any) -> None:
            try:
                await Deferred()
            except CancelledError:
                raise Wrong from None

        lifecycle = self.lifecycle()
        lifecycle.disconnected(self.session)
        self.clock.advance(TIMEOUT + 0.2)
        self.assertEqual(self.lines(), ["on_disconnect was not done in time", "on_disconnect failed"])
        self.assertEqual(len(self.flushLoggedErrors(Wrong)), 1)

    def test_one_that_cancels_itself(self) -> None:
        """That is a failure of its own, and not the time that was up."""

        @self.router.on_disconnect
        def fails(session: Any) -> None:
            raise CancelledError

        self.lifecycle().disconnected(self.session)
        self.assertEqual(self.lines(), ["on_disconnect failed"])
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)

    def test_cancel(self) -> None:
        """All that is not done, and nothing waits for what comes to it."""
        self.router.on_disconnect(self.waits("polite", Deferred()))
        self.router.on_disconnect(self.stubborn("stubborn"))
        lifecycle = self.lifecycle()
        lifecycle.disconnected(self.session)
        settled = lifecycle.settled()
        lifecycle.cancel()
        self.assertIsNone(self.successResultOf(settled))
        self.assertEqual(
            set(self.seen), {("polite", self.session), ("polite", "cancelled"), ("stubborn", "cancelled")}
        )
        self.notices.stop()
        self.assertEqual(self.lines(), ["on_disconnect was not done in time"] * 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_begins_after_cancel(self) -> None:
        """The clients that are still to go then are waited for no longer than those that went before."""
        self.router.on_disconnect(self.waits("leave", Deferred()))
        lifecycle = self.lifecycle()
        lifecycle.cancel()
        lifecycle.disconnected(self.session)
        self.assertEqual(self.seen[0], ("leave", self.session))
        self.assertTrue(self.settled(lifecycle))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled_as_another_is_done(self) -> None:
        """What one does when it is cancelled may end the others."""
        waiting: Deferred[Any] = Deferred()

        async def ends_it(session: Any) -> None:
            try:
                await Deferred()
            finally:
                waiting.callback("ended")

        self.router.on_disconnect(ends_it)
        self.router.on_disconnect(self.waits("second", waiting))
        lifecycle = self.lifecycle()
        lifecycle.disconnected(self.session)
        lifecycle.cancel()
        self.assertTrue(self.settled(lifecycle))


class StopTests(Case):
    """`stop`."""

    def test_once_after_each_start(self) -> None:
        self.router.on_stop(self.note("stop"))
        lifecycle = self.lifecycle()
        server: Any = object()
        lifecycle.stop(server)
        self.assertEqual(self.seen, [])
        for count in (1, 2):
            lifecycle.start(server)
            lifecycle.stop(server)
            lifecycle.stop(server)
            self.assertEqual(self.seen, [("stop", server)] * count)

    def test_behind_all_that_clients_leave(self) -> None:
        """What it closes, they may need."""
        waiting: Deferred[Any] = Deferred()
        self.router.on_disconnect(self.waits("leave", waiting))
        self.router.on_stop(self.waits("stop", succeed("stopped")))
        lifecycle = self.lifecycle()
        server: Any = object()
        session: Any = object()
        lifecycle.start(server)
        lifecycle.disconnected(session)
        lifecycle.stop(server)
        settled = lifecycle.settled()
        self.assertEqual(self.seen, [("leave", session)])
        self.assertNoResult(settled)
        waiting.callback("left")
        self.assertEqual(self.seen[1:], [("leave", "left"), ("stop", server), ("stop", "stopped")])
        self.assertIsNone(self.successResultOf(settled))

    def test_behind_one_that_takes_too_long(self) -> None:
        self.router.on_disconnect(self.stubborn("leave"))
        self.router.on_stop(self.note("stop"))
        lifecycle = self.lifecycle()
        server: Any = object()
        session: Any = object()
        lifecycle.start(server)
        lifecycle.disconnected(session)
        lifecycle.stop(server)
        settled = lifecycle.settled()
        self.clock.advance(TIMEOUT + 0.2)
        self.assertEqual(self.seen[-1], ("stop", server))
        self.assertIsNone(self.successResultOf(settled))

    def test_it_is_waited_for(self) -> None:
        waiting: Deferred[Any] = Deferred()
        self.router.on_stop(self.waits("stop", waiting))
        lifecycle = self.lifecycle()
        server: Any = object()
        lifecycle.start(server)
        lifecycle.stop(server)
        settled = lifecycle.settled()
        self.assertNoResult(settled)
        waiting.callback(None)
        self.assertIsNone(self.successResultOf(settled))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_fails(self) -> None:
        @self.router.on_stop
        async def fails(server: Any) -> None:
            raise Wrong

        self.router.on_stop(self.note("second"))
        lifecycle = self.lifecycle()
        server: Any = object()
        lifecycle.start(server)
        lifecycle.stop(server)
        self.assertEqual(self.seen, [("second", server)])
        self.assertEqual(self.lines(), ["on_stop failed"])
        self.assertEqual(len(self.flushLoggedErrors(Wrong)), 1)


class ModelTests(Case):
    @given(st.lists(st.tuples(st.sampled_from(["leave", "done", "fail", "wait"]), st.integers(0, 7))))
    def test_settled_means_that_nothing_is_unfinished(self, steps: list[tuple[str, int]]) -> None:
        """Whatever comes, in whatever order; and no timer stays."""
        clock = Clock()
        router = Router()
        open_ones: dict[Deferred[Any], float] = {}

        @router.on_disconnect
        def leave(session: Any) -> Any:
            deferred: Deferred[Any] = Deferred(open_ones.__delitem__)
            open_ones[deferred] = clock.seconds()
            return deferred

        said = notices(clock)
        lifecycle = Lifecycle(clock, router, TIMEOUT, said)
        session: Any = object()
        for step, number in steps:
            chosen = list(open_ones)[number % len(open_ones)] if open_ones else None
            if step == "leave":
                lifecycle.disconnected(session)
            elif step == "wait":
                clock.advance(number * TIMEOUT / 5)
            elif chosen is not None:
                del open_ones[chosen]
                if step == "done":
                    chosen.callback(number)
                else:
                    chosen.errback(Wrong())
            results: list[None] = []
            lifecycle.settled().addCallback(results.append)
            self.assertEqual(bool(results), not open_ones)
            for began in open_ones.values():
                self.assertLess(clock.seconds(), began + TIMEOUT + 0.11)
            if not open_ones:
                said.stop()
                self.assertEqual(clock.getDelayedCalls(), [])
        lifecycle.cancel()
        said.stop()
        self.assertEqual((open_ones, clock.getDelayedCalls()), ({}, []))
        self.flushLoggedErrors(Wrong)
