"""`Client`: what it offers, and a model of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson.client.awaitable import Client
from tcpjson.core.errors import (
    ClientError,
    Disconnected,
    Forbidden,
    HandlerTimeout,
    ProtocolError,
    QueueFull,
    RequestTimeout,
    TooLarge,
    UnexpectedReply,
)
from tcpjson.core.handshake import Json
from tcpjson.core.limits import CLOSE_TIMEOUT
from tcpjson.core.messages import Message
from tcpjson.test.hypo import given
from tcpjson.test.test_client_link import ASKS, GOING_AWAY, ClientTestCase, Net, then, trap
from tcpjson.test.test_client_protocol import CLASSIC, WELCOME, Line, Proofs, admitted, challenge, values
from tcpjson.test.wires import authority


class Move(Message, tag="move"):
    x: int


class RequestTests(ClientTestCase):
    """Requests, and what they lead to."""

    def answer(self, line: Line, **reply: object) -> Json:
        """Answer the one request that was sent; returns that, without its id."""
        (sent,) = line.heard()
        line.say({**reply, "id": sent.pop("id")})
        return sent

    def test_ping(self) -> None:
        line = self.serve()
        self.clock.advance(5)
        ping = self.client.ping()
        self.clock.advance(0.25)
        self.assertEqual(self.answer(line, type="pong"), {"type": "ping"})
        self.assertEqual(self.successResultOf(ping), 0.25)
        self.end()

    def test_echo(self) -> None:
        line = self.serve()
        for content in ({"x": [1, None]}, "", None, 0):
            echo = self.client.echo(content)
            self.assertEqual(
                self.answer(line, type="echo_response", content=content), {"type": "echo", "content": content}
            )
            self.assertEqual(self.successResultOf(echo), content)
        self.end()

    def test_broadcast(self) -> None:
        line = self.serve()
        broadcast = self.client.broadcast("x")
        sent = self.answer(line, type="broadcast_sent", recipients=3)
        self.assertEqual(sent, {"type": "broadcast", "content": "x"})
        self.assertEqual(self.successResultOf(broadcast), 3)
        self.end()

    def test_stats(self) -> None:
        line = self.serve()
        stats = self.client.stats()
        self.assertEqual(self.answer(line, type="server_stats", uptime_seconds=5), {"type": "get_stats"})
        self.assertEqual(self.successResultOf(stats)["uptime_seconds"], 5)
        self.end()

    def test_anything(self) -> None:
        """A type and fields, or a whole message."""
        line = self.serve()
        for request, sent in (
            (lambda: self.client.request("move", x=1), {"type": "move", "x": 1}),
            (lambda: self.client.request({"type": "move", "x": 1}), {"type": "move", "x": 1}),
            (lambda: self.client.request(Move(x=1)), {"type": "move", "x": 1}),
            (lambda: self.client.request("x", message="m"), {"type": "x", "message": "m"}),
        ):
            asked = request()
            self.assertEqual(self.answer(line, type="moved", to=2), sent)
            reply = self.successResultOf(asked)
            self.assertEqual((reply["type"], reply["to"]), ("moved", 2))
        self.end()

    def test_replies_without_what_was_asked_for(self) -> None:
        """As of a server that knows less, or more."""
        line = self.serve()
        for request, kind, result in (
            (lambda: self.client.echo(1), "echo_response", None),
            (lambda: self.client.broadcast(1), "broadcast_sent", 0),
            (lambda: self.client.ping(), "pong", 0.0),
        ):
            asked = request()
            self.answer(line, type=kind)
            self.assertEqual(self.successResultOf(asked), result)
        for recipients in ("3", None, [3], 1.5):
            broadcast = self.client.broadcast(1)
            self.answer(line, type="broadcast_sent", recipients=recipients)
            self.assertEqual(self.successResultOf(broadcast), 0)
        self.end()

    def test_replies_of_another_type(self) -> None:
        """As where a handler of the server's own answers."""
        line = self.serve()
        for request in (
            self.client.ping,
            lambda: self.client.echo(1),
            lambda: self.client.broadcast(1),
            self.client.stats,
        ):
            asked = request()
            self.answer(line, type=["response"])
            self.assertIn("of type list", str(self.failureResultOf(asked, UnexpectedReply).value))
        self.assertEqual(self.client.waiting, 0)
        self.end()

    def test_errors(self) -> None:
        """The exception of the code."""
        line = self.serve()
        for code, kind in (("forbidden", Forbidden), ("timeout", HandlerTimeout), ("quota", ProtocolError)):
            asked = self.client.echo(1)
            self.answer(line, type="error", code=code, message="why", fatal=False, retry_after=2)
            error = self.failureResultOf(asked, kind).value
            self.assertIs(type(error), kind)
            self.assertEqual((str(error), error.code, error.retry_after), ("why", code, 2))
        self.assertTrue(self.client.connected)
        self.end()

    def test_what_cannot_be_written(self) -> None:
        """Nothing is sent, and nothing waits."""
        line = self.serve()
        broken: list[tuple[Callable[[], Deferred[Any]], type[Exception]]] = [
            (lambda: self.client.echo(object()), TypeError),
            (lambda: self.client.echo("\ud800"), ValueError),
            (lambda: self.client.echo(float("nan")), ValueError),
            (lambda: self.client.broadcast({"a": float("inf")}), ValueError),
            (lambda: self.client.request("x", id=5), ValueError),
            (lambda: self.client.request(Move(x=1, id="a")), ValueError),
            (lambda: self.client.request({"x": 1}), TypeError),
            (lambda: self.client.request(5), TypeError),  # type: ignore[arg-type]  # on purpose
            (lambda: self.client.ping(timeout=-1), ValueError),
            (lambda: self.client.ping(timeout=float("nan")), ValueError),
            (lambda: self.client.ping(timeout="1"), TypeError),  # type: ignore[arg-type]  # on purpose
        ]
        for request, kind in broken:
            self.failureResultOf(request(), kind)
        self.assertEqual(line.heard(), [])
        self.assertEqual(self.client.waiting, 0)
        self.end()

    def test_send(self) -> None:
        line = self.serve()
        self.client.send({"type": "a", "id": 5})
        self.client.send(Move(x=1, id="mine"))
        self.client.send(Move(x=2))
        # A text stays one, though it could be taken for JSON.
        self.client.send('{"type":"ping"}')
        self.client.send(b'{"any":"payload"}')
        self.assertEqual(
            line.heard(),
            [
                {"type": "a", "id": 5},
                {"type": "move", "x": 1, "id": "mine"},
                {"type": "move", "x": 2},
                '{"type":"ping"}',
                {"any": "payload"},
            ],
        )
        # What comes back is a message like any other.
        for own in (5, "mine", None):
            line.say({"type": "moved", "id": own})
            self.assertEqual(self.events.pop(), ("on_message", {"type": "moved", "id": own}))
        self.assertEqual(self.client.waiting, 0)
        self.end()

    def test_what_cannot_be_sent(self) -> None:
        line = self.serve({**WELCOME, "max_length": 50})
        broken: list[tuple[Any, type[Exception]]] = [
            ({"x": 1}, TypeError),
            (5, TypeError),
            ("\ud800", ValueError),
            ({"type": "a", "b": object()}, TypeError),
            ("x" * 51, TooLarge),
            ({"type": "a", "id": -3}, ValueError),
        ]
        for message, kind in broken:
            with self.assertRaises(kind):
                self.client.send(message)
        self.assertEqual(line.heard(), [])
        self.end()

    def test_too_large(self) -> None:
        line = self.serve({**WELCOME, "max_length": 50})
        self.failureResultOf(self.client.echo("x" * 50), TooLarge)
        self.assertEqual(line.heard(), [])
        self.assertTrue(self.client.connected)
        self.end()

    def test_wrong_kinds_of_arguments(self) -> None:
        """Each is named, before anything happens."""
        for wrong in (
            {"timeout": "3"},
            {"silence": "3"},
            {"max_queue": "3"},
            {"max_length": "3"},
            {"retries": "3"},
            {"credentials": ("alice", "x")},
            {"on_message": "x"},
            {"on_failure": "x"},
            {"trace": "x"},
        ):
            with self.assertRaisesRegex(TypeError, f"^{next(iter(wrong))} must"):
                Client(self.clock, "localhost", **wrong)
        with self.assertRaisesRegex(TypeError, "^reactor must"):
            Client("localhost:9999")
        self.failureResultOf(self.client.ping(timeout="3"), TypeError)  # type: ignore[arg-type]  # what is tested

    def test_not_connected(self) -> None:
        """Before the start, while connecting, and after: each says what is known."""
        self.assertEqual(
            str(self.failureResultOf(self.client.ping(), Disconnected).value),
            "not connected: connect() first",
        )
        self.client.start()
        self.assertEqual(
            str(self.failureResultOf(self.client.ping(), Disconnected).value),
            "not connected: the connection is not there yet",
        )
        self.net.refuse()
        with self.assertRaisesRegex(Disconnected, "Connection refused"):
            self.client.send("text")
        self.client.close()
        self.failureResultOf(self.client.ping(), Disconnected)
        self.assert_idle()

    def test_the_queue_is_full(self) -> None:
        """A message is half sent: what waits counts, and room comes back as it leaves."""
        line = self.serve(max_queue=1000)
        line.stop_reading()
        self.client.send("x" * 900)
        self.failureResultOf(self.client.echo("x" * 100), QueueFull)
        self.clock.advance(0)
        self.failureResultOf(self.client.echo("x" * 100), QueueFull)
        self.assertEqual(self.client.waiting, 0)
        line.start_reading()
        self.assertNoResult(self.client.echo("x" * 900).addErrback(lambda failure: None))
        self.end()


