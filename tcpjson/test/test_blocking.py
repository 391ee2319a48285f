"""Tests of `tcpjson.blocking`: the client against scripted servers on loopback, and the server."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import os
import selectors
import socket
import ssl
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable
from typing import Any, Self

import msgspec
import trustme
from hypothesis import strategies as st
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.blocking import ConnectionPool, TCPClient, TCPServer
from tcpjson.blocking import link as links
from tcpjson.blocking import pool as pools
from tcpjson.blocking import stream as streams
from tcpjson.blocking.conversation import COMPRESS_OVER, Conversation
from tcpjson.blocking.link import STEPS, Link, Phase, Request
from tcpjson.blocking.stream import Stream
from tcpjson.core.errors import (
    AuthenticationFailed,
    ClientError,
    Disconnected,
    Forbidden,
    GoingAway,
    ProtocolError,
    ProtocolMismatch,
    QueueFull,
    RequestTimeout,
    ServerFull,
    TooLarge,
)
from tcpjson.core.framing import frame
from tcpjson.core.handshake import FIRST_MAX_LENGTH, HELLO_ID, MAX_LENGTH, Handshake, Json
from tcpjson.core.limits import Limits
from tcpjson.core.messages import Message
from tcpjson.handlers import Router, Session
from tcpjson.test.hypo import given

# Seconds that nothing takes but what fails.
TIMEOUT = 20.0

HOST = "127.0.0.1"

WELCOME: Json = {
    "type": "welcome",
    "protocol": 1,
    "client_id": "me",
    "max_length": 1024 * 1024,
    "compression": ["zlib"],
}
CLASSIC: Json = {"type": "welcome", "client_id": "me", "message": "hi"}
START = 1704110400.0


def encode(*messages: object) -> bytes:
    """The frames of JSON values."""
    return b"".join(frame(json.dumps(message).encode()) for message in messages)


class Secret:
    """Credentials that prove themselves in as many steps as the server asks for."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.asked: list[tuple[tuple[str, ...], bool]] = []

    def begin(self, mechanisms: Any, secure: bool) -> Self:
        self.asked.append((tuple(mechanisms), secure))
        if self.failure is not None:
            raise self.failure
        return self

    first: Json = {"mechanism": "token", "token": "sesame"}  # noqa: RUF012  # nobody changes it

    def answer(self, data: str) -> Json:
        return {"data": data[::-1]}

    def finish(self, data: str | None) -> None:
        if data == "wrong":
            raise AuthenticationFailed("it is another")


# The conversation.


class ConversationTests(SynchronousTestCase):
    """Bytes in, messages out."""

    def setUp(self) -> None:
        self.traced: list[tuple[str, list[bytes]]] = []

    def conversation(self, credentials: Any = None, compress: bool = True) -> Conversation:
        return Conversation(
            Handshake("test/1", credentials, True, compress),
            lambda direction, payloads: self.traced.append((direction, list(payloads))),
        )

    def take(self, conversation: Conversation, *messages: object) -> list[Json]:
        """What is taken of messages that come in one read."""
        conversation.feed(encode(*messages))
        return self.rest(conversation)

    def rest(self, conversation: Conversation) -> list[Json]:
        found = []
        while messages := conversation.take():
            found += messages
        return found

    def due(self, conversation: Conversation) -> list[Json]:
        return [json.loads(payload) for payload in conversation.due_payloads()]

    def welcomed(self, welcome: Json = WELCOME, compression: str | None = None) -> Conversation:
        """One whose handshake is done."""
        conversation = self.conversation()
        response = {"type": "hello_response", "compression": compression, "heartbeat": True, "id": HELLO_ID}
        messages = [welcome] if welcome is CLASSIC else [welcome, response]
        self.assertEqual(self.take(conversation, *messages), messages)
        self.due(conversation)
        return conversation

    def test_a_server_that_asks_nobody(self) -> None:
        conversation = self.conversation()
        self.assertEqual(conversation.take(), [])
        self.assertFalse(conversation.ready)
        self.assertEqual(self.take(conversation, WELCOME), [WELCOME])
        self.assertTrue(conversation.ready)
        [hello] = self.due(conversation)
        self.assertEqual((hello["type"], hello["heartbeat"]), ("hello", True))
        self.assertEqual(self.due(conversation), [])
        self.assertEqual(conversation.received, len(encode(WELCOME)))

    def test_a_login(self) -> None:
        """What takes time is done, too, and the answer to `hello` may come before or after."""
        for hello_first in (False, True):
            secret = Secret()
            conversation = self.conversation(secret)
            self.take(conversation, {**WELCOME, "auth": ["token"]})
            self.assertEqual(secret.asked, [(("token",), True)])
            hello, auth = self.due(conversation)
            self.assertEqual((hello["type"], auth["type"], auth["token"]), ("hello", "auth", "sesame"))
            response = {"type": "hello_response", "compression": "zlib", "id": HELLO_ID}
            challenge = {"type": "auth_challenge", "data": "abc", "id": auth["id"]}
            result = {"type": "auth_result", "status": "authenticated", "user": "ann", "id": auth["id"]}
            order = [response, challenge, result] if hello_first else [challenge, result, response]
            more = [{"type": "x", "n": n} for n in range(300)]
            self.assertEqual(self.take(conversation, *order, *more), [*order, *more])
            self.assertTrue(conversation.ready)
            self.assertEqual(conversation.handshake.user, "ann")
            self.assertEqual(self.due(conversation), [{"type": "auth", "data": "cba", "id": auth["id"]}])

    def test_a_login_that_fails(self) -> None:
        """The message that says so is seen, too."""
        conversation = self.conversation(Secret())
        self.take(conversation, {**WELCOME, "auth": ["token"]})
        [_, auth] = self.due(conversation)
        refusal = {"type": "auth_result", "status": "authentication_failed", "id": auth["id"]}
        conversation.feed(encode(refusal))
        self.assertEqual(conversation.take(), [refusal])
        self.assertRaises(AuthenticationFailed, conversation.take)

    def test_compression(self) -> None:
        """It is there from the answer to `hello` on: in the same read, too."""
        conversation = self.conversation()
        response = {"type": "hello_response", "compression": "zlib", "id": HELLO_ID}
        long = {"type": "x", "text": "y" * 5000}
        packed = frame(zlib.compress(json.dumps(long).encode()), compressed=True)
        conversation.feed(encode(WELCOME, response) + packed + encode({"type": "short"}))
        self.assertEqual(self.rest(conversation), [WELCOME, response, long, {"type": "short"}])
        payload = json.dumps(long).encode()
        self.assertGreater(len(payload), COMPRESS_OVER)
        sent = conversation.frames([payload, b"{}"])
        self.assertLess(len(sent), 200)
        self.assertEqual(sent[0] & 0x80, 0x80)
        self.assertTrue(sent.endswith(frame(b"{}")))
        self.assertEqual(zlib.decompress(sent[4:-6]), payload)

    def test_no_compression_unless_agreed_on(self) -> None:
        conversation = self.welcomed()
        payload = b'"' + b"x" * 5000 + b'"'
        self.assertEqual(conversation.frames([payload]), frame(payload))
        conversation.feed(frame(zlib.compress(payload), compressed=True))
        with self.assertRaisesRegex(Disconnected, "a frame of 2147"):
            conversation.take()

    def test_a_classic_server(self) -> None:
        """It hears no `hello`, and any number of messages are taken at once."""
        conversation = self.conversation()
        self.take(conversation, CLASSIC)
        self.assertTrue(conversation.ready)
        self.assertEqual(self.due(conversation), [])
        conversation.feed(encode({"type": "x"}, {"type": "y"}, {"no": "type"}))
        self.assertEqual(len(conversation.take()), 3)

    def test_no_server_of_this_protocol(self) -> None:
        for data, hint in (
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the text 'HTTP'"),
            (b"\x16\x03\x01\x02\x00", "TLS handshake"),
            (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes: at most 1048576 are taken"),
            (frame(b"220 smtp"), "what is no message"),
            (frame(b"[1]"), "what is no message"),
            (frame(b"\xff"), "what is no message"),
            (encode({"type": "hello"}), "no welcome"),
            (encode({**WELCOME, "protocol": 2}), "version 2"),
        ):
            conversation = self.conversation()
            conversation.feed(data)
            with self.assertRaisesRegex(ProtocolMismatch, hint):
                self.rest(conversation)

    def test_an_answer_before_the_welcome(self) -> None:
        conversation = self.conversation()
        odd = {"type": "hello_response", "compression": "zlib", "id": HELLO_ID}
        self.assertEqual(self.take(conversation, odd), [odd])
        self.assertFalse(conversation.ready)
        self.take(conversation, WELCOME)
        self.assertTrue(conversation.ready)

    def test_the_first_frames_are_bounded(self) -> None:
        conversation = self.conversation()
        conversation.feed((FIRST_MAX_LENGTH + 1).to_bytes(4, "big"))
        self.assertRaises(ProtocolMismatch, conversation.take)

    def test_what_cannot_be_understood(self) -> None:
        """What came before is handed out first."""
        bomb = frame(zlib.compress(b'"' + b"x" * 8_000_000 + b'"'), compressed=True)
        for data, why in (
            (frame(b"{}", compressed=True), "the compressed payload is broken"),
            (bomb, "longer than max_length"),
            ((6 * 1024 * 1024 + 4097).to_bytes(4, "big"), "a frame of 6295553 bytes"),
        ):
            conversation = self.welcomed(compression="zlib")
            conversation.feed(encode({"type": "x"}) + data)
            self.assertEqual(conversation.take(), [{"type": "x"}])
            for _ in range(2):
                with self.assertRaisesRegex(Disconnected, why):
                    conversation.take()

    GARBAGE = (b"no", b"17", b"[]", b'{"type":"\xff"}', b'{"a":' * 10_000, b"")

    def test_what_is_no_message(self) -> None:
        """It is passed over, and counted; what comes with it is taken."""
        for garbage in self.GARBAGE:
            conversation = self.welcomed()
            conversation.feed(encode({"n": 1}) + frame(garbage) * 2 + encode({"n": 2}))
            self.assertEqual(conversation.take(), [{"n": 1}, {"n": 2}])
            # More than are taken at once.
            conversation.feed(frame(garbage) * 300 + encode({"n": 3}))
            self.assertEqual(conversation.take(), [{"n": 3}])
            self.assertEqual(conversation.take(), [])
            self.assertEqual(conversation.passed_over, 302)

    def test_what_is_no_message_in_the_handshake(self) -> None:
        """Once the server has said what it is."""
        conversation = self.conversation(Secret())
        conversation.feed(encode({**WELCOME, "auth": ["token"]}) + frame(b"no"))
        self.assertEqual(len(self.rest(conversation)), 1)
        [_, auth] = self.due(conversation)
        result = {"type": "auth_result", "status": "authenticated", "id": auth["id"]}
        conversation.feed(frame(b"no") * 2 + encode(result))
        self.assertEqual(conversation.take(), [result])
        self.assertTrue(conversation.ready)
        self.assertEqual(conversation.passed_over, 3)

    def test_the_longest_answer(self) -> None:
        conversation = self.welcomed()
        conversation.feed((6 * 1024 * 1024 + 4096).to_bytes(4, "big"))
        self.assertEqual(conversation.take(), [])
        conversation = self.welcomed(CLASSIC)
        conversation.feed(MAX_LENGTH.to_bytes(4, "big"))
        self.assertEqual(conversation.take(), [])
        conversation = self.welcomed(CLASSIC)
        conversation.feed((MAX_LENGTH + 1).to_bytes(4, "big"))
        with self.assertRaisesRegex(Disconnected, f"at most {MAX_LENGTH} are taken"):
            conversation.take()

    def test_the_longest_that_the_client_takes(self) -> None:
        conversation = Conversation(Handshake("test/1", None, True), max_length=100)
        self.take(conversation, WELCOME)
        conversation.feed((101).to_bytes(4, "big"))
        with self.assertRaisesRegex(Disconnected, "a frame of 101 bytes: at most 100 are taken"):
            conversation.take()

    def test_pings_of_the_server(self) -> None:
        """They are answered where that was agreed on, and as many as it takes answers to."""
        ping = {"type": "ping", "timestamp": "now"}
        conversation = self.welcomed()
        self.take(conversation, ping)
        self.assertEqual(self.due(conversation), [{"type": "pong", "ping_timestamp": "now"}])
        self.take(conversation, *[{"type": "ping"}] * 1000)
        self.assertEqual(self.due(conversation), [{"type": "pong", "ping_timestamp": None}] * 16)
        conversation = self.welcomed(CLASSIC)
        self.take(conversation, ping)
        self.assertEqual(self.due(conversation), [])

    def test_pings_that_are_not_agreed_on(self) -> None:
        for heartbeat in (False, None, 1, "true"):
            conversation = self.conversation()
            self.take(conversation, WELCOME, {"type": "ping"})
            self.take(conversation, {"type": "hello_response", "heartbeat": heartbeat, "id": HELLO_ID})
            self.take(conversation, {"type": "ping"})
            self.assertEqual([message["type"] for message in self.due(conversation)], ["hello"])

    def test_farewells(self) -> None:
        conversation = self.welcomed()
        self.take(conversation, {"type": "error", "code": "forbidden"}, {"type": "error", "code": 7})
        self.assertIsNone(conversation.farewell)
        self.take(conversation, {"type": "error", "code": "going_away", "retry_after": 3})
        assert isinstance(conversation.farewell, GoingAway)
        self.assertEqual(conversation.farewell.retry_after, 3)
        self.take(conversation, {"type": "error", "code": "odd", "fatal": True})
        self.assertEqual(conversation.farewell.code, "odd")

    def test_traces(self) -> None:
        conversation = self.welcomed()
        self.assertEqual([direction for direction, _ in self.traced], ["received"] * 2)
        self.assertEqual(json.loads(self.traced[0][1][0]), WELCOME)
        conversation.frames([b"{}", b"1"])
        self.assertEqual(self.traced[2:], [("sent", [b"{}", b"1"])])

    @given(
        st.lists(
            st.binary(max_size=40)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "id", "code", "fatal", "compression", "heartbeat", "max_length", "auth"]
                ),
                st.none()
                | st.booleans()
                | st.integers(-3, 2)
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.sampled_from(["error", "ping", "welcome", "auth_result", "hello_response", "zlib"])
                | st.lists(st.sampled_from(["plain", 7])),
            ).map(lambda message: encode({**WELCOME, **message})),
            max_size=8,
        ),
        examples=150,
    )
    def test_whatever_comes(self, pieces: list[bytes]) -> None:
        """It raises nothing but what it says."""
        conversation = self.conversation(Secret())
        with contextlib.suppress(ClientError, ProtocolError):
            for piece in pieces:
                conversation.feed(piece)
                for message in self.rest(conversation):
                    self.assertIsInstance(message, dict)
                conversation.due_payloads()


