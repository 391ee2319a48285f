"""A connection that is kept: connecting, losing, waiting, closing, in any order and from within callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Raw
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.error import ConnectingCancelledError, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson.client.awaitable import Client
from tcpjson.core.errors import (
    AuthenticationFailed,
    ClientError,
    Disconnected,
    GoingAway,
    ProtocolMismatch,
    QueueFull,
    RequestTimeout,
    ServerFull,
    TooLarge,
)
from tcpjson.core.handshake import Json
from tcpjson.core.limits import CLOSE_TIMEOUT
from tcpjson.test.test_client_protocol import (
    ADDRESS,
    AGREED,
    CLASSIC,
    WELCOME,
    Elsewhere,
    Line,
    Proofs,
    admitted,
    challenge,
)

GOING_AWAY: Json = {"type": "error", "code": "going_away", "fatal": False, "retry_after": 5}
ASKS: Json = {**WELCOME, "auth": ["sum"]}


@implementer(IStreamClientEndpoint)
class Net:
    """What a client connects through: each attempt waits until the test accepts or refuses it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.attempts: list[tuple[IProtocolFactory, Deferred[Any]]] = []
        self.lines: list[Line] = []

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        def cancel(deferred: Deferred[Any]) -> None:
            self.attempts[:] = [attempt for attempt in self.attempts if attempt[1] is not deferred]
            deferred.errback(ConnectingCancelledError(ADDRESS))

        attempt: Deferred[Any] = Deferred(cancel)
        self.attempts.append((protocolFactory, attempt))
        return attempt

    def accept(self) -> Line:
        """The server takes the connection, and says nothing yet."""
        ((factory, attempt),) = self.attempts
        self.attempts.clear()
        protocol = factory.buildProtocol(ADDRESS)
        line = Line(self.clock, protocol)
        self.lines.append(line)
        attempt.callback(protocol)
        return line

    def serve(self, welcome: Json = WELCOME) -> Line:
        """It takes the connection, and serves."""
        line = self.accept()
        line.say(welcome)
        line.heard()
        return line

    def refuse(self) -> None:
        """Nobody answers."""
        ((_, attempt),) = self.attempts
        self.attempts.clear()
        attempt.errback(ConnectionRefusedError(string="Connection refused"))


class Once:
    """Calls a function once, whatever it is called with."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._functions = [function]

    def __call__(self, *what: object) -> None:
        if self._functions:
            self._functions.pop()()


def then(*functions: Callable[[], object]) -> Callable[..., None]:
    """Calls these, whatever it is called with."""

    def callback(*what: object) -> None:
        for function in functions:
            function()

    return callback


def trap(*errors: type[Exception]) -> Callable[[Failure], None]:
    """Takes a failure of these kinds."""

    def errback(failure: Failure) -> None:
        failure.trap(*errors)

    return errback


class ClientTestCase(SynchronousTestCase):
    """With a client, and a server that the test plays."""

    def setUp(self) -> None:
        self.make()

    def make(self, **options: Any) -> None:
        """A client that is not started."""
        self.clock = Clock()
        self.net = Net(self.clock)
        #: What the callbacks were called with: their names, and what.
        self.events: list[tuple[Any, ...]] = []
        chosen: dict[str, Any] = {
            "random": lambda: 1.0,
            "wall": lambda: 1704110400.0,
            "run": maybeDeferred,
            **{
                name: self.listener(name)
                for name in ("on_message", "on_connect", "on_disconnect", "on_retry", "on_failure")
            },
        }
        self.client = Client(self.clock, self.net, **{**chosen, **options})

    def listener(self, name: str) -> Callable[..., None]:
        return lambda *what: self.events.append((name, *what))

    def serve(self, welcome: Json = WELCOME, **options: Any) -> Line:
        """A client that is served."""
        self.make(**options)
        self.client.start()
        return self.net.serve(welcome)

    def names(self) -> list[str]:
        return [event[0] for event in self.events]

    def end(self) -> None:
        """Close, and see that nothing is left."""
        closed = self.client.close()
        self.clock.advance(0)
        self.successResultOf(closed)
        self.assert_idle()

    def assert_idle(self) -> None:
        """Nothing waits, nothing is under way, nothing will happen."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.net.attempts, [])
        self.assertEqual(self.client.waiting, 0)
        self.assertFalse(self.client.connected)
        self.assertFalse(self.client.running)
        self.assertTrue(all(line.gone for line in self.net.lines))