class TimeoutTests(ClientTestCase):
    """How long a request waits."""

    def test_as_the_client_says(self) -> None:
        given: list[tuple[dict[str, Any], float]] = [({"timeout": 2.0}, 2.0), ({}, 30.0)]
        for options, seconds in given:
            line = self.serve(**options)
            ping = self.client.ping()
            line.heard()
            self.clock.advance(seconds - 0.01)
            self.assertNoResult(ping)
            self.clock.advance(0.01)
            self.failureResultOf(ping, RequestTimeout)
            self.assertEqual(self.client.waiting, 0)
            self.end()

    def test_as_the_request_says(self) -> None:
        self.serve(timeout=5.0)
        asked = [self.client.ping(timeout=0.5), self.client.echo(1, timeout=20), self.client.stats(timeout=1)]
        self.clock.advance(0.5)
        self.failureResultOf(asked[0], RequestTimeout)
        self.clock.advance(0.5)
        self.failureResultOf(asked[2], RequestTimeout)
        self.clock.advance(18.9)
        self.assertNoResult(asked[1])
        self.clock.advance(0.1)
        self.failureResultOf(asked[1], RequestTimeout)
        self.end()

    def test_none(self) -> None:
        line = self.serve(timeout=None, silence=3600.0)
        ping = self.client.ping()
        line.heard()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(0)
        self.assertNoResult(ping)
        self.end()
        self.failureResultOf(ping, Disconnected)

    def test_at_once(self) -> None:
        self.serve()
        ping = self.client.ping(timeout=0)
        self.clock.advance(0)
        self.failureResultOf(ping, RequestTimeout)
        self.end()

    def test_a_late_reply(self) -> None:
        """Is nobody's, nor any message."""
        line = self.serve()
        ping = self.client.ping(timeout=1)
        (sent,) = line.heard()
        self.clock.advance(1)
        self.failureResultOf(ping, RequestTimeout)
        line.say({"type": "pong", "id": sent["id"]})
        self.assertEqual(self.names(), ["on_connect"])
        self.end()

    def test_one_that_was_answered(self) -> None:
        """Its time is over, whatever the answer was."""
        line = self.serve()
        asked = [self.client.ping(timeout=5), self.client.ping(timeout=5)]
        keys = [message["id"] for message in line.heard()]
        line.say({"type": "pong", "id": keys[0]}, {"type": "error", "code": "internal", "id": keys[1]})
        self.clock.advance(20)
        self.successResultOf(asked[0])
        self.failureResultOf(asked[1], ProtocolError)
        self.end()

    def test_the_longest(self) -> None:
        self.serve()
        for longest in (1e6, 1_000_000):
            self.assertNoResult(self.client.ping(timeout=longest).addErrback(trap(Disconnected)))
        self.failureResultOf(self.client.ping(timeout=1e6 + 1), ValueError)
        self.end()

    def test_one_that_expires_asks_again_and_cancels_another(self) -> None:
        self.serve()
        asked = [self.client.ping(timeout=1) for _ in range(3)]
        asked[0].addErrback(then(asked[1].cancel))
        asked[2].addErrback(lambda failure: self.client.ping(timeout=1))
        self.clock.advance(1)
        self.successResultOf(asked[0])
        self.failureResultOf(asked[1], CancelledError)
        self.assertNoResult(asked[2])
        self.clock.advance(1)
        self.failureResultOf(asked[2], RequestTimeout)
        self.assertEqual(self.client.waiting, 0)
        self.end()

    def test_one_that_expires_closes(self) -> None:
        self.serve()
        asked = [self.client.ping(timeout=1) for _ in range(2)]
        asked[0].addBoth(then(self.client.close))
        self.clock.advance(1)
        self.clock.advance(0)
        self.successResultOf(asked[0])
        asked[1].addErrback(trap(RequestTimeout, Disconnected))
        self.successResultOf(asked[1])
        self.assert_idle()