# Servers.


class Peer:
    """The server's end of a connection: frames in, frames out, over a blocking socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.settimeout(TIMEOUT)
        self._file = connection.makefile("rb")

    def send(self, *messages: object) -> None:
        self.socket.sendall(encode(*messages))

    def payload(self) -> bytes | None:
        """The next payload; None at the end."""
        prefix = self._file.read(4)
        if not prefix:
            return None
        payload = self._file.read(int.from_bytes(prefix, "big"))
        return payload

    def receive(self) -> Json:
        """The next message."""
        payload = self.payload()
        if payload is None:
            raise EOFError("the client has closed the connection")
        message: Json = json.loads(payload)
        return message

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def end(self) -> None:
        """Close in order, from one side."""
        self.socket.shutdown(socket.SHUT_WR)


class Host:
    """A port that a test answers at."""

    def __init__(
        self, case: SynchronousTestCase, family: int = socket.AF_INET, address: Any = (HOST, 0)
    ) -> None:
        self._case = case
        self.listener = socket.socket(family)
        case.addCleanup(self.listener.close)
        self.listener.settimeout(TIMEOUT)
        self.listener.bind(address)
        self.listener.listen()

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def accept(self, context: ssl.SSLContext | None = None) -> Peer:
        """The next connection."""
        connection, _ = self.listener.accept()
        if context is not None:
            connection.settimeout(TIMEOUT)
            connection = context.wrap_socket(connection, server_side=True)
        peer = Peer(connection)
        self._case.addCleanup(peer.close)
        return peer

    def refuse(self) -> None:
        """Nobody listens any more."""
        self.listener.close()


class Background:
    """A function that runs in a thread."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._outcome: tuple[bool, Any] = False, TimeoutError("it has not returned")

        def run() -> None:
            try:
                self._outcome = True, function(*args, **kwargs)
            except BaseException as error:
                self._outcome = False, error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def runs(self) -> bool:
        """Whether it runs on for another moment."""
        self._thread.join(0.01)
        return self._thread.is_alive()

    def result(self) -> Any:
        """What it returns; raises what it raises."""
        self._thread.join(TIMEOUT)
        returned, outcome = self._outcome
        if returned:
            return outcome
        raise outcome


class Time:
    """A clock that stands still until it is told to go."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._came = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._came:
            self.records.append(record)
            self._came.notify_all()

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until so many lines hold a text."""
        with self._came:
            if not self._came.wait_for(lambda: sum(text in line for line in self.lines) >= count, TIMEOUT):
                raise AssertionError(f"{text!r} is not in {self.lines}")

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def bugs(self) -> list[str]:
        """What nobody was to see."""
        return [record.getMessage() for record in self.records if record.exc_info]


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(HOST, "localhost").configure_cert(context)
    return context


class BlockingTestCase(SynchronousTestCase):
    """Clients, and servers that are played by hand."""

    def setUp(self) -> None:
        self.time = Time()
        self.messages: list[Json] = []
        self.seen = threading.Condition()
        self.log = Records()
        logger = logging.getLogger("tcpjson.blocking")
        logger.addHandler(self.log)
        self.addCleanup(logger.removeHandler, self.log)
        self.patch(logger, "propagate", False)
        self.patch(logger, "level", logging.DEBUG)
        self.host = Host(self)

    def client(self, **options: Any) -> TCPClient:
        """A client whose time stands still, and who waits for nothing before it tries again."""
        options = {"clock": self.time, "random": lambda: 0.0, "wall": lambda: START, **options}
        if "path" not in options:
            options = {"host": HOST, "port": self.host.port, **options}
        client = TCPClient(**options)
        self.addCleanup(client.disconnect)
        client.set_message_callback(self.note)
        return client

    def note(self, message: Json) -> None:
        with self.seen:
            self.messages.append(message)
            self.seen.notify_all()

    def wait_for(self, condition: Callable[[], object], what: str = "it did not come to pass") -> None:
        """Wait for what a message leads to."""
        with self.seen:
            self.assertTrue(self.seen.wait_for(condition, TIMEOUT), what)

    def wait_for_messages(self, count: int) -> list[Json]:
        self.wait_for(lambda: len(self.messages) >= count, f"{self.messages}")
        return self.messages

    def greet(self, welcome: Json = WELCOME, host: Host | None = None) -> Peer:
        """Take a connection, and welcome it."""
        peer = (host or self.host).accept()
        peer.send(welcome)
        if welcome.get("protocol") is not None:
            self.assertEqual(peer.receive()["type"], "hello")
        return peer

    def connected(self, welcome: Json = WELCOME, **options: Any) -> tuple[TCPClient, Peer]:
        """A client, and the server that welcomed it."""
        client = self.client(**options)
        # Not the client's own timeout, which a test may want short.
        connecting = Background(client.connect, TIMEOUT)
        peer = self.greet(welcome)
        self.assertIs(connecting.result(), True)
        return client, peer

    def until(self, condition: Callable[[], object]) -> None:
        """Look until what nobody tells of has come to pass."""
        never = threading.Event()
        for _ in range(20_000):
            if condition():
                return
            never.wait(0.001)
        self.fail("it did not come to pass")

    def link(self, client: TCPClient) -> Link:
        assert client._link is not None
        return client._link

    def pass_time(self, client: TCPClient, seconds: float) -> None:
        """Let time go on, and the client notice it."""
        self.time.now += seconds
        self.link(client).signal()

    def wait_until(self, client: TCPClient, phase: Phase) -> None:
        link = self.link(client)
        with link._lock:
            self.assertTrue(link._changed.wait_for(lambda: link.phase is phase, TIMEOUT), repr(client))