class ConnectingTests(ClientTestCase):
    """`start`, and what follows from failures."""

    def test_it_connects(self) -> None:
        self.assertFalse(self.client.running)
        self.client.start()
        self.assertTrue(self.client.running)
        self.assertFalse(self.client.connected)
        self.net.accept().say(WELCOME)
        self.assertTrue(self.client.connected)
        self.assertIsNone(self.client.error)
        self.assertIsNone(self.client.compression)
        self.net.lines[0].say(AGREED)
        self.assertEqual(self.client.compression, "zlib")
        self.assertEqual(self.events, [("on_connect", WELCOME)])
        assert self.client.server is not None
        self.assertEqual(self.client.server.server, "scripted/1")
        self.end()
        self.assertIsNone(self.client.compression)

    def test_nowhere_to_connect_to(self) -> None:
        clock = Clock()
        error = Client(clock).connect(timeout=3)
        clock.advance(3)
        why = "no connection within 3 seconds: give the client a place, or connect its factory"
        self.assertEqual(str(self.failureResultOf(error, Disconnected).value), why)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_started_twice(self) -> None:
        self.client.start()
        self.client.start()
        self.net.serve()
        self.client.start()
        self.assertEqual(self.net.attempts, [])
        self.end()

    def test_nobody_answers(self) -> None:
        """It tries again after the time it says, and that grows."""
        self.client.start()
        for seconds in (0.5, 1.0, 2.0):
            self.net.refuse()
            name, error, told = self.events.pop()
            self.assertEqual((name, told), ("on_retry", seconds))
            self.assertIsInstance(error, Disconnected)
            self.assertEqual(str(error), "Connection refused")
            self.assertIs(self.client.error, error)
            self.clock.advance(seconds - 0.01)
            self.assertEqual(self.net.attempts, [])
            self.clock.advance(0.01)
        self.net.serve().lose()
        # It was served: the time begins anew.
        self.assertEqual(self.events[-1][2], 0.5)
        self.end()

    def test_what_is_no_welcome_does_not_begin_the_time_anew(self) -> None:
        self.client.start()
        for seconds in (0.5, 1.0):
            self.net.accept().lose()
            self.assertEqual(self.events[-1][2], seconds)
            self.clock.advance(seconds)
        self.end()

    def test_as_the_server_says(self) -> None:
        self.client.start()
        self.net.accept().say({"type": "error", "code": "server_full", "fatal": True, "retry_after": 42})
        self.clock.advance(0)
        ((name, error, seconds),) = self.events
        self.assertEqual((name, seconds), ("on_retry", 42))
        self.assertIsInstance(error, ServerFull)
        self.end()

    def test_retries_are_used_up(self) -> None:
        self.make(retries=2)
        self.client.start()
        for _ in range(2):
            self.net.refuse()
            self.clock.advance(60)
        self.net.refuse()
        self.assertEqual(self.names(), ["on_retry", "on_retry", "on_failure"])
        self.assertIs(self.client.error, self.events[-1][1])
        self.assert_idle()
        # It can be started once more, with as many.
        self.client.start()
        self.net.refuse()
        self.assertEqual(self.names()[3:], ["on_retry"])
        self.end()

    def test_what_no_retry_heals(self) -> None:
        for hello, kind in (
            ({"type": "hello"}, ProtocolMismatch),
            (ASKS, AuthenticationFailed),
            ({"type": "error", "code": "auth_failed"}, AuthenticationFailed),
        ):
            self.make()
            self.client.start()
            self.net.accept().say(hello)
            self.clock.advance(0)
            ((name, error),) = self.events
            self.assertEqual(name, "on_failure")
            self.assertIs(type(error), kind)
            self.assert_idle()
            # Whoever asks then is told why, with an exception of the own.
            asked = [self.client.ping(), self.client.ping()]
            raised = [self.failureResultOf(one, kind).value for one in asked]
            self.assertEqual(len({id(one) for one in [error, *raised]}), 3)
            self.assertEqual({str(one) for one in raised}, {str(error)})
            with self.assertRaises(kind):
                self.client.send("text")

    def test_who_it_is(self) -> None:
        self.make(credentials=Proofs())
        self.client.start()
        line = self.net.accept()
        line.say(ASKS, challenge())
        self.assertFalse(self.client.connected)
        line.say(admitted())
        self.assertTrue(self.client.connected)
        self.assertEqual(self.client.user, "eve")
        self.end()

    def test_lost_in_the_midst_of_a_login(self) -> None:
        """What is under way elsewhere is forgotten, and it tries again."""
        self.make(credentials=Proofs(), run=Elsewhere())
        self.client.start()
        line = self.net.accept()
        line.say(ASKS, challenge())
        self.clock.advance(0)
        line.lose(ConnectionLost())
        self.assertEqual(self.names(), ["on_retry"])
        self.assertTrue(self.client.running)
        self.end()

    def test_an_endpoint_that_breaks(self) -> None:
        """As one of an application may: it is as if nobody answered."""
        for connect in (lambda factory: fail(ValueError("no such host")), lambda factory: 1 // 0):
            self.make()
            self.patch(self.net, "connect", connect)
            connecting = self.client.connect(timeout=5)
            self.assertNoResult(connecting)
            self.clock.pump([0.5] * 12)
            self.failureResultOf(connecting, Disconnected)
            self.assert_idle()


class ConnectTests(ClientTestCase):
    """`connect`: until it is served, or stops."""

    def test_the_welcome(self) -> None:
        connecting = self.client.connect()
        self.net.serve()
        self.assertEqual(self.successResultOf(connecting), WELCOME)
        self.assertEqual(self.successResultOf(self.client.connect()), WELCOME)
        self.assertEqual(self.names(), ["on_connect"])
        self.end()

    def test_twice_at_once(self) -> None:
        both = [self.client.connect(), self.client.connect(timeout=None)]
        self.net.serve()
        for connecting in both:
            self.assertEqual(self.successResultOf(connecting), WELCOME)
        self.end()

    def test_it_takes_too_long(self) -> None:
        """With the last reason, and it stops."""
        connecting = self.client.connect(timeout=3)
        self.net.refuse()
        self.clock.advance(0.5)
        self.clock.advance(2.4)
        self.assertNoResult(connecting)
        self.clock.advance(0.1)
        error = self.failureResultOf(connecting, Disconnected).value
        self.assertEqual(str(error), "no connection within 3 seconds: Connection refused")
        self.assert_idle()

    def test_it_takes_too_long_without_a_reason(self) -> None:
        connecting = self.client.connect(timeout=3)
        line = self.net.accept()
        self.clock.advance(3)
        self.clock.advance(0)
        error = self.failureResultOf(connecting, Disconnected).value
        self.assertEqual(str(error), "no connection within 3 seconds")
        self.assertTrue(line.gone)
        self.assert_idle()

    def test_one_waits_longer(self) -> None:
        """The other's end does not stop it."""
        short, long = self.client.connect(timeout=1), self.client.connect(timeout=5)
        self.clock.advance(1)
        self.failureResultOf(short, Disconnected)
        self.assertTrue(self.client.running)
        self.net.serve()
        self.successResultOf(long)
        self.end()

    def test_cancelled(self) -> None:
        """The last one who waits stops it."""
        one, two = self.client.connect(), self.client.connect()
        one.cancel()
        self.failureResultOf(one, CancelledError)
        self.assertEqual(len(self.net.attempts), 1)
        two.cancel()
        self.failureResultOf(two, CancelledError)
        self.assert_idle()

    def test_cancelled_at_any_moment(self) -> None:
        moments: list[Callable[[], object]] = [
            lambda: None,
            lambda: self.net.refuse(),
            lambda: self.net.accept(),
            lambda: self.net.accept().say(GOING_AWAY),
        ]
        for moment in moments:
            self.make()
            connecting = self.client.connect()
            moment()
            connecting.cancel()
            self.failureResultOf(connecting, CancelledError)
            self.clock.advance(0)
            self.assert_idle()

    def test_cancelled_when_it_is_served(self) -> None:
        """That is nothing: it has come."""
        connecting = self.client.connect()
        self.net.serve()
        connecting.cancel()
        self.successResultOf(connecting)
        self.assertTrue(self.client.connected)
        self.end()

    def test_retries_are_used_up(self) -> None:
        self.make(retries=0)
        connecting = self.client.connect()
        self.net.refuse()
        error = self.failureResultOf(connecting, Disconnected).value
        self.assertEqual(str(error), "Connection refused")
        self.assertIsInstance(error.__cause__, ConnectionRefusedError)
        self.assertEqual(self.names(), ["on_failure"])
        self.assert_idle()

    def test_what_no_retry_heals(self) -> None:
        both = [self.client.connect(), self.client.connect()]
        self.net.accept().say(ASKS)
        self.clock.advance(0)
        errors = [self.failureResultOf(one, AuthenticationFailed).value for one in both]
        self.assertIsNot(*errors)
        self.assert_idle()

    def test_the_server_had_no_room(self) -> None:
        """All that it said is known to whoever waited, and who asks then."""
        self.make(retries=0)
        connecting = self.client.connect()
        self.net.accept().say({"type": "error", "code": "server_full", "retry_after": 42})
        self.clock.advance(0)
        for told in (connecting, self.client.ping()):
            error = self.failureResultOf(told, ServerFull).value
            self.assertEqual((error.code, error.retry_after), ("server_full", 42))

    def test_no_time_to_wait(self) -> None:
        self.failureResultOf(self.client.connect(timeout=-1), ValueError)
        self.failureResultOf(self.client.connect(timeout="1"), TypeError)  # type: ignore[arg-type]  # on purpose
        self.assert_idle()

    def test_one_begins_anew(self) -> None:
        """It is not told of the connection that it has closed."""
        again: list[Deferred[Json]] = []
        one = self.client.connect()
        one.addCallback(then(self.client.close, lambda: again.append(self.client.connect())))
        self.net.serve()
        self.clock.advance(0)
        self.assertNoResult(again[0])
        self.clock.advance(0.5)
        self.net.serve()
        self.successResultOf(again[0])
        self.end()

    def test_closed_meanwhile(self) -> None:
        connecting = self.client.connect()
        self.client.close()
        self.failureResultOf(connecting, Disconnected)
        self.assert_idle()

    def test_one_cancels_another(self) -> None:
        """When both succeed, and when both fail."""
        for served in (True, False):
            self.make(retries=0)
            one, two = self.client.connect(), self.client.connect()

            def cancel(result: object, two: Deferred[Json] = two) -> object:
                two.cancel()
                return result

            one.addBoth(cancel)
            if served:
                self.net.serve()
                self.successResultOf(one)
            else:
                self.net.refuse()
                self.failureResultOf(one, Disconnected)
            two.addErrback(trap(CancelledError, Disconnected))
            self.assertTrue(two.called)
            self.assertEqual(self.flushLoggedErrors(), [])
            self.client.close()
            self.clock.advance(0)
            self.assert_idle()

    def test_closed_by_one_who_waited(self) -> None:
        """The other is told so, or has been served."""
        one, two = self.client.connect(), self.client.connect()
        one.addCallback(then(self.client.close))
        self.net.serve()
        self.clock.advance(0)
        self.successResultOf(one)
        self.assertTrue(two.called)
        two.addErrback(trap(Disconnected))
        self.assert_idle()

    def test_as_a_context(self) -> None:
        async def visit() -> float:
            async with self.client as client:
                self.assertIs(client, self.client)
                return await client.ping()

        result = Deferred.fromCoroutine(visit())
        line = self.net.serve()
        (ping,) = line.heard() or [{"id": -3}]
        line.say({"type": "pong", "id": ping["id"]})
        self.clock.advance(0)
        self.successResultOf(result)
        self.assert_idle()


class ClosingTests(ClientTestCase):
    """`close`, at each moment, and again."""

    def moments(self) -> dict[str, Callable[[], object]]:
        """What brings a client that is started to each of its moments."""

        def fail_for_ever() -> None:
            self.net.accept().say({"type": "hello"})
            self.clock.advance(0)

        def close_slowly() -> None:
            line = self.net.serve()
            line.stalls = True
            self.client.close()

        return {
            "connecting": lambda: None,
            "handshaking": lambda: self.net.accept(),
            "logging in": lambda: self.net.accept().say(ASKS, challenge()),
            "waiting to retry": lambda: self.net.refuse(),
            "served": lambda: self.net.serve(),
            "waiting for replies": then(self.net.serve, self.ask),
            "left alone": lambda: self.net.serve().say(GOING_AWAY),
            "lost": lambda: self.net.serve().lose(),
            "failing": lambda: self.net.accept().say({"type": "hello"}),
            "failed": fail_for_ever,
            "closing": close_slowly,
            "closed": lambda: self.client.close(),
        }

    def ask(self) -> None:
        self.asked.append(self.client.ping())

    def assert_told(self) -> None:
        """Who waited knows that it was for nothing."""
        for asked in self.asked:
            self.failureResultOf(asked, Disconnected)

    def bring(self, moment: str) -> None:
        """A client, at a moment."""
        self.asked: list[Deferred[float]] = []
        self.make(credentials=Proofs(), run=Elsewhere())
        self.client.start()
        self.moments()[moment]()

    def test_at_each_moment(self) -> None:
        for moment in self.moments():
            self.bring(moment)
            closed = self.client.close()
            self.assertFalse(self.client.connected, moment)
            self.clock.advance(0)
            self.clock.advance(CLOSE_TIMEOUT)
            self.successResultOf(closed)
            self.assert_idle()
            self.assert_told()
            self.failureResultOf(self.client.ping(), ClientError)
            self.clock.advance(100)
            self.assert_idle()

    def test_twice_at_each_moment(self) -> None:
        for moment in self.moments():
            self.bring(moment)
            both = [self.client.close(), self.client.close()]
            self.clock.advance(0)
            self.clock.advance(CLOSE_TIMEOUT)
            for closed in both:
                self.successResultOf(closed)
            self.assert_idle()
            self.assert_told()

    def test_and_started_again(self) -> None:
        """At once, or when it is closed: it connects, and is served."""
        for moment in self.moments():
            for waits in (False, True):
                self.bring(moment)
                closed = self.client.close()
                if waits:
                    self.clock.advance(0)
                    self.clock.advance(CLOSE_TIMEOUT)
                    self.successResultOf(closed)
                connecting = self.client.connect()
                # A connection that was still closing leads to the next one by itself.
                self.clock.advance(0)
                self.clock.advance(CLOSE_TIMEOUT)
                self.clock.advance(1)
                self.successResultOf(closed)
                self.net.serve()
                self.assertEqual(self.successResultOf(connecting), WELCOME)
                self.assertTrue(self.client.connected, moment)
                self.assert_told()
                ping = self.client.ping()
                (sent,) = self.net.lines[-1].heard()
                self.net.lines[-1].say({"type": "pong", "id": sent["id"]})
                self.successResultOf(ping)
                self.end()

    def test_started_again_by_who_is_told(self) -> None:
        """By whatever tells that it is closed."""
        for way in ("close", "ping", "on_disconnect"):
            again = Once(lambda: self.client.start())
            options: dict[str, Any] = {way: again} if way.startswith("on_") else {}
            line = self.serve(**options)
            ping = self.client.ping()
            line.heard()
            if way == "ping":
                ping.addBoth(again)
            else:
                ping.addErrback(lambda failure: None)
            closed = self.client.close()
            if way == "close":
                closed.addBoth(again)
            self.clock.advance(0)
            self.clock.advance(1)
            self.assertTrue(self.client.running, way)
            self.net.serve()
            self.assertTrue(self.client.connected)
            self.end()

    def test_what_is_to_be_sent_is_sent(self) -> None:
        line = self.serve()
        self.client.send("last words")
        self.client.close()
        self.assertIn(b"last words", line.value())

    def test_it_takes_two_seconds_at_the_most(self) -> None:
        line = self.serve()
        line.stalls = True
        closed = self.client.close()
        self.clock.advance(CLOSE_TIMEOUT - 0.1)
        self.assertNoResult(closed)
        self.clock.advance(0.1)
        self.clock.advance(0)
        self.successResultOf(closed)
        self.assert_idle()

    def test_what_waits_is_told_at_once(self) -> None:
        line = self.serve()
        line.stalls = True
        ping = self.client.ping()
        self.client.close()
        self.assertEqual(str(self.failureResultOf(ping, Disconnected).value), "the client was closed")
        self.assertEqual(self.client.waiting, 0)

    def test_nothing_is_heard_any_more(self) -> None:
        """Neither in the midst of a read nor after."""
        messages: list[Json] = []

        def hear(message: Json) -> None:
            messages.append(message)
            self.client.close()

        line = self.serve(on_message=hear)
        line.stalls = True
        line.say({"type": "one"}, {"type": "two"})
        line.say({"type": "three"})
        self.assertEqual(messages, [{"type": "one"}])

    def test_in_a_callback_of_a_retry(self) -> None:
        self.make(on_retry=lambda error, seconds: self.client.close())
        self.client.start()
        self.net.refuse()
        self.assert_idle()

    def test_in_a_callback_of_a_connection(self) -> None:
        """Nobody is told that it is served who asks after it was closed."""
        self.make(on_connect=lambda welcome: self.client.close(), offline="queue")
        connecting = self.client.connect()
        queued = self.client.ping()
        self.net.serve()
        self.failureResultOf(connecting, Disconnected)
        self.failureResultOf(queued, Disconnected)
        self.clock.advance(0)
        self.assert_idle()

    def test_in_a_callback_of_a_failure(self) -> None:
        self.make(on_failure=lambda error: self.client.close(), retries=0)
        self.client.start()
        self.net.refuse()
        self.assert_idle()

    def test_a_new_start_keeps_its_timeouts(self) -> None:
        """Who is told of the end starts again, and asks anew: that is no part of what ended."""
        for ends in ("stop", "close"):
            self.make(offline="queue", retries=0)
            asked: list[Deferred[float]] = []

            def again(failure: object, asked: list[Deferred[float]] = asked) -> None:
                self.client.start()
                asked.append(self.client.ping(timeout=2))

            self.client.start()
            self.client.ping().addErrback(again)
            if ends == "stop":
                self.net.refuse()
            else:
                self.client.close()
            self.clock.advance(2)
            self.failureResultOf(asked[0], RequestTimeout)
            self.client.close()
            self.assert_idle()


class LossTests(ClientTestCase):
    """A connection is lost, with requests that wait."""

    def test_all_are_told_at_once(self) -> None:
        line = self.serve()
        asked = [self.client.ping() for _ in range(3)]
        line.lose(ConnectionLost())
        errors = [self.failureResultOf(one, Disconnected).value for one in asked]
        self.assertEqual(len(set(map(id, errors))), 3)
        self.assertEqual(self.names(), ["on_connect", "on_disconnect", "on_retry"])
        self.assertEqual({str(error) for error in [*errors, self.client.error]}, {str(self.events[1][1])})
        self.end()

    def test_one_that_was_not_served_is_no_loss(self) -> None:
        self.client.start()
        self.net.accept().lose()
        self.assertEqual(self.names(), ["on_retry"])
        self.end()

    def test_one_cancels_the_others(self) -> None:
        """Each ends once, and it connects again."""
        line = self.serve()
        asked = [self.client.ping() for _ in range(3)]
        asked[0].addErrback(then(asked[1].cancel, asked[2].cancel))
        line.lose()
        self.assertEqual(self.flushLoggedErrors(), [])
        for one in asked[1:]:
            self.failureResultOf(one, CancelledError)
        self.clock.advance(0.5)
        self.net.serve()
        self.assertTrue(self.client.connected)
        self.end()

    def test_no_timeout_comes_behind_it(self) -> None:
        line = self.serve()
        ping = self.client.ping(timeout=5)
        line.lose()
        self.failureResultOf(ping, Disconnected)
        self.clock.advance(6)
        self.end()

    def test_one_cancels_another_of_a_classic_server(self) -> None:
        """Nothing is to be sent on what is gone."""
        line = self.serve(CLASSIC)
        asked = [self.client.ping(), self.client.ping()]
        asked[0].addErrback(then(asked[1].cancel))
        line.lose()
        self.failureResultOf(asked[1], CancelledError)
        # The next attempt is all that is to come, besides the look at deadlines that are no more.
        self.assertEqual([call.getTime() for call in self.clock.getDelayedCalls()], [0.5, 30.0])
        self.end()

    def test_one_asks_again_with_a_timeout(self) -> None:
        line = self.serve(offline="queue")
        again: list[Deferred[float]] = []
        self.client.ping().addErrback(then(lambda: again.append(self.client.ping(timeout=2))))
        line.lose()
        self.clock.advance(2)
        self.failureResultOf(again[0], RequestTimeout)
        self.end()

    def test_one_asks_again(self) -> None:
        """Offline already, it waits or fails."""
        for offline in ("queue", "fail"):
            line = self.serve(offline=offline)
            again: list[Deferred[float]] = []

            def ask(failure: Failure, again: list[Deferred[float]] = again) -> None:
                again.append(self.client.ping())

            ping = self.client.ping()
            ping.addErrback(ask)
            line.lose()
            self.successResultOf(ping)
            self.assertEqual(self.client.waiting, offline == "queue")
            if offline == "fail":
                self.failureResultOf(again[0], Disconnected)
            else:
                self.clock.advance(0.5)
                line = self.net.accept()
                line.say(WELCOME)
                _, sent = line.heard()
                line.say({"type": "pong", "id": sent["id"]})
                self.successResultOf(again[0])
            self.end()

    def test_one_closes(self) -> None:
        line = self.serve()
        asked = [self.client.ping() for _ in range(2)]
        asked[0].addErrback(lambda failure: self.client.close())
        line.lose()
        self.failureResultOf(asked[1], Disconnected)
        self.assert_idle()

    def test_cancelled_after_it(self) -> None:
        line = self.serve()
        ping = self.client.ping()
        line.lose()
        ping.cancel()
        self.failureResultOf(ping, Disconnected)
        self.end()

    def test_a_reply_leads_to_others(self) -> None:
        """In the midst of a batch: asked anew, cancelled, and what is left is closed."""
        line = self.serve()
        asked = [self.client.ping() for _ in range(4)]
        keys = [message["id"] for message in line.heard()]
        asked[0].addCallback(lambda seconds: asked[2].cancel())
        new: list[Deferred[float]] = []
        asked[1].addCallback(lambda seconds: new.append(self.client.ping()))
        asked[3].addCallback(then(self.client.close))
        line.say(*({"type": "pong", "id": key} for key in keys))
        self.successResultOf(asked[1])
        self.failureResultOf(asked[2], CancelledError)
        self.successResultOf(asked[3])
        self.failureResultOf(new[0], Disconnected)
        self.clock.advance(0)
        self.assert_idle()

    def test_the_server_goes_away(self) -> None:
        """What it was asked before is answered; new requests fail or wait."""
        for offline in ("queue", "fail"):
            line = self.serve(offline=offline)
            ping = self.client.ping()
            (sent,) = line.heard()
            line.say(GOING_AWAY)
            self.assertFalse(self.client.connected)
            self.assertEqual(self.names(), ["on_connect", "on_message"])
            new = self.client.ping()
            self.assertEqual(line.heard(), [])
            line.say({"type": "pong", "id": sent["id"]})
            self.successResultOf(ping)
            if offline == "fail":
                self.assertIn("going_away", str(self.failureResultOf(new, Disconnected).value))
            line.lose()
            name, error, seconds = self.events[-1]
            self.assertEqual((name, seconds), ("on_retry", 5))
            self.assertIsInstance(error, GoingAway)
            self.clock.advance(5)
            line = self.net.serve()
            self.end()
            if offline == "queue":
                self.failureResultOf(new, Disconnected)

    def test_the_server_goes_away_and_closes_its_side(self) -> None:
        """What it said before is why, and when to come again."""
        line = self.serve()
        line.say(GOING_AWAY)
        line.protocol.readConnectionLost()
        self.assertIsInstance(self.client.error, GoingAway)
        self.clock.advance(0)
        self.assertTrue(line.gone)
        self.assertEqual((self.events[-1][0], self.events[-1][2]), ("on_retry", 5))
        self.end()

    def test_a_connection_that_is_about_to_end(self) -> None:
        """The server has closed its side, or sent nonsense: nothing more is given to it."""
        for end in (
            lambda line: line.protocol.readConnectionLost(),
            lambda line: line.feed(b"\xff\xff\xff\xff"),
        ):
            line = self.serve(offline="queue")
            line.stalls = True
            before = self.client.ping()
            line.heard()
            end(line)
            self.assertFalse(line.gone)
            self.assertFalse(self.client.connected)
            self.assertIsInstance(self.client.error, Disconnected)
            after = self.client.echo(1)
            self.client.send({"type": "note"})
            self.clock.advance(0)
            self.clock.advance(CLOSE_TIMEOUT)
            self.clock.advance(0)
            self.assertTrue(line.gone)
            self.failureResultOf(before, Disconnected)
            self.clock.advance(0.5)
            line = self.net.accept()
            line.say(WELCOME)
            self.assertEqual([message["type"] for message in line.heard()], ["hello", "echo", "note"])
            self.end()
            self.failureResultOf(after, Disconnected)

    def test_what_waits_when_the_server_is_gone(self) -> None:
        """It was not answered: that is no `GoingAway`, which would mean that it was not handled."""
        line = self.serve()
        ping = self.client.ping()
        line.say(GOING_AWAY)
        line.lose()
        self.failureResultOf(ping, Disconnected)
        self.end()


class QueueTests(ClientTestCase):
    """`offline="queue"`."""

    def setUp(self) -> None:
        self.make(offline="queue")

    def texts(self, line: Line) -> list[Any]:
        """What came after the hello."""
        return [message.get("content", message["type"]) for message in line.heard()]

    def welcome(self, welcome: Json = WELCOME) -> Line:
        line = self.net.accept()
        line.say(welcome)
        return line

    def test_in_order(self) -> None:
        self.client.start()
        asked = [self.client.echo(1)]
        self.client.send({"type": "note", "content": 2})
        asked.append(self.client.echo(3))
        self.assertEqual(self.client.waiting, 2)
        line = self.welcome()
        self.assertEqual(self.texts(line), ["hello", 1, 2, 3])
        self.assertEqual(self.client.waiting, 2)
        self.end()
        for one in asked:
            self.failureResultOf(one, Disconnected)

    def test_replies_of_a_classic_server(self) -> None:
        """Each goes to who waited for one of its type."""
        self.client.start()
        echo, ping = self.client.echo(1), self.client.ping()
        line = self.net.serve(CLASSIC)
        line.say({"type": "pong"})
        self.successResultOf(ping)
        self.assertNoResult(echo)
        line.say({"type": "echo_response", "content": 1})
        self.assertEqual(self.successResultOf(echo), 1)
        self.end()

    def test_what_is_asked_when_it_is_served_comes_first(self) -> None:
        """As a login of the application's own must."""
        self.make(offline="queue", on_connect=lambda welcome: self.client.send({"type": "first"}))
        self.client.start()
        self.client.send({"type": "second"})
        self.assertEqual(self.texts(self.welcome()), ["hello", "first", "second"])
        self.end()

    def test_not_before_it_is_started(self) -> None:
        """There will be no connection: it would wait for ever."""
        self.failureResultOf(self.client.ping(), Disconnected)
        with self.assertRaises(Disconnected):
            self.client.send("text")
        self.assertEqual(self.client.waiting, 0)

    def test_not_when_it_is_closed(self) -> None:
        self.client.start()
        self.net.serve()
        self.end()
        self.failureResultOf(self.client.ping(), Disconnected)

    def test_its_bound(self) -> None:
        """In bytes; cancelling, expiry and sending make room."""
        self.make(offline="queue", max_queue=500)
        self.client.start()
        content = "x" * 150
        first = self.client.echo(content, timeout=5)
        second = self.client.echo(content)
        self.failureResultOf(self.client.echo(content), QueueFull)
        with self.assertRaises(QueueFull):
            self.client.send(content)
        self.assertEqual(self.client.waiting, 2)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        third = self.client.echo(content)
        self.failureResultOf(self.client.echo(content), QueueFull)
        self.clock.advance(5)
        self.failureResultOf(first, RequestTimeout)
        fourth = self.client.echo(content)
        self.assertNoResult(fourth)
        line = self.welcome()
        self.assertEqual(self.texts(line), ["hello", content, content])
        line.lose()
        for one in (third, fourth):
            self.failureResultOf(one, Disconnected)
        # All of it is free again: after it was sent, and after it was dropped.
        for _ in range(2):
            asked = [self.client.echo(content), self.client.echo(content)]
            self.failureResultOf(self.client.echo(content), QueueFull)
            self.end()
            for one in asked:
                self.failureResultOf(one, Disconnected)
            self.client.start()
        self.end()

    def test_just_as_much_as_its_bound(self) -> None:
        """With what may be added to each: 48 bytes."""
        size = len('{"type":"echo","content":"x"}') + 48
        for room, fits in ((2 * size, True), (2 * size - 1, False)):
            self.make(offline="queue", max_queue=room)
            self.client.start()
            first, second = self.client.echo("x"), self.client.echo("x")
            if not fits:
                self.failureResultOf(second, QueueFull)
            self.assertEqual(self.client.waiting, 1 + fits)
            self.end()
            self.failureResultOf(first, Disconnected)
            second.addErrback(trap(Disconnected))

    def test_what_is_asked_when_it_is_served_takes_the_room(self) -> None:
        """Then there is none on the connection for what has waited, and that is told."""
        self.make(offline="queue", max_queue=400, on_connect=lambda welcome: self.client.send("x" * 250))
        self.client.start()
        asked = self.client.echo("y" * 100)
        self.client.send("y" * 100)
        with capturedLogs() as events:
            self.net.accept().say(WELCOME)
        self.failureResultOf(asked, QueueFull)
        self.assertEqual(len([event for event in events if "not sent" in formatEvent(event)]), 1)
        self.assertTrue(self.client.connected)
        self.end()

    def test_one_that_fails_begins_anew(self) -> None:
        """What is asked then is for the next connection."""
        self.client.start()
        new: list[Deferred[Any]] = []
        self.client.echo("x" * 100).addErrback(
            then(self.client.close, self.client.start, lambda: new.append(self.client.echo(1)))
        )
        line = self.welcome({**WELCOME, "max_length": 90})
        self.assertEqual(self.texts(line), ["hello"])
        self.clock.advance(0.5)
        self.assertEqual(self.texts(self.welcome()), ["hello", 1])
        self.end()
        self.failureResultOf(new[0], Disconnected)

    def test_what_was_taken_is_sent(self) -> None:
        """Whatever the connection adds to it."""
        for welcome in (WELCOME, CLASSIC):
            self.make(offline="queue", max_queue=1000)
            self.client.start()
            asked: list[Deferred[float]] = []
            while self.client.waiting == len(asked):
                asked.append(self.client.ping())
            self.failureResultOf(asked.pop(), QueueFull)
            self.assertGreater(len(asked), 5)
            line = self.welcome(welcome)
            self.assertEqual(self.texts(line).count("ping"), len(asked))
            for one in asked:
                self.assertNoResult(one)
                one.addErrback(lambda failure: None)
            self.end()

    def test_one_message_always_fits(self) -> None:
        self.make(offline="queue", max_queue=10)
        self.client.start()
        ping = self.client.ping()
        self.assertNoResult(ping)
        ping.cancel()
        self.failureResultOf(ping, CancelledError)
        self.end()

    def test_it_expires(self) -> None:
        self.client.start()
        ping = self.client.ping(timeout=2)
        self.clock.advance(1.9)
        self.assertNoResult(ping)
        self.clock.advance(0.1)
        self.failureResultOf(ping, RequestTimeout)
        self.assertEqual(self.texts(self.welcome()), ["hello"])
        self.end()

    def test_its_time_goes_on_when_it_is_sent(self) -> None:
        self.client.start()
        ping = self.client.ping(timeout=2)
        self.clock.advance(1.5)
        self.assertEqual(self.texts(self.welcome()), ["hello", "ping"])
        self.clock.advance(0.5)
        self.failureResultOf(ping, RequestTimeout)
        self.end()

    def test_the_round_trip_is_that_of_the_connection(self) -> None:
        """Not the time that it waited for one."""
        self.client.start()
        ping = self.client.ping()
        self.clock.advance(5)
        line = self.welcome()
        _, sent = line.heard()
        self.clock.advance(0.25)
        line.say({"type": "pong", "id": sent["id"]})
        self.assertEqual(self.successResultOf(ping), 0.25)
        self.end()

    def test_what_the_server_does_not_take(self) -> None:
        """It fails, and what is behind it is sent."""
        self.client.start()
        asked = [self.client.echo("x" * 100), self.client.echo(1)]
        self.client.send("x" * 100)
        asked.append(self.client.echo(2))
        line = self.welcome({**WELCOME, "max_length": 90})
        self.assertEqual(self.texts(line), ["hello", 1, 2])
        self.failureResultOf(asked[0], TooLarge)
        self.end()
        for one in asked[1:]:
            self.failureResultOf(one, Disconnected)

    def test_one_that_fails_cancels_others(self) -> None:
        """Then they are not sent; and who closes is closed."""
        self.client.start()
        asked = [self.client.echo("x" * 100), self.client.echo(1), self.client.echo(2)]
        asked[0].addErrback(lambda failure: asked[1].cancel())
        line = self.welcome({**WELCOME, "max_length": 90})
        self.assertEqual(self.texts(line), ["hello", 2])
        self.failureResultOf(asked[1], CancelledError)
        self.end()
        self.failureResultOf(asked[2], Disconnected)

    def test_one_that_fails_closes(self) -> None:
        self.client.start()
        asked = [self.client.echo("x" * 100), self.client.echo(1)]
        asked[0].addErrback(lambda failure: self.client.close())
        line = self.welcome({**WELCOME, "max_length": 90})
        self.failureResultOf(asked[1], Disconnected)
        self.assertEqual(self.texts(line), ["hello"])
        self.assert_idle()

    def test_what_is_no_json_after_all(self) -> None:
        """It is for the server to say so, a classic one too; what is behind it is sent."""
        for welcome in (WELCOME, CLASSIC):
            self.make(offline="queue")
            self.client.start()
            asked = [
                self.client.request("x", content=Raw(content))
                for content in (b"nonsense", b"[" * 5000 + b"]" * 5000, b"7")
            ]
            line = self.welcome(welcome)
            self.clock.advance(0)
            self.assertIn(b"nonsense", line.value())
            self.assertIn(b'"content":7,', line.value())
            self.end()
            for one in asked:
                self.failureResultOf(one, Disconnected)

    def test_it_stops(self) -> None:
        """What waits is told why, each with an exception of its own."""
        self.make(offline="queue", retries=0)
        self.client.start()
        asked = [self.client.ping() for _ in range(3)]
        self.client.send("text")
        asked[0].addErrback(lambda failure: asked[1].cancel())
        self.net.accept().say({"type": "hello"})
        self.clock.advance(0)
        self.failureResultOf(asked[1], CancelledError)
        self.failureResultOf(asked[2], ProtocolMismatch)
        self.assert_idle()
        # The text went with it.
        self.client.start()
        self.assertEqual(self.texts(self.welcome()), ["hello"])
        self.end()

    def test_what_is_lost_without_anybody_to_tell(self) -> None:
        """It is logged, once."""
        for lose in (self.net_says_nonsense, lambda: self.client.close()):
            self.make(offline="queue")
            self.client.start()
            with capturedLogs() as events:
                lose()
            self.assertEqual([event for event in events if "not sent" in formatEvent(event)], [])
            self.client.start()
            self.clock.advance(0)
            for _ in range(3):
                self.client.send("text")
            with capturedLogs() as events:
                lose()
            told = [formatEvent(event) for event in events if "not sent" in formatEvent(event)]
            self.assertEqual(len(told), 1)
            self.assertIn("3", told[0])
            self.assert_idle()

    def net_says_nonsense(self) -> None:
        self.net.accept().say({"type": "hello"})
        self.clock.advance(0)

    def test_it_waits_through_failures(self) -> None:
        self.client.start()
        ping = self.client.ping(timeout=None)
        for seconds in (0.5, 1, 2):
            self.net.refuse()
            self.clock.advance(seconds)
        self.net.accept().lose()
        self.clock.advance(4)
        self.assertEqual(self.texts(self.welcome()), ["hello", "ping"])
        self.end()
        self.failureResultOf(ping, Disconnected)


class LogTests(ClientTestCase):
    """What is logged: a line each, whatever a server says."""

    def test_why_it_waits_and_why_it_stops(self) -> None:
        self.make(retries=1)
        self.client.start()
        for word in ("again in 0.5 seconds", "not connecting again"):
            with capturedLogs() as events:
                self.net.accept().say(
                    {"type": "error", "code": "x", "message": "two\nlines\x1b" + "é" * 5000}
                )
                self.clock.advance(0)
            (told,) = [formatEvent(event) for event in events]
            self.assertIn(word, told)
            self.assertIn("two", told)
            self.assertTrue(told.isascii() and told.isprintable())
            self.assertLess(len(told), 1500)
            self.clock.advance(0.5)
        self.assert_idle()


class CallbackTests(ClientTestCase):
    """What an application gives may fail; it is logged, and nothing else happens."""

    def run_through(self, **options: Any) -> None:
        line = self.serve(**options)
        line.say({"type": "news"})
        self.assertTrue(self.client.connected)
        line.lose()
        self.clock.advance(0.5)
        self.net.accept().say({"type": "hello"})
        self.clock.advance(0)
        self.assert_idle()

    def test_none_at_all(self) -> None:
        self.run_through(on_message=None, on_connect=None, on_disconnect=None, on_retry=None, on_failure=None)

    def test_they_raise(self) -> None:
        def broken(*what: object) -> None:
            raise ZeroDivisionError

        async def coroutine(*what: object) -> None:
            raise ZeroDivisionError

        for callback in (broken, coroutine, lambda *what: fail(ZeroDivisionError())):
            for name in ("on_message", "on_connect", "on_disconnect", "on_retry", "on_failure"):
                self.run_through(**{name: callback})
                self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1, name)

    def test_they_may_await(self) -> None:
        """Such as the reply to what they send."""
        replies: list[Any] = []

        async def ask(message: Json) -> None:
            replies.append(await self.client.echo(message["content"]))

        line = self.serve(on_message=ask)
        line.say({"type": "news", "content": 5})
        (sent,) = line.heard()
        self.assertEqual(replies, [])
        line.say({"type": "echo_response", "content": 5, "id": sent["id"]})
        self.assertEqual(replies, [5])
        self.end()

    def test_a_callback_of_a_reply_that_raises(self) -> None:
        """The replies behind it are heard."""
        line = self.serve()
        asked = [self.client.ping(), self.client.ping()]
        asked[0].addCallback(lambda seconds: 1 // 0)
        line.say(*({"type": "pong", "id": message["id"]} for message in line.heard()))
        self.failureResultOf(asked[0], ZeroDivisionError)
        self.successResultOf(asked[1])
        self.end()


class OwnConnectorTests(SynchronousTestCase):
    """`where=None`: whoever uses the factory connects it."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.events: list[str] = []
        self.client = Client(
            self.reactor,
            random=lambda: 1.0,
            run=maybeDeferred,
            on_failure=lambda error: self.events.append("failure"),
        )
        self.state = "disconnected"

    def connect(self) -> None:
        self.reactor.connectTCP("localhost", 9999, self.client.factory)

    def connector(self) -> Any:
        return self.reactor.connectors[-1]

    def accept(self) -> Line:
        factory = self.reactor.tcpClients[-1][2]
        protocol: Any = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 9999))
        assert protocol is not None
        line = Line(self.reactor, protocol)
        lose = line.lose

        def lost(reason: Exception | None = None) -> None:
            if not line.gone:
                lose(reason)
                factory.clientConnectionLost(self.connector(), Failure(reason or ConnectionLost()))

        line.lose = lost  # type: ignore[method-assign]  # the connector is told, too
        return line

    def serve(self) -> None:
        self.accept().say(WELCOME)

    def ask(self) -> None:
        self.client.ping().addErrback(trap(Disconnected))

    def refuse(self) -> None:
        error = ConnectionRefusedError(string="Connection refused")
        self.reactor.tcpClients[-1][2].clientConnectionFailed(self.connector(), Failure(error))

    def test_start_leaves_it_to_others(self) -> None:
        self.client.start()
        self.assertFalse(self.client.running)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_connected_and_closed(self) -> None:
        connecting = self.client.connect(timeout=None)
        self.connect()
        self.assertTrue(self.client.running)
        line = self.accept()
        line.say(WELCOME)
        self.successResultOf(connecting)
        closed = self.client.close()
        self.reactor.advance(0)
        self.successResultOf(closed)
        self.assertTrue(line.gone)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertFalse(self.client.running)

    def test_closed_at_each_moment(self) -> None:
        moments: list[Callable[[], object]] = [
            lambda: None,
            self.connect,
            then(self.connect, self.refuse),
            then(self.connect, self.accept),
            then(self.connect, self.serve),
            then(self.connect, self.serve, self.ask),
            then(self.connect, lambda: self.accept().lose()),
        ]
        for moment in moments:
            self.setUp()
            waits = self.client.connect()
            waits.addErrback(trap(Disconnected))
            moment()
            closed = self.client.close()
            self.reactor.advance(0)
            self.successResultOf(closed)
            self.assertTrue(waits.called)
            self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_it_connects_again(self) -> None:
        self.connect()
        connector = self.connector()
        again: list[object] = []

        def connect() -> None:
            again.append(connector)
            self.client.factory.startedConnecting(connector)

        connector.connect = connect
        self.refuse()
        self.reactor.advance(0.5)
        self.assertEqual(len(again), 1)
        line = self.accept()
        line.say(WELCOME)
        line.lose()
        self.reactor.advance(0.5)
        self.assertEqual(len(again), 2)
        self.client.close()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_it_is_used_again_after_closing(self) -> None:
        """As if it were new: it goes on trying."""
        self.connect()
        self.client.close()
        self.connect()
        self.assertTrue(self.client.running)
        self.refuse()
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        self.client.close()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_connected_twice(self) -> None:
        """The last connection is the client's; the end of the other is no end."""
        self.connect()
        first = self.accept()
        first.say(WELCOME)
        asked = self.client.ping()
        self.connect()
        second = self.accept()
        second.say(WELCOME)
        first.say(GOING_AWAY)
        self.assertTrue(self.client.connected)
        self.assertIsNone(self.client.error)
        first.lose()
        self.failureResultOf(asked, Disconnected)
        self.assertTrue(self.client.connected)
        closed = self.client.close()
        self.reactor.advance(0)
        self.successResultOf(closed)
        self.assertTrue(second.gone)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_nobody_answers_in_time(self) -> None:
        """Why is known: it has a place."""
        self.connect()
        self.refuse()
        connecting = self.client.connect(timeout=0.25)
        self.reactor.advance(0.25)
        why = "no connection within 0.25 seconds: Connection refused"
        self.assertEqual(str(self.failureResultOf(connecting, Disconnected).value), why)
        self.client.close()

    def test_nobody_ever_connects_it(self) -> None:
        connecting = self.client.connect(timeout=5)
        self.reactor.advance(5)
        self.failureResultOf(connecting, Disconnected)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