class CancelTests(ClientTestCase):
    """A request that is cancelled is forgotten."""

    def test_its_reply(self) -> None:
        line = self.serve()
        ping = self.client.ping()
        (sent,) = line.heard()
        ping.cancel()
        self.failureResultOf(ping, CancelledError)
        self.assertEqual(self.client.waiting, 0)
        line.say({"type": "pong", "id": sent["id"]})
        line.say({"type": "error", "code": "internal", "fatal": False, "id": sent["id"]})
        self.assertEqual(self.names(), ["on_connect"])
        self.end()

    def test_its_reply_of_a_classic_server(self) -> None:
        """It is not taken for the next one's."""
        line = self.serve(CLASSIC)
        asked = [self.client.echo(1), self.client.echo(2)]
        asked[0].cancel()
        self.failureResultOf(asked[0], CancelledError)
        line.say({"type": "echo_response", "content": 1}, {"type": "echo_response", "content": 2})
        self.assertEqual(self.successResultOf(asked[1]), 2)
        self.end()

    def test_twice(self) -> None:
        self.serve()
        ping = self.client.ping()
        ping.cancel()
        ping.cancel()
        self.failureResultOf(ping, CancelledError)
        self.end()

    def test_one_that_failed_at_once(self) -> None:
        ping = self.client.ping()
        ping.cancel()
        self.failureResultOf(ping, Disconnected)