class ConnectTests(BlockingTestCase):
    """From nothing to `welcome`."""

    def test_welcome(self) -> None:
        client = self.client()
        self.assertFalse(client.connected)
        self.assertEqual((client.server, client.user, client.error), (None, None, None))
        self.assertIn("not connected", repr(client))
        connecting = Background(client.connect)
        self.greet()
        self.assertIs(connecting.result(), True)
        self.assertTrue(client.connected)
        assert client.server is not None
        self.assertEqual(client.server.client_id, "me")
        self.assertIsNone(client.error)
        self.assertIn("ready", repr(client))
        self.assertEqual(self.wait_for_messages(1), [WELCOME])
        self.assertEqual(self.log.lines, [f"{HOST}:{self.host.port}: connected"])
        # Once more is once too often, and does no harm.
        self.assertIs(client.connect(), True)

    def test_a_name_of_several_addresses(self) -> None:
        """Each is tried, the next when nobody listens at one."""
        self.patch(
            links,
            "addresses",
            lambda host, port: [(socket.AF_INET, ("127.0.0.1", 1)), (socket.AF_INET, (HOST, port))],
        )
        self.connected(host="example.test")

    def test_no_address_at_all(self) -> None:
        self.patch(links, "addresses", lambda host, port: [])
        client = self.client()
        self.assertIs(client.connect(), False)
        self.assertRegex(str(client.error), "no address")

    def test_an_unknown_name(self) -> None:
        client = self.client(host="no..name")
        self.assertIs(client.connect(), False)
        self.assertIsInstance(client.error, Disconnected)
        self.assertRegex(str(client.error), r"^no\.\.name is not found: ")

    def test_a_system_that_gives_no_socket(self) -> None:
        self.patch(links, "addresses", lambda host, port: [(socket.AF_UNIX, "/" + "x" * 200)])
        client = self.client()
        self.assertIs(client.connect(), False)
        self.assertRegex(str(client.error), "cannot connect: AF_UNIX path too long")

    def test_nobody_listens(self) -> None:
        """The reason is logged, and kept; it is not tried again."""
        client = self.client()
        self.host.refuse()
        self.assertIs(client.connect(), False)
        self.assertFalse(client.connected)
        self.assertIsInstance(client.error, Disconnected)
        self.assertEqual(str(client.error), "cannot connect: Connection refused")
        assert client.error is not None
        # It would hold what was received.
        self.assertIsNone(client.error.__traceback__)
        self.assertEqual(self.log.lines, [f"{HOST}:{self.host_port}: cannot connect: Connection refused"])
        self.assertEqual(self.log.records[0].levelno, logging.ERROR)
        self.link(client).thread.join(TIMEOUT)
        self.assertFalse(self.link(client).thread.is_alive())

    @property
    def host_port(self) -> int:
        return int(self.log.lines[0].split(":")[1])

    def test_nobody_answers(self) -> None:
        """The system took the connection, and nobody the system's word."""
        client = self.client()
        self.assertIs(client.connect(timeout=0.05), False)
        self.assertRegex(str(client.error), "did not answer in 0.05 seconds")
        self.assertEqual(len(self.log.lines), 1)
        self.wait_until(client, Phase.ENDED)
        self.link(client).thread.join(TIMEOUT)

    def test_no_welcome_in_time(self) -> None:
        client = self.client()
        connecting = Background(client.connect)
        peer = self.host.accept()
        while connecting.runs():
            self.pass_time(client, 10.1)
        self.assertIs(connecting.result(), False)
        self.assertRegex(str(client.error), "no welcome in 10 seconds")
        self.assertIsNone(peer.payload())

    def test_no_end_of_the_login_in_time(self) -> None:
        for seconds in (9.9, 10.1):
            client = self.client(credentials=Secret())
            connecting = Background(client.connect)
            peer = self.host.accept()
            peer.send({**WELCOME, "auth": ["token"]})
            peer.receive()
            auth = peer.receive()
            self.pass_time(client, seconds)
            if seconds < 10:
                peer.send({"type": "auth_result", "status": "authenticated", "id": auth["id"]})
            self.assertIs(connecting.result(), seconds < 10)
        self.assertRegex(str(client.error), "no end of the login in 10 seconds")

    def test_no_answer_to_the_connection(self) -> None:
        """A queue of connections that is full: what comes is dropped."""
        full = socket.socket()
        self.addCleanup(full.close)
        full.bind((HOST, 0))
        full.listen(0)
        for _ in range(3):
            filler = socket.socket()
            self.addCleanup(filler.close)
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        client = self.client(port=full.getsockname()[1])
        connecting = Background(client.connect)
        while connecting.runs():
            self.pass_time(client, 10.1)
        self.assertIs(connecting.result(), False)
        self.assertRegex(str(client.error), "no answer in 10 seconds")

    def test_no_server_of_ours(self) -> None:
        client = self.client()
        connecting = Background(client.connect)
        self.host.accept().socket.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.assertIs(connecting.result(), False)
        self.assertIsInstance(client.error, ProtocolMismatch)

    def test_a_server_that_is_full(self) -> None:
        client = self.client()
        connecting = Background(client.connect)
        peer = self.host.accept()
        peer.send({"type": "error", "code": "server_full", "message": "no room", "fatal": True})
        peer.close()
        self.assertIs(connecting.result(), False)
        self.assertIsInstance(client.error, ServerFull)
        self.assertEqual(self.wait_for_messages(1)[0]["code"], "server_full")

    def test_a_server_that_closes(self) -> None:
        client = self.client()
        connecting = Background(client.connect)
        self.host.accept().close()
        self.assertIs(connecting.result(), False)
        self.assertEqual(str(client.error), "the server has closed the connection")

    def test_logins(self) -> None:
        for failure in (None, AuthenticationFailed("not here")):
            secret = Secret(failure)
            client = self.client(credentials=secret)
            connecting = Background(client.connect)
            peer = self.host.accept()
            peer.send({**WELCOME, "auth": ["token"]})
            if failure is None:
                self.assertEqual(peer.receive()["type"], "hello")
                auth = peer.receive()
                self.assertEqual(auth["token"], "sesame")
                result = {"type": "auth_result", "status": "authenticated", "user": "ann", "id": auth["id"]}
                peer.send(result)
                self.assertIs(connecting.result(), True)
                self.assertEqual(client.user, "ann")
                # In the clear.
                self.assertEqual(secret.asked, [(("token",), False)])
            else:
                self.assertIs(connecting.result(), False)
                self.assertIsInstance(client.error, AuthenticationFailed)

    def test_a_unix_socket(self) -> None:
        """It is as good as TLS."""
        path = os.path.join(tempfile.mkdtemp(), "s")
        host = Host(self, socket.AF_UNIX, path)
        secret = Secret()
        client = self.client(path=path, credentials=secret)
        connecting = Background(client.connect)
        peer = host.accept()
        peer.send({**WELCOME, "auth": ["token"]})
        peer.receive()
        auth = peer.receive()
        peer.send({"type": "auth_result", "status": "authenticated", "id": auth["id"]})
        self.assertIs(connecting.result(), True)
        self.assertEqual(secret.asked, [(("token",), True)])
        self.assertIn(path, repr(client))

    def test_a_unix_socket_that_is_not_there(self) -> None:
        client = self.client(path="/no/such/socket")
        self.assertIs(client.connect(), False)
        self.assertEqual(str(client.error), "cannot connect: No such file or directory")

    def test_a_system_with_other_options(self) -> None:
        self.patch(streams, "_KEEPALIVE", [("TCP_NO_SUCH_OPTION", 1), ("TCP_KEEPINTVL", 15)])
        client, _ = self.connected()
        stream = self.link(client)._stream
        assert stream is not None
        for level, option in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        ):
            self.assertTrue(stream._socket.getsockopt(level, option))

    def test_an_address_of_version_6(self) -> None:
        self.assertIn(" [::1]:9999 ", repr(self.client(host="::1", port=9999)))

    def test_context_manager(self) -> None:
        client = self.client()

        def use() -> bool:
            with client as same:
                self.assertIs(same, client)
                return client.connected

        using = Background(use)
        peer = self.greet()
        self.assertIsNone(peer.payload())
        peer.close()
        self.assertIs(using.result(), True)
        self.assertFalse(client.connected)

    def test_context_manager_without_a_server(self) -> None:
        with self.assertRaisesRegex(Disconnected, "refused"), self.client(port=1):
            pass

    def test_an_interrupted_wait(self) -> None:
        """What interrupts it ends the attempt, too."""
        client = self.client()

        def interrupt(link: Link, timeout: float) -> bool:
            raise KeyboardInterrupt

        self.patch(Link, "wait_until_decided", interrupt)
        self.assertRaises(KeyboardInterrupt, client.connect)
        self.wait_until(client, Phase.ENDED)

    def test_no_more_threads(self) -> None:
        client = self.client()

        def fail(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        start = threading.Thread.start
        self.patch(threading.Thread, "start", fail)
        self.assertRaises(RuntimeError, client.connect)
        threading.Thread.start = start  # type: ignore[method-assign]  # as it was
        connecting = Background(client.connect)
        self.greet()
        self.assertIs(connecting.result(), True)

    def test_an_interrupted_start(self) -> None:
        """The thread runs, and ends."""
        client = self.client()

        def interrupt(thread: threading.Thread) -> None:
            start(thread)
            raise KeyboardInterrupt

        start = threading.Thread.start
        self.patch(threading.Thread, "start", interrupt)
        self.assertRaises(KeyboardInterrupt, client.connect)
        self.link(client).thread.join(TIMEOUT)
        self.assertFalse(self.link(client).thread.is_alive())
        self.assertEqual(self.log.bugs(), [])

    def test_an_interrupted_wait_of_one_that_was_there(self) -> None:
        """That goes on by itself."""
        client, peer = self.connected()

        def interrupt(link: Link, timeout: float) -> bool:
            raise KeyboardInterrupt

        self.patch(Link, "wait_until_decided", interrupt)
        self.assertRaises(KeyboardInterrupt, client.connect)
        self.assertTrue(client.connected)
        peer.close()

    def test_arguments(self) -> None:
        for options, why in (
            ({"port": 0}, "port must"),
            ({"port": 65536}, "port must"),
            ({"offline": "maybe"}, "offline must be one of fail, queue"),
            ({"timeout": 0}, "timeout must"),
            ({"max_queue": -1}, "max_queue must"),
            ({"max_length": 0}, "max_length must"),
            ({"retries": -1}, "retries must"),
            ({"tls": "/no/such/file"}, "/no/such/file: No such file"),
            ({"tls": __file__}, "no certificates"),
            ({"tls": True, "path": "/x"}, "no TLS on a Unix socket"),
            ({"host": "localhost:9999"}, "without the port"),
        ):
            with self.assertRaisesRegex(ValueError, why):
                TCPClient(**options)
        for wrong in (
            {"port": "9999"},
            {"timeout": "1"},
            {"max_length": "1"},
            {"host": 9999},
            {"credentials": "a"},
            {"trace": "a"},
        ):
            with self.assertRaisesRegex(TypeError, f"^{next(iter(wrong))} must"):
                TCPClient(**wrong)
        with self.assertRaisesRegex(TypeError, "^callback must"):
            TCPClient().set_message_callback("a")  # type: ignore[arg-type]  # what is tested
        TCPClient("::1")
        TCPClient(tls=True, retries=0, path=None)
        TCPClient(tls=False, path="/x")


class TLSTests(BlockingTestCase):
    """The same, with TLS."""

    def setUp(self) -> None:
        super().setUp()
        self.trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority().configure_trust(self.trusting)

    def test_a_context(self) -> None:
        secret = Secret()
        client = self.client(tls=self.trusting, credentials=secret)
        connecting = Background(client.connect)
        peer = self.host.accept(server_context())
        peer.send({**WELCOME, "auth": ["token"]})
        self.assertEqual(peer.receive()["type"], "hello")
        auth = peer.receive()
        peer.send({"type": "auth_result", "status": "authenticated", "id": auth["id"]})
        self.assertIs(connecting.result(), True)
        self.assertEqual(secret.asked, [(("token",), True)])
        # More than one record, and more than the sockets take at once.
        content = "x" * 900_000
        asking = Background(client.request, "echo", content=content)
        request = peer.receive()
        self.assertEqual(request["content"], content)
        peer.send({"type": "echo_response", "content": content, "id": request["id"]})
        self.assertEqual(asking.result()["content"], content)
        # An end in order, which is told to the other side, and whose word is heard.
        client.echo("last")
        ending = Background(client.disconnect)
        self.assertEqual(peer.receive()["content"], "last")
        ping = peer.receive()
        # It has not ended its side: what comes then could be lost.
        peer.socket.settimeout(0.05)
        self.assertRaises(TimeoutError, peer.socket.recv, 1)
        peer.socket.settimeout(TIMEOUT)
        peer.send({"type": "echo_response", "content": "last"}, {"type": "pong", "id": ping["id"]})
        self.assertIsNone(peer.payload())
        peer.socket = peer.socket.unwrap()  # type: ignore[attr-defined]  # it is an SSLSocket
        peer.close()
        ending.result()
        self.assertEqual(self.messages[-2], {"type": "echo_response", "content": "last"})

    def test_a_record_that_is_read_in_pieces(self) -> None:
        """The system does not know of what TLS has taken from it."""
        client = self.client(tls=self.trusting)
        connecting = Background(client.connect)
        peer = self.host.accept(server_context())
        peer.send(WELCOME)
        self.assertIs(connecting.result(), True)
        self.patch(streams, "_CHUNK", 100)
        peer.send({"type": "x", "content": "y" * 5000})
        self.wait_for_messages(2)

    def test_the_path_of_an_authority(self) -> None:
        with authority().cert_pem.tempfile() as path:
            client = self.client(tls=path)
        connecting = Background(client.connect)
        peer = self.host.accept(server_context())
        peer.send(WELCOME)
        self.assertIs(connecting.result(), True)
        # The server ends it by the word of TLS.
        peer.receive()
        Background(peer.socket.unwrap)  # type: ignore[attr-defined]  # it is an SSLSocket
        self.log.wait_for("the connection is lost: the server has closed the connection")

    def test_a_stranger(self) -> None:
        client = self.client(tls=True)
        connecting = Background(client.connect)
        with contextlib.suppress(ssl.SSLError):
            self.host.accept(server_context())
        self.assertIs(connecting.result(), False)
        self.assertRegex(
            str(client.error), "^cannot connect: the server's certificate is not valid: unable to get local"
        )

    def test_a_server_in_the_clear(self) -> None:
        client = self.client(tls=self.trusting)
        connecting = Background(client.connect)
        self.host.accept().send(WELCOME)
        self.assertIs(connecting.result(), False)
        self.assertRegex(str(client.error), "^cannot connect: what answers does not speak TLS")

    def test_no_handshake_in_time(self) -> None:
        client = self.client(tls=self.trusting)
        connecting = Background(client.connect)
        peer = self.host.accept()
        # The client has begun it.
        self.assertEqual(peer.socket.recv(1), b"\x16")
        self.pass_time(client, 10.1)
        self.assertIs(connecting.result(), False)
        self.assertRegex(str(client.error), "no TLS handshake in 10 seconds")

    def test_told_to_end_in_the_handshake(self) -> None:
        client = self.client(tls=self.trusting)
        connecting = Background(client.connect)
        peer = self.host.accept()
        self.assertEqual(peer.socket.recv(1), b"\x16")
        client.disconnect()
        self.assertIs(connecting.result(), False)
        self.link(client).thread.join(TIMEOUT)
        self.assertFalse(self.link(client).thread.is_alive())


class StreamTests(SynchronousTestCase):
    """What TLS asks of a socket, now and then."""

    class Odd(ssl.SSLSocket):
        """A socket of TLS that has something to say before it can read."""

        error: Exception = ssl.SSLWantWriteError()
        failing = True

        def recv(self, *args: Any) -> bytes:
            if self.failing:
                raise self.error
            return b"data"

        def do_handshake(self, block: bool = False) -> None:
            if self.failing:
                raise self.error

        def close(self) -> None:
            """There is none."""

    def test_reading_that_waits_for_writing(self) -> None:
        listener = socket.create_server((HOST, 0))
        self.addCleanup(listener.close)
        stream = Stream(socket.AF_INET, listener.getsockname())
        stream.close()
        odd = stream._socket = self.Odd.__new__(self.Odd)
        read = stream.wanted
        self.assertIsNone(stream.receive())
        self.assertTrue(stream.blocked)
        self.assertNotEqual(stream.wanted, read)
        odd.failing = False
        self.assertEqual(stream.receive(), b"data")
        self.assertFalse(stream.blocked)
        odd.failing = True
        self.assertFalse(stream.shake_hands())
        self.assertTrue(stream.blocked)
        odd.failing = False
        self.assertTrue(stream.shake_hands())
        self.assertFalse(stream.blocked)
        odd.failing, odd.error = True, ssl.SSLZeroReturnError()
        self.assertEqual(stream.receive(), b"")


class SendTests(BlockingTestCase):
    """Messages without waiting."""

    def test_the_classic_methods(self) -> None:
        client, peer = self.connected()
        self.assertIs(client.ping(), True)
        self.assertIs(client.echo({"a": 1}), True)
        self.assertIs(client.broadcast("x"), True)
        self.assertIs(client.get_server_stats(), True)
        self.assertIs(client.send_custom_message("custom_type", {"data": "value"}), True)
        self.assertIs(client.send_custom_message("c", {"type": "other", "timestamp": 7}), True)
        self.assertIs(client.send_custom_message("c"), True)
        self.assertIs(client.send_message({"type": "anything", "id": "mine"}), True)

        class Move(Message, tag="move"):
            x: int

        self.assertIs(client.send_message(Move(x=1)), True)
        now = "2024-01-01T12:00:00.000Z"
        for expected in (
            {"type": "ping", "timestamp": now},
            {"type": "echo", "content": {"a": 1}},
            {"type": "broadcast", "content": "x"},
            {"type": "get_stats"},
            {"type": "custom_type", "data": "value", "timestamp": now},
            {"type": "c", "timestamp": 7},
            {"type": "c", "timestamp": now},
            {"type": "anything", "id": "mine"},
            {"type": "move", "x": 1},
        ):
            self.assertEqual(peer.receive(), expected)
        for text, payload in (
            ("plain text", b"plain text"),
            ('{"type":"ping"}', b'"{\\"type\\":\\"ping\\"}"'),
        ):
            self.assertIs(client.send_message(text), True)
            self.assertEqual(peer.payload(), payload)

    def test_what_is_no_message(self) -> None:
        client, _ = self.connected()
        for wrong in (7, None, ["type"], {"no": "type"}, {"type": 7}, {"type": "x", "y": object()}):
            self.assertRaises(TypeError, client.send_message, wrong)
        for wrong in ({"type": "x", "id": -1}, {"type": "x", "y": "\ud800"}):
            self.assertRaises(ValueError, client.send_message, wrong)
        self.assertRaises(TypeError, client.echo, object())

    def test_before_connecting(self) -> None:
        client = self.client(offline="queue")
        self.assertIs(client.ping(), False)
        self.assertRegex(str(client.error), r"call connect\(\) first")
        self.assertRaises(Disconnected, client.request, "ping")

    def test_offline(self) -> None:
        client, peer = self.connected(random=lambda: 1.0)
        peer.close()
        self.wait_until(client, Phase.AGAIN)
        self.assertIs(client.ping(), False)
        self.assertRegex(str(client.error), "the server has closed the connection")
        with self.assertRaisesRegex(Disconnected, "not connected to .*: the server has closed"):
            client.request("ping")

    def test_too_large(self) -> None:
        client, peer = self.connected({**WELCOME, "max_length": 100})
        content = "x" * (100 - len('{"type":"echo","content":""}'))
        self.assertIs(client.echo(content + "x"), False)
        self.assertIsInstance(client.error, TooLarge)
        self.assertIs(client.echo(content), True)
        with self.assertRaisesRegex(TooLarge, "the server takes 100"):
            client.request("echo", content=content)
        self.assertEqual(peer.receive()["content"], content)
        asking = Background(client.request, "echo", content=content[:-8])
        request = peer.receive()
        self.assertEqual(len(json.dumps(request, separators=(",", ":"))), 100)
        peer.send({"type": "echo_response", "id": request["id"]})
        asking.result()

    def test_a_queue_that_is_full(self) -> None:
        """What is refused is not sent, not even half of it; what was taken is."""
        client, peer = self.connected({**WELCOME, "max_length": None}, max_queue=1_000_000)
        called, go_on = threading.Event(), threading.Event()

        def callback(message: Json) -> None:
            called.set()
            go_on.wait(TIMEOUT)

        # Nothing is sent meanwhile.
        client.set_message_callback(callback)
        peer.send({"type": "x"})
        self.assertTrue(called.wait(TIMEOUT))
        content = "x" * 100_000
        taken = 0
        while client.send_message({"type": "echo", "content": content, "n": taken}):
            taken += 1
            self.assertLess(taken, 500)
        self.assertEqual(taken, 9)
        self.assertIsInstance(client.error, QueueFull)
        self.assertRaises(QueueFull, client.request, "echo", content=content)
        self.assertTrue(client.echo("short"))
        go_on.set()
        self.assertEqual([peer.receive()["n"] for _ in range(taken)], list(range(taken)))
        self.assertEqual(peer.receive()["content"], "short")
        # It is here, perhaps before the client has noted that it is gone. Alone, a longer one is taken.
        self.until(lambda: not self.link(client)._rest)
        asking = Background(client.request, "echo", content="x" * 2_000_000)
        request = peer.receive()
        peer.send({"type": "pong", "id": request["id"]})
        asking.result()

    def test_what_comes_while_a_part_is_sent(self) -> None:
        """The end of the one wakes nobody for the other, and it is sent all the same."""
        # So much fits no system's buffers at once.
        content = "x" * 8_000_000
        self.host.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 524288)
        # The clock wakes nobody either, for long.
        client, peer = self.connected({**WELCOME, "max_length": None, "heartbeat": 3600})
        for _ in range(3):
            self.assertTrue(client.echo(content))
            self.assertTrue(client.echo("y"))
            for expected in (content, "y"):
                self.assertTrue(peer.receive()["content"] == expected)

    def test_many_threads(self) -> None:
        """Each one's are sent in order, and whole."""
        client, peer = self.connected()

        def send(name: str) -> None:
            for n in range(200):
                client.send_message({"type": name, "n": n, "text": "x" * 100})

        for thread in [Background(send, f"t{k}") for k in range(8)]:
            thread.result()
        found: dict[str, list[int]] = {}
        for _ in range(1600):
            message = peer.receive()
            found.setdefault(message["type"], []).append(message["n"])
        self.assertEqual(found, {f"t{k}": list(range(200)) for k in range(8)})

    def test_compressed(self) -> None:
        client, peer = self.connected()
        peer.send({"type": "hello_response", "compression": "zlib", "id": HELLO_ID})
        self.wait_for_messages(2)
        content = "x" * 10_000
        client.echo(content)
        length = int.from_bytes(peer._file.read(4), "big")
        self.assertGreater(length, 1 << 31)
        sent = json.loads(zlib.decompress(peer._file.read(length - (1 << 31))))
        self.assertEqual(sent, {"type": "echo", "content": content})

    def test_traces(self) -> None:
        """One that fails is told no more."""
        traced = []

        def trace(direction: str, payloads: Any) -> None:
            traced.append(direction)
            if len(traced) == 3:
                raise RuntimeError("full")

        client, peer = self.connected(trace=trace)
        client.ping()
        peer.receive()
        self.assertEqual(traced, ["received", "sent", "sent"])
        client.ping()
        peer.receive()
        self.assertEqual(len(traced), 3)
        self.assertEqual(len(self.log.bugs()), 1)


