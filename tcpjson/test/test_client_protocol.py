"""The client's side of one connection: the handshake, requests and replies, signs of life, the end."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from errno import ECONNREFUSED
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    DNSLookupError,
    getConnectError,
)
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.client.protocol import NAME, ClientProtocol, Options, Reply, reason_of
from tcpjson.core.compression import COMPRESS_OVER, deflate, inflate
from tcpjson.core.errors import (
    AuthenticationFailed,
    Disconnected,
    Forbidden,
    GoingAway,
    ProtocolError,
    ProtocolMismatch,
    QueueFull,
    ServerFull,
    TooLarge,
)
from tcpjson.core.framing import FrameReader, frame
from tcpjson.core.handshake import AUTH_ID, FIRST_MAX_LENGTH, HELLO_ID, Json
from tcpjson.core.heartbeat import ANSWER_TIME
from tcpjson.core.limits import CLOSE_TIMEOUT, LARGEST_FRAME
from tcpjson.test.hypo import given
from tcpjson.test.wires import Loop, Wire, attach, socket_pair, tls_factory

ADDRESS = IPv4Address("TCP", "192.0.2.1", 9999)
NOW = "2024-01-01T12:00:00.000Z"
WELCOME: Json = {
    "type": "welcome",
    "client_id": "192.0.2.9:5000",
    "message": "Welcome",
    "timestamp": NOW,
    "protocol": 1,
    "server": "scripted/1",
    "max_length": 65536,
    "heartbeat": 25.0,
    "compression": ["zlib"],
    "features": [],
    "auth": [],
    "limits": {},
}
CLASSIC: Json = {"type": "welcome", "client_id": "192.0.2.9:5000", "message": "Welcome", "timestamp": "now"}


def packed(*messages: object) -> bytes:
    """The frames of messages."""
    return b"".join(frame(json.dumps(message).encode()) for message in messages)


class Line(StringTransport):
    """
    A connection in memory to a server that the test plays: what it was sent is in `heard`, what it says
    goes to the protocol at once. When the protocol ends the connection, it is lost with the next turn of
    the clock, unless `stalls` is set; an abort does not ask.
    """

    def __init__(self, clock: Clock, protocol: Any, peer: IAddress = ADDRESS) -> None:
        super().__init__(peerAddress=peer, lenient=True)
        self.clock = clock
        self.protocol = protocol
        #: Whether the server leaves its side open when the client closes.
        self.stalls = False
        #: Whether the connection is no more.
        self.gone = False
        self._ending: IDelayedCall | None = None
        self._reader = FrameReader()
        protocol.makeConnection(self)

    def loseConnection(self) -> None:
        super().loseConnection()
        if not self.stalls:
            self._end(ConnectionDone())

    def abortConnection(self) -> None:
        self.disconnected = self.disconnecting = True
        self._end(ConnectionAborted())

    def _end(self, reason: Exception) -> None:
        if self._ending is None and not self.gone:
            self._ending = self.clock.callLater(0, self.lose, reason)

    def lose(self, reason: Exception | None = None) -> None:
        """The connection is lost."""
        if self._ending is not None and self._ending.active():
            self._ending.cancel()
        if not self.gone:
            self.gone = True
            self.protocol.connectionLost(Failure(reason or ConnectionDone()))

    def feed(self, data: bytes) -> None:
        """The server sends bytes, in one read of the client's."""
        if not self.gone:
            self.protocol.dataReceived(data)

    def say(self, *messages: object) -> None:
        """The server sends messages, in one read of the client's."""
        self.feed(packed(*messages))

    def heard(self) -> list[Json]:
        """What the client has sent since the last call, after this turn of the reactor."""
        self.clock.advance(0)
        data = self.value()
        self.clear()
        if data:
            self._reader.feed(data)
        return [json.loads(payload) for payload in self._reader.take(10_000, LARGEST_FRAME)]

    def understand_compressed(self) -> None:
        """What the client sends may be compressed from now on."""
        self._reader.inflate = inflate

    def stop_reading(self) -> None:
        """The server reads no more, and the buffers between are full."""
        assert self.producer is not None
        self.producer.pauseProducing()

    def start_reading(self) -> None:
        """It reads again."""
        assert self.producer is not None
        self.producer.resumeProducing()