class ArgumentTests(SynchronousTestCase):
    """What will not do is said at once, in one line."""

    def test_broken_ones(self) -> None:
        broken: list[dict[str, Any]] = [
            {"offline": "drop"},
            {"timeout": -1},
            {"timeout": float("nan")},
            {"silence": -1.0},
            {"max_queue": 0},
            {"max_queue": -5},
            {"max_length": 0},
            {"retries": -1},
            {"ca": "/nonexistent"},
            {"where": "localhost", "ca": "/nonexistent"},
            {"where": "localhost:0"},
            {"where": ""},
        ]
        for options in broken:
            with self.assertRaises(ValueError) as caught:
                Client(Clock(), **options)
            self.assertEqual(len(str(caught.exception).splitlines()), 1)

    def test_an_authority(self) -> None:
        """With a host and a port, which it is for."""
        path = Path(self.mktemp())
        authority().cert_pem.write_to_path(str(path))
        Client(MemoryReactorClock(), "localhost:9999", ca=str(path))
        with self.assertRaisesRegex(ValueError, "of use with a host and port only"):
            Client(MemoryReactorClock(), ca=str(path))

    def test_nothing_happens_before_the_start(self) -> None:
        clock = Clock()
        client = Client(clock)
        self.assertEqual(clock.getDelayedCalls(), [])
        self.assertFalse(client.running or client.connected)
        self.assertIsNone(client.error or client.server or client.user)
        self.successResultOf(client.close())