class RequestTests(BlockingTestCase):
    """Requests, and their replies."""

    def test_a_reply(self) -> None:
        client, peer = self.connected()
        fields: Json = {"x": 1, "message": "a field", "self": 2}
        asking = Background(lambda: client.request("move", **fields))
        request = peer.receive()
        self.assertLess(request["id"], 0)
        self.assertEqual(request, {"type": "move", **fields, "id": request["id"]})
        reply = {"type": "move_ok", "id": request["id"], "y": 2}
        peer.send({"type": "broadcast", "content": "between"}, reply)
        self.assertEqual(asking.result(), reply)
        self.assertEqual(
            [message["type"] for message in self.wait_for_messages(3)][1:], ["broadcast", "move_ok"]
        )

    def test_whole_messages(self) -> None:
        class Move(Message, tag="move"):
            x: int

        client, peer = self.connected()
        for message in ({"type": "move", "x": 1}, Move(x=1)):
            asking = Background(client.request, message)
            request = peer.receive()
            self.assertEqual((request["type"], request["x"]), ("move", 1))
            peer.send({"type": "ok", "id": request["id"]})
            self.assertEqual(asking.result()["type"], "ok")
        self.assertRaises(TypeError, client.request, {"type": "move"}, x=1)
        self.assertRaises(ValueError, client.request, {"type": "move", "id": 7})
        self.assertRaises(TypeError, client.request, {"x": 1})
        self.assertRaises(TypeError, client.request, "x", y=object())

    def test_errors(self) -> None:
        client, peer = self.connected()
        for code, kind in (("forbidden", Forbidden), ("new", ProtocolError)):
            asking = Background(client.request, "x")
            request = peer.receive()
            peer.send({"type": "error", "code": code, "message": "no", "retry_after": 2, "id": request["id"]})
            with self.assertRaisesRegex(kind, "no") as raised:
                asking.result()
            self.assertEqual((raised.exception.code, raised.exception.retry_after), (code, 2))
        self.assertTrue(client.connected)

    def test_timeout(self) -> None:
        """The reply that comes too late is nobody else's."""
        client, peer = self.connected(timeout=0.01)
        for timeout in (None, 0.01, 0, -1):
            with self.assertRaisesRegex(RequestTimeout, "no reply to 'slow' in"):
                client.request("slow", timeout=timeout)
        late = [peer.receive()["id"] for _ in range(4)]
        asking = Background(client.request, "next", timeout=TIMEOUT)
        request = peer.receive()
        self.assertNotIn(request["id"], late)
        peer.send(*({"type": "late", "id": key} for key in late), {"type": "ok", "id": request["id"]})
        self.assertEqual(asking.result()["type"], "ok")
        self.assertEqual(len(self.link(client)._replies), 0)

    def test_a_reply_at_the_last_moment(self) -> None:
        """It is taken, where it came before the wait was over for all."""
        client, peer = self.connected()
        forget = Link.forget

        def forget_late(link: Link, waiter: Any) -> None:
            request = peer.receive()
            peer.send({"type": "ok", "id": request["id"]})
            self.wait_for(lambda: self.messages[-1]["type"] == "ok")
            forget(link, waiter)

        self.patch(Link, "forget", forget_late)
        self.assertEqual(client.request("x", timeout=0)["type"], "ok")

    def test_an_interrupted_wait(self) -> None:
        client, peer = self.connected()

        def interrupt(waiter: Any, timeout: float) -> bool:
            raise KeyboardInterrupt

        with self.patched(links.Waiter, "wait", interrupt):
            self.assertRaises(KeyboardInterrupt, client.request, "x")
        self.assertEqual(len(self.link(client)._replies), 0)
        first = peer.receive()
        asking = Background(client.request, "y")
        second = peer.receive()
        peer.send({"type": "first", "id": first["id"]}, {"type": "second", "id": second["id"]})
        self.assertEqual(asking.result()["type"], "second")

    @contextlib.contextmanager
    def patched(self, target: Any, name: str, value: Any) -> Any:
        kept = getattr(target, name)
        setattr(target, name, value)
        try:
            yield
        finally:
            setattr(target, name, kept)

    def test_many_threads(self) -> None:
        client, peer = self.connected()

        def ask(name: int) -> None:
            for n in range(50):
                reply = client.request("echo", content=[name, n])
                self.assertEqual(reply["content"], [name, n])

        asking = [Background(ask, k) for k in range(8)]
        for _ in range(400):
            request = peer.receive()
            peer.send({"type": "echo_response", "content": request["content"], "id": request["id"]})
        for thread in asking:
            thread.result()

    def test_a_reply_that_is_no_message(self) -> None:
        """It is nobody's, and the connection goes on; that is logged once."""
        client, peer = self.connected()
        for n in range(2):
            asking = Background(client.request, "x", timeout=0.1)
            key = peer.receive()["id"]
            garbage = b'{"type":"ok","id":%d,"n":NaN}' % key
            peer.socket.sendall(frame(garbage) * 2 + encode({"type": "behind"}))
            self.assertRaises(RequestTimeout, asking.result)
            self.wait_for_messages(2 + 2 * n)
            asking = Background(client.request, "y")
            key = peer.receive()["id"]
            peer.socket.sendall(frame(b"no") + encode({"type": "ok", "id": key}))
            self.assertEqual(asking.result()["type"], "ok")
        kinds = [message["type"] for message in self.wait_for_messages(5)]
        self.assertEqual(kinds, ["welcome", "behind", "ok", "behind", "ok"])
        where = f"{HOST}:{self.host.port}: "
        # A client of another test may still look for its server.
        ours = [line for line in self.log.lines if line.startswith(where)]
        self.assertEqual(
            ours[1:],
            [f"{where}the server sent what is no message, which is passed over, and so is more of it"],
        )

    def test_a_connection_that_is_lost(self) -> None:
        """All who wait are told at once, each by an exception of its own."""
        client, peer = self.connected(random=lambda: 1.0)
        asking = [Background(client.request, "x") for _ in range(3)]
        for _ in asking:
            peer.receive()
        peer.close()
        errors = []
        for thread in asking:
            with self.assertRaisesRegex(Disconnected, "no reply came: the server has closed") as raised:
                thread.result()
            errors.append(raised.exception)
        self.assertEqual(len(set(map(id, errors))), 3)

    def test_within_the_callback(self) -> None:
        """It would wait for itself."""
        client, peer = self.connected()
        caught: list[str] = []

        def callback(message: Json) -> None:
            for call in (lambda: client.request("ping"), client.connect):
                try:
                    call()
                except RuntimeError as error:
                    caught.append(str(error))
            client.echo("sent")

        client.set_message_callback(callback)
        peer.send({"type": "x"})
        self.assertEqual(peer.receive()["content"], "sent")
        self.assertEqual([text.split()[0] for text in caught], ["request()", "connect()"])
        self.assertIn("message callback must not call it", caught[0])

    def test_a_callback_that_fails(self) -> None:
        client, peer = self.connected()

        def callback(message: Json) -> None:
            self.note(message)
            raise SystemExit if message["type"] == "exit" else ValueError("odd")

        client.set_message_callback(callback)
        peer.send({"type": "x"}, {"type": "exit"}, {"type": "y"})
        self.wait_for(lambda: self.messages[-1]["type"] == "y")
        self.log.wait_for("the message callback has failed", 3)
        self.assertTrue(client.connected)
        client.set_message_callback(None)
        peer.send({"type": "z"})
        asking = Background(client.request, "q")
        peer.send({"type": "ok", "id": peer.receive()["id"]})
        asking.result()
        self.assertEqual(self.messages[-1]["type"], "y")