class Listener:
    """An owner that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        #: Called with each reply, and its message.
        self.on_reply: Callable[[Reply, Json], object] = lambda reply, message: reply.callback(message)
        #: Called with each reply that is an error.
        self.on_refusal: Callable[[Reply, ProtocolError], object] = lambda reply, error: reply.errback(error)

    def ready(self, connection: ClientProtocol) -> None:
        self.events.append(("ready",))

    def replied(self, reply: Reply, message: Json) -> None:
        self.events.append(("replied", reply, message))
        self.on_reply(reply, message)

    def refused(self, reply: Reply, error: ProtocolError) -> None:
        self.events.append(("refused", reply, error))
        self.on_refusal(reply, error)

    def leaving(self, connection: ClientProtocol) -> None:
        self.events.append(("leaving",))

    def heard(self, message: Json) -> None:
        self.events.append(("heard", message))

    def gone(self, connection: ClientProtocol, error: Exception, waiting: list[Reply]) -> None:
        self.events.append(("gone", error, waiting))

    def names(self) -> list[str]:
        """What it was told, in order."""
        return [event[0] for event in self.events]

    def error(self) -> Exception:
        """Why the connection is gone, of which it was told once."""
        ((_, error, _),) = [event for event in self.events if event[0] == "gone"]
        assert isinstance(error, Exception)
        return error


class Proof:
    """A login in two steps, whose secret is 7."""

    def __init__(self) -> None:
        self.first: Json = {"mechanism": "sum", "data": "hello"}

    def answer(self, data: str) -> Json:
        if data == "refuse":
            raise AuthenticationFailed("a challenge that is none")
        return {"data": data + "7"}

    def finish(self, data: str | None) -> None:
        assert data is None or isinstance(data, str)
        if data != "proved":
            raise AuthenticationFailed("not the server that knows the secret")


class Proofs:
    """Credentials that make a `Proof`."""

    def __init__(self) -> None:
        self.offered: list[tuple[Sequence[str], bool]] = []

    def begin(self, mechanisms: Sequence[str], secure: bool) -> Proof:
        self.offered.append((tuple(mechanisms), secure))
        if "sum" not in mechanisms:
            raise AuthenticationFailed("nothing that would do")
        return Proof()


class Elsewhere:
    """Runs what takes its time until the test completes it."""

    def __init__(self) -> None:
        self.running: list[Deferred[Json]] = []

    def __call__(self, function: Callable[[], Json]) -> Deferred[Json]:
        self.running.append(Deferred())
        return self.running[-1]


def challenge(data: str = "3+") -> Json:
    return {"type": "auth_challenge", "data": data, "id": AUTH_ID}


def admitted(data: str = "proved") -> Json:
    return {"type": "auth_result", "status": "authenticated", "user": "eve", "data": data, "id": AUTH_ID}


def options_of(**chosen: Any) -> Options:
    """Options, of which some are chosen."""
    usual: dict[str, Any] = {
        "credentials": None,
        "compress": True,
        "silence": None,
        "max_queue": 1 << 20,
        "max_length": LARGEST_FRAME,
        "trace": None,
        "timestamp": lambda: NOW,
        "run": maybeDeferred,
    }
    return Options(**{**usual, **chosen})


class ProtocolTestCase(SynchronousTestCase):
    """With a connection to a scripted server."""

    def setUp(self) -> None:
        self.start()

    def start(self, peer: IAddress = ADDRESS, **options: Any) -> None:
        """Connect."""
        self.clock = Clock()
        self.owner = Listener()
        self.traced: list[tuple[str, list[bytes]]] = []
        self.protocol = ClientProtocol(self.clock, self.owner, options_of(**options))
        self.line = Line(self.clock, self.protocol, peer)

    def serve(self, welcome: Json = WELCOME, **options: Any) -> None:
        """Connect, and be served."""
        self.start(**options)
        self.line.say(welcome)
        self.line.heard()

    def ask(self, kind: str = "ping", **fields: object) -> Reply:
        """Send a request."""
        reply = Reply(lambda deferred: self.protocol.forget(reply))
        self.protocol.ask(reply, kind, json.dumps({"type": kind, **fields}, separators=(",", ":")).encode())
        return reply

    def assert_over(self, kind: type[Exception], text: str = "") -> Exception:
        """The connection is gone for this reason, and nothing is left of it."""
        self.clock.advance(0)
        self.assertTrue(self.line.gone)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        error = self.owner.error()
        self.assertIs(type(error), kind)
        self.assertIn(text, str(error))
        return error


class HandshakeTests(ProtocolTestCase):
    """From the connection to the first request."""

    def test_it_says_hello_and_is_ready(self) -> None:
        self.line.say(WELCOME)
        self.assertEqual(
            self.line.heard(),
            [
                {
                    "type": "hello",
                    "client": NAME,
                    "heartbeat": True,
                    "id": HELLO_ID,
                    "compression": ["zlib"],
                }
            ],
        )
        self.assertEqual(self.owner.names(), ["ready"])
        self.assertEqual(self.protocol.welcome, WELCOME)
        self.assertTrue(self.protocol.served)
        assert self.protocol.server is not None
        self.assertEqual(self.protocol.server.max_length, 65536)
        self.assertIsNone(self.protocol.user)

    def test_nothing_is_sent_before_the_welcome(self) -> None:
        self.assertEqual(self.line.heard(), [])
        self.assertFalse(self.protocol.served)
        self.assertIsNone(self.protocol.server)

    def test_a_classic_server_is_told_nothing(self) -> None:
        self.line.say(CLASSIC)
        self.assertEqual(self.line.heard(), [])
        self.assertEqual(self.owner.names(), ["ready"])

    def test_no_welcome_in_time(self) -> None:
        self.clock.advance(9.9)
        self.assertFalse(self.line.gone)
        self.clock.advance(0.2)
        self.assert_over(Disconnected, "no welcome within 10 seconds (does the server want TLS?)")

    def test_not_a_word(self) -> None:
        """A server that waits for TLS closes, sooner or later; one that said something has another reason."""
        for said, guess in ((b"", " (does the server want TLS?)"), (b"\0\0", ""), (packed(WELCOME), "")):
            self.start()
            self.line.feed(said)
            self.line.lose()
            self.assertEqual(str(self.owner.error()), "the server closed the connection" + guess)

    def test_no_end_of_the_login_in_time(self) -> None:
        self.start(credentials=Proofs())
        self.line.say({**WELCOME, "auth": ["sum"]})
        self.clock.advance(10)
        self.assert_over(Disconnected, "no end of the login within 10 seconds")

    def test_a_length_that_looks_like_nothing(self) -> None:
        self.line.feed(b"\xff\xfd\x18\xff")
        self.assertEqual(str(self.assert_over(ProtocolMismatch)), "what answers is no tcpjson server")

    def test_the_time_is_no_limit_any_more(self) -> None:
        self.line.say(WELCOME)
        self.clock.advance(10)
        self.assertFalse(self.line.gone)

    def test_it_is_no_server(self) -> None:
        """What begins with another message, with no message, or with a length that is none."""
        for data, text in (
            (packed({"type": "hello"}), "the first message is no welcome but of type hello"),
            (packed({}), "of type None"),
            (packed([1]), "it sent what is no message"),
            (frame(b"{"), "it sent what is no message"),
            (b"HTTP/1.1 400 Bad Request\r\n", "its length bytes are the text 'HTTP'"),
            (b"\xff\xfd\x18\xff", "what answers is no tcpjson server"),
            (packed({**WELCOME, "protocol": 2}), "the server speaks version 2, not 1"),
        ):
            self.start()
            self.line.feed(data)
            self.assertIn(text, str(self.protocol.error))
            self.assertTrue(self.line.disconnected)
            self.assert_over(ProtocolMismatch, text)
            self.assertEqual(self.owner.names(), ["gone"])

    def test_nested_as_deep_as_can_be(self) -> None:
        """As deep as the decoder goes: what looks at it later has less room left."""
        for depth in range(900, 1000):
            deep = b"[" * depth + b"]" * depth
            for payload in (b'{"type":%b}' % deep, b'{"type":"welcome","protocol":%b}' % deep):
                self.start()
                self.line.feed(frame(payload))
                self.assert_over(ProtocolMismatch)
            self.serve()
            self.line.feed(frame(b'{"type":"ping","timestamp":%b}' % deep))
            self.line.heard()
            self.assertFalse(self.line.gone)

    def test_it_has_no_room(self) -> None:
        self.line.say({"type": "error", "code": "server_full", "fatal": True, "retry_after": 3})
        error = self.assert_over(ServerFull)
        assert isinstance(error, ServerFull)
        self.assertEqual(error.retry_after, 3)

    def test_the_reason_holds_nothing(self) -> None:
        """It is kept as long as there is no connection: frames, and so messages, must not be kept with it."""
        for first in ({"type": "nonsense"}, {"type": "error", "code": "server_full"}, WELCOME):
            self.start()
            self.line.say({**first, "auth": ["sum"]})
            assert self.protocol.error is not None
            self.assertIsNone(self.protocol.error.__traceback__)

    def test_what_comes_behind_the_end_is_not_heard(self) -> None:
        """In the same read, and in later ones."""
        self.line.say({"type": "nonsense"}, WELCOME)
        self.line.say(WELCOME)
        self.assert_over(ProtocolMismatch)
        self.assertEqual(self.owner.names(), ["gone"])

    def test_behind_the_welcome_in_one_read(self) -> None:
        news = {"type": "broadcast", "content": 1}
        self.line.say(WELCOME, news)
        self.assertEqual(self.owner.events, [("ready",), ("heard", news)])

    def test_an_answer_before_anything_was_asked(self) -> None:
        """It is nobody's, and says nothing of the server."""
        self.line.say({"type": "hello_response", "compression": "zlib", "id": HELLO_ID})
        self.assertFalse(self.line.disconnecting)
        self.assertIsNone(self.protocol.server)
        self.line.say(WELCOME)
        self.assertEqual(self.owner.names(), ["ready"])
        self.assertIsNone(self.protocol.compression)

    def test_a_frame_longer_than_any_answer(self) -> None:
        """The bound is the server's own: what was allowed before its welcome is so no more."""
        self.line.say({**WELCOME, "max_length": 1000})
        self.line.feed(frame(b" " * 10_096 + b"1")[:4])
        self.assert_over(Disconnected, "a frame of 10097 bytes")
        self.start()
        self.line.say({**WELCOME, "max_length": 1000})
        self.line.feed(frame(b" " * 10_095 + b"1"))
        self.assertFalse(self.line.gone)

    def test_a_frame_longer_than_the_client_takes(self) -> None:
        """Whatever the server says, and it may say nothing."""
        for welcome in (WELCOME, CLASSIC, {**WELCOME, "max_length": 10**15}):
            self.serve(welcome, max_length=5000)
            self.line.feed(frame(b" " * 4999 + b"1"))
            self.assertFalse(self.line.disconnecting)
            self.line.feed(frame(b" " * 5000 + b"1")[:4])
            self.assert_over(Disconnected, "a frame of 5001 bytes; at most 5000 are taken")

    def test_an_answer_longer_than_the_first_frame_may_be(self) -> None:
        """In the read of the welcome, too."""
        long = {"type": "long", "content": "x" * FIRST_MAX_LENGTH}
        self.line.say({**WELCOME, "max_length": FIRST_MAX_LENGTH}, long)
        self.clock.advance(0)
        self.assertEqual(self.owner.names(), ["ready", "heard"])

    def test_whether_others_read(self) -> None:
        """A secret may go through TLS, or a Unix socket."""
        for peer, secure in ((ADDRESS, False), (UNIXAddress("/p.sock"), True)):
            proofs = Proofs()
            self.start(peer, credentials=proofs)
            self.line.say({**WELCOME, "auth": ["sum"]})
            self.assertEqual(proofs.offered, [(("sum",), secure)])

    def over_tcp(self, tls: bool) -> tuple[ClientProtocol, Any]:
        """A client on a TCP socket, which is the second; nobody answers it."""
        loop = Loop()
        self.addCleanup(loop.close)
        protocol = ClientProtocol(loop, Listener(), options_of())
        factory: Any = Factory.forProtocol(lambda: protocol)
        port = loop.listenTCP(0, tls_factory(factory, loop) if tls else factory, interface="127.0.0.1")
        end = socket.create_connection(("127.0.0.1", port.getHost().port))
        self.addCleanup(end.close)
        loop.settle()
        transport = protocol.transport.transport if tls else protocol.transport
        return protocol, transport.getHandle()

    def test_over_tcp(self) -> None:
        """The socket is set up, below TLS too, and who could read is known."""
        for tls in (False, True):
            protocol, handle = self.over_tcp(tls)
            self.assertEqual(protocol._handshake._secure, tls)
            self.assertTrue(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_over_tls(self) -> None:
        """The handshake of TLS is no sign of a server; the layers below are found."""
        loop = Loop()
        ours, theirs = socket_pair()
        self.addCleanup(loop.close)
        self.addCleanup(theirs.close)
        owner = Listener()
        protocol = ClientProtocol(loop, owner, options_of())
        factory: Any = Factory.forProtocol(lambda: protocol)
        attach(loop, tls_factory(factory, loop).buildProtocol(None), ours)
        self.assertTrue(protocol._handshake._secure)
        loop.advance(10)
        self.assertEqual(str(protocol.error), "no welcome within 10 seconds")
        loop.settle()
        self.assertEqual(owner.names(), ["gone"])


class LoginTests(ProtocolTestCase):
    """Section 6."""

    def begin(self, **options: Any) -> None:
        """Connect to a server that asks who it is, up to the first `auth`."""
        self.start(credentials=Proofs(), **options)
        self.line.say({**WELCOME, "auth": ["sum", "other"]})

    def test_in_two_steps(self) -> None:
        self.begin()
        hello, auth = self.line.heard()
        self.assertEqual(hello["type"], "hello")
        self.assertEqual(auth, {"type": "auth", "mechanism": "sum", "data": "hello", "id": AUTH_ID})
        self.line.say(challenge())
        self.assertEqual(self.line.heard(), [{"type": "auth", "data": "3+7", "id": AUTH_ID}])
        self.assertEqual(self.owner.names(), [])
        self.line.say(admitted())
        self.assertEqual(self.owner.names(), ["ready"])
        self.assertEqual(self.protocol.user, "eve")

    def test_it_is_refused(self) -> None:
        self.begin()
        self.line.say({"type": "auth_result", "status": "authentication_failed", "id": AUTH_ID})
        self.assert_over(AuthenticationFailed, "does not know the name")

    def test_nobody_to_show(self) -> None:
        self.line.say({**WELCOME, "auth": ["sum", "other"]})
        self.assert_over(AuthenticationFailed, "sum, other")

    def test_nothing_that_would_do(self) -> None:
        self.start(credentials=Proofs())
        self.line.say({**WELCOME, "auth": ["other"]})
        self.assert_over(AuthenticationFailed, "nothing that would do")

    def test_a_challenge_that_is_none(self) -> None:
        self.begin()
        self.line.say(challenge("refuse"))
        self.assert_over(AuthenticationFailed, "a challenge that is none")

    def test_a_server_that_proves_nothing(self) -> None:
        self.begin()
        self.line.say(challenge(), admitted("no"))
        self.assert_over(AuthenticationFailed, "not the server that knows the secret")

    def test_a_login_that_breaks(self) -> None:
        self.begin(run=lambda function: maybeDeferred(lambda: 1 // 0))
        self.line.say(challenge())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assert_over(AuthenticationFailed, "ZeroDivisionError")

    def test_it_goes_on_elsewhere(self) -> None:
        """The answer takes its time, and other messages come meanwhile."""
        elsewhere = Elsewhere()
        self.begin(run=elsewhere)
        self.line.heard()
        self.line.say(challenge())
        self.line.say({"type": "news"})
        self.assertEqual(self.line.heard(), [])
        (deferred,) = elsewhere.running
        deferred.callback({"type": "auth", "data": "!"})
        self.assertEqual(self.line.heard(), [{"type": "auth", "data": "!"}])

    def test_lost_while_it_goes_on_elsewhere(self) -> None:
        """That the connection is lost says nothing of the secret: a retry may do."""
        elsewhere = Elsewhere()
        self.begin(run=elsewhere)
        self.line.say(challenge())
        self.clock.advance(0)
        self.line.lose(ConnectionLost())
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assert_over(Disconnected)
        # What it comes to is not heard any more.
        elsewhere.running[0].callback({"type": "auth"})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closed_while_it_goes_on_elsewhere(self) -> None:
        elsewhere = Elsewhere()
        self.begin(run=elsewhere)
        self.line.say(challenge())
        self.protocol.close(Disconnected("enough"))
        self.assert_over(Disconnected, "enough")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_two_challenges_at_once(self) -> None:
        """An answer may cost half a second of a thread: there is one at a time."""
        elsewhere = Elsewhere()
        self.begin(run=elsewhere)
        self.clock.advance(0)
        self.line.say(*[challenge()] * 100)
        self.assertEqual(len(elsewhere.running), 1)
        self.clock.advance(0)
        self.line.lose()
        for deferred in elsewhere.running:
            deferred.callback({"type": "auth"})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_goes_away_meanwhile(self) -> None:
        """When to come again is known from then on."""
        self.begin()
        self.line.say({"type": "error", "code": "going_away", "fatal": False, "retry_after": 7})
        self.line.lose()
        error = self.assert_over(GoingAway)
        assert isinstance(error, GoingAway)
        self.assertEqual(error.retry_after, 7)


class RequestTests(ProtocolTestCase):
    """Requests, replies, and what is neither."""

    def test_a_reply_finds_its_request(self) -> None:
        self.serve()
        first, second = self.ask(), self.ask("echo", content=2)
        sent = self.line.heard()
        self.assertEqual([message["type"] for message in sent], ["ping", "echo"])
        self.assertEqual(self.protocol.waiting, 2)
        one, two = (message["id"] for message in sent)
        self.line.say({"type": "echo_response", "id": two}, {"type": "pong", "id": one})
        self.assertEqual(self.successResultOf(first), {"type": "pong", "id": one})
        self.assertEqual(self.successResultOf(second), {"type": "echo_response", "id": two})
        self.assertEqual(self.protocol.waiting, 0)

    def test_one_turn_is_one_write(self) -> None:
        self.serve()
        writes: list[bytes] = []
        self.patch(self.line, "write", writes.append)
        for _ in range(3):
            self.ask()
        self.protocol.tell(None, b"text")
        self.assertEqual(writes, [])
        self.clock.advance(0)
        self.assertEqual(len(writes), 1)

    def test_what_a_batch_of_replies_leads_to_is_one_write(self) -> None:
        """It leaves with the read, not with the next turn."""
        self.serve()
        for _ in range(3):
            self.ask()
        keys = [message["id"] for message in self.line.heard()]
        writes: list[bytes] = []
        self.patch(self.line, "write", writes.append)
        self.owner.on_reply = lambda reply, message: self.ask()
        self.line.say(*({"type": "pong", "id": key} for key in keys))
        self.assertEqual(len(writes), 1)
        self.assertGreater(min(call.getTime() for call in self.clock.getDelayedCalls()), 0)
        self.assertEqual(self.protocol.waiting, 3)
        self.clock.advance(0)
        self.assertEqual(len(writes), 1)

    def test_asked_before_and_in_a_batch(self) -> None:
        """The order of the two is kept, and nothing is sent twice."""
        self.serve()
        self.ask("first")
        (first,) = self.line.heard()
        self.ask("second")
        self.owner.on_reply = lambda reply, message: self.ask("third")
        self.line.say({"type": "response", "id": first["id"]})
        self.assertEqual([message["type"] for message in self.line.heard()], ["second", "third"])

    def test_a_complaint_is_made_once(self) -> None:
        """Who sends nonsense is not to fill the log."""
        self.serve()
        with capturedLogs() as events:
            for _ in range(3):
                self.line.feed(frame(b"{") + frame(b"5"))
        self.assertEqual(len(events), 1)

    def test_what_looks_like_an_error(self) -> None:
        """Only an error is one."""
        self.serve()
        reply = self.ask()
        (ping,) = self.line.heard()
        reply.cancel()
        self.failureResultOf(reply)
        self.line.say({"type": "news", "code": "going_away", "fatal": True})
        self.line.say({"type": "pong", "code": "going_away", "fatal": True, "id": ping["id"]})
        self.assertEqual(self.owner.names(), ["ready", "heard"])
        self.assertIsNone(self.protocol.error)

    def test_who_waits_no_more(self) -> None:
        """The reply is nobody else's, and no message of its own."""
        self.serve()
        reply = self.ask()
        (ping,) = self.line.heard()
        reply.cancel()
        self.failureResultOf(reply)
        self.assertEqual(self.protocol.waiting, 0)
        self.line.say({"type": "pong", "id": ping["id"]})
        self.assertEqual(self.owner.names(), ["ready"])

    def test_what_is_no_reply(self) -> None:
        self.serve()
        messages = [{"type": "broadcast", "content": 1}, {"no": "type"}, {"type": ["odd"], "id": "x"}]
        self.line.say(*messages)
        self.assertEqual([event[1] for event in self.owner.events[1:]], messages)

    def test_what_is_no_message(self) -> None:
        """It is passed over, and what is around it is heard."""
        self.serve()
        payloads = [b'{"type":"a"}', b"{", b"", b"\xff", b"[1]", b"7", b"[" * 5000, b'{"type":"b"}']
        self.line.feed(b"".join(map(frame, payloads)))
        self.assertEqual([event[1]["type"] for event in self.owner.events[1:]], ["a", "b"])

    def test_too_large(self) -> None:
        self.serve({**WELCOME, "max_length": 100})
        with self.assertRaises(TooLarge):
            self.ask("echo", content="x" * 100)
        with self.assertRaises(TooLarge):
            self.protocol.tell(None, b"x" * 101)
        self.assertEqual(self.protocol.waiting, 0)
        self.protocol.tell(None, b"x" * 100)
        # With its id: {"type":"echo","content":"xx…x","id":-3}
        room = 100 - len('{"type":"echo","content":"","id":-3}')
        self.ask("echo", content="x" * room)
        with self.assertRaises(TooLarge):
            self.ask("echo", content="x" * (room + 1))

    def test_a_classic_server_takes_what_it_takes(self) -> None:
        self.serve(CLASSIC)
        self.protocol.tell(None, b"x" * (2 * FIRST_MAX_LENGTH))

    def test_the_queue_is_full(self) -> None:
        self.serve(max_queue=100)
        self.line.stop_reading()
        self.protocol.tell(None, b"x" * 60)
        with self.assertRaises(QueueFull):
            self.protocol.tell(None, b"x" * 41)
        self.protocol.tell(None, b"x" * 40)
        self.clock.advance(0)
        for _ in range(2):
            with self.assertRaises(QueueFull):
                self.ask()
        self.assertEqual(self.protocol.waiting, 0)
        self.line.start_reading()
        self.ask()

    def test_one_message_always_fits(self) -> None:
        self.serve(max_queue=10)
        self.protocol.tell(None, b"x" * 60)
        with self.assertRaises(QueueFull):
            self.protocol.tell(None, b"x")

    def test_the_end_of_what_waits(self) -> None:
        self.serve()
        replies = [self.ask() for _ in range(3)]
        self.line.lose(ConnectionLost())
        self.assertEqual(self.owner.events[-1][2], replies)
        self.assert_over(Disconnected, "lost")
        self.assertEqual(self.protocol.waiting, 0)

    def test_errors_without_an_id(self) -> None:
        """The one that ends the connection says why it ended."""
        self.serve()
        self.line.say({"type": "error", "code": "bad_json", "fatal": False})
        self.assertIsNone(self.protocol.error)
        self.line.say({"type": "error", "code": "slow_consumer", "fatal": True, "message": "too slow"})
        self.assertEqual(self.owner.names(), ["ready", "heard", "heard"])
        self.line.lose()
        self.assertEqual(str(self.owner.error()), "too slow")

    def test_an_unknown_code_that_is_fatal(self) -> None:
        self.serve()
        self.line.say({"type": "error", "code": "quota", "fatal": True, "retry_after": 60})
        self.line.lose()
        error = self.assert_over(ProtocolError, "quota")
        assert isinstance(error, ProtocolError)
        self.assertEqual((error.code, error.retry_after), ("quota", 60))

    def test_a_fatal_error_that_is_a_reply(self) -> None:
        """It is the request's, and says why the connection ends and when to come again."""
        error = {"type": "error", "code": "rate_limited", "fatal": True, "retry_after": 9}
        for waits, told in ((True, ["ready", "refused"]), (False, ["ready"])):
            self.serve()
            reply = self.ask()
            (ping,) = self.line.heard()
            if not waits:
                reply.cancel()
            self.line.say({**error, "id": ping["id"]})
            self.failureResultOf(reply)
            self.assertEqual(self.owner.names(), told)
            self.line.lose()
            self.assertEqual(getattr(self.owner.error(), "retry_after", None), 9)

    def test_an_error_that_is_a_reply(self) -> None:
        """It says nothing of the connection."""
        self.serve()
        replies = [self.ask() for _ in range(2)]
        keys = [message["id"] for message in self.line.heard()]
        for key, code in zip(keys, ("forbidden", "going_away"), strict=True):
            self.line.say({"type": "error", "code": code, "fatal": False, "id": key})
        self.failureResultOf(replies[0], Forbidden)
        self.failureResultOf(replies[1], GoingAway)
        self.assertEqual(self.owner.names(), ["ready", "refused", "refused"])
        self.line.lose()
        self.assert_over(Disconnected)

    def test_it_goes_away(self) -> None:
        self.serve()
        waits = self.ask()
        (ping,) = self.line.heard()
        self.line.say({"type": "error", "code": "going_away", "fatal": False, "retry_after": 2.5})
        self.assertEqual(self.owner.names(), ["ready", "leaving", "heard"])
        self.line.say({"type": "pong", "id": ping["id"]})
        self.successResultOf(waits)
        self.line.lose()
        error = self.assert_over(GoingAway)
        assert isinstance(error, GoingAway)
        self.assertEqual(error.retry_after, 2.5)


class ClassicTests(ProtocolTestCase):
    """Servers that know sections 1 to 3 alone."""

    def test_no_ids_but_timestamps(self) -> None:
        self.serve(CLASSIC)
        self.ask()
        self.ask("echo", content=1, timestamp="mine")
        self.protocol.tell("odd", b'{"type":"odd"}')
        self.protocol.tell(None, b"text")
        self.clock.advance(0)
        self.assertEqual(
            self.line.value(),
            frame(b'{"type":"ping","timestamp":"%b"}' % NOW.encode())
            + frame(b'{"type":"echo","content":1,"timestamp":"mine"}')
            + frame(b'{"type":"odd","timestamp":"%b"}' % NOW.encode())
            + frame(b"text"),
        )

    def test_replies_by_kind_and_order(self) -> None:
        self.serve(CLASSIC)
        pings = [self.ask(), self.ask()]
        echo = self.ask("echo", content=1)
        self.line.say({"type": "pong", "n": 1}, {"type": "echo_response"}, {"type": "pong", "n": 2})
        self.assertEqual([self.successResultOf(ping)["n"] for ping in pings], [1, 2])
        self.successResultOf(echo)

    def test_what_nobody_waits_for_is_heard(self) -> None:
        self.serve(CLASSIC)
        self.protocol.tell("ping", b'{"type":"ping"}')
        ping = self.ask()
        self.line.say({"type": "pong", "n": 1}, {"type": "pong", "n": 2})
        self.assertEqual(self.owner.events[1], ("heard", {"type": "pong", "n": 1}))
        self.assertEqual(self.successResultOf(ping)["n"], 2)

    def test_texts(self) -> None:
        """They are sent as they are, and what comes back is no reply to a request."""
        self.serve(CLASSIC)
        self.protocol.tell(None, b'{"a":1}')
        asked = self.ask("other")
        self.clock.advance(0)
        self.assertIn(frame(b'{"a":1}'), self.line.value())
        self.line.say({"type": "response", "n": 1})
        self.assertEqual(self.successResultOf(asked)["n"], 1)

    def test_what_is_never_answered(self) -> None:
        """A ping tells that it will not be any more: what is asked then gets its own reply."""
        self.serve(CLASSIC)
        mute = self.ask("mute")
        mute.cancel()
        self.failureResultOf(mute)
        self.assertEqual([message["type"] for message in self.line.heard()], ["mute", "ping"])
        self.line.say({"type": "pong"})
        asked = self.ask("other")
        self.line.say({"type": "response", "n": 1})
        self.assertEqual(self.successResultOf(asked)["n"], 1)
        self.assertEqual(self.owner.names(), ["ready", "replied"])

    def test_it_is_asked_once_a_turn(self) -> None:
        """However many give up."""
        self.serve(CLASSIC)
        for _ in range(2):
            replies = [self.ask("mute") for _ in range(5)]
            self.line.heard()
            for reply in replies:
                reply.cancel()
                self.failureResultOf(reply)
            self.assertEqual([message["type"] for message in self.line.heard()], ["ping"])

    def test_other_servers_are_not_asked(self) -> None:
        """They know which request it was."""
        self.serve()
        reply = self.ask()
        reply.cancel()
        self.failureResultOf(reply)
        self.assertEqual(len(self.line.heard()), 1)

    def test_its_ping_is_a_message_like_any_other(self) -> None:
        """It was asked for none."""
        self.serve(CLASSIC)
        self.line.say({"type": "ping"})
        self.assertEqual(self.line.heard(), [])
        self.assertEqual(self.owner.events[-1], ("heard", {"type": "ping"}))


AGREED: Json = {"type": "hello_response", "compression": "zlib", "id": HELLO_ID}
LONG: Json = {"type": "long", "content": "x" * 5000}


class CompressionTests(ProtocolTestCase):
    """Section 7."""

    def compressed(self, message: Json) -> bytes:
        return frame(deflate(json.dumps(message).encode()), compressed=True)

    def test_right_behind_the_agreement(self) -> None:
        """All in one read, with the welcome too: they are inflated, in order."""
        last = {"type": "last"}
        data = packed(WELCOME, AGREED) + self.compressed(LONG) * 3 + packed(last)
        self.line.feed(data)
        self.clock.advance(0)
        self.assertEqual(self.owner.events, [("ready",), *[("heard", LONG)] * 3, ("heard", last)])
        self.assertEqual(self.protocol.compression, "zlib")

    def test_the_connection_is_lost_with_it(self) -> None:
        self.line.feed(packed(WELCOME, AGREED) + self.compressed(LONG) * 3)
        self.line.lose()
        self.assertEqual(self.owner.names(), ["ready", *["heard"] * 3, "gone"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_late_agreement(self) -> None:
        """Requests do not wait for it."""
        self.serve()
        self.ask("echo", content="x" * 5000)
        self.assertGreater(len(self.line.value() or self.line.heard()[0]["content"]), 4999)
        self.line.say(AGREED)
        self.line.understand_compressed()
        self.ask("echo", content="x" * 5000)
        self.clock.advance(0)
        self.assertLess(len(self.line.value()), 200)
        self.assertEqual(self.line.heard()[0]["content"], "x" * 5000)
        self.line.feed(self.compressed(LONG))
        self.clock.advance(0)
        self.assertEqual(self.owner.events[-1], ("heard", LONG))

    def test_what_is_short_is_sent_as_it_is(self) -> None:
        self.serve()
        self.line.say(AGREED)
        self.protocol.tell(None, b"x" * COMPRESS_OVER)
        self.clock.advance(0)
        self.assertEqual(self.line.value(), frame(b"x" * COMPRESS_OVER))

    def test_without_an_agreement(self) -> None:
        """The bit is part of the length."""
        for answer in (None, {**AGREED, "compression": None}, {**AGREED, "compression": "br"}):
            self.serve()
            if answer is not None:
                self.line.say(answer)
            self.line.feed(self.compressed(LONG))
            self.clock.advance(0)
            self.assert_over(Disconnected, "at most 397312 are taken")

    def test_it_was_not_asked_for(self) -> None:
        """Then there is no agreement, whatever the server says."""
        for welcome, options in ((WELCOME, {"compress": False}), ({**WELCOME, "compression": []}, {})):
            self.start(**options)  # type: ignore[arg-type]  # it cannot tell them from `peer`
            self.line.say(welcome)
            self.assertNotIn("compression", self.line.heard()[0])
            self.line.say(AGREED)
            self.assertIsNone(self.protocol.compression)

    def test_a_broken_one(self) -> None:
        self.serve()
        self.line.say(AGREED)
        self.line.feed(frame(b"nonsense", compressed=True))
        self.clock.advance(0)
        self.assert_over(Disconnected, "a bad frame")

    def test_an_error_as_the_answer_to_hello(self) -> None:
        """It goes on without; but a fatal one says why it ends."""
        self.serve()
        self.line.say({"type": "error", "code": "bad_message", "fatal": False, "id": HELLO_ID})
        self.assertIsNone(self.protocol.compression)
        self.ask()
        self.line.say(
            {"type": "error", "code": "rate_limited", "fatal": True, "retry_after": 4, "id": HELLO_ID}
        )
        self.line.lose()
        self.assertEqual(getattr(self.owner.error(), "retry_after", None), 4)


class HeartbeatTests(ProtocolTestCase):
    """Section 8."""

    def test_a_ping_is_answered(self) -> None:
        self.serve()
        self.line.say({"type": "ping", "timestamp": [1]}, {"type": "ping"})
        self.assertEqual(
            self.line.heard(),
            [{"type": "pong", "ping_timestamp": [1]}, {"type": "pong", "ping_timestamp": None}],
        )
        self.assertEqual(self.owner.names(), ["ready"])

    def test_a_server_that_pings_and_does_not_read(self) -> None:
        """What it is answered waits, and is bounded."""
        self.serve()
        self.line.stop_reading()
        timestamp = "x" * 30_000
        for _ in range(20):
            self.line.say({"type": "ping", "timestamp": timestamp})
            self.clock.advance(0)
        self.line.start_reading()
        self.assertEqual(len(self.line.heard()), 3)
        # In one read, too.
        self.line.say(*[{"type": "ping", "timestamp": timestamp}] * 20)
        self.assertEqual(len(self.line.heard()), 3)
        self.line.say({"type": "ping"})
        self.assertEqual(len(self.line.heard()), 1)

    def silent_for(self, seconds: float) -> list[Json]:
        """What is sent meanwhile."""
        sent = []
        for _ in range(int(seconds * 4)):
            self.clock.advance(0.25)
            sent += self.line.heard()
        return sent

    def test_a_silent_server_is_asked(self) -> None:
        self.serve()
        self.assertEqual(self.silent_for(49), [])
        (ping,) = self.silent_for(2)
        self.assertEqual(ping["type"], "ping")
        self.assertEqual(self.protocol.waiting, 0)
        self.line.say({"type": "pong", "id": ping["id"]})
        self.assertEqual(self.owner.names(), ["ready"])
        self.assertEqual(self.silent_for(49), [])
        self.assertEqual(len(self.silent_for(15)), 1)

    def test_it_does_not_answer(self) -> None:
        self.serve(silence=2.0)
        self.assertEqual(len(self.silent_for(3)), 1)
        self.silent_for(ANSWER_TIME - 1.5)
        self.assertFalse(self.line.gone)
        self.silent_for(1.5)
        self.assert_over(Disconnected, "the server went silent")

    def test_any_bytes_will_do(self) -> None:
        """Those of a frame that is not whole yet, too."""
        self.serve(silence=2.0)
        data = packed({"type": "long", "content": "x" * 200})
        for byte in data[:100]:
            self.line.feed(bytes([byte]))
            self.assertEqual(self.silent_for(1), [])
        self.assertFalse(self.line.gone)

    def test_a_classic_server_is_asked_without_an_id(self) -> None:
        """What it answers is not taken for the reply to a request."""
        self.serve(CLASSIC, silence=2.0)
        (ping,) = self.silent_for(3)
        self.assertEqual(ping, {"type": "ping", "timestamp": NOW})
        mine = self.ask()
        self.line.say({"type": "pong", "n": 1})
        self.assertNoResult(mine)
        self.line.say({"type": "pong", "n": 2})
        self.assertEqual(self.successResultOf(mine)["n"], 2)
        self.assertEqual(self.owner.names(), ["ready", "replied"])

    def test_requests_go_before_the_ping(self) -> None:
        self.serve(silence=2.0)
        self.clock.callLater(2.0, self.ask, "first")
        self.assertEqual([message["type"] for message in self.silent_for(3)], ["first", "ping"])

    def test_odd_heartbeats(self) -> None:
        """Whatever a server says, time is not wasted on it."""
        for heartbeat in (0, -5, 1e-300, 1e308, None, 25):
            self.serve({**WELCOME, "heartbeat": heartbeat})
            looks = 0
            for call in self.clock.getDelayedCalls():
                self.assertGreater(call.getTime(), self.clock.seconds() + 0.1)
                looks += 1
            self.assertEqual(looks, 1)
            self.assertFalse(self.line.gone)


class EndTests(ProtocolTestCase):
    """How a connection ends."""

    def test_closed(self) -> None:
        """What is to be sent is sent before."""
        self.serve()
        reply = self.ask()
        self.assertEqual(self.protocol.close(Disconnected("enough")), [reply])
        self.assertEqual(len(self.line.heard()), 1)
        self.assert_over(Disconnected, "enough")

    def test_closed_while_the_server_does_not_close(self) -> None:
        self.serve()
        self.line.stalls = True
        self.protocol.close(Disconnected("enough"))
        self.clock.advance(CLOSE_TIMEOUT - 0.1)
        self.assertFalse(self.line.gone)
        self.clock.advance(0.2)
        self.assert_over(Disconnected, "enough")

    def test_what_comes_after_closing_is_not_heard(self) -> None:
        self.serve()
        self.line.stalls = True
        self.protocol.close(Disconnected("enough"))
        self.line.say({"type": "broadcast"})
        self.line.heard()
        self.assertEqual(self.owner.names(), ["ready"])

    def test_closed_in_the_midst_of_a_batch(self) -> None:
        """The replies behind are not heard, and those who wait for them are told."""
        self.serve()
        replies = [self.ask() for _ in range(3)]
        keys = [message["id"] for message in self.line.heard()]
        lost: list[Reply] = []
        self.owner.on_reply = lambda reply, message: lost.extend(self.protocol.close(Disconnected("enough")))
        self.line.say(*({"type": "pong", "id": key} for key in keys), {"type": "broadcast"})
        self.assertEqual(lost, replies[1:])
        self.assertEqual(self.owner.names(), ["ready", "replied"])
        self.assert_over(Disconnected, "enough")

    def test_the_server_closes(self) -> None:
        self.serve()
        self.line.lose(ConnectionDone())
        self.assert_over(Disconnected, "the server closed the connection")

    def test_the_server_closes_its_side(self) -> None:
        self.serve()
        self.protocol.readConnectionLost()
        self.assert_over(Disconnected, "the server closed the connection")

    def test_who_else_is_told(self) -> None:
        """Where no connector sees it; after the owner."""
        self.serve()
        self.protocol.lost = lambda reason: self.owner.events.append(("lost", reason))
        self.line.lose(ConnectionLost())
        self.owner.events[-1][1].trap(ConnectionLost)
        self.assertEqual(self.owner.names(), ["ready", "gone", "lost"])

    def test_no_timers_are_left(self) -> None:
        """Wherever it is lost: each step goes one further."""
        elsewhere = Elsewhere()
        steps: list[Callable[[], object]] = [
            lambda: self.line.feed(b"\0\0"),
            lambda: self.line.feed(packed({**WELCOME, "auth": ["sum"]})[2:]),
            lambda: self.line.say(challenge()),
            lambda: elsewhere.running[-1].callback({"type": "auth", "data": ""}),
            lambda: self.line.say(admitted()),
            lambda: self.ask(),
            lambda: self.line.feed(packed({"type": "x"}) * 2000),
            lambda: self.protocol.close(Disconnected("enough")),
        ]
        for count in range(len(steps) + 1):
            self.start(credentials=Proofs(), run=elsewhere)
            for step in steps[:count]:
                step()
            self.line.lose()
            self.assertEqual(self.clock.getDelayedCalls(), [], count)
            self.assertEqual(self.owner.names().count("gone"), 1)


class SocketTests(SynchronousTestCase):
    """On a real socket."""

    def connect(self, **options: Any) -> Wire:
        """Connect, and be served; returns the server's end."""
        self.loop = Loop()
        self.owner = Listener()
        ours, theirs = socket_pair(4096)
        self.protocol = ClientProtocol(self.loop, self.owner, options_of(**options))
        attach(self.loop, self.protocol, ours)
        self.addCleanup(self.loop.close)
        self.addCleanup(theirs.close)
        wire = Wire(self.loop, theirs)
        wire.send(packed(WELCOME))
        (hello,) = wire.payloads()
        self.assertEqual(json.loads(hello)["type"], "hello")
        return wire

    def ask(self, **fields: object) -> Reply:
        reply = Reply()
        self.protocol.ask(reply, "echo", json.dumps({"type": "echo", **fields}).encode())
        return reply

    def assert_over(self, kind: type[Exception], text: str = "") -> None:
        self.loop.settle()
        error = self.owner.error()
        self.assertIs(type(error), kind)
        self.assertIn(text, str(error))
        self.assertEqual(self.loop.getDelayedCalls(), [])
        self.assertEqual(self.loop.readers | self.loop.writers, set())

    def test_there_and_back(self) -> None:
        wire = self.connect()
        reply = self.ask(content="x" * 60_000)
        (sent,) = map(json.loads, wire.payloads())
        wire.send(packed({**sent, "type": "echo_response"}))
        self.assertEqual(len(self.successResultOf(reply)["content"]), 60_000)
        wire.close()
        self.assert_over(Disconnected)

    def test_a_message_is_half_sent(self) -> None:
        """What the system does not take waits, and counts."""
        self.connect()
        self.protocol.tell(None, b"x" * 60_000)
        self.loop.settle()
        for _ in range(15):
            self.protocol.tell(None, b"x" * 64_000)
            self.loop.settle()
        with self.assertRaises(QueueFull):
            for _ in range(5):
                self.protocol.tell(None, b"x" * 64_000)
        self.assertEqual(self.protocol.waiting, 0)

    def test_it_is_closed_while_one_is_half_sent(self) -> None:
        """The server takes the rest, all of it, and closes."""
        wire = self.connect()
        self.protocol.tell(None, b"x" * 60_000)
        self.protocol.close(Disconnected("enough"))
        self.assertEqual(wire.payloads(), [b"x" * 60_000])
        self.assertTrue(wire.ended)
        wire.send(packed({"type": "late"}))
        wire.close()
        self.assert_over(Disconnected, "enough")
        self.assertEqual(self.owner.names(), ["ready", "gone"])

    def test_it_is_closed_and_the_server_stays(self) -> None:
        wire = self.connect()
        self.protocol.close(Disconnected("enough"))
        self.loop.settle()
        self.assertTrue(wire.take(1) or wire.ended)
        self.assertEqual(self.owner.names(), ["ready"])
        self.loop.advance(CLOSE_TIMEOUT)
        self.assert_over(Disconnected, "enough")

    def test_the_server_closes_its_side(self) -> None:
        wire = self.connect()
        reply = self.ask()
        wire.take_all()
        wire.end()
        self.assert_over(Disconnected, "the server closed the connection")
        self.assertEqual(self.owner.events[-1][2], [reply])

    def test_a_server_that_stops(self) -> None:
        """It takes nothing, and says nothing: the ping does not even reach it."""
        self.connect(silence=2.0)
        self.ask(content="x" * 60_000)
        for _ in range(60):
            self.loop.advance(0.25)
            self.loop.settle()
        self.assert_over(Disconnected, "the server went silent")


class TraceTests(ProtocolTestCase):
    """Whoever looks on."""

    def test_it_is_shown_all(self) -> None:
        shown: list[tuple[str, list[bytes]]] = []
        self.start(trace=lambda direction, payloads: shown.append((direction, list(payloads))))
        welcome = json.dumps(WELCOME).encode()
        self.line.feed(frame(welcome) + frame(b"{"))
        self.assertEqual([direction for direction, _ in shown], ["received", "sent"])
        self.assertEqual(shown[0][1], [welcome, b"{"])
        self.assertEqual(json.loads(shown[1][1][0])["type"], "hello")

    def test_it_is_shown_what_is_compressed_as_it_was(self) -> None:
        shown: list[bytes] = []
        self.serve(trace=lambda direction, payloads: shown.extend(payloads))
        self.line.say(AGREED)
        self.protocol.tell(None, b"x" * 5000)
        self.clock.advance(0)
        self.assertEqual(shown[-1], b"x" * 5000)

    def test_it_is_not_shown_nothing(self) -> None:
        shown: list[Sequence[bytes]] = []
        self.serve(trace=lambda direction, payloads: shown.append(payloads))
        self.line.say({"type": "news"})
        self.protocol.close(Disconnected("enough"))
        self.clock.advance(0)
        self.assertEqual(len(shown), 3)
        self.assertTrue(all(shown))

    def test_it_breaks(self) -> None:
        """It is shown nothing more of this connection, which goes on."""
        shown: list[str] = []

        def broken(direction: str, payloads: Sequence[bytes]) -> None:
            shown.append(direction)
            if len(shown) == 3:
                raise OSError("the disk is full")

        self.serve(trace=broken)
        for _ in range(3):
            reply = self.ask()
            (ping,) = self.line.heard()
            self.line.say({"type": "pong", "id": ping["id"]})
            self.successResultOf(reply)
        self.assertEqual(shown, ["received", "sent", "sent"])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)


class ReasonTests(SynchronousTestCase):
    """`reason_of`: one line for people."""

    def test_reasons(self) -> None:
        for error, text in (
            (
                SSL.Error([("SSL routines", "", "certificate verify failed")]),
                "the server's certificate is expired, or from nobody who is trusted",
            ),
            (ConnectionLost(), "the connection was lost"),
            (VerificationError([]), "the server's certificate is for another name"),
            (SSL.Error([("SSL routines", "", "unexpected message")]), "unexpected message"),
            (SSL.Error([("SSL routines", "", "wrong version number")]), "what answers does not speak TLS"),
            (getConnectError((ECONNREFUSED, "Connection refused")), "Connection refused"),
            (ConnectTimeout(), "User timeout caused connection failure."),
            (DNSLookupError("no results\nfor x"), "DNS lookup failed: no results for x."),
            (KeyError(), "KeyError"),
        ):
            self.assertEqual(reason_of(Failure(error)), text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(
    ["welcome", "error", "hello_response", "auth_challenge", "auth_result", "pong", "ping", "response"]
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "type": names | values,
        "id": st.sampled_from([HELLO_ID, AUTH_ID, -3, -4, -5, 0, "x"]) | values,
        "code": st.sampled_from(["going_away", "server_full", "auth_failed", "x"]) | values,
        "fatal": st.booleans() | values,
        "retry_after": st.floats() | st.integers(-5, 10**30) | values,
        "message": values,
        "status": st.just("authenticated") | values,
        "data": st.sampled_from(["proved", "refuse"]) | values,
        "user": values,
        "compression": st.sampled_from([["zlib"], "zlib", None]) | values,
        "protocol": st.sampled_from([1, None]) | values,
        "max_length": st.integers() | st.just(65536) | values,
        "heartbeat": st.floats(allow_nan=False) | values,
        "auth": st.sampled_from([[], ["sum"]]) | values,
        "limits": st.dictionaries(st.text(), values, max_size=2) | values,
        "timestamp": values,
    },
)


def _payload(message: object) -> bytes:
    """As JSON; floats that JSON has not become null."""
    return (
        json.dumps(message)
        .replace("NaN", "null")
        .replace("-Infinity", "null")
        .replace("Infinity", "null")
        .encode()
    )


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


class AnyServerTests(ProtocolTestCase):
    """Whatever a server sends, however it is cut."""

    def run_with(self, chunks: list[bytes], asks: int, welcomed: bool) -> None:
        self.start(credentials=Proofs())
        if welcomed:
            self.line.say(WELCOME)
        ended: list[Reply] = []
        self.owner.on_reply = lambda reply, message: ended.append(reply)
        self.owner.on_refusal = lambda reply, error: ended.append(reply)
        replies = []
        for index, chunk in enumerate(chunks):
            if self.protocol.served and not self.line.disconnecting and index < asks:
                replies.append(self.ask())
            self.line.feed(chunk)
            self.clock.advance(0)
        self.line.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.owner.names().count("gone"), 1)
        ended += self.owner.events[-1][2]
        self.assertEqual(sorted(map(id, ended)), sorted(map(id, replies)))
        self.assertEqual(self.protocol.waiting, 0)

    @given(st.binary(max_size=60), st.lists(st.integers(0, 100), max_size=5), st.booleans())
    def test_any_bytes(self, data: bytes, cuts: list[int], welcomed: bool) -> None:
        self.run_with(_cut(data, cuts), 3, welcomed)

    @given(
        st.lists(fields.map(_payload) | values.map(_payload) | st.binary(max_size=9), min_size=1, max_size=6),
        st.lists(st.integers(0, 5000), max_size=6),
        st.booleans(),
        examples=300,
    )
    def test_any_messages(self, payloads: list[bytes], cuts: list[int], welcomed: bool) -> None:
        self.run_with(_cut(b"".join(map(frame, payloads)), cuts), 4, welcomed)
        self.flushLoggedErrors()