class Pool:
    """Runs what it is given when the test says so."""

    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []

    def callInThreadWithCallback(
        self,
        done: Callable[[bool, object], object],
        function: Callable[..., object],
        *args: object,
    ) -> None:
        def work() -> None:
            try:
                result = function(*args)
            except BaseException:
                done(False, Failure())
            else:
                done(True, result)

        self.work.append(work)


class Threads(Clock):
    """A reactor with a pool of threads."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool()

    def getThreadPool(self) -> Pool:
        return self.pool

    def callFromThread(self, function: Callable[..., object], *args: object) -> None:
        self.callLater(0, function, *args)


class LoginTests(SynchronousTestCase):
    """What takes half a second is done in a thread."""

    def test_in_a_thread(self) -> None:
        reactor = Threads()
        net = Net(reactor)
        client = Client(reactor, net, credentials=Proofs())
        connecting = client.connect()
        line = net.accept()
        line.say(ASKS, challenge())
        self.assertEqual(len(line.heard()), 2)
        (work,) = reactor.pool.work
        self.assertEqual(line.heard(), [])
        work()
        self.assertEqual([message["data"] for message in line.heard()], ["3+7"])
        line.say(admitted())
        self.successResultOf(connecting)
        client.close()
        reactor.advance(0)
        self.assertEqual(reactor.getDelayedCalls(), [])


class AnyContentTests(ClientTestCase):
    """Any value that JSON has goes there and back."""

    @given(values)
    def test_echo(self, content: object) -> None:
        line = self.serve()
        echo = self.client.echo(content)
        (sent,) = line.heard()
        self.assertEqual(sent["content"], content)
        line.say({"type": "echo_response", "content": sent["content"], "id": sent["id"]})
        self.assertEqual(self.successResultOf(echo), content)
        self.end()


class Asked:
    """A request of the model, or somebody who waits to be connected."""

    def __init__(self, deferred: Deferred[Any], then: Callable[[], object]) -> None:
        self.deferred = deferred
        #: How often it has ended.
        self.ended = 0
        #: What it ended with.
        self.result: object = None
        self._then = then
        deferred.addBoth(self._end)

    def _end(self, result: object) -> None:
        self.ended += 1
        self.result = result
        self._then()


# What is done when a request ends, whatever it ended with.
thens = st.sampled_from(
    [
        "nothing",
        "nothing",
        "nothing",
        "ask",
        "ask",
        "cancel another",
        "cancel another",
        "close",
        "start",
        "connect",
    ]
)


class Model(RuleBasedStateMachine):
    """A client, its server and its user, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.net = Net(self.clock)
        self.asked: list[Asked] = []
        self.connecting: list[Asked] = []
        self.closing: list[Asked] = []
        self.errors: list[Failure] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event["log_level"] is LogLevel.critical:
                self.errors.append(event["log_failure"])

        self.observe = observe
        globalLogPublisher.addObserver(observe)

    @initialize(
        offline=st.sampled_from(["fail", "queue"]),
        retries=st.sampled_from([None, None, 0, 2]),
        max_queue=st.sampled_from([300, 1 << 20]),
        then=thens,
        welcome=st.sampled_from([WELCOME, WELCOME, CLASSIC, None]),
    )
    def make(
        self, offline: str, retries: int | None, max_queue: int, then: str, welcome: Json | None
    ) -> None:
        def callback(*what: object) -> None:
            self.do(then)

        self.client = Client(
            self.clock,
            self.net,
            offline=offline,
            retries=retries,
            max_queue=max_queue,
            timeout=10.0,
            random=lambda: 1.0,
            wall=lambda: 0.0,
            run=maybeDeferred,
            on_message=callback,
            on_connect=callback,
            on_disconnect=callback,
            on_retry=callback,
            on_failure=callback,
        )
        self.budget = 20
        if welcome is not None:
            self.client.start()
            self.net.accept().say(welcome)

    # The user.

    def do(self, then: str) -> None:
        """What follows an end. There are not endlessly many of them."""
        if not self.budget:
            return
        self.budget -= 1
        if then == "ask":
            self.ask("nothing", 3.0)
        elif then == "cancel another":
            for one in [*self.asked, *self.connecting]:
                if not one.ended:
                    one.deferred.cancel()
                    return
        elif then == "close":
            self.close()
        elif then == "start":
            self.client.start()
        elif then == "connect":
            self.connect(["nothing"], 5.0)

    @rule(all_then=st.lists(thens, min_size=2, max_size=5))
    def ask_some(self, all_then: list[str]) -> None:
        for each in all_then:
            self.ask(each, 1.0)

    @rule(then=thens, timeout=st.sampled_from([None, 0.0, 1.0, 40.0]))
    def ask(self, then: str, timeout: float | None) -> None:
        deferred = self.client.echo("x" * 20, timeout=timeout)
        self.asked.append(Asked(deferred, lambda: self.do(then)))

    @precondition(lambda self: self.asked)
    @rule(number=st.integers(0, 9))
    def cancel(self, number: int) -> None:
        self.asked[-1 - number % len(self.asked)].deferred.cancel()

    @rule()
    def send(self) -> None:
        with contextlib.suppress(ClientError, ProtocolError):
            self.client.send({"type": "note"})

    @rule()
    def start(self) -> None:
        self.client.start()

    @rule(all_then=st.lists(thens, min_size=1, max_size=3), timeout=st.sampled_from([None, 0.5, 5.0]))
    def connect(self, all_then: list[str], timeout: float | None) -> None:
        for each in all_then:
            self.connecting.append(Asked(self.client.connect(timeout=timeout), partial(self.do, each)))

    @precondition(lambda self: self.connecting)
    @rule(number=st.integers(0, 9))
    def cancel_connect(self, number: int) -> None:
        self.connecting[-1 - number % len(self.connecting)].deferred.cancel()

    @rule()
    def close(self) -> None:
        self.closing.append(Asked(self.client.close(), lambda: None))

    # The server, and what is between.

    def line(self) -> Line | None:
        """The connection there is."""
        lines = [line for line in self.net.lines if not line.gone]
        assert len(lines) <= 1
        return lines[0] if lines else None

    def there(self) -> Line:
        """The connection, where there is one."""
        line = self.line()
        assert line is not None
        return line

    @precondition(lambda self: self.net.attempts)
    @rule()
    def accept(self) -> None:
        self.net.accept()

    @precondition(lambda self: self.net.attempts)
    @rule(welcome=st.sampled_from([WELCOME, CLASSIC]))
    def serve(self, welcome: Json) -> None:
        self.net.accept().say(welcome)

    @precondition(lambda self: self.net.attempts)
    @rule()
    def refuse(self) -> None:
        self.net.refuse()

    @precondition(lambda self: self.line())
    @rule(
        messages=st.lists(
            st.sampled_from(
                [
                    WELCOME,
                    CLASSIC,
                    ASKS,
                    GOING_AWAY,
                    {"type": "error", "code": "slow_consumer", "fatal": True},
                    {"type": "error", "code": "bad_json", "fatal": False},
                    {"type": "news"},
                    {"type": "ping"},
                    {"type": "hello_response", "compression": None, "id": -1},
                    {"type": "echo_response", "content": 5},
                    *({"type": "echo_response", "id": key} for key in range(-9, 3)),
                    *({"type": "error", "code": "forbidden", "id": key} for key in range(-9, -2)),
                    [],
                ]
            ),
            min_size=1,
            max_size=5,
        )
    )
    def say(self, messages: list[Json]) -> None:
        line = self.there()
        line.say(*messages)

    @precondition(lambda self: self.line())
    @rule()
    def answer_all(self) -> None:
        """In one read."""
        line = self.there()
        asked = [sent for sent in line.heard() if sent["type"] == "echo"]
        replies = [{**sent, "type": "echo_response"} for sent in asked]
        if replies:
            line.say(*replies)

    @precondition(lambda self: self.line())
    @rule(key=st.integers(-6, -3))
    def flood(self, key: int) -> None:
        """More than is handled in one turn, and a reply behind it."""
        line = self.there()
        line.say(*[[]] * 600, {"type": "echo_response", "id": key})

    @precondition(lambda self: self.line())
    @rule()
    def lose(self) -> None:
        line = self.there()
        line.lose(ConnectionLost())

    @precondition(lambda self: self.line())
    @rule()
    def end_of_file(self) -> None:
        line = self.there()
        line.protocol.readConnectionLost()

    @precondition(lambda self: self.line())
    @rule(stalls=st.booleans())
    def stall(self, stalls: bool) -> None:
        line = self.there()
        line.stalls = stalls

    @precondition(lambda self: self.line())
    @rule(data=st.binary(max_size=8))
    def nonsense(self, data: bytes) -> None:
        line = self.there()
        line.feed(data)

    @precondition(lambda self: self.line())
    @rule()
    def stop_reading(self) -> None:
        line = self.there()
        if line.producer is not None:
            line.stop_reading()

    @precondition(lambda self: self.line())
    @rule()
    def start_reading(self) -> None:
        line = self.there()
        if line.producer is not None:
            line.start_reading()

    @rule(seconds=st.sampled_from([0, 0, 0, 0.5, 1.5, 10, 60]))
    def advance(self, seconds: float) -> None:
        self.clock.pump([seconds / 4] * 4)

    # What holds at any time.

    @invariant()
    def each_ends_once(self) -> None:
        for one in [*self.asked, *self.connecting, *self.closing]:
            assert one.ended <= 1
            if isinstance(one.result, Failure):
                assert one.result.check(ClientError, ProtocolError, CancelledError), one.result

    @invariant()
    def it_knows_who_waits(self) -> None:
        if hasattr(self, "client"):
            assert self.client.waiting == sum(not one.ended for one in self.asked)

    @invariant()
    def it_is_one_thing_or_another(self) -> None:
        if hasattr(self, "client"):
            if self.client.connected:
                assert self.client.running
                assert self.line() is not None
                assert self.client.error is None
            assert len(self.net.attempts) <= 1
            if not self.client.running:
                assert not self.net.attempts
                assert all(one.ended for one in self.connecting)

    @invariant()
    def nothing_breaks(self) -> None:
        assert not self.errors, self.errors[0].getTraceback()

    def teardown(self) -> None:
        try:
            if not hasattr(self, "client"):
                return
            self.budget = 0
            self.close()
            self.clock.advance(0)
            self.clock.advance(CLOSE_TIMEOUT)
            self.clock.advance(0)
            for one in [*self.asked, *self.connecting, *self.closing]:
                assert one.ended == 1
            assert self.client.waiting == 0
            assert self.clock.getDelayedCalls() == []
            assert self.line() is None
            assert self.net.attempts == []
            assert not self.client.running
            self.nothing_breaks()
        finally:
            globalLogPublisher.removeObserver(self.observe)


class ModelTests(SynchronousTestCase):
    """Whatever happens in whatever order."""

    def test_any_order(self) -> None:
        run_machine(
            Model,
            settings=settings(
                max_examples=150,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