class ReconnectTests(BlockingTestCase):
    """Connections that are lost, and come back."""

    def test_again(self) -> None:
        client, peer = self.connected()
        peer.close()
        peer = self.greet({**WELCOME, "client_id": "again"})
        self.wait_until(client, Phase.READY)
        assert client.server is not None
        self.assertEqual(client.server.client_id, "again")
        self.assertIsNone(client.error)
        asking = Background(client.request, "x")
        request = peer.receive()
        peer.send({"type": "ok", "id": request["id"]})
        asking.result()
        self.assertIn(
            "the connection is lost: the server has closed the connection; trying", self.log.lines[1]
        )

    def test_a_key_of_an_earlier_connection(self) -> None:
        """Who waits no more for it takes nobody else's reply away."""
        client, peer = self.connected(offline="queue")
        waiter = links.Waiter()
        self.link(client).submit(Request("x", b'{"type":"x"}', False, waiter))
        first = peer.receive()["id"]
        peer.close()
        peer = self.greet()
        self.assertTrue(waiter.wait(TIMEOUT))
        asking = Background(client.request, "y")
        second = peer.receive()["id"]
        self.assertEqual(first, second)
        self.link(client).forget(waiter)
        peer.send({"type": "ok", "id": second})
        self.assertEqual(asking.result()["type"], "ok")

    def test_what_was_not_sent_yet(self) -> None:
        """It is not sent over the next connection, where its id is another's."""
        client, peer = self.connected(random=lambda: 1.0)

        def callback(message: Json) -> None:
            client.send_message({"type": "stale"})

        client.set_message_callback(callback)
        # The end comes before what is put meanwhile can be sent.
        peer.socket.sendall(encode({"type": "x"}) + b"\x7f\xff\xff\xff")
        self.wait_until(client, Phase.AGAIN)
        client.set_message_callback(None)
        self.assertEqual((self.link(client)._outgoing, self.link(client)._fresh), ([], 0))
        self.pass_time(client, 0.6)
        again = self.greet()
        self.wait_until(client, Phase.READY)
        client.ping()
        self.assertEqual(again.receive()["type"], "ping")

    def test_waits(self) -> None:
        """They are random, up to a bound that grows; a welcome makes it small again."""
        client, peer = self.connected(random=lambda: 1.0)
        peer.close()
        for number, wait in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)):
            self.log.wait_for("trying again", number + 1)
            self.assertRegex(self.log.lines[-1], f"trying again in {wait} s")
            self.pass_time(client, wait - 0.01)
            self.pass_time(client, 0.02)
            self.host.accept().close()
        self.log.wait_for("trying again in 30.0 s", 3)
        self.pass_time(client, 30.1)
        self.greet().close()
        self.log.wait_for("trying again in 0.5 s", 2)

    def test_when_the_server_says_so(self) -> None:
        """But not for longer than an hour."""
        for wish, wait in ((7.5, "7.5"), (1e8, "3600.0"), (0, "0.0"), ("soon", "0.0")):
            self.host = Host(self)
            client, peer = self.connected()
            peer.send({"type": "error", "code": "going_away", "message": "bye", "retry_after": wish})
            self.wait_until(client, Phase.LEAVING)
            peer.close()
            self.log.wait_for(f"bye; trying again in {wait} s")
            self.log.records.clear()

    def test_a_fatal_error(self) -> None:
        """It is the reason, more than the end that follows."""
        client, peer = self.connected(random=lambda: 1.0)
        peer.send({"type": "error", "code": "slow_consumer", "message": "too slow", "fatal": True})
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.wait_for(lambda: self.messages[-1].get("code") == "slow_consumer")
        peer.close()
        self.log.wait_for("the connection is lost: too slow; trying again")
        self.assertIsInstance(client.error, ProtocolError)

    def test_more_than_is_taken(self) -> None:
        client, peer = self.connected(max_length=100, random=lambda: 1.0)
        peer.send({"type": "x", "content": "y" * 100})
        self.log.wait_for("at most 100 are taken; trying again")
        self.assertIsInstance(client.error, Disconnected)

    def test_a_reset(self) -> None:
        client, peer = self.connected(random=lambda: 1.0)
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        self.log.wait_for("the connection is lost: Connection reset by peer; trying again in 0.5 s")
        self.assertIsInstance(client.error, Disconnected)

    def test_what_no_retry_heals(self) -> None:
        for welcome in ({**WELCOME, "protocol": 2}, {**WELCOME, "auth": ["token"]}):
            client, peer = self.connected()
            peer.close()
            self.host.accept().send(welcome)
            self.wait_until(client, Phase.ENDED)
            self.assertIsInstance(client.error, (ProtocolMismatch, AuthenticationFailed))
            self.assertIs(client.ping(), False)
            self.assertEqual(self.log.records[-1].levelno, logging.ERROR)

    def test_no_more_retries(self) -> None:
        client, peer = self.connected(retries=2)
        peer.close()
        # The first loss is no attempt; a success begins to count anew.
        self.host.accept().close()
        self.greet().close()
        self.log.wait_for("the connection is lost", 2)
        for _ in range(2):
            self.host.accept().close()
        self.wait_until(client, Phase.ENDED)
        self.log.wait_for("; given up")
        self.assertIs(client.ping(), False)

    def test_no_reconnecting(self) -> None:
        for options in ({"reconnect": False}, {"retries": 0}):
            client, peer = self.connected(**options)
            peer.close()
            self.wait_until(client, Phase.ENDED)
            with self.assertRaisesRegex(Disconnected, "the server has closed the connection"):
                client.request("x")
            # By hand it can.
            connecting = Background(client.connect)
            self.greet()
            self.assertIs(connecting.result(), True)

    def test_connect_while_it_tries(self) -> None:
        client, peer = self.connected(random=lambda: 1.0)
        peer.close()
        self.wait_until(client, Phase.AGAIN)
        self.assertIs(client.connect(timeout=0.01), False)
        self.assertIs(self.link(client).phase, Phase.AGAIN)
        connecting = Background(client.connect)
        self.pass_time(client, 0.6)
        self.greet()
        self.assertIs(connecting.result(), True)

    def test_what_cannot_be_understood(self) -> None:
        """A new connection is made, and the old one holds nothing."""
        for data in (
            b"\x7f\xff\xff\xff",
            frame(b"\0", compressed=True),
            frame(b'{"type":"cut"}')[:9],
        ):
            client, peer = self.connected()
            peer.socket.sendall(data)
            peer.end()
            again = self.greet()
            self.wait_until(client, Phase.READY)
            self.assertTrue(client.ping())
            self.assertEqual(again.receive()["type"], "ping")
            self.host = Host(self)
        self.assertEqual(self.log.bugs(), [])

    def test_an_error_of_our_own(self) -> None:
        """Even that is logged, and leads to a new connection."""
        secret = Secret()
        client = self.client(credentials=secret)
        connecting = Background(client.connect)
        peer = self.host.accept()
        peer.send({**WELCOME, "auth": ["token"]})
        peer.receive()
        auth = peer.receive()
        peer.send({"type": "auth_result", "status": "authenticated", "id": auth["id"]})
        connecting.result()
        secret.failure = ZeroDivisionError("odd")
        peer.close()
        self.host.accept().send({**WELCOME, "auth": ["token"]})
        self.log.wait_for("the client has failed: ZeroDivisionError: odd; trying again")
        self.greet()
        self.wait_until(client, Phase.READY)
        self.assertEqual(len(self.log.bugs()), 1)

    def test_a_thread_that_dies(self) -> None:
        """Whoever waits is told, and the next `connect` begins anew."""
        client, peer = self.connected()
        asking = Background(client.request, "x")
        peer.receive()

        def fail(link: Link, error: Exception) -> float:
            raise MemoryError("none left")

        kept = Link._lost
        self.patch(Link, "_lost", fail)
        peer.close()
        with self.assertRaisesRegex(Disconnected, "MemoryError: none left"):
            asking.result()
        self.wait_until(client, Phase.ENDED)
        self.assertEqual(len(self.log.bugs()), 1)
        Link._lost = kept  # type: ignore[method-assign]  # as it was
        connecting = Background(client.connect)
        self.greet()
        self.assertIs(connecting.result(), True)

    def test_undefined_steps(self) -> None:
        link = Link(self.client()._options)
        with self.assertRaisesRegex(RuntimeError, "a link that is first cannot be leaving"):
            link._step(Phase.LEAVING)
        self.assertEqual({before for before, _ in STEPS} | {Phase.ENDED}, set(Phase))
        link._let_loose()


class LeavingTests(BlockingTestCase):
    """A server that shuts down."""

    GOODBYE: Json = {"type": "error", "code": "going_away", "message": "bye", "retry_after": 0}  # noqa: RUF012

    def test_answers_still_come(self) -> None:
        """What was asked before is answered; what is new waits, or fails, at once."""
        for offline in ("fail", "queue"):
            client, peer = self.connected(offline=offline)
            asking = Background(client.request, "slow")
            request = peer.receive()
            peer.send(self.GOODBYE)
            self.wait_until(client, Phase.LEAVING)
            self.assertFalse(client.connected)
            if offline == "fail":
                with self.assertRaisesRegex(Disconnected, "bye"):
                    client.request("late")
            else:
                late = Background(client.request, "late")
            # Once more it changes nothing.
            peer.send(self.GOODBYE, {"type": "done", "id": request["id"]})
            self.assertEqual(asking.result()["type"], "done")
            peer.close()
            again = self.greet()
            self.wait_until(client, Phase.READY)
            if offline == "queue":
                self.assertEqual((request := again.receive())["type"], "late")
                again.send({"type": "done", "id": request["id"]})
                self.assertEqual(late.result()["type"], "done")
            again.close()
            self.host = Host(self)
            self.assertEqual(self.log.bugs(), [])


class OfflineQueueTests(BlockingTestCase):
    """`offline="queue"`."""

    def lost(self, **options: Any) -> TCPClient:
        """A client that waits for half a second before it tries again."""
        client, peer = self.connected(random=lambda: 1.0, offline="queue", **options)
        peer.close()
        self.wait_until(client, Phase.AGAIN)
        return client

    def test_in_order(self) -> None:
        client = self.lost()
        for n in range(3):
            self.assertIs(client.echo(n), True)
        asking = Background(client.request, "last")
        self.until(lambda: len(self.link(client)._pending) == 4)
        self.pass_time(client, 0.6)
        peer = self.greet()
        self.assertEqual([peer.receive()["content"] for _ in range(3)], [0, 1, 2])
        request = peer.receive()
        peer.send({"type": "ok", "id": request["id"]})
        self.assertEqual(asking.result()["type"], "ok")

    def test_bounded(self) -> None:
        client = self.lost(max_queue=100)
        # Alone, a longer one is taken.
        self.assertIs(client.echo("x" * 200), True)
        self.assertIs(client.echo("x"), False)
        self.assertIsInstance(client.error, Exception)
        self.assertRaises(QueueFull, client.request, "x")

    def test_who_waits_no_more(self) -> None:
        """What was not sent yet is not sent any more."""
        client = self.lost()
        self.assertTrue(client.echo("before"))
        self.assertRaises(RequestTimeout, client.request, "x", timeout=0.01)
        self.pass_time(client, 0.6)
        peer = self.greet()
        self.wait_until(client, Phase.READY)
        client.echo("after")
        self.assertEqual([peer.receive()["content"] for _ in range(2)], ["before", "after"])
        # One that nobody knows is not missed.
        self.link(client).forget(links.Waiter())

    def test_who_waits_no_more_takes_no_room(self) -> None:
        client = self.lost(max_queue=100)
        self.assertTrue(client.send_message({"type": "x"}))
        for _ in range(10):
            self.assertRaises(RequestTimeout, client.request, "echo", content="x" * 30, timeout=0)
        self.assertTrue(client.echo("x" * 30))

    def test_too_large_for_the_next(self) -> None:
        client = self.lost()
        client.echo("x" * 1000)
        asking = Background(client.request, "echo", content="y" * 1000)
        self.until(lambda: len(self.link(client)._pending) == 2)
        client.echo("short")
        self.pass_time(client, 0.6)
        peer = self.greet({**WELCOME, "max_length": 500})
        self.assertRaises(TooLarge, asking.result)
        self.assertEqual(peer.receive()["content"], "short")
        self.log.wait_for("not sent: a message of")

    def test_the_end(self) -> None:
        client = self.lost()
        client.echo("x")
        asking = Background(client.request, "x")
        self.until(lambda: len(self.link(client)._pending) == 2)
        client.disconnect()
        with self.assertRaisesRegex(Disconnected, "not connected: the client has disconnected"):
            asking.result()

    def test_while_it_connects_first(self) -> None:
        client = self.client(offline="queue")
        connecting = Background(client.connect)
        peer = self.host.accept()
        self.assertTrue(client.echo("early"))
        peer.send(WELCOME)
        self.assertEqual(peer.receive()["type"], "hello")
        self.assertEqual(peer.receive()["content"], "early")
        self.assertIs(connecting.result(), True)


class SilenceTests(BlockingTestCase):
    """Servers that say nothing."""

    def ping(self, client: TCPClient, peer: Peer, silence: float) -> None:
        """See that a ping comes after that silence, and not before."""
        client.echo("before")
        self.assertEqual(peer.receive()["content"], "before")
        self.pass_time(client, silence - 0.1)
        client.echo("still")
        self.assertEqual(peer.receive()["content"], "still")
        self.pass_time(client, 0.2)
        self.assertEqual(peer.receive()["type"], "ping")

    def test_a_ping_that_is_answered(self) -> None:
        client, peer = self.connected({**WELCOME, "heartbeat": 10})
        self.ping(client, peer, 20)
        peer.send({"type": "pong"})
        self.wait_for_messages(2)
        self.ping(client, peer, 20)
        self.assertTrue(client.connected)

    def test_a_ping_that_is_not(self) -> None:
        for heartbeat, silence in ((None, 50), (25, 50), (1e-9, 1.0), (-1, 50), (1e15, 3600)):
            client, peer = self.connected({**WELCOME, "heartbeat": heartbeat}, random=lambda: 1.0)
            self.ping(client, peer, silence)
            self.pass_time(client, 9.9)
            client.echo("still")
            self.assertEqual(peer.receive()["content"], "still")
            self.assertTrue(client.connected)
            self.pass_time(client, 10.1)
            self.log.wait_for("the connection is lost: the server has fallen silent")
            self.assertIsNone(peer.payload())
            client.disconnect()
            self.log.records.clear()


class ClassicTests(BlockingTestCase):
    """A server that knows sections 1 to 3 alone."""

    def test_replies_by_kind_and_order(self) -> None:
        client, peer = self.connected(CLASSIC)
        now = "2024-01-01T12:00:00.000Z"
        # One whose reply is nobody's.
        client.echo("unasked")
        client.send_message("text")
        asking = []
        for kind in ("echo", "own", "ping", "echo"):
            asking.append(Background(client.request, kind))
            if kind == "echo" and len(asking) == 1:
                self.assertEqual(peer.receive(), {"type": "echo", "content": "unasked", "timestamp": now})
                self.assertEqual(peer.payload(), b"text")
            self.assertEqual(peer.receive(), {"type": kind, "timestamp": now})
        replies: list[Json] = [
            {"type": "echo_response", "content": "unasked"},
            {"type": "echo", "original_text": "text"},
            {"type": "broadcast", "content": "between"},
            {"type": "echo_response", "n": 0},
            {"type": "response"},
            {"type": "pong"},
            {"type": "echo_response", "n": 3},
        ]
        peer.send(*replies)
        self.assertEqual([thread.result() for thread in asking], [replies[k] for k in (3, 4, 5, 6)])
        self.assertEqual(self.wait_for_messages(8), [CLASSIC, *replies])

    def test_a_reply_that_never_comes(self) -> None:
        """The next one of its kind is the next request's: a ping, for which nobody waits, shows it."""
        client, peer = self.connected(CLASSIC)
        for n in range(3):
            self.assertRaises(RequestTimeout, client.request, "echo", content=-1, timeout=0.01)
            self.assertEqual([peer.receive()["type"] for _ in range(2)], ["echo", "ping"])
            peer.send({"type": "pong"})
            asking = Background(client.request, "echo", content=n)
            peer.receive()
            peer.send({"type": "echo_response", "content": n})
            self.assertEqual(asking.result()["content"], n)

    def test_a_reply_that_comes_late(self) -> None:
        """It is nobody's, and neither is that to the ping."""
        client, peer = self.connected(CLASSIC)
        self.assertRaises(RequestTimeout, client.request, "echo", content=1, timeout=0.01)
        asking = [Background(client.request, "echo", content=2)]
        self.assertEqual([peer.receive()["type"] for _ in range(3)], ["echo", "ping", "echo"])
        asking.append(Background(client.request, "ping"))
        peer.receive()
        peer.send(
            {"type": "echo_response", "content": 1},
            {"type": "pong", "n": 1},
            {"type": "echo_response", "content": 2},
            {"type": "pong", "n": 2},
        )
        first, second = (thread.result() for thread in asking)
        self.assertEqual((first["content"], second["n"]), (2, 2))

    def test_who_waits_no_more_after_the_end(self) -> None:
        """Nothing is sent for those of an earlier connection."""
        client, peer = self.connected(CLASSIC, random=lambda: 1.0)
        waiter = links.Waiter()
        self.link(client).submit(Request("x", b'{"type":"x"}', False, waiter))
        peer.receive()
        peer.close()
        self.wait_until(client, Phase.AGAIN)
        self.link(client).forget(waiter)
        self.pass_time(client, 0.6)
        again = self.greet(CLASSIC)
        self.wait_until(client, Phase.READY)
        self.link(client).forget(waiter)
        client.echo("next")
        self.assertEqual(again.receive()["type"], "echo")

    def test_a_timestamp_of_ones_own(self) -> None:
        class Stamped(Message, tag="stamped"):
            timestamp: str | msgspec.UnsetType = msgspec.UNSET

        client, peer = self.connected(CLASSIC)
        client.send_message({"type": "x", "timestamp": 7})
        client.send_message(Stamped(timestamp="then"))
        client.send_message(Stamped())
        stamps = [peer.receive()["timestamp"] for _ in range(3)]
        self.assertEqual(stamps, [7, "then", "2024-01-01T12:00:00.000Z"])

    def test_any_length_goes(self) -> None:
        client, peer = self.connected(CLASSIC)
        self.assertTrue(client.echo("x" * 2_000_000))
        self.assertEqual(len(peer.receive()["content"]), 2_000_000)


class DisconnectTests(BlockingTestCase):
    """The end."""

    def test_what_was_sent_and_is_said(self) -> None:
        """What was to be sent is sent, what the server says to it is heard."""
        client, peer = self.connected()
        for n in range(5):
            client.echo([n, "x" * 500_000])
        asking = Background(client.request, "x")
        ending = None
        for n in range(5):
            self.assertEqual(peer.receive()["content"][0], n)
        peer.receive()
        ending = Background(client.disconnect)
        with self.assertRaisesRegex(Disconnected, "no reply came: the client has disconnected"):
            asking.result()
        self.assertIsNone(peer.payload())
        self.assertIs(client.ping(), False)
        peer.send({"type": "echo_response", "content": "late"})
        peer.close()
        ending.result()
        self.assertEqual(self.messages[-1]["content"], "late")
        self.wait_until(client, Phase.ENDED)
        self.assertEqual(len(self.log.lines), 1)
        client.disconnect()

    def test_much_that_is_still_to_be_sent(self) -> None:
        client, peer = self.connected({**WELCOME, "max_length": None})
        client.echo("x" * 6_000_000)
        ending = Background(client.disconnect)
        self.assertEqual(len(peer.receive()["content"]), 6_000_000)
        self.assertIsNone(peer.payload())
        peer.close()
        ending.result()

    def test_a_server_that_does_not_care(self) -> None:
        """After two seconds it is over."""
        client, peer = self.connected({**WELCOME, "max_length": None})
        client.echo("x" * 8_000_000)
        ending = Background(client.disconnect)
        while ending.runs():
            self.pass_time(client, 2.1)
        ending.result()
        self.link(client).thread.join(TIMEOUT)
        del peer

    def test_in_the_callback(self) -> None:
        """There it waits for nothing."""
        client, peer = self.connected()

        def wait(link: Link, timeout: float) -> None:
            raise AssertionError("it waits for itself")

        self.patch(Link, "wait_until_ended", wait)

        def callback(message: Json) -> None:
            client.echo("bye")
            client.disconnect()
            self.note(message)

        client.set_message_callback(callback)
        peer.send({"type": "x"}, {"type": "y"})
        self.assertEqual(peer.receive()["content"], "bye")
        self.assertIsNone(peer.payload())
        self.wait_for(lambda: self.messages[-1]["type"] == "y")
        peer.close()
        self.wait_until(client, Phase.ENDED)
        self.assertEqual(self.log.bugs(), [])

    def test_as_soon_as_it_is_welcome(self) -> None:
        """What was sent then is sent."""
        client = self.client()

        def callback(message: Json) -> None:
            client.echo("bye")
            client.disconnect()

        client.set_message_callback(callback)
        connecting = Background(client.connect)
        peer = self.greet()
        self.assertEqual(peer.receive()["content"], "bye")
        self.assertIsNone(peer.payload())
        peer.close()
        connecting.result()
        self.wait_until(client, Phase.ENDED)

    def test_before_anything_was_sent(self) -> None:
        """But for `hello`, which goes first."""
        client = self.client()

        def callback(message: Json) -> None:
            self.note(message)
            client.disconnect()

        client.set_message_callback(callback)
        connecting = Background(client.connect)
        peer = self.greet()
        self.assertIsNone(peer.payload())
        peer.send({"type": "hello_response", "id": HELLO_ID})
        self.assertEqual(self.wait_for_messages(2)[1]["type"], "hello_response")
        peer.close()
        connecting.result()

    def test_while_it_waits_to_try_again(self) -> None:
        client, peer = self.connected(random=lambda: 1.0)
        peer.close()
        self.wait_until(client, Phase.AGAIN)
        client.disconnect()
        self.link(client).thread.join(TIMEOUT)
        self.assertFalse(self.link(client).thread.is_alive())

    def test_while_it_connects(self) -> None:
        client = self.client()
        connecting = Background(client.connect)
        peer = self.host.accept()
        client.disconnect()
        self.assertIs(connecting.result(), False)
        self.assertIsNone(peer.payload())

    def test_at_the_moment_of_the_connection(self) -> None:
        """The one event does not hide the other."""
        client = self.client()
        select = Link._select

        def select_both(link: Link, until: float, events: int = 0) -> int:
            found = select(link, until, events)
            if events == selectors.EVENT_WRITE:
                link.close()
                link._wake_end.recv(100)
            return found

        self.patch(Link, "_select", select_both)
        self.assertIs(client.connect(), False)
        self.link(client).thread.join(5)
        self.assertFalse(self.link(client).thread.is_alive())

    def test_at_the_moment_of_the_welcome(self) -> None:
        """It is not served any more."""
        client = self.client()
        connecting = Background(client.connect)
        peer = self.host.accept()
        welcomed = Link._welcomed

        def welcomed_too_late(link: Link, handshake: Handshake) -> None:
            link.close()
            welcomed(link, handshake)

        self.patch(Link, "_welcomed", welcomed_too_late)
        peer.send(WELCOME)
        self.assertIs(connecting.result(), False)
        self.assertIsNone(peer.payload())

    def test_connecting_anew(self) -> None:
        client, peer = self.connected()
        ending = Background(client.disconnect)
        peer.payload()
        peer.close()
        ending.result()
        connecting = Background(client.connect)
        self.greet()
        self.assertIs(connecting.result(), True)

    def test_nothing_is_kept_of_what_was(self) -> None:
        client, peer = self.connected(reconnect=False)
        peer.close()
        self.wait_until(client, Phase.ENDED)
        self.link(client).thread.join(TIMEOUT)
        earlier = weakref.ref(self.link(client))
        connecting = Background(client.connect)
        self.greet()
        connecting.result()
        del connecting
        gc.collect()
        self.assertIsNone(earlier())

    def test_garbage(self) -> None:
        """A client that nobody has any more lets go of the connection, when what it sent is sent."""
        client, peer = self.connected()
        link = self.link(client)
        client.echo("last")
        self._cleanups = [each for each in self._cleanups if each[0] != client.disconnect]
        del client
        gc.collect()
        self.assertEqual(peer.receive()["content"], "last")
        self.assertIsNone(peer.payload())
        peer.close()
        link.thread.join(TIMEOUT)
        self.assertFalse(link.thread.is_alive())

    def test_garbage_that_is_called_back(self) -> None:
        """A callback of what owns the client keeps neither, and is not called any more."""

        class Owner:
            def __init__(self, case: DisconnectTests) -> None:
                self.case = case
                self.client = TCPClient(HOST, case.host.port, clock=case.time)
                self.client.set_message_callback(self.heard)

            def heard(self, message: Json) -> None:
                self.case.note(message)

        owner = Owner(self)
        connecting = Background(owner.client.connect)
        peer = self.greet()
        connecting.result()
        peer.send({"type": "x"})
        self.wait_for_messages(2)
        # When this is sent, the callback has returned.
        owner.client.echo("last")
        self.assertEqual(peer.receive()["content"], "last")
        link = self.link(owner.client)
        gone = weakref.ref(owner)
        del owner, connecting
        gc.collect()
        self.assertIsNone(gone())
        self.assertIsNone(peer.payload())
        peer.send({"type": "y"})
        peer.close()
        link.thread.join(TIMEOUT)
        self.assertFalse(link.thread.is_alive())
        self.assertEqual([message["type"] for message in self.messages], ["welcome", "x"])
        self.assertEqual(self.log.bugs(), [])

    def test_the_end_of_the_program(self) -> None:
        """What was sent is waited for."""
        client, peer = self.connected()
        client.echo("last")
        self.patch(links, "_links", {self.link(client)})
        ending = Background(links._at_exit)
        self.assertEqual(peer.receive()["content"], "last")
        self.assertIsNone(peer.payload())
        peer.close()
        ending.result()
        self.wait_until(client, Phase.ENDED)

    def test_in_the_midst_of_sending(self) -> None:
        """As the handler of a signal does it that comes then."""
        client, peer = self.connected()
        link = self.link(client)

        def interrupted(link: Link) -> None:
            self.patch(Link, "wake", wake)
            link.close()

        wake = Link.wake
        self.patch(Link, "wake", interrupted)
        self.assertTrue(client.echo("last"))
        self.assertEqual(peer.receive()["content"], "last")
        self.assertIsNone(peer.payload())
        peer.close()
        link.thread.join(TIMEOUT)

    def test_a_signal_to_a_thread_that_has_ended(self) -> None:
        client, peer = self.connected()
        peer.close()
        client.disconnect()
        self.link(client).thread.join(TIMEOUT)
        self.link(client).signal()


class ForkTests(BlockingTestCase):
    """A child process has no connection, and does nothing to the parent's."""

    def test_fork(self) -> None:
        client, peer = self.connected()
        pool = ConnectionPool(HOST, self.host.port)
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                sent = client.ping()
                forked = "forked" in str(client.error)
                client.disconnect()
                pool.close()
                connecting = Background(client.connect)
                self.host.accept().send(WELCOME)
                status = 0 if (sent, forked, connecting.result()) == (False, True, True) else 2
            os._exit(status)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        asking = Background(client.request, "x")
        request = peer.receive()
        self.assertEqual(request["type"], "x")
        peer.send({"type": "ok", "id": request["id"]})
        asking.result()

    def test_within_the_callback(self) -> None:
        """There the child's only thread is the client's, which ends when the callback returns."""
        client, peer = self.connected()
        children: list[int] = []

        def callback(message: Json) -> None:
            # Whatever comes of it, no child of this stays.
            child = os.fork()
            if child == 0:
                threading.Thread(target=self.watch, args=(client,), daemon=True).start()
            else:
                children.append(child)
                self.note(message)

        client.set_message_callback(callback)
        peer.send({"type": "x"})
        self.wait_for(lambda: children)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]), 0)
        self.assertTrue(client.ping())
        self.assertEqual(peer.receive()["type"], "ping")

    def watch(self, client: TCPClient) -> None:
        """In the child: its status says whether all is well."""
        status = 1
        with contextlib.suppress(BaseException):
            self.link(client).thread.join(TIMEOUT)
            ended = not self.link(client).thread.is_alive()
            status = 0 if ended and not self.log.bugs() else 2
        os._exit(status)

    def test_what_the_child_does(self) -> None:
        """The same, where it can be watched."""
        link = Link(self.client()._options)
        self.patch(links, "_links", {link})
        links._after_fork()
        self.assertIs(link.phase, Phase.ENDED)
        self.assertRaises(Disconnected, link.submit, Request("x", b"{}", False))
        pool = ConnectionPool()
        lock = pool._changed
        pools._after_fork()
        self.assertIsNot(pool._changed, lock)

    def test_what_the_child_does_within_the_callback(self) -> None:
        client, peer = self.connected()
        calls: list[Json] = []

        def callback(message: Json) -> None:
            calls.append(message)
            self.link(client).after_fork()

        client.set_message_callback(callback)
        peer.send(*[{"type": "x"}] * 500)
        self.link(client).thread.join(TIMEOUT)
        self.assertFalse(self.link(client).thread.is_alive())
        # What was taken at once, and nothing more.
        self.assertLessEqual(len(calls), 128)
        self.assertEqual(self.log.bugs(), [])


# The pool.


class Answering:
    """A server that welcomes and answers, in threads, until it is told to end."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.host = Host(case)
        self.sockets: list[socket.socket] = []
        self.connections = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        case.addCleanup(self.stop)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.host.listener.accept()
                self.connections += 1
                self.sockets.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        peer = Peer(connection)
        with contextlib.suppress(OSError):
            peer.send(WELCOME)
            while (payload := peer.payload()) is not None:
                message = json.loads(payload)
                if message["type"] != "hello":
                    peer.send({"type": "ok", "id": message["id"]})
        self.sockets.remove(connection)
        peer.close()

    def drop(self) -> None:
        """End all connections."""
        for connection in list(self.sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        # The thread that accepts is woken by nothing less.
        with contextlib.suppress(OSError):
            self.host.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)
        self.drop()


class PoolTests(BlockingTestCase):
    """`ConnectionPool`."""

    def setUp(self) -> None:
        super().setUp()
        self.server = Answering(self)

    def pool(self, size: int = 2, **options: Any) -> ConnectionPool:
        pool = ConnectionPool(HOST, self.server.host.port, size, **options)
        self.addCleanup(pool.close)
        return pool

    def test_lent_and_given_back(self) -> None:
        pool = self.pool()
        first = pool.get_connection()
        self.assertEqual(first.request("x")["type"], "ok")
        second = pool.get_connection()
        self.assertIsNot(first, second)
        first.set_message_callback(self.note)
        pool.return_connection(first)
        self.assertIs(pool.get_connection(), first)
        first.request("x")
        self.assertEqual([message["type"] for message in self.messages], [])
        self.assertEqual(self.server.connections, 2)

    def test_all_are_lent(self) -> None:
        pool = self.pool(1, timeout=0.01)
        client = pool.get_connection(TIMEOUT)
        with self.assertRaisesRegex(RequestTimeout, "no connection was free in 0.01 seconds"):
            pool.get_connection()
        self.assertRaises(RequestTimeout, pool.get_connection, 0)
        waiting = Background(pool.get_connection, TIMEOUT)
        pool.return_connection(client)
        self.assertIs(waiting.result(), client)

    def test_in_the_order_of_coming(self) -> None:
        """Who gives one back and wants it again waits behind those who waited before."""
        pool = self.pool(1)
        client = pool.get_connection()
        first = Background(pool.get_connection, TIMEOUT)
        self.until(lambda: len(pool._line) == 1)
        second = Background(pool.get_connection, TIMEOUT)
        self.until(lambda: len(pool._line) == 2)
        pool.return_connection(client)
        self.assertRaises(RequestTimeout, pool.get_connection, 0)
        self.assertIs(first.result(), client)
        self.assertEqual(len(pool._line), 1)
        pool.return_connection(client)
        self.assertIs(second.result(), client)

    def test_whose_they_are(self) -> None:
        pool = self.pool()
        client = pool.get_connection()
        pool.return_connection(client)
        with self.assertRaisesRegex(ValueError, "not lent by this pool"):
            pool.return_connection(client)
        self.assertRaises(ValueError, pool.return_connection, TCPClient())

    def test_dead_ones_are_replaced(self) -> None:
        pool = self.pool(1, random=lambda: 1.0, clock=self.time)
        idle = pool.get_connection()
        pool.return_connection(idle)
        self.server.drop()
        self.wait_until(idle, Phase.AGAIN)
        lent = pool.get_connection()
        self.assertIsNot(lent, idle)
        self.assertEqual(lent.request("x")["type"], "ok")
        self.server.drop()
        self.wait_until(lent, Phase.AGAIN)
        pool.return_connection(lent)
        # It does not connect anew where nobody wants it.
        self.assertIs(self.link(lent).phase, Phase.ENDED)
        with pool.connection() as client:
            self.assertIsNot(client, lent)
            self.assertEqual(client.request("x")["type"], "ok")
        self.assertIs(self.link(idle).phase, Phase.ENDED)

    def test_a_server_that_is_gone(self) -> None:
        """The place is free for the next attempt."""
        pool = ConnectionPool(HOST, 1, 1)
        for _ in range(2):
            with self.assertRaisesRegex(Disconnected, "refused"):
                pool.get_connection()

    def test_an_interrupted_connect(self) -> None:
        pool = self.pool(1)

        def interrupt(client: TCPClient, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

        kept = TCPClient.connect
        self.patch(TCPClient, "connect", interrupt)
        self.assertRaises(KeyboardInterrupt, pool.get_connection)
        TCPClient.connect = kept  # type: ignore[method-assign]  # as it was
        pool.get_connection()

    def test_close(self) -> None:
        pool = self.pool(2)
        with pool:
            idle, lent = pool.get_connection(), pool.get_connection()
            waiting = Background(pool.get_connection, TIMEOUT)
            pool.return_connection(idle)
            waiting.result()
            pool.return_connection(idle)
            another = Background(pool.get_connection, TIMEOUT)
            pool.return_connection(another.result())
        self.assertFalse(idle.connected)
        self.assertTrue(lent.connected)
        pool.return_connection(lent)
        self.assertFalse(lent.connected)
        with self.assertRaisesRegex(Disconnected, "the pool is closed"):
            pool.get_connection()

    def test_close_while_one_connects(self) -> None:
        host = Host(self)
        pool = ConnectionPool(HOST, host.port, 1)
        connecting = Background(pool.get_connection)
        peer = host.accept()
        pool.close()
        peer.send(WELCOME)
        with self.assertRaisesRegex(Disconnected, "the pool is closed"):
            peer.receive()
            self.assertIsNone(peer.payload())
            peer.close()
            connecting.result()

    def test_many_threads(self) -> None:
        pool = self.pool(3)
        lent: list[TCPClient] = []
        most = 0
        lock = threading.Lock()

        def use() -> None:
            nonlocal most
            for _ in range(30):
                with pool.connection() as client:
                    with lock:
                        self.assertNotIn(client, lent)
                        lent.append(client)
                        most = max(most, len(lent))
                    client.request("x")
                    with lock:
                        lent.remove(client)

        for thread in [Background(use) for _ in range(8)]:
            thread.result()
        self.assertLessEqual(most, 3)
        self.assertLessEqual(self.server.connections, 3)

    def test_arguments(self) -> None:
        self.assertRaises(ValueError, ConnectionPool, pool_size=0)
        self.assertRaises(ValueError, ConnectionPool, offline="maybe")
        self.assertRaises(TypeError, ConnectionPool, no_such_option=1)
        self.assertRaises(TypeError, ConnectionPool, pool_size="9")
        self.assertRaises(ValueError, TCPServer, port=99999)
        self.assertRaises(TypeError, TCPServer, port="9999")


# The server.


class Move(Message, tag="move"):
    """A message of an application."""

    x: int


class ServerTests(BlockingTestCase):
    """`TCPServer`, on a reactor of its own."""

    def serve(self, **options: Any) -> TCPServer:
        """A server that listens, in a thread."""
        self.said: list[str] = []
        options = {
            "host": HOST,
            "port": 0,
            "announce": self.said.append,
            "reactor": SelectReactor(),
            **options,
        }
        server = TCPServer(**options)
        self.running = Background(server.start)
        self.addCleanup(self.stop, server)
        self.assertIs(server.wait_until_ready(TIMEOUT), True)
        return server

    def stop(self, server: TCPServer) -> None:
        server.stop()
        self.running.result()

    def test_serve_and_stop(self) -> None:
        server = self.serve()
        self.assertEqual(self.said, [f"tcpjson: listening on {HOST}:{server.port}"])
        with TCPClient(HOST, server.port) as client:
            self.assertEqual(client.request("echo", content="x")["content"], "x")
        server.stop()
        server.stop()
        self.assertIsNone(self.running.result())
        server.stop()
        client = TCPClient(HOST, server.port)
        self.assertIs(client.connect(), False)

    def test_options(self) -> None:
        router = Router()

        @router.handler
        def move(session: Session, message: Move) -> Json:
            return {"type": "moved", "x": message.x + 1}

        server = self.serve(routers=[router], strict=True, limits=Limits(max_length=4000, max_connections=1))
        with TCPClient(HOST, server.port) as client:
            self.assertEqual(client.request("move", x=1)["x"], 2)
            with self.assertRaises(ProtocolError) as raised:
                client.request("other")
            self.assertEqual(raised.exception.code, "unknown_type")
            assert client.server is not None
            self.assertEqual(client.server.max_length, 4000)
            other = TCPClient(HOST, server.port)
            self.assertIs(other.connect(), False)
            self.assertIsInstance(other.error, ServerFull)

    def test_checkers(self) -> None:
        server = self.serve(
            checkers=[InMemoryUsernamePasswordDatabaseDontUse(ann=b"sesame")], allow_plain_auth=True
        )

        class Plain(Secret):
            first: Json = {"mechanism": "plain", "username": "ann", "password": "sesame"}  # noqa: RUF012

        with TCPClient(HOST, server.port, credentials=Plain()) as client:
            self.assertEqual(client.user, "ann")
        client = TCPClient(HOST, server.port)
        self.assertIs(client.connect(), False)
        self.assertIsInstance(client.error, AuthenticationFailed)

    def test_a_port_that_is_taken(self) -> None:
        server = TCPServer(HOST, self.host.port, reactor=SelectReactor())
        waiting = Background(server.wait_until_ready)
        self.assertRaises(OSError, server.start)
        self.assertIs(waiting.result(), False)
        self.assertRaises(OSError, TCPServer("no..name").start)

    def test_any_address(self) -> None:
        server = self.serve(host="")
        with TCPClient(HOST, server.port) as client:
            client.request("ping")

    def test_one_start(self) -> None:
        reactor = SelectReactor()
        server = self.serve(reactor=reactor)
        self.assertRaisesRegex(RuntimeError, "the reactor runs", TCPServer(reactor=reactor).start)
        server.stop()
        self.running.result()
        self.assertRaisesRegex(RuntimeError, "the reactor runs, or has run", server.start)

    def test_what_fails_when_it_begins(self) -> None:
        """The reactor stops, and the reason is raised."""
        router: Any = object()
        server = TCPServer(HOST, 0, routers=[router], reactor=SelectReactor())
        self.assertRaises((AttributeError, TypeError), server.start)
        self.assertIs(server.wait_until_ready(TIMEOUT), False)

    def test_before_the_start(self) -> None:
        TCPServer().stop()
        self.assertIs(TCPServer().wait_until_ready(0.001), False)
