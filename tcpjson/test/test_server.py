"""The server in memory, and on sockets where it matters."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
import sys
import weakref
import zlib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from random import Random
from types import FunctionType, ModuleType
from typing import Any, ClassVar

from hypothesis import strategies as st
from msgspec import Raw
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import Interface, implementer

from tcpjson import Limits, Message, Router, __version__, connection, exchange, lifecycle
from tcpjson import server as server_module
from tcpjson.auth import ITokenCredentials
from tcpjson.connection import Connection
from tcpjson.core import compression
from tcpjson.core.compression import deflate, inflate
from tcpjson.core.errors import CODES, Forbidden, GoingAway, ProtocolError, SlowConsumer
from tcpjson.core.framing import COMPRESSED, frame
from tcpjson.core.messages import Answer, BroadcastSent, Echo, EchoResponse, Error, Ping, Pong, Text
from tcpjson.handlers import Recipients
from tcpjson.lifecycle import StartFailed
from tcpjson.server import TCPJSONServerFactory
from tcpjson.test.hypo import given
from tcpjson.test.wires import Loop, TLSWire, Wire, attach, connect, run_due, socket_pair, tls_factory
from tcpjson.testing import MemoryServer, Peer
from tcpjson.vectors import strict_json


class Do(Message, tag="do"):
    """A request whose handler does what the test has in mind."""

    n: int = 0


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        #: What the handler of `Do` does; it gets the session and the message.
        self.act: Callable[[Any, Do], Any] = lambda session, message: None

    def server(self, **options: Any) -> MemoryServer:
        """A server with a handler of `Do`; stopped at the end of the test."""
        router = Router()

        def do(session: Any, message: Any) -> Any:
            return self.act(session, message)

        router.add(Do, do)
        server = MemoryServer(routers=[router], **options)
        self.addCleanup(server.stop)
        return server

    def peer(self, server: MemoryServer) -> Peer:
        """A client that has read its welcome."""
        peer = server.connect()
        [welcome] = peer.receive()
        self.assertEqual(welcome["type"], "welcome")
        return peer

    def assertTypes(self, messages: list[Any], *types: str) -> None:
        """The types of messages; of errors, the codes."""
        self.assertEqual(
            [message["code"] if message["type"] == "error" else message["type"] for message in messages],
            list(types),
        )


def echo(content: object, **fields: object) -> dict[str, object]:
    return {"type": "echo", "content": content, **fields}


def do(n: int = 0, **fields: object) -> dict[str, object]:
    return {"type": "do", "n": n, **fields}


def cast(content: object, **fields: object) -> dict[str, object]:
    return {"type": "broadcast", "content": content, **fields}


def ns(messages: list[Any]) -> list[Any]:
    return [message["n"] for message in messages]


def contents(messages: list[Any]) -> list[Any]:
    return [message["content"] for message in messages if "content" in message]


class WelcomeTests(Case):
    """Section 4."""

    def test_all_fields(self) -> None:
        [welcome] = self.server().connect().receive()
        self.assertEqual(
            welcome,
            {
                "type": "welcome",
                "client_id": "127.0.0.1:50000",
                "message": "Welcome to the tcpjson server",
                "timestamp": "2024-01-01T12:00:00.000Z",
                "protocol": 1,
                "server": f"tcpjson/{__version__}",
                "max_length": 1048576,
                "heartbeat": 25.0,
                "compression": ["zlib"],
                "features": [],
                "auth": [],
                "limits": {"max_queue": 8388608, "frame_timeout": 30.0, "write_timeout": 10.0},
            },
        )

    def test_limits_in_force(self) -> None:
        limits = Limits(max_length=1000, max_queue=2000, frame_timeout=3, write_timeout=4.5)
        server = self.server(limits=limits)
        server.advance(1.5)
        [welcome] = server.connect().receive()
        self.assertEqual(welcome["max_length"], 1000)
        self.assertEqual(welcome["limits"], {"max_queue": 2000, "frame_timeout": 3.0, "write_timeout": 4.5})
        self.assertEqual(welcome["timestamp"], "2024-01-01T12:00:01.500Z")

    def test_unix_clients_are_numbered(self) -> None:
        server = self.server()
        names = []
        for _ in range(2):
            connection = server.factory.buildProtocol(None)
            connection.makeConnection(StringTransport(peerAddress=UNIXAddress(None)))
            names.append(connection.client_id)
        self.assertEqual(names, ["unix:1", "unix:2"])


@implementer(ICredentialsChecker)
class Tokens:
    """Knows tokens by the names of their users."""

    credentialInterfaces: ClassVar[tuple[type[Interface], ...]] = (ITokenCredentials,)

    def __init__(self, tokens: dict[str, str]) -> None:
        self._names = {token: name.encode() for name, token in tokens.items()}

    def requestAvatarId(self, credentials: ITokenCredentials) -> Deferred[bytes | tuple[()]]:
        if credentials.token not in self._names:
            return fail(UnauthorizedLogin())
        return succeed(self._names[credentials.token])


class FrameTests(Case):
    """What is wrong with frames, and what stays right."""

    def test_answers_of_the_same_read_come_first(self) -> None:
        server = self.server()
        for bad, code, fatal in (
            (b"\xff\xff\xff\xff", "too_large", True),
            (b"\0\0\0\0", "bad_frame", False),
            (frame(b"{"), "bad_json", False),
            (frame(b'{"type": 1}'), "bad_message", False),
        ):
            peer = self.peer(server)
            peer.send_bytes(frame(b'{"type":"ping","id":1}') + frame(b'{"type":"echo"}') + bad)
            answers = peer.receive()
            self.assertTypes(answers, "pong", "echo_response", code)
            self.assertEqual((answers[2]["fatal"], peer.closed), (fatal, fatal))

    def test_answers_around_an_error(self) -> None:
        peer = self.peer(self.server())
        peer.send_payload(b'{"type":"ping"}', b"{", b'{"type":"ping"}', b"", b'{"type":"ping"}')
        self.assertTypes(peer.receive(), "pong", "bad_json", "pong", "bad_frame", "pong")

    def test_too_large(self) -> None:
        server = self.server(limits=Limits(max_length=100))
        peer = self.peer(server)
        peer.send_bytes(frame(b'"%s"' % (b"x" * 98)))
        self.assertTypes(peer.receive(), "echo")
        peer.send_bytes(b"\0\0\0\x65")
        [error] = peer.receive()
        self.assertEqual((error["code"], error["fatal"]), ("too_large", True))
        self.assertIn("101", error["message"])
        self.assertIn("100", error["message"])
        # It looks like none of the known mistakes.
        self.assertNotIn("a message begins", error["message"])
        self.assertTrue(peer.closed)
        for _ in range(10):
            peer.send_bytes(bytes(100_000))
        peer.send({"type": "ping"})
        self.assertEqual(peer.receive(), [])
        self.assertEqual(server.factory.stats.messages_in, 1)
        self.assertFalse(peer.connection._reader.begun)
        server.advance(2.1)
        self.assertTrue(peer.aborted)

    def test_errors_name_the_request(self) -> None:
        peer = self.peer(self.server(strict=True))
        peer.send({"type": "nobody", "id": "a"}, {"type": "echo", "id": 5, "content": 2**64})
        first, second = peer.receive()
        self.assertEqual((first["code"], first["id"]), ("unknown_type", "a"))
        self.assertEqual((second["code"], second["id"]), ("bad_json", 5))

    def test_string_received(self) -> None:
        """The name that `Int32StringReceiver` publishes handles one payload."""
        peer = self.peer(self.server())
        peer.connection.stringReceived(b'{"type":"ping"}')
        self.assertTypes(peer.receive(), "pong")

    def test_frames_received(self) -> None:
        """It says how many it handled; none is no fault."""
        peer = self.peer(self.server())
        self.assertEqual(peer.connection.framesReceived([]), 0)
        self.assertEqual(peer.connection.framesReceived([b'{"type":"ping"}', b"text"]), 2)
        self.assertTypes(peer.receive(), "pong", "echo")


class ForgottenLengthTests(Case):
    """The commonest mistake of those who begin."""

    def test_it_is_told(self) -> None:
        peer = self.peer(self.server())
        peer.send_bytes(b"hello, world")
        [error] = peer.receive()
        self.assertEqual(error["code"], "too_large")
        self.assertIn("its length bytes are the text 'hell': a message begins with", error["message"])


class GarbageTests(Case):
    """What is refused is let go at once, with its payload, which may be long."""

    def test_nothing_waits_for_the_collector(self) -> None:
        def act(session: Any, message: Do) -> Any:
            raise Forbidden

        self.act = act
        peer = self.peer(self.server(strict=True))
        payloads = [b"", b"\xff", b"[", b"{", b"x", b"[1]", b'{"type":1}', b'{"type":"x"}', b'{"type":"do"}']
        payloads += [b'{"type":"ping","id":[]}', b'{"type":"echo","content":1e999}']
        peer.send_payload(*payloads)
        peer.receive()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        peer.send_payload(*payloads * 10)
        self.assertEqual(len(peer.receive()), 110)
        self.assertEqual(gc.collect(), 0)

    def test_an_error_that_is_raised_again_and_again(self) -> None:
        """It would lead to all the requests for which it was."""
        error = Forbidden()

        def act(session: Any, message: Do) -> Any:
            raise error

        self.act = act
        self.peer(self.server()).send(do(), do())
        self.assertEqual((error.__traceback__, error.__context__), (None, None))


class FrameTimeoutTests(Case):
    """A frame that begins must end (section 1)."""

    def cut_after(self, server: MemoryServer, peer: Peer, most: float, *trickle: bytes) -> float:
        """Let time pass until the peer is cut for its frame; returns the seconds it took."""
        start = server.clock.seconds()
        pieces = list(trickle)
        while not peer.closed and server.clock.seconds() - start < most:
            if pieces:
                peer.send_bytes(pieces.pop(0))
            server.advance(0.5)
        if peer.closed:
            [error] = peer.receive()
            self.assertEqual((error["code"], error["fatal"]), ("frame_timeout", True))
        return server.clock.seconds() - start

    def assertAbout(self, seconds: float, due: float) -> None:
        self.assertTrue(due <= seconds < due + 1, f"{seconds} and not {due}")

    def test_a_length_that_is_not_complete(self) -> None:
        server = self.server()
        peer = self.peer(server)
        peer.send_bytes(b"\0")
        self.assertAbout(self.cut_after(server, peer, 100), 30)
        self.assertEqual(server.factory.stats.errors, {"frame_timeout": 1})
        peer.close()
        self.assertEqual(server.factory.stats.disconnects, {"frame_timeout": 1})

    def test_the_allowance_for_its_length(self) -> None:
        server = self.server()
        for announced, seconds in ((16 * 1024, 31), (1 << 20, 94)):
            peer = self.peer(server)
            peer.send_bytes(announced.to_bytes(4, "big"))
            self.assertAbout(self.cut_after(server, peer, 200), seconds)

    def test_a_byte_now_and_then(self) -> None:
        """Bytes that come do not buy time; only the length does, once."""
        server = self.server(limits=Limits(frame_timeout=5))
        peer = self.peer(server)
        trickle = [b"\0", b"\1", b"\0", b"\0", *[b"x"] * 100]
        self.assertAbout(self.cut_after(server, peer, 100, *trickle), 5 + 4)

    def test_each_frame_has_its_own_time(self) -> None:
        server = self.server(limits=Limits(frame_timeout=5))
        peer = self.peer(server)
        ping = frame(b'{"type":"ping"}')
        for _ in range(20):
            # The end of one, and the begin of the next.
            peer.send_bytes(ping[2:] + ping[:2] if peer.connection._reader.begun else ping[:2])
            server.advance(4)
        self.assertTypes(peer.receive(), *["pong"] * 19)
        self.assertAbout(self.cut_after(server, peer, 100), 1)

    def test_a_frame_in_time(self) -> None:
        server = self.server()
        peer = self.peer(server)
        peer.send_bytes(b"\0\0")
        server.advance(29)
        peer.send_bytes(b"\0\2hi")
        server.advance(1000)
        self.assertTypes(peer.receive(), "echo")
        self.assertFalse(peer.closed)

    def test_no_frame_no_deadline(self) -> None:
        server = self.server()
        peer = self.peer(server)
        server.advance(1000)
        self.assertFalse(peer.closed)

    def test_it_stands_still_while_answers_wait(self) -> None:
        server = self.server(limits=Limits(frame_timeout=5))
        peer = self.peer(server)
        peer.send_bytes(b"\0\0")
        peer.stop_reading()
        peer.send_bytes(b"\0\2hi" + frame(b'"%s"' % (b"x" * 70_000)) + b"\0\0")
        self.assertTrue(peer.connection.paused)
        server.advance(500)
        self.assertFalse(peer.closed)
        peer.start_reading()
        self.assertTypes(peer.receive(), "echo", "echo")
        self.assertAbout(self.cut_after(server, peer, 100), 5)

    def test_it_stands_still_while_handlers_are_at_their_bound(self) -> None:
        server = self.server(limits=Limits(frame_timeout=5, max_handlers=1, handler_timeout=1000))
        waiting: Deferred[None] = Deferred()
        self.act = lambda session, message: waiting
        peer = self.peer(server)
        peer.send_bytes(frame(json.dumps(do()).encode()) + b"\0\0")
        server.advance(500)
        self.assertFalse(peer.closed)
        waiting.callback(None)
        server.settle()
        self.assertAbout(self.cut_after(server, peer, 100), 5)

    def test_it_stands_still_while_the_application_pauses(self) -> None:
        server = self.server(limits=Limits(frame_timeout=5))
        peer = self.peer(server)
        peer.send_bytes(b"\0\0")
        peer.connection.pauseProducing()
        server.advance(500)
        self.assertFalse(peer.closed)
        peer.connection.resumeProducing()
        self.assertAbout(self.cut_after(server, peer, 100), 5)

    def test_the_client_closes(self) -> None:
        server = self.server()
        peer = self.peer(server)
        peer.send_bytes(b"\0\0")
        peer.close()
        server.advance(100)
        self.assertEqual(server.factory.stats.disconnects, {"client_closed": 1})


class BackpressureTests(Case):
    """Section 10: a peer's own requests never make its queue full."""

    def check(self, peer: Peer, server: MemoryServer, requests: int, most: int, answer: str) -> None:
        """Requests are handled while little waits, and all answers come, once and in order."""
        handled = server.factory.stats.messages_in
        peer.stop_reading()
        peer.send(*(do(number) for number in range(requests)))
        self.assertLessEqual(server.factory.stats.messages_in - handled, most)
        self.assertEqual(peer.transport.producerState, "paused")
        server.advance(1000)
        self.assertFalse(peer.closed)
        self.assertLessEqual(server.factory.stats.messages_in - handled, most)
        peer.start_reading()
        answers = peer.receive()
        self.assertTypes(answers, *[answer] * requests)
        self.assertEqual(ns(answers), list(range(requests)))
        self.assertEqual(peer.transport.producerState, "producing")

    def test_in_the_middle_of_a_read(self) -> None:
        server = self.server()
        self.act = lambda session, message: {"type": "done", "n": message.n, "fill": "x" * 1000}
        self.check(self.peer(server), server, 1000, 66, "done")

    def test_classic_answers(self) -> None:
        server = self.server()
        peer = self.peer(server)
        peer.stop_reading()
        peer.send(*(echo([number, "x" * 1000]) for number in range(500)))
        self.assertLessEqual(server.factory.stats.messages_in, 66)
        peer.start_reading()
        self.assertEqual([content[0] for content in contents(peer.receive())], list(range(500)))

    def test_errors_are_answers(self) -> None:
        server = self.server()
        peer = self.peer(server)
        peer.stop_reading()
        peer.send_payload(*[b"{"] * 5000)
        self.assertLessEqual(server.factory.stats.messages_in, 1000)
        peer.start_reading()
        self.assertTypes(peer.receive(), *["bad_json"] * 5000)

    def test_answers_of_coroutines(self) -> None:
        server = self.server(limits=Limits(max_handlers=1000))

        async def answer(session: Any, message: Do) -> Any:
            return {"type": "done", "n": message.n, "fill": "x" * 10_000}

        self.act = answer
        self.check(self.peer(server), server, 200, 8, "done")

    def test_what_handlers_send(self) -> None:
        server = self.server()
        self.act = lambda session, message: session.send(
            {"type": "sent", "n": message.n, "fill": "x" * 10_000}
        )
        self.check(self.peer(server), server, 200, 8, "sent")

    def test_answers_that_wait_for_a_slow_handler(self) -> None:
        server = self.server(limits=Limits(handler_timeout=10_000))
        slow: Deferred[Any] = Deferred()
        fill = "x" * 10_000

        def act(session: Any, message: Do) -> Any:
            return slow if message.n == 0 else {"type": "done", "n": message.n, "fill": fill}

        self.act = act
        peer = self.peer(server)
        peer.send(*(do(number) for number in range(100)))
        self.assertLessEqual(server.factory.stats.messages_in, 8)
        server.advance(1000)
        self.assertEqual(peer.receive(), [])
        slow.callback({"type": "done", "n": 0})
        server.settle()
        self.assertEqual(ns(peer.receive()), list(range(100)))

    def test_a_slow_answer_while_others_wait(self) -> None:
        """Each of many slow handlers comes to a large answer; the peer reads late."""
        server = self.server()
        slow: list[Deferred[Any]] = []

        def act(session: Any, message: Do) -> Any:
            slow.append(Deferred())
            return slow[-1]

        self.act = act
        peer = self.peer(server)
        peer.stop_reading()
        peer.send(*(do(number) for number in range(20)))
        for number, deferred in enumerate(slow):
            deferred.callback({"type": "done", "n": number, "fill": "x" * 20_000})
        peer.send(*(echo(number) for number in range(20)))
        self.assertLessEqual(server.factory.stats.messages_in, 21)
        peer.start_reading()
        answers = peer.receive()
        self.assertEqual(ns(answers[:20]), list(range(20)))
        self.assertEqual(contents(answers[20:]), list(range(20)))

    def test_one_reader_does_not_hold_up_another(self) -> None:
        server = self.server()
        stuck, healthy = self.peer(server), self.peer(server)
        stuck.stop_reading()
        stuck.send(*(echo("x" * 1000) for _ in range(1000)))
        healthy.send(*(echo(number) for number in range(1000)))
        self.assertEqual(contents(healthy.receive()), list(range(1000)))

    def test_it_goes_on_below_half(self) -> None:
        """Once it is held, no request is handled before most of the answers have left."""
        server = self.server()
        peer = self.peer(server)
        slow: list[Deferred[Any]] = []
        waiting: list[int] = []

        def act(session: Any, message: Do) -> Any:
            if message.n:
                waiting.append(peer.connection._outbox.answers)
                return {"type": "done"}
            slow.append(Deferred())
            return slow[-1]

        self.act = act
        write = peer.transport.write

        def sip(data: bytes) -> None:
            write(data)
            peer.stop_reading()

        peer.stop_reading()
        peer.send(*(do(id=number) for number in range(20)))
        for deferred in slow:
            deferred.callback({"type": "done", "fill": "x" * 20_000})
        peer.transport.write = sip  # type: ignore[method-assign]  # takes one piece at a time
        peer.send(*(do(1) for number in range(20)))
        # One was handled, and found that too much waits.
        self.assertEqual(len(waiting), 1)
        while len(waiting) < 20:
            peer.start_reading()
        self.assertGreater(waiting[0], 300_000)
        self.assertLessEqual(waiting[1], 32 * 1024)

    def test_over_sockets(self) -> None:
        """A client that reads only when it can write no more; through TLS, too."""
        total = 400
        requests = [json.dumps(echo([number, "x" * 1000])).encode() for number in range(total)]
        for tls in (False, True):
            loop = Loop()
            factory = TCPJSONServerFactory(loop)
            wire = connect(loop, factory, tls=tls, send_buffer=4096)
            wire.payloads()
            pending = wire.seal(b"".join(map(frame, requests)))
            answers: list[bytes] = []
            while len(answers) < total:
                try:
                    pending = pending[wire.socket.send(pending) :] if pending else pending
                except BlockingIOError:
                    # What is neither handled nor answered is in the sockets, and in one read.
                    self.assertLess(factory.stats.messages_in, len(answers) + 250)
                    answers += wire.payloads()
                else:
                    loop.settle()
                    if not pending:
                        answers += wire.payloads()
            self.assertEqual([json.loads(answer)["content"][0] for answer in answers], list(range(total)))
            wire.socket.close()
            loop.close()


class SlowConsumerTests(Case):
    """A client that does not read what others send (sections 9 and 10)."""

    def test_a_full_queue(self) -> None:
        server = self.server(limits=Limits(max_queue=100_000))
        sender, healthy, stuck = self.peer(server), self.peer(server), self.peer(server)
        stuck.stop_reading()
        for number in range(30):
            sender.send(cast([number, "x" * 10_000]))
        answers = sender.receive()
        # Nine fit; the tenth ends it.
        self.assertEqual([answer["recipients"] for answer in answers], [2] * 10 + [1] * 20)
        self.assertEqual([content[0] for content in contents(healthy.receive())], list(range(30)))
        self.assertEqual(len(server.factory.clients), 2)
        self.assertEqual(server.factory.stats.errors, {"slow_consumer": 1})
        stuck.start_reading()
        # Nothing had begun to leave: the error is all there is.
        [error] = stuck.receive()
        self.assertEqual((error["code"], error["fatal"]), ("slow_consumer", True))
        self.assertTrue(stuck.closed)
        stuck.close()
        self.assertEqual(server.factory.stats.disconnects, {"slow_consumer": 1})

    def test_it_is_aborted_if_it_reads_nothing(self) -> None:
        server = self.server(limits=Limits(max_queue=10_000))
        sender, stuck = self.peer(server), self.peer(server)
        stuck.stop_reading()
        sender.send(*(cast("x" * 5000) for _ in range(3)))
        self.assertFalse(stuck.closed)
        server.advance(1.8)
        self.assertFalse(stuck.closed)
        server.advance(0.3)
        self.assertTrue(stuck.aborted)

    def test_whole_frames_and_then_the_error(self) -> None:
        """On a socket something has left: the frame that was begun is completed."""
        for tls in (False, True):
            loop = Loop()
            factory = TCPJSONServerFactory(loop, limits=Limits(max_queue=200_000))
            sender = connect(loop, factory)
            stuck = connect(loop, factory, tls=tls, send_buffer=4096)
            stuck.payloads()
            for number in range(60):
                sender.send_payload(json.dumps(cast([number, "x" * 10_000])).encode())
                sender.payloads()
            self.assertEqual(factory.stats.errors, {"slow_consumer": 1})
            messages = [json.loads(payload) for payload in stuck.payloads()]
            self.assertTypes(messages, *["broadcast"] * (len(messages) - 1), "slow_consumer")
            self.assertEqual([content[0] for content in contents(messages)], list(range(len(messages) - 1)))
            self.assertLess(len(messages), 12)
            stuck.close()
            sender.close()
            loop.close()

    def test_a_queue_is_tried_before_it_is_called_full(self) -> None:
        """The reader has made room, of which the reactor has not told yet."""
        for tls in (False, True):
            loop = Loop()
            factory = TCPJSONServerFactory(loop, limits=Limits(max_queue=60_000))
            sender = connect(loop, factory)
            [connection] = factory.clients
            reader = connect(loop, factory, tls=tls, send_buffer=100_000)
            reader.payloads()
            connection.stringReceived(json.dumps(cast("x" * 300_000)).encode())
            loop.settle()
            [outbox] = [client._outbox for client in factory.clients if client is not connection]
            self.assertGreater(outbox.waiting, 60_000)
            while reader.take(1 << 20):
                pass
            # There was no turn since: only the socket knows.
            self.assertGreater(outbox.waiting, 60_000)
            connection.stringReceived(json.dumps(cast("y")).encode())
            self.assertEqual(factory.stats.errors, {})
            messages = [json.loads(payload) for payload in reader.payloads()]
            self.assertEqual(contents(messages), ["x" * 300_000, "y"])
            sender.socket.close()
            reader.socket.close()
            loop.close()

    def test_nothing_taken_for_write_timeout(self) -> None:
        server = self.server()
        sender, stuck = self.peer(server), self.peer(server)
        stuck.stop_reading()
        sender.send(cast("hello"))
        server.advance(9.9)
        self.assertFalse(stuck.connection.paused)
        server.advance(3.2)
        self.assertTrue(stuck.connection.paused)
        self.assertEqual(server.factory.stats.errors, {"slow_consumer": 1})
        stuck.start_reading()
        self.assertTypes(stuck.receive(), "slow_consumer")
        self.assertEqual(server.factory.clients, {sender.connection})

    def test_it_is_told_what_was_too_slow(self) -> None:
        server = self.server(limits=Limits(write_timeout=2.5))
        sender, stuck = self.peer(server), self.peer(server)
        stuck.stop_reading()
        sender.send(cast("hello"))
        server.advance(4)
        stuck.start_reading()
        [error] = stuck.receive()
        self.assertIn("2.5 seconds", error["message"])

    def test_one_that_reads_late_is_not_cut(self) -> None:
        server = self.server()
        sender, late = self.peer(server), self.peer(server)
        for number in range(10):
            late.stop_reading()
            sender.send(cast(number))
            server.advance(8)
            late.start_reading()
        server.advance(100)
        self.assertEqual(contents(late.receive()), list(range(10)))
        self.assertFalse(late.closed)

    def test_one_that_takes_a_little_is_not_cut(self) -> None:
        """As long as the system's buffer is emptied, however slowly; then it stops."""
        loop = Loop()
        factory = TCPJSONServerFactory(loop)
        sender = connect(loop, factory)
        reader = connect(loop, factory, send_buffer=4096)
        reader.payloads()
        sender.send_payload(json.dumps(cast("x" * 500_000)).encode())
        self.assertTypes([json.loads(payload) for payload in sender.payloads()], "welcome", "broadcast_sent")
        loop.advance(1)
        for _ in range(100):
            # About half of what the system keeps in one piece.
            self.assertGreater(reader.take(2000), 0)
            loop.settle()
            loop.advance(2)
            loop.settle()
        self.assertEqual(factory.stats.errors, {})
        for _ in range(14):
            loop.advance(1)
        loop.settle()
        self.assertEqual(factory.stats.errors, {"slow_consumer": 1})
        self.assertTypes([json.loads(payload) for payload in reader.payloads()], "broadcast", "slow_consumer")
        loop.close()

    def test_a_frame_longer_than_the_queue(self) -> None:
        server = self.server(limits=Limits(max_queue=1000))
        sender, reader = self.peer(server), self.peer(server)
        sender.send(cast("x" * 5000), cast("y" * 5000), echo("z" * 5000))
        self.assertEqual(contents(reader.receive()), ["x" * 5000, "y" * 5000])
        self.assertTypes(sender.receive(), "broadcast_sent", "broadcast_sent", "echo_response")
        reader.stop_reading()
        # Nothing waits: it has room. Then it has none, not even for a little.
        sender.send(cast("x" * 5000))
        self.assertFalse(reader.connection.paused)
        sender.send(cast(""))
        self.assertTrue(reader.connection.paused)
        self.assertEqual(server.factory.stats.errors, {"slow_consumer": 1})

    def test_its_own_requests_do_not_count(self) -> None:
        """A client whose answers wait is held, not cut, however small the queue."""
        server = self.server(limits=Limits(max_queue=1000))
        peer = self.peer(server)
        peer.stop_reading()
        peer.send(*(echo("x" * 500) for _ in range(200)))
        server.advance(1000)
        self.assertEqual(server.factory.stats.errors, {})
        peer.start_reading()
        self.assertEqual(len(peer.receive()), 200)

    def test_a_burst_is_delivered_a_quarter_of_a_queue_at_a_time(self) -> None:
        server = self.server(limits=Limits(max_queue=40_000))
        sender, reader = self.peer(server), self.peer(server)
        sizes: list[int] = []
        write = reader.transport.write

        def note(data: bytes) -> None:
            sizes.append(len(data))
            write(data)

        reader.transport.write = note  # type: ignore[method-assign]  # looks at the pieces
        sender.send(*(cast("x" * 2000) for _ in range(60)))
        self.assertEqual(len(reader.receive()), 60)
        self.assertLess(max(sizes), 10_000 + 2200)
        # It is a burst all the same: not a write for each.
        self.assertLess(len(sizes), 20)

    def test_a_burst_costs_no_healthy_reader_its_connection(self) -> None:
        """Ten times the queue in one read, to a reader that is behind by a little."""
        loop = Loop()
        factory = TCPJSONServerFactory(loop, limits=Limits(max_queue=20_000))
        sender = connect(loop, factory)
        reader = connect(loop, factory, send_buffer=1 << 20)
        reader.payloads()
        [other] = [client for client in factory.clients if client.client_id == "unix:2"]
        other._outbox.push(frame(b'{"type":"behind"}'))
        burst = b"".join(frame(json.dumps(cast([number, "x" * 1000])).encode()) for number in range(200))
        sender.socket.setblocking(True)
        first = next(client for client in factory.clients if client.client_id == "unix:1")
        first.dataReceived(burst)
        messages = [json.loads(payload) for payload in reader.payloads()]
        self.assertTypes(messages, "behind", *["broadcast"] * 200)
        self.assertEqual(factory.stats.errors, {})
        loop.close()


class BroadcastTests(Case):
    """Who gets what, and in what order."""

    def test_all_others(self) -> None:
        server = self.server()
        peers = [self.peer(server) for _ in range(5)]
        peers[2].send(cast("hello", id=7))
        [sent] = peers[2].receive()
        self.assertEqual((sent["type"], sent["recipients"], sent["id"]), ("broadcast_sent", 4, 7))
        for peer in peers[:2] + peers[3:]:
            [relayed] = peer.receive()
            self.assertEqual(
                relayed,
                {
                    "type": "broadcast",
                    "content": "hello",
                    "from_client": "127.0.0.1:50002",
                    "timestamp": "2024-01-01T12:00:00.000Z",
                },
            )

    def test_alone(self) -> None:
        peer = self.peer(self.server())
        peer.send(cast("anybody?"))
        self.assertEqual(peer.receive()[0]["recipients"], 0)

    def test_order_from_one_sender(self) -> None:
        server = self.server()
        sender, reader = self.peer(server), self.peer(server)
        sender.send(*(cast(number) for number in range(700)))
        self.assertEqual(contents(reader.receive()), list(range(700)))
        self.assertEqual(len(sender.receive()), 700)

    def test_answers_and_broadcasts_of_two(self) -> None:
        server = self.server()
        one, two = self.peer(server), self.peer(server)
        one.send(cast(1), echo(2), cast(3))
        two.send(cast(4))
        self.assertTypes(one.receive(), "broadcast_sent", "echo_response", "broadcast_sent", "broadcast")
        self.assertEqual(contents(two.receive()), [1, 3])

    def test_not_to_one_that_left(self) -> None:
        server = self.server()
        sender, gone, stays = self.peer(server), self.peer(server), self.peer(server)
        gone.close()
        sender.send(cast("hello"))
        self.assertEqual(sender.receive()[0]["recipients"], 1)
        self.assertEqual(gone.receive(), [])
        self.assertEqual(contents(stays.receive()), ["hello"])

    def test_a_dead_peer_stops_nobody(self) -> None:
        """It is found dead in the middle of a broadcast; the others get theirs."""
        loop = Loop()
        factory = TCPJSONServerFactory(loop)
        wires = [connect(loop, factory) for _ in range(12)]
        for wire in wires:
            wire.payloads()
        for wire in wires[1::2]:
            wire.socket.close()
        connection = next(client for client in factory.clients if client.client_id == "unix:1")
        connection.dataReceived(frame(json.dumps(cast("hello")).encode()))
        for wire in wires[2::2]:
            self.assertEqual(contents([json.loads(payload) for payload in wire.payloads()]), ["hello"])
        loop.settle()
        self.assertEqual(len(factory.clients), 6)
        self.assertEqual(factory.stats.disconnects.total(), 6)
        for wire in wires[::2]:
            wire.close()
        loop.close()

    def test_one_that_leaves_in_the_midst_of_it(self) -> None:
        """Its transport closes it while the broadcast walks over the clients."""
        server = self.server()
        peers = [self.peer(server) for _ in range(10)]
        for victim in peers[1:9]:

            def write(data: bytes, victim: Peer = victim) -> None:
                for other in peers[1:9]:
                    if other is not victim and other.connection in server.factory.clients:
                        other.close()

            victim.transport.write = write  # type: ignore[method-assign]  # the worst that can happen
        peers[0].send(cast("hello"))
        self.assertTypes(peers[0].receive(), "broadcast_sent")
        self.assertEqual(contents(peers[9].receive()), ["hello"])

    def test_deliveries_are_counted(self) -> None:
        server = self.server()
        sender, *readers = (self.peer(server) for _ in range(4))
        before = server.factory.stats.bytes_out
        sender.send(cast("hello"), cast("again"))
        data = sum(len(frame(payload)) for peer in readers for payload in peer.receive_payloads())
        own = sum(len(frame(payload)) for payload in sender.receive_payloads())
        stats = server.factory.stats
        self.assertEqual((stats.broadcasts, stats.deliveries), (2, 6))
        self.assertEqual(stats.messages_out, 4 + 8)
        self.assertEqual(stats.bytes_out - before, data + own)
        self.assertEqual([peer.connection.messages_out for peer in readers], [3, 3, 3])

    def test_a_refused_broadcast_reaches_nobody(self) -> None:
        server = self.server()
        sender, reader = self.peer(server), self.peer(server)
        sender.send_payload(
            b'{"type":"broadcast","content":1e999}', b'{"type":"broadcast","content":"\\ud800"}'
        )
        self.assertTypes(sender.receive(), "bad_json", "bad_json")
        self.assertEqual(reader.receive(), [])


class HandlerTests(Case):
    """What a handler may be, and what it may return."""

    def setUp(self) -> None:
        super().setUp()
        self.memory = self.server()
        self.client = self.peer(self.memory)

    def returns(self, value: Any, slow: bool) -> None:
        """Have the handler return the value, or a coroutine that leads to it."""
        self.act = lambda session, message: self.later(value) if slow else value

    def ask(self, *messages: object) -> list[Any]:
        self.client.send(*messages)
        return self.client.receive()

    def test_none(self) -> None:
        self.assertEqual(self.ask(do(id=1)), [])

    def test_dict(self) -> None:
        self.act = lambda session, message: {"type": "done", "n": message.n}
        plain, named = self.ask(do(1), do(2, id="x"))
        self.assertEqual(plain, {"type": "done", "n": 1, "timestamp": "2024-01-01T12:00:00.000Z"})
        self.assertEqual(named, {"type": "done", "n": 2, "timestamp": "2024-01-01T12:00:00.000Z", "id": "x"})

    def test_dict_with_its_own_timestamp(self) -> None:
        self.act = lambda session, message: {"type": "done", "timestamp": "mine"}
        self.assertEqual(self.ask(do())[0]["timestamp"], "mine")

    def test_message(self) -> None:
        class Done(Message, tag="done"):
            n: int

        self.act = lambda session, message: Done(n=message.n)
        self.assertEqual(
            self.ask(do(1, id=5)),
            [{"type": "done", "n": 1, "id": 5, "timestamp": "2024-01-01T12:00:00.000Z"}],
        )

    def test_coroutine_that_does_not_wait(self) -> None:
        async def act(session: Any, message: Do) -> Any:
            return {"type": "done", "n": message.n}

        self.act = act
        self.assertEqual(ns(self.ask(do(1), do(2), do(3, id=1))), [1, 2, 3])

    def test_coroutine_that_waits(self) -> None:
        waiting: Deferred[int] = Deferred()

        async def act(session: Any, message: Do) -> Any:
            return {"type": "done", "n": await waiting}

        self.act = act
        self.assertEqual(self.ask(do()), [])
        waiting.callback(7)
        self.assertEqual(ns(self.client.receive()), [7])

    def test_deferred(self) -> None:
        waiting: Deferred[Any] = Deferred()
        self.act = lambda session, message: waiting
        self.assertEqual(self.ask(do(id="a")), [])
        waiting.callback({"type": "done", "n": 1})
        [answer] = self.client.receive()
        self.assertEqual((answer["n"], answer["id"]), (1, "a"))

    def test_deferred_that_leads_to_none(self) -> None:
        waiting: Deferred[Any] = Deferred()
        self.act = lambda session, message: waiting if message.n == 0 else {"type": "done", "n": message.n}
        self.assertEqual(self.ask(do(0), do(1)), [])
        waiting.callback(None)
        self.assertEqual(ns(self.client.receive()), [1])
        self.assertIsNone(self.client.connection._order)

    def test_own_awaitable(self) -> None:
        class Later:
            def __await__(self) -> Any:
                yield from ()
                return {"type": "done", "n": 1}

        self.act = lambda session, message: Later()
        self.assertEqual(ns(self.ask(do())), [1])

    def test_wrong_returns(self) -> None:
        results: list[Any] = [5, "text", [1], b"{}", Deferred.fromCoroutine(self.later(5)), self.later([1])]
        self.act = lambda session, message: results.pop(0)
        answers = self.ask(*(do(id=number) for number in range(6)))
        self.assertTypes(answers, *["internal"] * 6)
        self.assertEqual([answer["id"] for answer in answers], list(range(6)))
        # They are one item: the others are told of a minute later.
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.assertTypes(self.ask({"type": "ping"}), "pong")

    async def later(self, result: Any) -> Any:
        return result

    def test_an_awaitable_in_an_awaitable(self) -> None:
        class Later:
            def __await__(self) -> Any:
                yield

        self.act = lambda session, message: self.later(Later())
        self.assertTypes(self.ask(do()), "internal")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_what_broadcast_returns_is_no_answer(self) -> None:
        self.act = lambda session, message: session.broadcast({"type": "news"})
        self.assertTypes(self.ask(do()), "internal")
        self.flushLoggedErrors(TypeError)

    def test_broadcast_can_be_awaited(self) -> None:
        other = self.peer(self.memory)

        async def act(session: Any, message: Do) -> Any:
            return {"type": "done", "n": await session.broadcast({"type": "news"})}

        self.act = act
        self.assertEqual(ns(self.ask(do())), [1])
        self.assertTypes(other.receive(), "news")

    def test_a_bug(self) -> None:
        def act(session: Any, message: Do) -> Any:
            raise KeyError("the secret of the house")

        self.act = act
        answers = self.ask(echo(1), do(id="r"), echo(2))
        self.assertTypes(answers, "echo_response", "internal", "echo_response")
        self.assertEqual((answers[1]["id"], answers[1]["fatal"]), ("r", False))
        self.assertNotIn("secret", json.dumps(answers))
        [failure] = self.flushLoggedErrors(KeyError)
        self.assertIn("in act", failure.getTraceback())
        self.assertEqual(self.memory.factory.stats.errors, {"internal": 1})

    def test_a_bug_in_a_coroutine(self) -> None:
        waiting: Deferred[None] = Deferred()

        async def act(session: Any, message: Do) -> Any:
            await waiting
            raise KeyError("the secret of the house")

        self.act = act
        self.assertEqual(self.ask(do(id=1)), [])
        waiting.callback(None)
        [answer] = self.client.receive()
        self.assertEqual((answer["code"], answer["id"]), ("internal", 1))
        self.assertNotIn("secret", json.dumps(answer))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertFalse(self.client.closed)

    def test_forbidden(self) -> None:
        async def later(session: Any, message: Do) -> Any:
            raise Forbidden("not you", retry_after=2.5)

        def now(session: Any, message: Do) -> Any:
            raise Forbidden

        for act, text, retry in ((later, "not you", 2.5), (now, "not allowed", None)):
            self.act = act
            [answer] = self.ask(do(id=3))
            self.assertEqual(
                (answer["code"], answer["message"], answer["fatal"], answer["id"], answer.get("retry_after")),
                ("forbidden", text, False, 3, retry),
            )
            self.assertEqual("retry_after" in answer, retry is not None)
        self.assertFalse(self.client.closed)

    def test_a_fatal_error(self) -> None:
        fatal = [kind for kind in CODES.values() if kind.fatal]
        self.assertTrue(fatal)
        for kind in fatal:
            for slow in (False, True):
                client = self.peer(self.memory)

                def now(session: Any, message: Do, kind: type[ProtocolError] = kind) -> Any:
                    raise kind("the end")

                async def later(session: Any, message: Do, kind: type[ProtocolError] = kind) -> Any:
                    raise kind("the end")

                self.act = later if slow else now
                client.send(echo(1), cast("bye"), do(), echo(2))
                answers = client.receive()
                self.assertTypes(answers, "echo_response", "broadcast_sent", kind.code)
                self.assertEqual((answers[2]["message"], answers[2]["fatal"]), ("the end", True))
                self.assertTrue(client.closed)
                self.assertNotIn(client.connection, self.memory.factory.clients)
        self.assertEqual(contents(self.client.receive()), ["bye"] * len(fatal) * 2)

    def test_invalid_answers(self) -> None:
        """None of it leaves; the answers around it do."""
        deep: Any = 1
        for _ in range(80):
            deep = [deep]
        endless: list[Any] = []
        endless.append(endless)
        bad: list[Any] = [
            {"type": "done", "v": 2**70},
            {"type": "done", "v": -(2**63) - 1},
            {"type": "done", "v": "\ud800"},
            {"type": "done", "\udfff": 1},
            {"type": "done", "v": deep},
            {"type": "done", "v": endless},
            {"type": "done", "v": object()},
            {"type": "done", "v": Raw(b"1e999")},
            EchoResponse("\ud800"),  # type: ignore[arg-type]  # what a handler may do all the same
            EchoResponse(Raw(b"1e999")),
            EchoResponse(deep),
        ]
        for slow in (False, True):
            for value in bad:
                self.returns(value, slow)
                self.client.send(echo(1), do(id=9), echo(2))
                payloads = self.client.receive_payloads()
                messages: list[Any] = [strict_json(payload) for payload in payloads]
                self.assertEqual(len(messages), 3, value)
                self.assertIn(messages[1]["code"], ("internal", "bad_json"))
                self.assertEqual(messages[1]["id"], 9)
                self.assertEqual(contents(messages), [1, 2])
        self.flushLoggedErrors()

    def test_not_a_number(self) -> None:
        """msgspec writes null for it, which is valid."""
        self.act = lambda session, message: {"type": "done", "v": float("nan")}
        self.client.send(do())
        [payload] = self.client.receive_payloads()
        self.assertIn(strict_json(payload)["type"], ("done", "error"))  # type: ignore[index]  # an object
        self.flushLoggedErrors()

    def test_invalid_sends(self) -> None:
        """`send` and `broadcast` raise, and nothing was sent."""
        other = self.peer(self.memory)
        raised: list[str] = []

        def act(session: Any, message: Do) -> Any:
            for call in (session.send, session.broadcast, other.connection.send):
                for value in (2**70, "\ud800", object()):
                    try:
                        call({"type": "news", "v": value})
                    except (TypeError, ValueError) as error:
                        raised.append(type(error).__name__)
            return {"type": "done"}

        self.act = act
        self.assertTypes(self.ask(do()), "done")
        self.assertEqual(len(raised), 9)
        self.assertEqual(other.receive(), [])

    def test_a_shared_answer(self) -> None:
        """One instance for all: the id and the time of one are not those of the next."""

        class Frozen(Message, tag="frozen", frozen=True):  # type: ignore[misc]  # msgspec lets it
            n: int = 0

        class Stamped(Answer, tag="stamped"):
            pass

        for shared in (
            EchoResponse(Raw(b"1")),
            Frozen(),
            Stamped(),
            Error(code="x", message="y", fatal=False),
        ):
            for slow in (False, True):
                self.returns(shared, slow)
                answers = self.ask(do(id="a"), do(), do(id=7), do())
                self.assertEqual([answer.get("id", "none") for answer in answers], ["a", "none", 7, "none"])
                before = answers[0]["timestamp"]
                self.memory.advance(1)
                [answer] = self.ask(do())
                self.assertNotEqual(answer["timestamp"], before)
                self.assertNotIn("id", answer)

    def test_the_request_itself(self) -> None:
        self.act = lambda session, message: message
        answers = self.ask(do(1, id=1), do(2))
        self.assertEqual([(answer["n"], answer.get("id")) for answer in answers], [(1, 1), (2, None)])

    def test_classic_types_can_be_taken_over(self) -> None:
        router = Router()
        router.add(Ping, lambda session, message: {"type": "pong", "mine": True})
        server = MemoryServer(routers=[router])
        self.addCleanup(server.stop)
        peer = self.peer(server)
        peer.send({"type": "ping"})
        self.assertTrue(peer.receive()[0]["mine"])


class OddErrorTests(Case):
    """Errors that are no usual exceptions."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.peer(self.server())

    def test_a_text_that_is_no_unicode(self) -> None:
        def act(session: Any, message: Do) -> Any:
            raise Forbidden("no \ud800")

        self.act = act
        self.one.send(do(), echo("on"))
        error, answer = self.one.receive()
        self.assertEqual((error["code"], error["message"]), ("forbidden", "no ?"))
        self.assertEqual(answer["type"], "echo_response")

    def test_errors_that_cannot_be_written(self) -> None:
        """An application can make them of anything; the client is told what can be told."""
        strange: Any = "soon"

        class Silent(Forbidden):
            def __str__(self) -> str:
                raise KeyError

        errors: list[ProtocolError] = []

        def act(session: Any, message: Do) -> Any:
            if message.n:
                raise errors[-1]
            return errors[-1]

        self.act = act
        for error, code in (
            (Forbidden(retry_after=strange), "internal"),
            (Silent(), "internal"),
            (Forbidden(retry_after=float("inf")), "forbidden"),
            (Forbidden(retry_after=float("nan")), "forbidden"),
        ):
            errors.append(error)
            # All that was to be said of the last one was said.
            self.one.connection.factory.notices.stop()
            self.one.send(do(0, id=5), do(1, id=5))
            answers = self.one.receive()
            self.assertEqual(len(answers), 2)
            for answer in answers:
                self.assertEqual((answer["code"], answer["id"], answer["fatal"]), (code, 5, False))
                self.assertNotIn("retry_after", answer)
            self.assertEqual(len(self.flushLoggedErrors(KeyError, TypeError)), (code == "internal"))

    def test_a_coroutine_that_asyncio_would_cancel(self) -> None:
        async def act(session: Any, message: Do) -> Any:
            raise asyncio.CancelledError

        self.act = act
        self.one.send(do(), echo("on"))
        error, answer = self.one.receive()
        self.assertEqual((error["code"], answer["type"]), ("internal", "echo_response"))
        self.assertEqual(len(self.flushLoggedErrors(asyncio.CancelledError)), 1)

    def test_answers_that_are_none_behind_a_slow_one(self) -> None:
        """They are bounded like those that are there."""
        slow: Deferred[Any] = Deferred()
        results: list[Any] = [slow]

        def act(session: Any, message: Do) -> Any:
            return results.pop() if results else succeed(None)

        self.act = act
        self.one.send(*(do() for _ in range(3000)))
        self.assertTrue(self.one.connection.paused)
        self.assertLess(self.one.connection.messages_in, 1200)
        slow.callback(None)
        self.one.send(echo("last"))
        self.assertTypes(self.one.receive(), "echo_response")
        self.assertEqual(self.one.connection.messages_in, 3001)


class OrderTests(Case):
    """Answers without `id` are in order; those with `id` overtake (section 2)."""

    def setUp(self) -> None:
        super().setUp()
        self.slow: dict[int, Deferred[Any]] = {}

        def act(session: Any, message: Do) -> Any:
            deferred: Deferred[Any] = Deferred()
            self.slow[message.n] = deferred
            return deferred

        self.act = act

    def finish(self, n: int, session: Any = None) -> None:
        self.slow.pop(n).callback({"type": "done", "n": n})

    def test_all_kinds_of_answers_wait(self) -> None:
        peer = self.peer(self.server())
        peer.send(do(1), echo("a"), {"type": "nobody"}, do(2), echo("b"))
        peer.send_payload(b"{", b"text")
        self.assertEqual(peer.receive(), [])
        self.finish(2)
        self.assertEqual(peer.receive(), [])
        self.finish(1)
        self.assertTypes(
            peer.receive(), "done", "echo_response", "response", "done", "echo_response", "bad_json", "echo"
        )

    def test_ids_overtake(self) -> None:
        peer = self.peer(self.server())
        peer.send(do(1), echo("late"), echo("soon", id=1), do(2, id=2), do(3, id=3))
        self.assertEqual(contents(peer.receive()), ["soon"])
        self.finish(3)
        self.finish(2)
        self.assertEqual(ns(peer.receive()), [3, 2])
        self.finish(1)
        self.assertTypes(peer.receive(), "done", "echo_response")

    def test_errors_wait_in_order(self) -> None:
        peer = self.peer(self.server())
        peer.send(do(1), {"type": "echo", "content": 2**70}, {"type": "echo", "content": 2**70, "id": 0})
        self.assertEqual([answer["id"] for answer in peer.receive()], [0])
        self.finish(1)
        self.assertTypes(peer.receive(), "done", "bad_json")

    def test_a_null_id_is_none(self) -> None:
        peer = self.peer(self.server())
        peer.send(do(1), echo("late", id=None))
        self.assertEqual(peer.receive(), [])
        self.finish(1)
        self.assertTypes(peer.receive(), "done", "echo_response")

    def test_only_ids_wait(self) -> None:
        """Slow handlers of requests with `id` hold up nobody."""
        peer = self.peer(self.server())
        peer.send(do(1, id=1), echo("soon"))
        self.assertEqual(contents(peer.receive()), ["soon"])

    def test_finished_by_the_next_request(self) -> None:
        """A handler completes another of the same connection, in the same turn."""
        act = self.act
        peer = self.peer(self.server())

        def both(session: Any, message: Do) -> Any:
            if message.n < 10:
                return act(session, message)
            self.finish(message.n - 10)
            return {"type": "done", "n": message.n}

        self.act = both
        peer.send(do(1), do(2), do(11), echo("x"), do(12), echo("y"))
        answers = peer.receive()
        self.assertTypes(answers, "done", "done", "done", "echo_response", "done", "echo_response")
        self.assertEqual([answer["n"] for answer in answers if "n" in answer], [1, 2, 11, 12])

    def test_in_order_however_they_finish(self) -> None:
        for finish in ([1, 2, 3], [3, 2, 1], [2, 3, 1]):
            peer = self.peer(self.server())
            peer.send(do(1), do(2), do(3))
            for n in finish:
                self.finish(n)
            self.assertEqual(ns(peer.receive()), [1, 2, 3])

    def test_over_tls_no_answer_stalls_the_next(self) -> None:
        """Nothing to send, sent through TLS, is nothing."""
        loop = Loop()
        router = Router()
        router.add(Do, lambda session, message: self.act(session, message))
        factory = TCPJSONServerFactory(loop, routers=[router])
        wire = connect(loop, factory, tls=True)
        wire.payloads()
        wire.send_payload(json.dumps(do(1)).encode(), json.dumps(do(2)).encode())
        wire.payloads()
        self.slow.pop(2).callback(None)
        wire.payloads()
        self.slow.pop(1).callback(None)
        wire.payloads()
        wire.send_payload(json.dumps(echo("on")).encode())
        self.assertEqual(contents([json.loads(payload) for payload in wire.payloads()]), ["on"])
        self.assertEqual(factory.write_deadlines.clear(next(iter(factory.clients))), None)
        loop.close()


class HandlerLimitTests(Case):
    """`handler_timeout`, `max_handlers`, and the end of those whose client is gone."""

    def setUp(self) -> None:
        super().setUp()
        self.cancelled: list[int] = []
        self.slow: list[Deferred[Any]] = []

        def act(session: Any, message: Do) -> Any:
            deferred: Deferred[Any] = Deferred(lambda _: self.cancelled.append(message.n))
            self.slow.append(deferred)
            return deferred

        self.act = act

    def test_timeout(self) -> None:
        server = self.server(limits=Limits(handler_timeout=5))
        peer = self.peer(server)
        peer.send(do(1, id="a"))
        server.advance(4.9)
        self.assertEqual(peer.receive(), [])
        server.advance(0.2)
        [error] = peer.receive()
        self.assertEqual((error["code"], error["id"], error["fatal"]), ("timeout", "a", False))
        self.assertEqual(self.cancelled, [1])
        self.assertFalse(peer.closed)

    def test_timeout_in_order(self) -> None:
        server = self.server(limits=Limits(handler_timeout=5))
        peer = self.peer(server)
        peer.send(do(1), echo("x"))
        server.advance(5.2)
        self.assertTypes(peer.receive(), "timeout", "echo_response")

    def test_a_handler_that_ignores_cancellation(self) -> None:
        server = self.server(limits=Limits(handler_timeout=5))
        peer = self.peer(server)
        waiting: Deferred[None] = Deferred(lambda _: None)
        stubborn: list[str] = []

        async def act(session: Any, message: Do) -> Any:
            while not stubborn:
                try:
                    await waiting
                except CancelledError:
                    stubborn.append("no")
            await Deferred()
            return {"type": "done"}

        self.act = act
        peer.send(do(1, id=1))
        server.advance(5.2)
        self.assertTypes(peer.receive(), "timeout")
        server.advance(100)
        self.assertEqual(peer.receive(), [])

    def test_what_comes_too_late_is_dropped(self) -> None:
        """Even if it is an answer that comes in the midst of the cancellation."""
        server = self.server(limits=Limits(handler_timeout=5))
        peer = self.peer(server)

        async def act(session: Any, message: Do) -> Any:
            try:
                await Deferred()
            except CancelledError:
                return {"type": "late"}

        self.act = act
        peer.send(do(1))
        server.advance(100)
        self.assertTypes(peer.receive(), "timeout")

    def test_a_failure_that_comes_too_late_is_logged(self) -> None:
        server = self.server(limits=Limits(handler_timeout=5))
        peer = self.peer(server)

        async def act(session: Any, message: Do) -> Any:
            try:
                await Deferred()
            except CancelledError:
                raise KeyError("late") from None

        self.act = act
        peer.send(do(1))
        server.advance(6)
        self.assertTypes(peer.receive(), "timeout")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_each_has_its_own_time(self) -> None:
        server = self.server(limits=Limits(handler_timeout=5))
        peer = self.peer(server)
        peer.send(do(1, id=1))
        server.advance(3)
        peer.send(do(2, id=2))
        server.advance(2.2)
        self.assertEqual([answer["id"] for answer in peer.receive()], [1])
        self.slow[1].callback({"type": "done"})
        self.assertEqual([answer["id"] for answer in peer.receive()], [2])
        server.advance(100)
        self.assertEqual(peer.receive(), [])

    def test_bound(self) -> None:
        server = self.server(limits=Limits(max_handlers=3, handler_timeout=10_000))
        peer = self.peer(server)
        peer.send(*(do(number, id=number) for number in range(10)), echo("last", id="last"))
        self.assertEqual(len(self.slow), 3)
        self.assertEqual(peer.transport.producerState, "paused")
        server.advance(1000)
        self.assertEqual(len(self.slow), 3)
        done = 0
        while done < 10:
            self.assertLessEqual(len(self.slow) - done, 3)
            self.slow[done].callback({"type": "done", "n": done})
            done += 1
            server.settle()
        answers = peer.receive()
        self.assertEqual({answer["id"] for answer in answers}, {*range(10), "last"})
        self.assertEqual(len(answers), 11)
        self.assertEqual(peer.transport.producerState, "producing")

    def test_bound_of_one(self) -> None:
        """Those that are done at once take their turns, in order."""
        server = self.server(limits=Limits(max_handlers=1))
        peer = self.peer(server)

        async def act(session: Any, message: Do) -> Any:
            return {"type": "done", "n": message.n}

        self.act = act
        peer.send(*(do(number) for number in range(50)))
        self.assertEqual(ns(peer.receive()), list(range(50)))

    def test_the_bound_holds_up_nobody_else(self) -> None:
        server = self.server(limits=Limits(max_handlers=1))
        busy, other = self.peer(server), self.peer(server)
        busy.send(do(1), echo("held"))
        other.send(echo("free"))
        self.assertEqual(contents(other.receive()), ["free"])
        self.assertEqual(busy.receive(), [])

    def test_cancelled_when_the_client_goes(self) -> None:
        server = self.server()
        peer = self.peer(server)
        peer.send(do(1), do(2, id=2), do(3))
        self.slow[2].callback({"type": "done"})
        peer.close()
        self.assertEqual(sorted(self.cancelled), [1, 2])
        server.advance(1000)
        self.assertEqual(server.factory.stats.errors, {})

    def test_cancelled_when_the_server_ends_it(self) -> None:
        server = self.server()
        peer = self.peer(server)
        peer.send(do(1), echo("x"))
        peer.send_bytes(b"\xff\xff\xff\xff")
        # The answer that was made leaves, though one before it will never come.
        self.assertTypes(peer.receive(), "echo_response", "too_large")
        self.assertEqual(self.cancelled, [1])
        peer.close()
        self.assertEqual(self.cancelled, [1])

    def test_an_answer_for_one_who_is_gone(self) -> None:
        server = self.server()
        peer = self.peer(server)

        def act(session: Any, message: Do) -> Any:
            self.slow.append(Deferred(lambda deferred: deferred.callback({"type": "late"})))
            return self.slow[-1]

        self.act = act
        peer.send(do(1))
        peer.close()
        self.assertEqual(peer.receive(), [])

    def test_a_canceller_that_fails(self) -> None:
        """The end of a connection is complete, whatever its handlers do."""
        server = self.server()
        peer = self.peer(server)

        def canceller(_: object) -> None:
            raise KeyError("cannot be cancelled")

        self.act = lambda session, message: Deferred(canceller)
        peer.send(do(1), do(2))
        try:
            peer.close()
        except KeyError:
            self.fail("the canceller's error came out of connectionLost")
        self.assertEqual(server.factory.stats.disconnects, {"client_closed": 1})
        self.flushLoggedErrors(KeyError)

    def test_bytes_are_bounded_too(self) -> None:
        """The messages of unfinished handlers are not longer together than one may be, but for the last."""
        server = self.server(limits=Limits(max_length=1000))
        peer, other = self.peer(server), self.peer(server)
        peer.send(*(do(n, id=n, pad="x" * 350) for n in range(9)))
        self.assertEqual(len(self.slow), 3)
        self.assertEqual(other.receive(), [])
        # It goes on when half of it is done with.
        self.slow[0].callback(None)
        server.settle()
        self.assertEqual(len(self.slow), 3)
        self.slow[1].callback(None)
        server.settle()
        self.assertEqual(len(self.slow), 5)
        for number in range(2, 9):
            self.slow[number].callback({"type": "done"})
            server.settle()
        self.assertEqual([message["id"] for message in peer.receive()], list(range(2, 9)))
        self.assertFalse(peer.connection.paused)

    def test_what_is_done_at_once_weighs_nothing(self) -> None:
        """Nor does what follows behind one that is not done."""
        server = self.server(limits=Limits(max_length=1000))
        peer = self.peer(server)
        peer.send(do(0, id="slow", pad="x" * 300))

        def plain(session: Any, message: Do) -> Any:
            return {"type": "done"}

        async def coroutine(session: Any, message: Do) -> Any:
            return {"type": "done"}

        def deferred(session: Any, message: Do) -> Any:
            return succeed({"type": "done"})

        for act in (plain, coroutine, deferred):
            self.act = act
            peer.send(*(do(1, id=1, pad="x" * 300) for _ in range(20)))
        self.assertTypes(peer.receive(), *["done"] * 60)
        self.assertFalse(peer.connection.paused)

    def test_time_gives_the_bytes_back(self) -> None:
        server = self.server(limits=Limits(max_length=1000, handler_timeout=5))
        peer = self.peer(server)
        peer.send(*(do(n, id=n, pad="x" * 600) for n in range(6)))
        self.assertEqual(len(self.slow), 2)
        for count in (4, 6):
            server.advance(5.2)
            self.assertEqual(len(self.slow), count)
        server.advance(5.2)
        self.assertTypes(peer.receive(), *["timeout"] * 6)
        self.assertEqual(self.cancelled, list(range(6)))

    def test_one_that_ends_its_own_connection(self) -> None:
        """It is cancelled where it waits next, and cannot run for ever."""

        async def closes(session: Any, message: Do) -> None:
            waiting: Deferred[None] = Deferred()
            self.slow.append(waiting)
            await waiting
            session.close()
            await Deferred(lambda _: self.cancelled.append(message.n))
            self.fail("it went on")

        self.act = closes
        server = self.server()
        peer = self.peer(server)
        peer.send(do(1), do(2))
        self.slow[0].callback(None)
        server.settle()
        self.assertEqual(self.cancelled, [1])
        self.assertTrue(peer.closed)

    def test_closed_and_lost_at_once(self) -> None:
        """What is to be cancelled soon, is cancelled then; once, and no timer stays."""
        server = self.server()
        peer = self.peer(server)
        peer.send(do(1), do(2))
        peer.connection.close()
        peer.connection.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.cancelled, [1, 2])
        server.stop()
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_a_failure_in_the_last_moment(self) -> None:
        """A fatal error of one handler cancels the others."""
        server = self.server()
        peer = self.peer(server)
        peer.send(do(1), do(2, id=2))
        self.slow[1].errback(SlowConsumer("enough"))
        self.assertTypes(peer.receive(), "slow_consumer")
        server.settle()
        self.assertEqual(self.cancelled, [1])
        self.assertTrue(peer.closed)


class SessionTests(Case):
    """What handlers call, in the midst of a turn and outside."""

    def setUp(self) -> None:
        super().setUp()
        self.memory = self.server()
        self.one = self.peer(self.memory)
        self.two = self.peer(self.memory)

    def test_attributes(self) -> None:
        seen: list[Any] = []

        def act(session: Any, message: Do) -> Any:
            seen.append((session.client_id, session.user, session.state, session.timestamp))
            session.state = "mine"

        self.act = act
        self.one.send(do())
        self.memory.advance(1)
        self.one.send(do())
        self.assertEqual(
            seen,
            [
                ("127.0.0.1:50000", None, None, "2024-01-01T12:00:00.000Z"),
                ("127.0.0.1:50000", None, "mine", "2024-01-01T12:00:01.000Z"),
            ],
        )
        self.assertIsNone(self.two.connection.state)

    def test_timestamp_outside(self) -> None:
        self.memory.advance(2)
        self.assertEqual(self.one.connection.timestamp, "2024-01-01T12:00:02.000Z")

    def test_send_in_a_turn(self) -> None:
        """What is sent to the client itself comes before the answer, and after earlier answers."""
        self.act = lambda session, message: session.send({"type": "extra"}) or {"type": "done"}
        self.one.send(echo(1), do(id=1), echo(2))
        answers = self.one.receive()
        self.assertTypes(answers, "echo_response", "extra", "done", "echo_response")
        self.assertNotIn("id", answers[1])

    def test_send_outside(self) -> None:
        self.one.connection.send({"type": "extra"})
        self.one.connection.send(EchoResponse(Raw(b"1")))
        self.assertTypes(self.one.receive(), "extra", "echo_response")
        self.assertEqual(self.one.connection.messages_out, 3)

    def test_send_to_another(self) -> None:
        self.act = lambda session, message: self.two.connection.send({"type": "extra", "n": message.n})
        self.one.send(do(1), do(2))
        self.assertEqual(ns(self.two.receive()), [1, 2])

    def test_send_to_another_keeps_the_order(self) -> None:
        """Broadcasts and messages from one handler to one client come as they were sent."""

        def act(session: Any, message: Do) -> Any:
            for n in range(4):
                if n % 2:
                    self.two.connection.send({"type": "extra", "n": n})
                else:
                    session.broadcast({"type": "news", "n": n})

        self.act = act
        self.one.send(do(), cast("classic"), do())
        self.assertTypes(self.two.receive(), *["news", "extra"] * 2, "broadcast", *["news", "extra"] * 2)

    def test_send_to_one_that_does_not_read(self) -> None:
        server = self.server(limits=Limits(max_queue=10_000))
        one, two = self.peer(server), self.peer(server)
        two.stop_reading()
        self.act = lambda session, message: two.connection.send({"type": "extra", "fill": "x" * 4000})
        one.send(*(do() for _ in range(10)))
        self.assertEqual(server.factory.stats.errors, {"slow_consumer": 1})
        two.start_reading()
        self.assertTypes(two.receive(), "slow_consumer")
        self.assertFalse(one.closed)

    def test_send_to_one_that_is_gone(self) -> None:
        self.two.close()
        self.act = lambda session, message: self.two.connection.send({"type": "extra"})
        self.one.send(do(), echo(1))
        self.assertTypes(self.one.receive(), "echo_response")
        self.two.connection.send({"type": "extra"})
        self.assertEqual(self.two.receive(), [])
        self.assertEqual(self.two.connection.messages_out, 1)

    def test_broadcast_in_a_turn(self) -> None:
        self.act = lambda session, message: {"type": "done", "n": session.broadcast({"type": "news"})}
        self.one.send(do(id=1))
        self.assertEqual(ns(self.one.receive()), [1])
        [news] = self.two.receive()
        self.assertEqual(news, {"type": "news", "timestamp": "2024-01-01T12:00:00.000Z"})

    def test_broadcast_outside(self) -> None:
        self.assertEqual(self.one.connection.broadcast({"type": "news"}), 1)
        self.assertTypes(self.two.receive(), "news")
        self.assertEqual(self.one.receive(), [])

    def test_broadcast_by_another_in_a_turn(self) -> None:
        """In one's turn a handler has two send a broadcast: one gets it, three gets both in order."""
        three = self.peer(self.memory)

        def act(session: Any, message: Do) -> Any:
            session.broadcast({"type": "first"})
            self.two.connection.broadcast({"type": "second"})

        self.act = act
        self.one.send(do())
        self.assertTypes(self.one.receive(), "second")
        self.assertTypes(self.two.receive(), "first")
        self.assertTypes(three.receive(), "first", "second")

    def test_broadcast_of_one_who_left(self) -> None:
        """One that is no client any more: all are others."""
        self.one.close()
        self.assertEqual(self.one.connection.broadcast({"type": "news"}), 1)
        self.assertTypes(self.two.receive(), "news")

    def test_close_in_a_turn(self) -> None:
        def act(session: Any, message: Do) -> Any:
            session.close()
            session.send({"type": "extra"})
            return {"type": "done"}

        self.act = act
        self.one.send(echo(1), cast("bye"), do(), echo(2), cast("never"))
        self.assertTypes(self.one.receive(), "echo_response", "broadcast_sent", "extra", "done")
        self.assertTrue(self.one.closed)
        self.assertFalse(self.one.aborted)
        self.assertEqual(contents(self.two.receive()), ["bye"])
        self.one.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"closed_by_handler": 1})

    def test_close_in_a_coroutine(self) -> None:
        async def act(session: Any, message: Do) -> Any:
            session.close()
            return {"type": "done"}

        self.act = act
        self.one.send(do(), echo(2))
        self.assertTypes(self.one.receive(), "done")
        self.assertTrue(self.one.closed)

    def test_close_later_in_a_coroutine(self) -> None:
        """Outside of a turn it closes at once; what was sent before has left."""
        waiting: Deferred[None] = Deferred()

        async def act(session: Any, message: Do) -> Any:
            await waiting
            session.send({"type": "extra"})
            session.close()
            return {"type": "done"}

        self.act = act
        self.one.send(do())
        waiting.callback(None)
        self.memory.settle()
        self.assertEqual(self.one.receive()[0]["type"], "extra")
        self.assertTrue(self.one.closed)
        self.one.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"closed_by_handler": 1})
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_close_outside(self) -> None:
        self.one.stop_reading()
        self.one.connection.send({"type": "extra"})
        self.one.connection.close()
        self.assertFalse(self.one.closed)
        self.one.connection.close()
        self.one.start_reading()
        self.assertTypes(self.one.receive(), "extra")
        self.assertTrue(self.one.closed)
        self.one.send(echo(1))
        self.assertEqual(self.one.receive(), [])

    def test_close_another(self) -> None:
        self.act = lambda session, message: self.two.connection.close()
        self.one.send(cast("bye"), do(), cast("never"))
        self.assertTypes(self.two.receive(), "broadcast")
        self.assertTrue(self.two.closed)
        self.assertFalse(self.one.closed)
        self.assertEqual([answer["recipients"] for answer in self.one.receive()], [1, 0])

    def test_close_with_handlers_unfinished(self) -> None:
        slow: Deferred[Any] = Deferred()
        self.act = lambda session, message: slow if message.n else session.close()
        self.one.send(do(1), do(0))
        self.assertTrue(self.one.closed)
        self.assertTrue(slow.called)


HELLO = {"type": "hello", "compression": ["zlib"]}


def packed(*messages: object) -> bytes:
    """Messages in compressed frames."""
    return b"".join(frame(deflate(json.dumps(message).encode()), True) for message in messages)


def noise(size: int) -> str:
    """Text that is hardly shorter when it is compressed."""
    return Random(size).randbytes(size // 2).hex()


def frames(data: bytes) -> list[tuple[Any, bool]]:
    """The messages of frames, and whether they were compressed."""
    found = []
    while data:
        length = int.from_bytes(data[:4], "big")
        payload, data = data[4 : 4 + (length & ~COMPRESSED)], data[4 + (length & ~COMPRESSED) :]
        compressed = length >= COMPRESSED
        found.append((json.loads(zlib.decompress(payload) if compressed else payload), compressed))
    return found


class CompressionTests(Case):
    """Clients that asked for compression, beside others that did not (section 7)."""

    def compressing(self, server: MemoryServer) -> Peer:
        """A client that has agreed on compression."""
        peer = self.peer(server)
        peer.send(HELLO)
        self.assertEqual([message["compression"] for message in peer.receive()], ["zlib"])
        return peer

    def sent(self, peer: Peer) -> list[tuple[str, bool]]:
        """The types of what the client got since the last call, and whether it was compressed."""
        data = peer.transport.value()
        self.assertEqual(len(peer.receive()), len(frames(data)))
        return [(message["type"], compressed) for message, compressed in frames(data)]

    def deflated(self) -> list[int]:
        """Where the lengths of payloads that are compressed from now on are noted."""
        lengths: list[int] = []

        def note(payload: bytes) -> bytes:
            lengths.append(len(payload))
            return deflate(payload)

        self.patch(compression, "deflate", note)
        return lengths

    def test_what_is_longer_than_a_kilobyte(self) -> None:
        server = self.server()
        peer = self.compressing(server)
        peer.send(echo("x"), echo("x" * 2000), {"type": "ping"}, {"type": "other", "more": "y" * 2000})
        self.assertEqual(
            self.sent(peer),
            [("echo_response", False), ("echo_response", True), ("pong", False), ("response", True)],
        )

    def test_the_bound(self) -> None:
        peer = self.compressing(self.server(compress_over=500))
        peer.send(echo("x" * 100))
        [payload] = peer.receive_payloads()
        content = "x" * (100 + 500 - len(payload))
        peer.send(echo(content), echo(content + "x"))
        self.assertEqual(self.sent(peer), [("echo_response", False), ("echo_response", True)])

    def test_what_would_be_no_shorter(self) -> None:
        peer = self.compressing(self.server(compress_over=1))
        for content in ("", noise(4000)):
            peer.connection.send({"type": "news", "content": content})
        # Hexadecimal digits are half air; a message of 60 bytes has nothing that repeats itself.
        self.assertEqual(self.sent(peer), [("news", False), ("news", True)])

    def test_requests_may_be_compressed_or_not(self) -> None:
        peer = self.compressing(self.server())
        peer.send_bytes(packed(echo(1)) + frame(b'{"type":"ping"}') + packed(echo("x" * 500_000), echo(3)))
        answers = peer.receive()
        self.assertTypes(answers, "echo_response", "pong", "echo_response", "echo_response")
        self.assertEqual(contents(answers), [1, "x" * 500_000, 3])

    def test_a_broadcast_is_compressed_once(self) -> None:
        """For all who take it; the others get it as it is, and all get the same."""
        server = self.server()
        plain = [self.peer(server) for _ in range(3)]
        compressing = [self.compressing(server) for _ in range(5)]
        sender = compressing.pop()
        lengths = self.deflated()
        sender.send(cast(["x" * 5000, 1]))
        self.assertEqual(len(lengths), 1)
        received = [peer.transport.value() for peer in compressing]
        self.assertEqual(len(set(received)), 1)
        self.assertLess(len(received[0]), 200)
        for peer in plain:
            self.assertEqual(self.sent(peer), [("broadcast", False)])
        for peer in compressing:
            self.assertEqual(contents(peer.receive()), [["x" * 5000, 1]])

    def test_nothing_is_compressed_for_nobody(self) -> None:
        server = self.server()
        sender, reader = self.compressing(server), self.peer(server)
        lengths = self.deflated()
        sender.send(cast("x" * 5000))
        self.assertEqual(lengths, [])
        self.assertTypes(reader.receive(), "broadcast")

    def test_a_burst(self) -> None:
        """Those of one read go out together, each compressed by itself where it is long."""
        server = self.server()
        sender, reader = self.peer(server), self.compressing(server)
        sender.send(*(cast("x" * size) for size in (10, 3000, 20, 4000)))
        expected = [("broadcast", False), ("broadcast", True)] * 2
        self.assertEqual(self.sent(reader), expected)

    def test_what_is_counted(self) -> None:
        """Bytes as they are on the wire, and messages, where some compress and some do not."""
        server = self.server()
        peers = [server.connect() for _ in range(4)]
        peers[0].send(HELLO)
        peers[2].send(HELLO)
        before = server.factory.stats.bytes_out
        self.assertEqual(before, sum(len(peer.transport.value()) for peer in peers))
        for sender in peers[1:3]:
            sender.send(cast("x" * 5000), echo("y" * 3000), cast("z"), cast(noise(9000)))
            sender.connection.send({"type": "extra", "content": "e" * 3000})
        stats = server.factory.stats
        wires = [peer.transport.value() for peer in peers]
        self.assertEqual(stats.bytes_out, sum(map(len, wires)))
        self.assertEqual([peer.connection.bytes_out for peer in peers], list(map(len, wires)))
        # Clients 0 and 2 said hello.
        messages = [2 + 6, 1 + 5 + 3, 2 + 5 + 3, 1 + 6]
        self.assertEqual([peer.connection.messages_out for peer in peers], messages)
        self.assertEqual(stats.messages_out, sum(messages))
        self.assertEqual([len(peer.receive()) for peer in peers], messages)
        self.assertEqual((stats.broadcasts, stats.deliveries), (6, 18))

    def test_what_is_counted_of_requests(self) -> None:
        """Bytes as they came."""
        server = self.server()
        peer = self.compressing(server)
        before = server.factory.stats.bytes_in
        data = packed(echo("x" * 5000), cast("y" * 5000))
        peer.send_bytes(data)
        self.assertEqual(server.factory.stats.bytes_in - before, len(data))
        peer.send({"type": "get_stats"})
        *_, stats = peer.receive()
        self.assertEqual(stats["details"]["bytes_in"], peer.connection.bytes_in)
        self.assertEqual(stats["total_messages"], 4)
        self.assertEqual(
            stats["details"]["messages_by_type"], {"hello": 1, "echo": 1, "broadcast": 1, "get_stats": 1}
        )

    def test_room_in_a_queue(self) -> None:
        """Compressed messages take less of it."""
        server = self.server(limits=Limits(max_queue=10_000))
        sender, plain, compressing = self.peer(server), self.peer(server), self.compressing(server)
        plain.stop_reading()
        compressing.stop_reading()
        for number in range(20):
            sender.send(cast([number, "x" * 9000]))
        self.assertEqual(server.factory.clients, {sender.connection, compressing.connection})
        self.assertEqual(server.factory.stats.errors, {"slow_consumer": 1})
        self.assertLess(compressing.connection._outbox.waiting, 10_000)
        compressing.start_reading()
        self.assertEqual([content[0] for content in contents(compressing.receive())], list(range(20)))

    def test_a_full_queue(self) -> None:
        server = self.server(limits=Limits(max_queue=10_000))
        sender, stuck = self.peer(server), self.compressing(server)
        stuck.stop_reading()
        for _ in range(20):
            sender.send(cast(noise(3000)))
        self.assertEqual(server.factory.stats.errors, {"slow_consumer": 1})
        stuck.start_reading()
        self.assertTypes(stuck.receive(), "slow_consumer")

    def test_cut_in_the_midst_of_a_compressed_frame(self) -> None:
        """The frame that was begun is completed, and the error follows it."""
        for tls in (False, True):
            loop = Loop()
            factory = TCPJSONServerFactory(loop, limits=Limits(max_queue=200_000))
            sender = connect(loop, factory)
            stuck = connect(loop, factory, tls=tls, send_buffer=4096)
            stuck.send_payload(json.dumps(HELLO).encode())
            self.assertEqual(len(stuck.payloads()), 2)
            stuck._reader.inflate = inflate
            for number in range(60):
                sender.send_payload(json.dumps(cast([number, noise(20_000)])).encode())
                sender.payloads()
            self.assertEqual(factory.stats.errors, {"slow_consumer": 1})
            begun = len(stuck.data)
            messages = [json.loads(payload) for payload in stuck.payloads()]
            self.assertTypes(messages, *["broadcast"] * (len(messages) - 1), "slow_consumer")
            self.assertEqual([content[0] for content in contents(messages)], list(range(len(messages) - 1)))
            self.assertLess(1, len(messages))
            self.assertLess(len(messages), 20)
            self.assertGreater(len(stuck.data), begun)
            # Over TLS it waits for the other end to close.
            self.assertEqual(stuck.ended, not tls)
            stuck.close()
            sender.close()
            loop.close()

    def test_what_handlers_send(self) -> None:
        """To the client itself and to another one, in a turn and outside of one."""
        server = self.server()
        one, two = self.compressing(server), self.compressing(server)
        plain = self.peer(server)

        def act(session: Any, message: Do) -> Any:
            for peer in (one, two, plain):
                peer.connection.send({"type": "news", "content": "x" * 3000})
            return {"type": "done", "content": "y" * 3000}

        self.act = act
        one.send(do())
        self.assertEqual(self.sent(one), [("news", True), ("done", True)])
        self.assertEqual(self.sent(two), [("news", True)])
        self.assertEqual(self.sent(plain), [("news", False)])
        for peer, compressed in ((one, True), (plain, False)):
            peer.connection.send({"type": "news", "content": "x" * 3000})
            peer.connection.send({"type": "news"})
            self.assertEqual(self.sent(peer), [("news", compressed), ("news", False)])

    def test_slow_answers(self) -> None:
        server = self.server()
        peer = self.compressing(server)
        waiting: Deferred[Any] = Deferred()
        self.act = lambda session, message: waiting
        peer.send(do(), echo("x" * 3000))
        self.assertEqual(peer.receive(), [])
        waiting.callback({"type": "done", "content": "y" * 3000})
        self.assertEqual(self.sent(peer), [("done", True), ("echo_response", True)])

    def test_broken_streams(self) -> None:
        """What was answered before is sent, in the same read too; what is behind is not handled."""
        server = self.server(limits=Limits(max_length=100_000))
        good = deflate(b'{"type":"ping"}')
        for bad, code, said in (
            (frame(good[:-1], True), "bad_frame", "cut short"),
            (frame(good + b"x", True), "bad_frame", "behind its end"),
            (frame(good * 2, True), "bad_frame", "behind its end"),
            (frame(b"", True), "bad_frame", "cut short"),
            (frame(deflate(b""), True), "bad_frame", "empty"),
            (frame(b'{"type":"ping"}', True), "bad_frame", "broken"),
            (frame(deflate(b"x" * 100_001), True), "too_large", "100000 bytes, when inflated"),
            (b"\x80\x01\x86\xa1", "too_large", "a frame of 100001 bytes"),
        ):
            peer = self.compressing(server)
            before = server.factory.stats.errors[code]
            peer.send_bytes(packed({"type": "ping"}) + frame(b'{"type":"echo"}') + bad + packed(echo(1)))
            answers = peer.receive()
            self.assertTypes(answers, "pong", "echo_response", code)
            self.assertTrue(answers[2]["fatal"])
            self.assertIn(said, answers[2]["message"])
            self.assertTrue(peer.closed)
            peer.send_bytes(packed({"type": "ping"}))
            self.assertEqual(peer.receive(), [])
            self.assertEqual(server.factory.stats.errors[code], before + 1)
            peer.close()
        self.assertEqual(server.factory.stats.disconnects, {"bad_frame": 6, "too_large": 2})

    def test_a_length_of_nothing_is_not_fatal(self) -> None:
        """As long as it does not say that it is compressed."""
        peer = self.compressing(self.server())
        peer.send_bytes(frame(b"") + packed({"type": "ping"}))
        self.assertTypes(peer.receive(), "bad_frame", "pong")

    def test_errors_of_the_content(self) -> None:
        """What was compressed is looked at as everything else."""
        for strict, codes in (
            (False, ["bad_json", "echo", "bad_message", "bad_json", "response"]),
            (True, ["bad_json", "bad_json", "bad_message", "bad_json", "unknown_type"]),
        ):
            peer = self.compressing(self.server(strict=strict))
            payloads = [b"{", b"text", b'{"type":1}', b"\xef\xbb\xbf{}", b'{"type":"other"}']
            peer.send_bytes(b"".join(frame(deflate(payload), True) for payload in payloads))
            self.assertTypes(peer.receive(), *codes)
            self.assertFalse(peer.closed)

    def test_nothing_waits_for_the_collector(self) -> None:
        """A broken stream and its bytes are let go at once."""
        server = self.server()
        peers = [self.compressing(server) for _ in range(6)]
        self.compressing(server).send_bytes(frame(b"xx", True))
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for peer in peers:
            peer.send_bytes(frame(deflate(b"x" * 2_000_000), True))
        self.assertEqual(server.factory.stats.errors, {"bad_frame": 1, "too_large": 6})
        self.assertEqual(gc.collect(), 0)

    def test_many_at_once_take_turns(self) -> None:
        """However many send one, and however long it is to do: others come between."""
        server = self.server()

        def act(session: Any, message: Do) -> None:
            server.clock.rightNow += 0.01

        self.act = act
        peers = [self.compressing(server) for _ in range(5)]
        for peer in peers:
            peer.connection.dataReceived(packed(do()))
        handled = []
        while server.clock.getDelayedCalls()[0].getTime() <= server.clock.seconds():
            before = server.factory.stats.messages_in
            run_due(server.clock)
            handled.append(server.factory.stats.messages_in - before)
        self.assertEqual(handled[:5], [1] * 5)

    def test_rates_count_what_was_inflated(self) -> None:
        """A client that compresses sends at no other rate than one that does not."""
        times = []
        for compresses in (False, True):
            server = self.server(limits=Limits(bytes_per_second=10_000, byte_burst=10_000))
            peer = self.compressing(server)
            messages = [echo([number, "x" * 5000]) for number in range(10)]
            if compresses:
                peer.send_bytes(packed(*messages))
            else:
                peer.send(*messages)
            answered = [len(peer.receive())]
            while sum(answered) < 10:
                server.advance(0.25)
                answered.append(len(peer.receive()))
            times.append(answered)
        self.assertEqual(times[0], times[1])
        self.assertGreater(len(times[1]), 12)

    def test_a_rate_that_closes(self) -> None:
        limits = Limits(bytes_per_second=1000, byte_burst=1000, rate_policy="close")
        peer = self.compressing(self.server(limits=limits))
        peer.send_bytes(packed(echo("x" * 5000), echo(2)))
        self.assertTypes(peer.receive(), "echo_response", "rate_limited")

    def test_the_time_of_a_frame(self) -> None:
        """It is given for its bytes on the wire."""
        server = self.server(limits=Limits(frame_timeout=5))
        peer = self.compressing(server)
        peer.send_bytes((COMPRESSED + 32 * 1024).to_bytes(4, "big"))
        server.advance(6.5)
        self.assertFalse(peer.closed)
        server.advance(1)
        self.assertTypes(peer.receive(), "frame_timeout")

    def test_answers_that_wait(self) -> None:
        """The requests are held by what waits on the wire, and then go on, each once."""
        server = self.server()
        peer = self.compressing(server)
        peer.stop_reading()
        peer.send_bytes(packed(*(echo([number, noise(40_000)]) for number in range(12))))
        self.assertTrue(peer.connection.paused)
        self.assertLess(peer.connection._outbox.waiting, 200_000)
        peer.start_reading()
        server.settle()
        self.assertEqual([content[0] for content in contents(peer.receive())], list(range(12)))

    def test_a_shutdown(self) -> None:
        """What is complete is answered before `going_away`; a frame that is not, does not count."""
        server = self.server()
        peer = self.compressing(server)
        peer.connection.pauseProducing()
        peer.send_bytes(packed(echo("x" * 3000)) + frame(b'{"type":"ping"}') + packed(echo(1), echo(2))[:-1])
        server.factory.drain()
        peer.connection.resumeProducing()
        server.settle()
        self.assertTypes(peer.receive(), "echo_response", "pong", "echo_response", "going_away")
        peer.send_bytes(packed(echo(2))[-1:] + packed(echo(3, id=3)))
        answers = peer.receive()
        self.assertTypes(answers, "going_away", "going_away")
        self.assertEqual(answers[1]["id"], 3)
        peer.close()

    def test_a_broken_stream_in_a_shutdown(self) -> None:
        server = self.server()
        peer = self.compressing(server)
        peer.connection.pauseProducing()
        peer.send_bytes(packed({"type": "ping"}) + frame(b"xx", True))
        server.factory.drain()
        peer.connection.resumeProducing()
        server.settle()
        self.assertTypes(peer.receive(), "pong", "bad_frame")
        peer.close()
        self.assertEqual(server.factory.stats.disconnects, {"bad_frame": 1})

    def test_the_client_closes_its_side(self) -> None:
        """It still gets the answers to what it sent, and to what was long."""
        loop = Loop()
        factory = TCPJSONServerFactory(loop)
        wire = connect(loop, factory)
        wire.send_payload(json.dumps(HELLO).encode())
        self.assertEqual(len(wire.payloads()), 2)
        wire._reader.inflate = inflate
        wire.socket.setblocking(True)
        wire.socket.sendall(packed(*(echo([number, "x" * 70_000]) for number in range(5))))
        wire.end()
        messages = [json.loads(payload) for payload in wire.payloads()]
        self.assertEqual([content[0] for content in contents(messages)], list(range(5)))
        self.assertTrue(wire.ended)
        loop.close()


class QueueBoundTests(Case):
    """What counts as a full queue, and how much one burst puts in it."""

    def test_answers_of_its_own_fill_no_queue(self) -> None:
        server = self.server(limits=Limits(max_queue=1000))
        slow, sender = self.peer(server), self.peer(server)
        slow.stop_reading()
        slow.send(echo("x" * 5000))
        sender.send(cast("news"))
        self.assertFalse(slow.closed)
        slow.start_reading()
        self.assertTypes(slow.receive(), "echo_response", "broadcast")

    def test_just_full(self) -> None:
        news = {"type": "news"}
        peer = self.peer(self.server())
        peer.connection.send(news)
        size = len(peer.transport.value())
        peer = self.peer(self.server(limits=Limits(max_queue=4 * size)))
        peer.stop_reading()
        for _ in range(4):
            peer.connection.send(news)
        self.assertFalse(peer.closed)
        peer.connection.send(news)
        self.assertEqual(peer.connection.reason, "slow_consumer")

    def test_the_socket_is_tried_first(self) -> None:
        """What it takes makes room, though not all has left."""
        loop = Loop()
        self.addCleanup(loop.close)
        factory = TCPJSONServerFactory(loop, limits=Limits(max_queue=100_000))
        wire = connect(loop, factory, send_buffer=20_000)
        self.addCleanup(wire.socket.close)
        [connection] = factory.clients
        for _ in range(100):
            if connection._outbox.waiting < 95_000:
                connection.send({"type": "news", "text": "x" * 5_000})
        wire.take(1 << 20)
        for _ in range(2):
            connection.send({"type": "news", "text": "x" * 5_000})
        self.assertEqual(factory.stats.errors, {})
        self.assertTrue(connection._outbox.waiting)

    def test_a_burst_is_at_most_a_quarter(self) -> None:
        server = self.server(limits=Limits(max_queue=4000))
        reader, sender = self.peer(server), self.peer(server)
        sizes: list[int] = []
        write = reader.transport.write

        def measured(data: bytes) -> None:
            sizes.append(len(data))
            write(data)

        reader.transport.write = measured  # type: ignore[method-assign]  # it is what one try hands over
        sender.send(*(cast("x" * 400) for _ in range(5)))
        self.assertEqual(len(reader.receive()), 5)
        self.assertLessEqual(max(sizes), 1000)


class StopTests(Case):
    """`stopProducing`, which `Int32StringReceiver` publishes."""

    def test_it_leaves_and_ends(self) -> None:
        memory = self.server()
        peer = self.peer(memory)
        peer.connection.stopProducing()
        self.assertEqual(memory.factory.clients, set())
        self.assertTrue(peer.closed)
        memory.advance(2)
        self.assertTrue(peer.aborted)
        peer.close()
        self.assertEqual(memory.factory.stats.disconnects, {"closed_by_handler": 1})


class SharedTurnTests(Case):
    """Of those that send much at once, some go on in each turn of the reactor, however many they are."""

    def test_who_takes_long_is_the_last_of_a_turn(self) -> None:
        memory = self.server()

        def act(session: Any, message: Do) -> None:
            memory.clock.rightNow += 0.00001

        self.act = act
        peers = [self.peer(memory) for _ in range(3)]
        for peer in peers:
            peer.connection.dataReceived(frame(b'{"type":"do"}') * 600)
        handled = [peer.connection.messages_in for peer in peers]
        self.assertEqual(handled, [256, 256, 256])
        order = []
        while any(count < 600 for count in handled):
            run_due(memory.clock)
            now = [peer.connection.messages_in for peer in peers]
            order.append([after - before for before, after in zip(handled, now, strict=True)])
            handled = now
        more, rest = 256, 88
        self.assertEqual(
            order,
            [[more, 0, 0], [0, more, 0], [0, 0, more], [rest, rest, 0], [0, 0, rest]],
        )

    def test_who_is_gone_while_it_waits_for_its_rate(self) -> None:
        """It keeps nobody out."""
        loop = Loop()
        self.addCleanup(loop.close)
        factory = TCPJSONServerFactory(loop, limits=Limits(messages_per_second=1, max_connections=1))
        port = loop.listenTCP(0, factory, interface="127.0.0.1")
        client = socket.create_connection(("127.0.0.1", port.getHost().port))
        client.sendall(frame(b'{"type":"ping"}') * 100)
        while not any(connection.messages_in for connection in factory.clients):
            loop.turn(0.01)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        loop.settle()
        self.assertEqual(len(factory.connections), 1)
        loop.advance(1.5)
        loop.settle()
        self.assertEqual((factory.connections, factory.stats.disconnects), (set(), {"connection_lost": 1}))

    def test_who_is_gone(self) -> None:
        """What it sent plain is handled, what it compressed is not."""
        loop = Loop()
        self.addCleanup(loop.close)
        factory = TCPJSONServerFactory(loop)
        port = loop.listenTCP(0, factory, interface="127.0.0.1")
        for compressed, handled in ((False, 300), (True, 0)):
            client = socket.create_connection(("127.0.0.1", port.getHost().port))
            client.sendall(frame(b'{"type":"hello","compression":["zlib"]}'))
            while not any(client.compresses for client in factory.clients):
                loop.turn(0.01)
            loop.settle()
            [connection] = factory.clients
            before = connection.messages_in
            ping = b'{"type":"ping"}'
            connection.dataReceived(frame(deflate(ping), True) if compressed else frame(ping))
            connection.dataReceived((frame(deflate(ping), True) if compressed else frame(ping)) * 299)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            connection._outbox.write(b"x")
            loop.settle()
            self.assertEqual(connection.messages_in - before, handled)
            self.assertNotIn(connection, factory.connections)

    def test_who_is_gone_in_the_midst_of_a_frame(self) -> None:
        """What comes of it later, if anything does, is no frame of its own."""
        loop = Loop()
        self.addCleanup(loop.close)
        factory = TCPJSONServerFactory(loop)
        port = loop.listenTCP(0, factory, interface="127.0.0.1")
        client = socket.create_connection(("127.0.0.1", port.getHost().port))
        client.sendall(frame(b'{"type":"hello","compression":["zlib"]}'))
        while not any(connection.compresses for connection in factory.clients):
            loop.turn(0.01)
        loop.settle()
        [connection] = factory.clients
        inner = frame(b'{"type":"broadcast"}')
        connection.dataReceived(frame(b'{"type":"ping"}') * 300 + struct.pack(">I", 2 * len(inner)))
        client.sendall(inner * 2)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        connection._outbox.write(b"x")
        self.assertTrue(connection._outbox.lost)
        loop.settle()
        self.assertEqual(factory.stats.disconnects, {"connection_lost": 1})
        self.assertEqual(factory.stats.broadcasts, 0)


class NestedTurnTests(Case):
    """In the turn of one connection another goes on."""

    def setUp(self) -> None:
        super().setUp()
        self.memory = self.server()
        self.one = self.peer(self.memory)
        self.two = self.peer(self.memory)
        self.three = self.peer(self.memory)

    def test_a_handler_resumes_another(self) -> None:
        def act(session: Any, message: Do) -> Any:
            session.broadcast({"type": "news", "n": 1})
            self.two.connection.resumeProducing()
            session.broadcast({"type": "news", "n": 2})
            return {"type": "done"}

        self.act = act
        self.two.connection.pauseProducing()
        self.two.send(echo("two"), cast("from two"))
        self.one.send(echo("one"), do(), echo("last"))
        self.assertTypes(self.one.receive(), "echo_response", "broadcast", "done", "echo_response")
        self.assertTypes(self.two.receive(), "news", "echo_response", "broadcast_sent", "news")
        self.assertTypes(self.three.receive(), "news", "broadcast", "news")

    def test_a_handler_resumes_another_whose_handler_closes_this(self) -> None:
        """What was answered before is sent before."""

        def act(session: Any, message: Do) -> Any:
            if session is self.one.connection:
                self.two.connection.resumeProducing()
            else:
                self.one.connection.close()

        self.act = act
        self.two.connection.pauseProducing()
        self.two.send(do())
        self.one.send(echo("one"), cast("from one"), do())
        self.assertTypes(self.one.receive(), "echo_response", "broadcast_sent")
        self.assertTypes(self.two.receive(), "broadcast")
        self.assertTrue(self.one.closed)

    def test_a_handler_completes_that_of_another(self) -> None:
        waiting: Deferred[Any] = Deferred()

        def act(session: Any, message: Do) -> Any:
            if message.n == 0:
                return waiting
            waiting.callback({"type": "done", "n": 0})
            return {"type": "done", "n": message.n}

        self.act = act
        self.two.send(do(0), echo("two"))
        self.one.send(echo("one"), do(1), echo("last"))
        self.assertTypes(self.two.receive(), "done", "echo_response")
        self.assertTypes(self.one.receive(), "echo_response", "done", "echo_response")

    def test_a_coroutine_of_another_goes_on_and_broadcasts(self) -> None:
        waiting: Deferred[None] = Deferred()

        async def slow(session: Any) -> Any:
            await waiting
            session.broadcast({"type": "news"})
            session.send({"type": "extra"})
            return {"type": "done"}

        def act(session: Any, message: Do) -> Any:
            if message.n == 0:
                return slow(session)
            session.broadcast({"type": "first"})
            return waiting.callback(None)

        self.act = act
        self.two.send(do(0))
        self.one.send(do(1))
        self.assertTypes(self.one.receive(), "news")
        self.assertTypes(self.two.receive(), "first", "extra", "done")
        self.assertTypes(self.three.receive(), "first", "news")

    def test_a_nested_turn_that_ends_its_connection(self) -> None:
        self.act = lambda session, message: self.two.connection.resumeProducing()
        self.two.connection.pauseProducing()
        self.two.send_bytes(frame(b'{"type":"ping"}') + b"\xff\xff\xff\xff")
        self.one.send(do(), echo("on"))
        self.assertTypes(self.two.receive(), "pong", "too_large")
        self.assertTypes(self.one.receive(), "echo_response")


class StatisticsTests(Case):
    """What the factory counts, and why connections end."""

    def test_server_stats(self) -> None:
        server = self.server()
        one, two = self.peer(server), self.peer(server)
        two.send(cast("hello"), {"type": "nobody"})
        two.send_payload(b"text", b"{")
        server.advance(90.5)
        one.send_payload(b'{"type":"get_stats","id":1}')
        [_, stats] = one.receive()
        self.assertEqual(stats["type"], "server_stats")
        self.assertEqual((stats["connected_clients"], stats["uptime_seconds"]), (2, 90))
        self.assertEqual(stats["server_start_time"], "2024-01-01T12:00:00.000Z")
        self.assertEqual(stats["current_time"], "2024-01-01T12:01:30.500Z")
        details = stats["details"]
        self.assertEqual(details["broadcasts"], 1)
        self.assertEqual(details["deliveries"], 1)
        self.assertEqual(details["connections"], 2)
        self.assertEqual(details["peak_clients"], 2)
        self.assertEqual(details["errors"], {"bad_json": 1})
        self.assertEqual(details["disconnects"], {})
        self.assertEqual(details["messages_by_type"], {"broadcast": 1, "other": 3, "get_stats": 1})
        # Two welcomes, an answer to each of four, and the broadcast.
        self.assertEqual(details["messages_out"], 7)

    def test_messages_received_however_they_are_cut(self) -> None:
        """The request itself is one of them, and those before it in the same read."""
        ping, get_stats = frame(b'{"type":"ping"}'), frame(b'{"type":"get_stats"}')
        for pieces in ([ping + ping + get_stats], [ping, ping, get_stats]):
            peer = self.peer(self.server())
            for piece in pieces:
                peer.send_bytes(piece)
            stats = peer.receive()[-1]
            self.assertEqual((stats["total_messages"], stats["details"]["messages_in"]), (3, 3))

    def test_bytes(self) -> None:
        server = self.server()
        peer = server.connect()
        peer.send({"type": "ping"}, echo("x"))
        peer.send_payload(b"{")
        sent = len(peer.transport.value())
        self.assertEqual(server.factory.stats.bytes_out, sent)
        self.assertEqual(peer.connection._outbox.taken, sent)
        self.assertEqual(server.factory.stats.bytes_in, peer.connection.bytes_in)
        self.assertEqual(server.factory.stats.messages_out, 4)

    def test_last_words(self) -> None:
        """They are counted as any other message; an end without a word is none."""
        self.act = lambda session, message: session.close()
        for last, count in ((b"\xff\xff\xff\xff", 2), (frame(b'{"type":"do"}'), 1)):
            server = self.server()
            peer = server.connect()
            peer.send_bytes(last)
            sent = len(peer.transport.value())
            stats = server.factory.stats
            self.assertEqual((stats.messages_out, stats.bytes_out), (count, sent))
            self.assertEqual((peer.connection.messages_out, peer.connection.bytes_out), (count, sent))

    def test_types_however_they_follow_each_other(self) -> None:
        server = self.server()
        ping = {"type": "ping"}
        self.peer(server).send(ping, ping, ping, echo("x"), echo("y"), ping)
        details = server.factory.stats.details(server.clock.seconds())
        self.assertEqual(details["messages_by_type"], {"ping": 4, "echo": 2})

    def test_rates(self) -> None:
        server = self.server()
        peer = self.peer(server)
        for _ in range(60):
            peer.send(echo("x"), echo("y"))
            server.advance(1)
        self.assertEqual(server.factory.stats.rates(server.clock.seconds())["messages_in_per_second"], 2.0)
        # They are those of the last minute.
        server.advance(120)
        self.assertEqual(server.factory.stats.rates(server.clock.seconds())["messages_in_per_second"], 0.0)

    def test_peak(self) -> None:
        server = self.server()
        peers = [self.peer(server) for _ in range(3)]
        for peer in peers:
            peer.close()
        self.peer(server)
        self.assertEqual(server.factory.stats.peak_clients, 3)
        self.assertEqual(server.factory.stats.connections, 4)
        self.assertEqual(len(server.factory.clients), 1)

    def test_reasons(self) -> None:
        server = self.server()
        closed, reset, wrong, slow = (self.peer(server) for _ in range(4))
        closed.close()
        reset.reset()
        wrong.send_bytes(b"\xff\xff\xff\xff")
        wrong.reset()
        slow.connection.fail(CODES["slow_consumer"]())
        # Only the first reason counts.
        slow.connection.fail(CODES["frame_timeout"]())
        slow.close()
        self.assertEqual(
            server.factory.stats.disconnects,
            {"client_closed": 1, "connection_lost": 1, "too_large": 1, "slow_consumer": 1},
        )
        self.assertEqual(server.factory.stats.errors, {"too_large": 1, "slow_consumer": 1})

    def test_log_lines(self) -> None:
        events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            events.append(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        server = self.server()
        peer = server.connect()
        peer.send({"type": "ping"})
        server.advance(2.5)
        sent = len(peer.transport.value())
        peer.close()
        lines = [formatEvent(event) for event in events if event.get("log_namespace") == "tcpjson.server"]
        self.assertEqual(
            lines,
            [
                "connected 127.0.0.1:50000 clients=1",
                "disconnected 127.0.0.1:50000 reason=client_closed seconds=2.500 messages_in=1"
                f" messages_out=2 bytes_in=20 bytes_out={sent}",
            ],
        )

    def test_no_timer_outlives_its_server(self) -> None:
        server = MemoryServer(limits=Limits(write_timeout=100), routers=[])
        one, two = self.peer(server), self.peer(server)
        one.send_bytes(b"\0\0")
        two.stop_reading()
        one.send_bytes(b"\0\2hi" + frame(json.dumps(cast("x")).encode()))
        one.close()
        two.close()
        server.stop()
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_no_timer_fires_twice(self) -> None:
        """After all have left, time passes and nothing happens."""
        server = self.server()
        peers = [self.peer(server) for _ in range(5)]
        for peer in peers:
            peer.send_bytes(b"\0")
            peer.send_bytes(b"\xff\xff\xff")
            peer.close()
        server.advance(200)
        self.assertEqual(server.factory.stats.errors, {"too_large": 5})
        # The sampler of the statistics is all that is left.
        self.assertEqual(len(server.clock.getDelayedCalls()), 1)


class HalfCloseTests(Case):
    """A client that closes its sending side reads its answers (`printf … | nc`)."""

    def wire(self, **options: Any) -> tuple[Wire, TCPJSONServerFactory]:
        loop = Loop()
        router = Router()
        router.add(Do, lambda session, message: self.act(session, message))
        factory = TCPJSONServerFactory(loop, routers=[router], **options)
        wire = connect(loop, factory, send_buffer=4096)
        self.addCleanup(loop.close)
        self.addCleanup(wire.socket.close)
        wire.payloads()
        return wire, factory

    def messages(self, wire: Wire) -> list[Any]:
        return [json.loads(payload) for payload in wire.payloads()]

    def test_half_a_frame_before_the_end(self) -> None:
        """No deadline runs for the rest of it: what came before is answered, however late."""
        slow: Deferred[Any] = Deferred()
        self.act = lambda session, message: slow
        server = self.server(limits=Limits(frame_timeout=5, handler_timeout=1000))
        peer = self.peer(server)
        peer.send_bytes(frame(b'{"type":"do"}') + b"\0\0")
        peer.connection.readConnectionLost()
        server.advance(60)
        slow.callback({"type": "done"})
        self.assertTypes(peer.receive(), "done")

    def test_answers_come(self) -> None:
        wire, factory = self.wire()
        wire.socket.send(b"".join(frame(json.dumps(echo([n, "x" * 500])).encode()) for n in range(100)))
        wire.end()
        self.assertEqual([content[0] for content in contents(self.messages(wire))], list(range(100)))
        self.assertTrue(wire.ended)
        self.assertEqual(factory.stats.disconnects, {"client_closed": 1})
        self.assertEqual(factory.clients, set())

    def test_slow_answers_come(self) -> None:
        wire, factory = self.wire()
        slow: Deferred[Any] = Deferred()
        self.act = lambda session, message: slow
        wire.send_payload(json.dumps(do()).encode(), json.dumps(echo("x")).encode())
        wire.end()
        self.assertEqual(self.messages(wire), [])
        self.assertFalse(wire.ended)
        # It hears no broadcasts any more, and counts as no client.
        self.assertEqual(factory.clients, set())
        slow.callback({"type": "done"})
        self.assertTypes(self.messages(wire), "done", "echo_response")
        self.assertTrue(wire.ended)
        self.assertEqual(factory.stats.disconnects, {"client_closed": 1})

    def test_gone_before_a_fatal_frame_had_its_turn(self) -> None:
        wire, factory = self.wire()
        [connection] = factory.clients
        wire.socket.send(frame(b'{"type":"ping"}') * 600 + b"\x7f\xff\xff\xff")
        wire.loop.turn()
        self.assertTrue(connection.paused)
        connection.transport.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(factory.stats.disconnects, {"too_large": 1})
        self.assertEqual(factory.stats.messages_by_type(), {"ping": 600})
        self.assertIsNone(connection._abort_call)

    def test_a_frame_that_will_never_end(self) -> None:
        wire, factory = self.wire()
        wire.send(b"\0\0\0\5ha")
        wire.end()
        self.assertEqual(self.messages(wire), [])
        self.assertTrue(wire.ended)
        self.assertEqual(factory.stats.errors, {})

    def test_gone_with_handlers_unfinished(self) -> None:
        """Who only closed its side is waited for; that nobody reads any more, sending to it finds out."""
        cancelled: list[int] = []
        self.act = lambda session, message: Deferred(lambda _: cancelled.append(message.n))
        wire, factory = self.wire()
        wire.send_payload(b'{"type":"do","n":1,"id":1}', b'{"type":"do","n":2,"id":2}')
        wire.end()
        [connection] = factory.connections
        connection.send({"type": "still there"})
        self.assertTypes(self.messages(wire), "still there")
        self.assertEqual(cancelled, [])
        wire.close()
        connection.send({"type": "gone"})
        wire.loop.settle()
        self.assertEqual(cancelled, [1, 2])
        self.assertEqual(factory.connections, set())
        self.assertEqual(factory.stats.disconnects, {"client_closed": 1})

    def test_while_handlers_are_at_their_bound(self) -> None:
        wire, factory = self.wire(limits=Limits(max_handlers=1))
        slow: list[Deferred[Any]] = []

        def act(session: Any, message: Do) -> Any:
            slow.append(Deferred())
            return slow[-1]

        self.act = act
        wire.socket.send(b"".join(frame(json.dumps(do(n)).encode()) for n in range(5)))
        wire.end()
        for n in range(5):
            self.assertEqual(len(slow), n + 1)
            slow[n].callback({"type": "done", "n": n})
            self.assertEqual(ns(self.messages(wire)), [n])
        self.assertTrue(wire.ended)
        self.assertEqual(factory.stats.disconnects, {"client_closed": 1})

    def test_it_must_read(self) -> None:
        wire, factory = self.wire()
        wire.send_payload(json.dumps(echo("x" * 60_000)).encode())
        wire.end()
        for _ in range(16):
            wire.loop.advance(1)
            wire.loop.settle()
        self.assertEqual(factory.stats.errors, {"slow_consumer": 1})
        wire.loop.advance(2)
        wire.loop.settle()
        self.assertEqual(factory.stats.disconnects, {"slow_consumer": 1})


class TLSTests(Case):
    """Through real TLS."""

    def start(self, **options: Any) -> tuple[Loop, TCPJSONServerFactory]:
        loop = Loop()
        self.addCleanup(loop.close)
        return loop, TCPJSONServerFactory(loop, **options)

    def messages(self, wire: Wire) -> list[Any]:
        return [json.loads(payload) for payload in wire.payloads()]

    def silent(self, loop: Loop, factory: TCPJSONServerFactory) -> Wire:
        """A peer that has not begun its handshake."""
        ours, theirs = socket_pair()
        attach(loop, tls_factory(factory, loop).buildProtocol(UNIXAddress(None)), ours)
        self.addCleanup(theirs.close)
        return Wire(loop, theirs)

    def test_welcome_after_the_handshake(self) -> None:
        loop, factory = self.start()
        silent = self.silent(loop, factory)
        silent.take_all()
        self.assertEqual(silent.raw, b"")
        self.assertEqual((len(factory.clients), factory.stats.connections), (0, 1))
        wire = connect(loop, factory, tls=True)
        self.assertTypes(self.messages(wire), "welcome")
        self.assertEqual(len(factory.clients), 1)

    def test_classic(self) -> None:
        loop, factory = self.start()
        one, two = connect(loop, factory, tls=True), connect(loop, factory)
        self.messages(one)
        self.messages(two)
        one.send_payload(b'{"type":"ping","id":1}', b'{"type":"broadcast","content":[1]}')
        self.assertTypes(self.messages(one), "pong", "broadcast_sent")
        self.assertEqual(contents(self.messages(two)), [[1]])
        self.assertNotIn(b"pong", one.raw)

    def test_no_broadcast_before_the_handshake(self) -> None:
        loop, factory = self.start()
        silent = self.silent(loop, factory)
        wire = connect(loop, factory)
        self.messages(wire)
        wire.send_payload(json.dumps(cast("hello")).encode())
        self.assertEqual(self.messages(wire)[0]["recipients"], 0)
        silent.take_all()
        self.assertEqual(silent.raw, b"")

    def test_a_handshake_that_does_not_come(self) -> None:
        loop, factory = self.start(limits=Limits(frame_timeout=5))
        silent = self.silent(loop, factory)
        loop.advance(4.9)
        loop.settle()
        self.assertEqual(factory.stats.disconnects, {})
        loop.advance(0.2)
        silent.take_all()
        self.assertTrue(silent.ended)
        self.assertEqual(factory.stats.disconnects, {"handshake_failed": 1})
        self.assertEqual(factory.stats.errors, {})

    def test_a_handshake_that_fails(self) -> None:
        loop, factory = self.start()
        wire = self.silent(loop, factory)
        wire.send(b"GET / HTTP/1.0\r\n\r\n")
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertEqual(factory.stats.disconnects, {"handshake_failed": 1})

    def test_a_handshake_that_is_left(self) -> None:
        loop, factory = self.start()
        self.silent(loop, factory).close()
        self.assertEqual(factory.stats.disconnects, {"handshake_failed": 1})

    def test_the_client_closes(self) -> None:
        loop, factory = self.start()
        wire = connect(loop, factory, tls=True)
        assert isinstance(wire, TLSWire)
        self.messages(wire)
        wire.say_goodbye()
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertEqual((factory.stats.disconnects, factory.clients), ({"client_closed": 1}, set()))

    def test_the_client_vanishes(self) -> None:
        loop, factory = self.start()
        wire = connect(loop, factory, tls=True)
        self.messages(wire)
        wire.close()
        self.assertEqual((factory.stats.disconnects, factory.clients), ({"connection_lost": 1}, set()))

    def test_a_fatal_error(self) -> None:
        loop, factory = self.start()
        wire = connect(loop, factory, tls=True)
        assert isinstance(wire, TLSWire)
        self.messages(wire)
        wire.send(frame(b'{"type":"ping"}') + b"\xff\xff\xff\xff")
        self.assertTypes(self.messages(wire), "pong", "too_large")
        for _ in range(20):
            wire.send(bytes(16_000))
        wire.say_goodbye()
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertEqual(factory.stats.disconnects, {"too_large": 1})

    def test_unix_numbers_are_unique(self) -> None:
        """Two connect, and only then do their handshakes."""
        loop, factory = self.start()
        wires = []
        for _ in range(2):
            ours, theirs = socket_pair()
            attach(loop, tls_factory(factory, loop).buildProtocol(UNIXAddress(None)), ours)
            self.addCleanup(theirs.close)
            wires.append(TLSWire(loop, theirs))
        for wire in wires:
            wire.shake_hands()
        names = {self.messages(wire)[0]["client_id"] for wire in wires}
        self.assertEqual(len(names), 2)


class TCPTests(Case):
    """What only a TCP socket has."""

    def test_options_of_the_socket(self) -> None:
        loop = Loop()
        limits = Limits(write_timeout=7.5)
        factory = TCPJSONServerFactory(loop, limits=limits, send_buffer=20_000, receive_buffer=30_000)
        port = loop.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(loop.close)
        client = socket.create_connection(("127.0.0.1", port.getHost().port))
        self.addCleanup(client.close)
        for _ in range(1000):
            if factory.clients:
                break
            loop.turn(0.01)
        [connection] = factory.clients
        self.assertEqual(connection.client_id, "{}:{}".format(*client.getsockname()))
        handle = connection.transport.getHandle()
        self.assertTrue(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertTrue(handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        # A peer that vanished is found out, and not before it was told, if it could be.
        for option, value in (
            (socket.TCP_KEEPIDLE, 60),
            (socket.TCP_KEEPINTVL, 15),
            (socket.TCP_USER_TIMEOUT, 37_500),
        ):
            self.assertEqual(handle.getsockopt(socket.IPPROTO_TCP, option), value)
        # Linux doubles what it is given.
        self.assertIn(handle.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), (20_000, 40_000))
        self.assertIn(handle.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), (30_000, 60_000))
        connection.transport.abortConnection()
        loop.settle()

    def test_an_end_that_sending_finds_first(self) -> None:
        """The system says why once, to whom it concerns first: reading says "end of file" then."""
        for linger, reason in ((True, "connection_lost"), (False, "client_closed")):
            loop = Loop()
            factory = TCPJSONServerFactory(loop)
            port = loop.listenTCP(0, factory, interface="127.0.0.1")
            self.addCleanup(loop.close)
            client = socket.create_connection(("127.0.0.1", port.getHost().port))
            for _ in range(1000):
                if factory.clients:
                    break
                loop.turn(0.01)
            [connection] = factory.clients
            client.recv(65536)
            if linger:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            # In the same turn, so that nothing is read before.
            for _ in range(2):
                connection.send({"type": "hi"})
            loop.settle()
            self.assertEqual(factory.stats.disconnects, {reason: 1})

    def test_who_was_the_last_to_send_is_not_kept(self) -> None:
        memory = self.server()
        peer = self.peer(memory)
        peer.send({"type": "ping"})
        kept = weakref.ref(peer.connection)
        peer.close()
        del peer
        gc.collect()
        self.assertIsNone(kept())

    def test_buffers_of_unix_sockets(self) -> None:
        loop = Loop()
        self.addCleanup(loop.close)
        factory = TCPJSONServerFactory(loop, send_buffer=20_000)
        wire = connect(loop, factory)
        self.addCleanup(wire.socket.close)
        [connection] = factory.clients
        size = connection.transport.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.assertIn(size, (20_000, 40_000))


class FactoryTests(Case):
    """The factory itself."""

    def test_two_servers_share_nothing(self) -> None:
        first, second = self.server(), self.server()
        one, two = self.peer(first), self.peer(second)
        one.send(cast("hello"))
        self.assertEqual(one.receive()[0]["recipients"], 0)
        self.assertEqual(two.receive(), [])

    def test_no_delayed_call_stays(self) -> None:
        """Not even for one that is lost between two of its turns."""
        server = self.server()
        peer = self.peer(server)
        peer.connection.dataReceived(frame(b'{"type":"ping"}') * 1000)
        self.assertTrue(peer.connection.paused)
        server.stop()
        peer.connection.connectionLost()
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_two_routers_with_one_type(self) -> None:
        routers = []
        for _ in range(2):
            router = Router()
            router.add(Do, lambda session, message: None)
            routers.append(router)
        self.assertRaises(ValueError, MemoryServer, routers=routers)

    def test_error_of_the_shutdown_is_not_fatal(self) -> None:
        """`retry_after` is told where there is one."""
        server = self.server()
        peer = self.peer(server)

        def act(session: Any, message: Do) -> Any:
            raise GoingAway(retry_after=3)

        self.act = act
        peer.send(do(id=1))
        [error] = peer.receive()
        self.assertEqual((error["code"], error["retry_after"], error["fatal"]), ("going_away", 3.0, False))
        self.assertFalse(peer.closed)

    def test_connection_is_a_session(self) -> None:
        connection: Connection = self.peer(self.server()).connection
        self.assertIs(type(connection), Connection)


class SomeTests(Case):
    """`broadcast(..., to=...)`, and the server's own."""

    def setUp(self) -> None:
        super().setUp()
        self.memory = self.server()
        self.peers = [self.peer(self.memory) for _ in range(4)]
        self.sessions = [peer.connection for peer in self.peers]

    def heard(self) -> list[list[Any]]:
        """What each has got."""
        return [ns(peer.receive()) for peer in self.peers]

    def told(self, *numbers: int) -> list[Any]:
        return [self.sessions[number] for number in numbers]

    def test_outside_of_turns(self) -> None:
        one, two, *_ = self.sessions
        factory = self.memory.factory
        for send, recipients, expected in (
            (lambda to: one.broadcast({"type": "n", "n": 1}, to=to), 2, [[], [1], [1], []]),
            (lambda to: factory.broadcast({"type": "n", "n": 1}, to=to), 3, [[1], [1], [1], []]),
        ):
            came = send(self.told(0, 1, 2))
            self.assertEqual((came, type(came).__name__), (recipients, "Recipients"))
            self.assertEqual(self.heard(), expected)
        self.assertEqual(factory.broadcast({"type": "n", "n": 2}), 4)
        self.assertEqual(self.heard(), [[2]] * 4)
        self.assertEqual(one.broadcast({"type": "n", "n": 3}, to=iter(self.told(1))), 1)
        self.assertEqual(self.heard(), [[], [3], [], []])
        self.assertEqual(two.broadcast({"type": "n", "n": 4}, to=self.told(2, 2, 2)), 1)
        self.assertEqual(self.heard(), [[], [], [4], []])

    def test_what_is_no_set_of_sessions(self) -> None:
        one, two, *_ = self.sessions
        wrong: list[Any] = [two, "alice"]
        for to in wrong:
            for sender in (one, self.memory.factory):
                error = self.assertRaises(TypeError, sender.broadcast, {"type": "n", "n": 1}, to=to)
                self.assertIn("to=", str(error))
        self.assertEqual(self.heard(), [[]] * 4)

    def test_what_is_no_message(self) -> None:
        one = self.sessions[0]
        wrong: list[Any] = ["hi", None, [{"type": "n"}], Message]
        for message in wrong:
            for send in (one.send, one.broadcast, self.memory.factory.broadcast):
                self.assertIn("a dict with a type", str(self.assertRaises(TypeError, send, message)))
        self.assertEqual(self.heard(), [[]] * 4)

    def test_nobody(self) -> None:
        one = self.sessions[0]
        before = self.memory.factory.stats.messages_out
        nobody: list[Any] = [[], (), {}, set(), iter([]), self.told(0)]
        for to in nobody:
            self.assertEqual(one.broadcast({"type": "n", "n": 1}, to=to), 0)
        self.assertEqual(self.memory.factory.broadcast({"type": "n", "n": 1}, to=[]), 0)
        self.assertEqual(self.heard(), [[]] * 4)
        self.assertEqual(self.memory.factory.stats.messages_out, before)

    def test_any_collection(self) -> None:
        """A room is a set, a list, a dict's keys; it does not change."""
        one = self.sessions[0]
        for make in (list, tuple, set, frozenset, dict.fromkeys, iter, lambda told: (each for each in told)):
            room: Any = make(self.told(1, 3))
            self.assertEqual(one.broadcast({"type": "n", "n": 1}, to=room), 2)
            self.assertEqual(self.heard(), [[], [1], [], [1]])
        room = set(self.told(0, 1))
        one.broadcast({"type": "n"}, to=room)
        self.assertEqual(room, set(self.told(0, 1)))

    def test_those_who_are_gone(self) -> None:
        """Also those who are half gone, and those of another server."""
        one = self.sessions[0]
        self.peers[1].close()
        self.sessions[2].close()
        other = self.peer(self.server()).connection
        room = [*self.told(1, 2, 3), other]
        self.assertEqual(one.broadcast({"type": "n", "n": 1}, to=room), 1)
        self.assertEqual(self.heard(), [[], [], [], [1]])
        self.assertEqual(self.memory.factory.broadcast({"type": "n", "n": 1}, to=room), 1)

    def test_by_one_who_is_gone(self) -> None:
        self.peers[0].close()
        self.assertEqual(self.sessions[0].broadcast({"type": "n", "n": 1}, to=self.told(0, 1)), 1)
        self.assertEqual(self.heard(), [[], [1], [], []])

    def test_what_cannot_be_sent(self) -> None:
        one = self.sessions[0]
        strange: Any = [{"type": "n", "x": object()}, {"no": "type"}, {"type": 3}]
        for message in strange:
            for to in (None, self.told(1)):
                for send in (one.broadcast, self.memory.factory.broadcast):
                    self.assertRaises((TypeError, ValueError), send, message, to=to)
        nobodies: Any = (7, [[]])
        for wrong in nobodies:
            self.assertRaises(TypeError, one.broadcast, {"type": "n"}, to=wrong)
        self.assertEqual(self.heard(), [[]] * 4)

    def test_in_a_turn(self) -> None:
        """Each gets what is for it in the order of the calls, the answers of its own turn among it."""
        _, two, three, _ = self.sessions
        server = self.memory.factory

        def act(session: Any, message: Do) -> Any:
            numbers = iter(range(20))

            def n() -> dict[str, Any]:
                return {"type": "n", "n": next(numbers)}

            session.send(n())
            session.broadcast(n())
            session.broadcast(n(), to=self.told(1))
            server.broadcast(n())
            two.send(n())
            two.broadcast(n())
            session.broadcast(n())
            server.broadcast(n(), to=self.told(0, 2))
            session.send(n())
            three.broadcast(n(), to=self.told(0, 1, 2))
            return {"type": "n", "n": 99}

        self.act = act
        self.peers[0].send(do())
        self.assertEqual(
            self.heard(),
            [[0, 3, 5, 7, 8, 9, 99], [1, 2, 3, 4, 6, 9], [1, 3, 5, 6, 7], [1, 3, 5, 6]],
        )

    def test_answers_before_it_are_not_overtaken(self) -> None:
        """A sender hears of its own requests in their order, whoever speaks to it meanwhile."""
        self.act = lambda session, message: session.server.broadcast({"type": "n", "n": message.n}) and None
        peer = self.peers[0]
        peer.send(echo("a"), do(1), echo("b"), do(2), echo("c"))
        self.assertTypes(peer.receive(), "echo_response", "n", "echo_response", "n", "echo_response")

    def test_sessions(self) -> None:
        server = self.memory.factory
        before = server.sessions
        self.assertEqual(set(before), set(self.sessions))
        self.peers[0].close()
        self.assertEqual(set(server.sessions), set(self.sessions[1:]))
        self.assertEqual(len(before), 4)
        self.assertIs(self.sessions[1].server, server)
        self.assertIs(server.clock, self.memory.clock)

    def test_the_time_of_a_turn(self) -> None:
        """All that is sent in one turn has one time."""
        server = self.memory.factory

        def act(session: Any, message: Do) -> None:
            self.memory.clock.rightNow += 1
            server.broadcast({"type": "n"})

        self.act = act
        self.peers[0].send(do())
        self.assertEqual(self.peers[1].receive()[0]["timestamp"], "2024-01-01T12:00:00.000Z")
        server.broadcast({"type": "n"})
        self.assertEqual(self.peers[1].receive()[0]["timestamp"], "2024-01-01T12:00:01.000Z")

    def test_what_waits(self) -> None:
        """`waiting` tells how much."""
        one = self.sessions[0]
        self.assertEqual(one.waiting, 0)
        self.peers[0].stop_reading()
        one.send({"type": "n"})
        waiting = one.waiting
        self.assertGreater(waiting, 0)
        self.memory.factory.broadcast({"type": "n"})
        self.assertEqual(one.waiting, 2 * waiting)
        self.peers[0].start_reading()
        self.assertEqual(one.waiting, 0)

    def test_a_room_with_some_who_do_not_read(self) -> None:
        """Only these end."""
        limits = Limits(max_queue=50_000)
        memory = self.server(limits=limits)
        room = [self.peer(memory) for _ in range(200)]
        slow = room[::10]
        for peer in slow:
            peer.stop_reading()
        members = [peer.connection for peer in room]

        def act(session: Any, message: Do) -> Any:
            return {"type": "done", "n": session.broadcast({"type": "n", "x": "x" * 1000}, to=members)}

        self.act = act
        sender = room[1]
        for _ in range(100):
            sender.send(do())
        for peer in slow:
            peer.start_reading()
        for peer in room:
            messages = peer.receive()
            if peer in slow:
                self.assertEqual(messages[-1]["code"], "slow_consumer")
                self.assertTrue(peer.closed)
            else:
                self.assertEqual(len(messages), 100)
                self.assertFalse(peer.closed)
                if peer is sender:
                    counts = ns(messages)
                    self.assertEqual((counts[0], counts[-1]), (199, 179))


@dataclass(frozen=True)
class Call:
    """One call of a handler's, or of somebody's outside of any turn: who sends to whom."""

    what: str
    by: int
    to: frozenset[int]
    size: int


def calls(peers: int) -> st.SearchStrategy[Call]:
    return st.builds(
        Call,
        st.sampled_from(["send", "broadcast", "some", "all", "server", "reply"]),
        st.integers(0, peers - 1),
        st.frozensets(st.integers(0, peers - 1), max_size=peers),
        st.sampled_from([0, 2000]),
    )


class DeliveryModelTests(Case):
    """Sends and broadcasts of all kinds, mixed, in turns and outside, to all kinds of clients."""

    PEERS = 5

    @given(
        st.lists(
            st.tuples(st.integers(-1, PEERS - 1), st.lists(calls(PEERS), max_size=6)), min_size=1, max_size=5
        ),
        st.frozensets(st.integers(0, PEERS - 1)),
        st.frozensets(st.integers(0, PEERS - 1)),
    )
    def test_order_and_counts(
        self,
        turns: list[tuple[int, list[Call]]],
        compressing: frozenset[int],
        slow: frozenset[int],
    ) -> None:
        """
        Each client gets what is for it in the order of the calls, and nothing else; recipients, and the
        statistics, are what came out of the other ends.
        """
        memory = self.server()
        peers = [self.peer(memory) for _ in range(self.PEERS)]
        sessions: list[Any] = [peer.connection for peer in peers]
        for number in compressing:
            peers[number].send({"type": "hello", "compression": ["zlib"]})
            peers[number].receive()
        for number in slow:
            peers[number].stop_reading()
        stats = memory.factory.stats
        before = stats.messages_out, stats.bytes_out, stats.deliveries
        expected: list[list[int]] = [[] for _ in peers]
        serial = iter(range(10_000))
        delivered = 0

        def do_all(current: int, planned: list[Call]) -> None:
            nonlocal delivered
            for call in planned:
                number = next(serial)
                message = {"type": "n", "n": number, "x": "x" * call.size}
                sender = sessions[call.by]
                everybody = set(range(self.PEERS))
                told: set[int]
                if call.what == "send" or (call.what == "reply" and current < 0):
                    told = {call.by}
                    sender.send(message)
                elif call.what == "reply":
                    told = {current}
                    sessions[current].send(message)
                else:
                    members = [sessions[each] for each in sorted(call.to)]
                    if call.what == "broadcast":
                        told = everybody - {call.by}
                        came = sender.broadcast(message)
                    elif call.what == "some":
                        told = set(call.to) - {call.by}
                        came = sender.broadcast(message, to=members)
                    elif call.what == "all":
                        told = everybody
                        came = memory.factory.broadcast(message)
                    else:
                        told = set(call.to)
                        came = memory.factory.broadcast(message, to=iter(members))
                    self.assertEqual(came, len(told))
                    delivered += len(told)
                for each in told:
                    expected[each].append(number)

        for current, planned in turns:
            if current < 0:
                do_all(current, planned)
                continue

            def act(session: Any, message: Do, current: int = current, planned: Any = planned) -> Any:
                do_all(current, planned)
                expected[current].append(-1)
                return {"type": "n", "n": -1}

            self.act = act
            peers[current].send(do())
        for peer in peers:
            peer.start_reading()
        bytes_out = sum(len(peer.transport.value()) for peer in peers)
        received = [ns(peer.receive()) for peer in peers]
        self.assertEqual(received, expected)
        self.assertEqual(
            (stats.messages_out - before[0], stats.bytes_out - before[1], stats.deliveries - before[2]),
            (sum(map(len, received)), bytes_out, delivered),
        )
        for peer, messages in zip(peers, received, strict=True):
            connection = peer.connection
            # With `welcome`, and where it was said, `hello_response`.
            greetings = 1 + (peers.index(peer) in compressing)
            self.assertEqual(connection.messages_out, len(messages) + greetings)


class MiddlewareTests(Case):
    """Around the messages of clients that are served."""

    def setUp(self) -> None:
        super().setUp()
        self.seen: list[str] = []

    def around(self, *middlewares: Callable[..., Any], **options: Any) -> MemoryServer:
        router = Router()
        router.add(Do, lambda session, message: self.act(session, message))
        for middleware in middlewares:
            router.middleware(middleware)
        server = MemoryServer(routers=[router], **options)
        self.addCleanup(server.stop)
        return server

    def plain(self, session: Any, message: Any, handle: Any) -> Any:
        self.seen.append(type(message).__name__)
        return handle(session, message)

    async def waiting(self, session: Any, message: Any, handle: Any) -> Any:
        self.seen.append(type(message).__name__)
        return await handle(session, message)

    def test_all_messages_of_clients(self) -> None:
        self.act = lambda session, message: {"type": "done"}
        requests = [
            {"type": "ping"},
            echo("x"),
            cast("x"),
            {"type": "get_stats"},
            do(),
            {"type": "nobody"},
            {"no": "type"},
        ]
        answers = ["pong", "echo_response", "broadcast_sent", "server_stats", "done", "response", "response"]
        names = ["Ping", "Echo", "Broadcast", "GetStats", "Do", "Custom", "Custom", "Text", "Text"]
        for middleware in (self.plain, self.waiting):
            self.seen.clear()
            server = self.around(middleware)
            peer = self.peer(server)
            peer.send_payload(*(json.dumps(each).encode() for each in requests), b"text", b"[1]")
            self.assertTypes(peer.receive(), *answers, "echo", "echo")
            self.assertEqual(self.seen, names)

    def test_what_belongs_to_the_protocol(self) -> None:
        for middleware in (self.plain, self.waiting):
            server = self.around(middleware, checkers=[TokenAlways()])
            peer = self.peer(server)
            peer.send({"type": "hello", "heartbeat": True}, {"type": "ping"}, echo("x"))
            peer.send({"type": "auth", "mechanism": "token", "token": "t"})
            peer.send_payload(b'{"type":"pong"}', b"", b"{", b'{"type":"echo","content":1e999}', b"\xff")
            self.assertTypes(
                peer.receive(),
                *("hello_response", "pong", "unauthenticated", "auth_result"),
                *("bad_frame", "bad_json", "bad_json", "bad_json"),
            )
            self.assertEqual(self.seen, [])

    def test_it_refuses(self) -> None:
        """The error carries the `id`, and the handler is not called."""

        def refuses(session: Any, message: Any, handle: Any) -> Any:
            if isinstance(message, Do):
                raise Forbidden("not you")
            return handle(session, message)

        def returns(session: Any, message: Any, handle: Any) -> Any:
            return Forbidden("not you") if isinstance(message, Do) else handle(session, message)

        async def waits(session: Any, message: Any, handle: Any) -> Any:
            await succeed(None)
            return await refuses_async(session, message, handle)

        async def refuses_async(session: Any, message: Any, handle: Any) -> Any:
            if isinstance(message, Do):
                raise Forbidden("not you")
            return await handle(session, message)

        self.act = lambda session, message: self.seen.append("handled")
        for middleware in (refuses, returns, waits):
            peer = self.peer(self.around(middleware))
            peer.send(do(id=7), {"type": "ping", "id": 8})
            error, pong = peer.receive()
            self.assertEqual(
                (error["code"], error["id"], error["message"], error["fatal"]),
                ("forbidden", 7, "not you", False),
            )
            self.assertEqual((pong["type"], pong["id"]), ("pong", 8))
        self.assertEqual(self.seen, [])

    def test_it_fails(self) -> None:
        def fails(session: Any, message: Any, handle: Any) -> Any:
            raise KeyError("secret")

        async def fails_late(session: Any, message: Any, handle: Any) -> Any:
            await handle(session, message)
            raise KeyError("secret")

        for middleware in (fails, fails_late):
            peer = self.peer(self.around(middleware))
            peer.send(echo("x", id=7))
            [error] = peer.receive()
            self.assertEqual((error["code"], error["id"]), ("internal", 7))
            self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_it_changes_what_it_likes(self) -> None:
        """The message, and the answer; the `id` of the reply is that of the request."""

        def changes(session: Any, message: Any, handle: Any) -> Any:
            if isinstance(message, Echo):
                answer = handle(session, Echo(content=Raw(b'"changed"')))
                return {"type": "instead", "content": json.loads(bytes(answer.content))}
            if isinstance(message, Ping):
                return [handle(session, message) for _ in range(2)][1]
            return {"type": "nothing"} if isinstance(message, Text) else None

        peer = self.peer(self.around(changes))
        peer.send_payload(
            b'{"type":"echo","content":"x","id":1}', b'{"type":"ping","id":2}', b"text", b'{"type":"do"}'
        )
        changed, pong, nothing = peer.receive()
        self.assertEqual((changed["type"], changed["content"], changed["id"]), ("instead", "changed", 1))
        self.assertEqual((pong["type"], pong["id"]), ("pong", 2))
        self.assertEqual(nothing["type"], "nothing")

    def test_calling_the_handler_twice(self) -> None:
        async def twice(session: Any, message: Any, handle: Any) -> Any:
            await handle(session, message)
            return await handle(session, message)

        self.act = lambda session, message: self.seen.append("handled")
        server = self.around(twice)
        peer, other = self.peer(server), self.peer(server)
        peer.send(do(), cast("x"))
        self.assertEqual(self.seen, ["handled"] * 2)
        self.assertEqual(contents(other.receive()), ["x", "x"])

    def test_order_of_replies(self) -> None:
        """Those without `id` come in order, however long the middleware takes for each."""
        waiting: list[Deferred[None]] = []

        async def slow(session: Any, message: Any, handle: Any) -> Any:
            if isinstance(message, Do):
                waiting.append(Deferred())
                await waiting[-1]
            return await handle(session, message)

        self.act = lambda session, message: {"type": "done", "n": message.n}
        peer = self.peer(self.around(slow))
        peer.send(do(1), {"type": "ping"}, do(2), echo("x"), do(3, id="a"), echo("y", id="b"))
        self.assertTypes(peer.receive(), "echo_response")
        waiting[2].callback(None)
        waiting[1].callback(None)
        self.assertTypes(peer.receive(), "done")
        waiting[0].callback(None)
        self.assertTypes(peer.receive(), "done", "pong", "done", "echo_response")

    def test_the_bound_of_unfinished_handlers(self) -> None:
        """It holds for what waits in a middleware, built-in messages too."""
        waiting: list[Deferred[None]] = []

        async def slow(session: Any, message: Any, handle: Any) -> Any:
            waiting.append(Deferred())
            await waiting[-1]
            return await handle(session, message)

        server = self.around(slow, limits=Limits(max_handlers=4))
        peer = self.peer(server)
        peer.send({"type": "hello"}, *({"type": "ping"} for _ in range(30)))
        self.assertEqual(len(waiting), 4)
        self.assertTypes(peer.receive(), "hello_response")
        for count in range(30):
            waiting[count].callback(None)
            server.settle()
            self.assertLessEqual(len(waiting) - count, 5)
        self.assertTypes(peer.receive(), *["pong"] * 30)

    def test_a_plain_one_does_not_wait(self) -> None:
        """What it has a Deferred fire with must be an answer."""

        def chains(session: Any, message: Any, handle: Any) -> Any:
            return succeed(None).addCallback(lambda _: handle(session, message))

        self.act = lambda session, message: Recipients(0)
        peer = self.peer(self.around(chains))
        peer.send({"type": "ping", "id": 1}, do(id=2))
        pong, error = peer.receive()
        self.assertEqual((pong["type"], pong["id"]), ("pong", 1))
        self.assertEqual((error["code"], error["id"]), ("internal", 2))
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_it_takes_too_long(self) -> None:
        async def slow(session: Any, message: Any, handle: Any) -> Any:
            await Deferred()

        server = self.around(slow, limits=Limits(handler_timeout=5))
        peer = self.peer(server)
        peer.send({"type": "ping", "id": 3})
        server.advance(5.2)
        [error] = peer.receive()
        self.assertEqual((error["code"], error["id"]), ("timeout", 3))

    def test_the_answers_of_async_ones_are_as_valid(self) -> None:
        """To the last digit, and nothing that a strict parser refuses."""
        numbers = b'[1.50,12345678901234567890e-3,"\\u00e9"]'
        for middleware in (self.plain, self.waiting):
            server = self.around(middleware)
            peer, other = self.peer(server), self.peer(server)
            for kind in (b"echo", b"broadcast", b"own"):
                peer.send_payload(b'{"type":"%b","content":%b}' % (kind, numbers))
                [payload] = peer.receive_payloads()
                if kind != b"broadcast":
                    self.assertIn(numbers, payload)
                peer.send_payload(b'{"type":"%b","content":[1e999]}' % kind)
                self.assertTypes(peer.receive(), "bad_json")
            [payload] = other.receive_payloads()
            self.assertIn(numbers, payload)

    def test_after_the_client_is_told_to_leave(self) -> None:
        server = self.around(self.plain)
        peer = self.peer(server)
        server.factory.drain()
        peer.send({"type": "ping", "id": 1})
        self.assertTypes(peer.receive(), "going_away", "going_away")
        self.assertEqual(self.seen, [])

    def test_one_that_keeps_messages(self) -> None:
        """They stay what they were."""
        kept: list[Any] = []

        def keeps(session: Any, message: Any, handle: Any) -> Any:
            kept.append(message)
            return handle(session, message)

        peer = self.peer(self.around(keeps))
        peer.send(*(echo(n, id=n) for n in range(300)), *(do(n) for n in range(300)))
        self.assertEqual([bytes(message.content) for message in kept[:300]], [b"%d" % n for n in range(300)])
        self.assertEqual([message.id for message in kept[:300]], list(range(300)))
        self.assertEqual([message.n for message in kept[300:]], list(range(300)))


@implementer(ICredentialsChecker)
class TokenAlways:
    """Takes any token."""

    credentialInterfaces: ClassVar[tuple[type[Interface], ...]] = (ITokenCredentials,)

    def requestAvatarId(self, credentials: object) -> Deferred[bytes | tuple[()]]:
        return succeed(b"ann")


class LifecycleTests(Case):
    """`on_start` and `on_stop`, and the whole of a server's life."""

    def setUp(self) -> None:
        super().setUp()
        self.seen: list[Any] = []
        self.router = Router()

        @self.router.on_start
        def start(server: Any) -> None:
            self.seen.append(("start", server))

        @self.router.on_stop
        def stop(server: Any) -> None:
            self.seen.append(("stop", server))

    def test_before_the_first_and_after_the_last(self) -> None:
        self.router.on_connect(lambda session: self.seen.append("connect"))
        self.router.on_disconnect(lambda session: self.seen.append("disconnect"))
        server = MemoryServer(routers=[self.router])
        factory = server.factory
        self.assertEqual(self.seen, [("start", factory)])
        peer = self.peer(server)
        server.stop()
        self.assertEqual(self.seen[1:], ["connect"])
        peer.close()
        self.assertEqual(self.seen[1:], ["connect", "disconnect", ("stop", factory)])
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_stopped_with_nobody_there(self) -> None:
        server = MemoryServer(routers=[self.router])
        self.peer(server).close()
        server.stop()
        self.assertEqual([what for what, _ in self.seen], ["start", "stop"])

    def test_started_again(self) -> None:
        server = MemoryServer(routers=[self.router])
        for _ in range(2):
            server.stop()
            server.factory.doStart()
        peer = self.peer(server)
        peer.send(do())
        server.stop()
        server.factory.doStart()
        # Somebody was there all the time.
        server.stop()
        peer.close()
        self.assertEqual(
            [what for what, _ in self.seen],
            ["start", "stop", "start", "stop", "start", "start", "stop"],
        )
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_several_ports(self) -> None:
        """The server starts with the first and stops with the last."""
        server = MemoryServer(routers=[self.router])
        server.factory.doStart()
        server.stop()
        self.assertEqual([what for what, _ in self.seen], ["start"])
        server.stop()
        self.assertEqual([what for what, _ in self.seen], ["start", "stop"])

    def test_what_a_start_may_begin(self) -> None:
        """A loop, say: the clock is there, and so are the broadcasts."""

        @self.router.on_start
        def begin(server: Any) -> None:
            def tick() -> None:
                self.seen.append(server.broadcast({"type": "tick"}))

            server.clock.callLater(1, tick)

        server = MemoryServer(routers=[self.router])
        peer = self.peer(server)
        server.advance(1)
        self.assertEqual(self.seen[1:], [1])
        self.assertTypes(peer.receive(), "tick")
        server.stop()

    def test_a_start_that_fails(self) -> None:
        @self.router.on_start
        def fails(server: Any) -> None:
            raise KeyError("no such file")

        error = self.assertRaises(StartFailed, MemoryServer, routers=[self.router])
        self.assertIn("KeyError: 'no such file'", str(error))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual([what for what, _ in self.seen], ["start"])

    def test_a_drain_is_over_before_what_is_left_to_do(self) -> None:
        """And that is told by `settled`."""
        waiting: Deferred[None] = Deferred()
        self.router.on_disconnect(lambda session: waiting)
        server = MemoryServer(routers=[self.router])
        peer = self.peer(server)
        server.stop()
        results: list[str] = []
        server.factory.drain().addCallback(lambda _: results.append("drained"))
        server.advance(2)
        peer.close()
        server.factory.lifecycle.settled().addCallback(lambda _: results.append("settled"))
        self.assertEqual(results, ["drained"])
        waiting.callback(None)
        self.assertEqual(results, ["drained", "settled"])
        self.assertEqual([what for what, _ in self.seen], ["start", "stop"])


class Done(Message, tag="done"):
    """An answer of the application's own."""

    n: int = 0


# What the server sends of its own.
_SENT = {kind.__struct_config__.tag for kind in Answer.__subclasses__()}


def tally(payloads: Iterable[bytes], types: Container[object], rest: str) -> dict[str, tuple[int, int]]:
    """How many payloads there are of each type, and of how many bytes; of all other types, as `rest`."""
    found: dict[str, tuple[int, int]] = {}
    for payload in payloads:
        try:
            kind = json.loads(payload)["type"]
        except (ValueError, TypeError, KeyError):
            kind = None
        kind = kind if kind in types else rest
        count, size = found.get(kind, (0, 0))
        found[kind] = count + 1, size + len(payload)
    return found


class CountingTests(Case):
    """What was received and sent, by type."""

    def setUp(self) -> None:
        super().setUp()
        #: What each client got, of all that it sent what the server is to have handled.
        self.got: dict[Peer, list[bytes]] = {}
        self.put: list[bytes] = []

    def come(self, server: MemoryServer, *messages: object) -> Peer:
        """A client whose messages are counted; it says some."""
        self.memory = server
        peer = server.connect()
        self.got[peer] = []
        if messages:
            self.say(peer, *messages)
        return peer

    def say(self, peer: Peer, *messages: object) -> None:
        """Send messages, or payloads, in one read."""
        payloads = [
            message if isinstance(message, bytes) else json.dumps(message).encode() for message in messages
        ]
        self.put += payloads
        peer.send_payload(*payloads)

    def sent(self) -> dict[str, tuple[int, int]]:
        """By type, as the statistics have it."""
        counts = self.memory.factory.stats.sent_by_type()
        return {kind: each for kind, each in counts.items() if each != (0, 0)}

    def received(self) -> dict[str, tuple[int, int]]:
        counts = self.memory.factory.stats.received_by_type()
        return {kind: each for kind, each in counts.items() if each != (0, 0)}

    def assertSent(self) -> None:
        """What came to all clients is what was counted."""
        for peer, payloads in self.got.items():
            payloads += peer.receive_payloads()
        everything = [payload for payloads in self.got.values() for payload in payloads]
        self.assertEqual(self.sent(), tally(everything, _SENT, "own"))
        self.assertEqual(self.memory.factory.stats.messages_out, len(everything))

    def assertReceived(self) -> None:
        """What the clients sent is what was counted."""
        known = {*self.memory.factory.stats.received_by_type()} - {"other"}
        self.assertEqual(self.received(), tally(self.put, known, "other"))
        stats = self.memory.factory.stats
        self.assertEqual(stats.messages_in, len(self.put))
        self.assertEqual(stats.messages_by_type(), {kind: n for kind, (n, _) in self.received().items()})

    def assertCounted(self) -> None:
        self.assertSent()
        self.assertReceived()

    def test_nothing_yet(self) -> None:
        """All that the protocol has is there from the start, and what the application has."""
        stats = self.server().factory.stats
        for counts, types in (
            (stats.sent_by_type(), {*_SENT, "own"}),
            (stats.received_by_type(), {"auth", "broadcast", "do", "echo", "get_stats", "hello", "other"}),
        ):
            self.assertLessEqual(types, counts.keys())
            self.assertEqual(set(counts.values()), {(0, 0)})

    def test_runs_of_mixed_types(self) -> None:
        self.act = lambda session, message: {"type": "done", "n": message.n} if message.n else None
        ping = {"type": "ping", "timestamp": 1}
        peer = self.come(self.server())
        self.say(peer, ping, ping, {**ping, "id": 7}, echo("a"), echo("bc", id="x"), ping)
        self.assertCounted()
        self.say(peer, echo("on"), do(1), do(0), do(2), {"type": "get_stats"}, ping)
        self.say(peer, {"type": "move"}, b"text", b"[1]", {"no": 1}, {"type": "get_stats"}, {"type": "move"})
        self.assertCounted()
        self.assertEqual(self.received()["other"][0], 5)
        self.assertEqual(self.sent()["own"][0], 2)
        for message in (ping, echo("one"), do(3), b"text", b""):
            self.say(peer, message)
            self.assertCounted()

    def test_errors_within_a_run(self) -> None:
        """Those of handlers, of values, of payloads; and fatal ones."""

        def act(session: Any, message: Do) -> Any:
            if message.n == 1:
                raise Forbidden
            if message.n == 2:
                return Forbidden()
            if message.n == 3:
                raise KeyError
            return BroadcastSent(recipients=message.n)

        self.act = act
        bad = b'{"type":"echo","content":1e999}'
        peer = self.come(self.server())
        self.say(peer, echo("a"), echo("b"), bad, echo("c"), b"{", echo("d"), bad)
        self.assertSent()
        self.say(peer, *map(do, (5, 1, 1, 6, 7, 2, 8, 3, 3, 9)))
        self.assertSent()
        self.say(peer, do(1), do(4))
        self.say(peer, bad, echo("x"), bad)
        self.assertSent()
        self.assertEqual(self.sent()["broadcast_sent"][0], 6)
        self.assertEqual(self.received()["do"][0], 12)
        self.assertEqual(self.received()["echo"][0] + self.received()["other"][0], 10)
        peer.send_bytes(frame(json.dumps(echo("a")).encode()) + b"\xff\xff\xff\xff")
        self.assertTrue(peer.closed)
        self.assertSent()
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_statistics_in_the_midst_of_a_run(self) -> None:
        """They know of the request for them, which may be in the midst of others."""
        peer = self.come(self.server())
        self.say(peer, {"type": "ping"}, {"type": "ping"}, {"type": "get_stats"}, {"type": "get_stats"})
        *_, first, second = peer.receive()
        # What is more of the same is counted at the end of its run.
        self.assertEqual(first["details"]["messages_by_type"], {"ping": 2, "get_stats": 1})
        self.assertEqual(second["details"]["messages_by_type"]["ping"], 2)
        self.assertReceived()

    def test_what_the_application_makes(self) -> None:
        answers: dict[int, Any] = {1: Done(n=1), 2: {"type": "x", "y": "z"}, 3: Echo(content=Raw(b"1"))}
        self.act = lambda session, message: answers.get(message.n)
        peer = self.come(self.server())
        self.say(peer, do(1), do(2), do(2, id=8), do(1), do(0), echo("a"), do(2))
        self.assertCounted()
        self.assertEqual(self.sent()["own"][0], 5)
        # A class that clients send is the application's own, too, when it is sent to them.
        self.say(peer, do(3))
        self.assertEqual((self.sent()["own"][0], self.sent()["echo_response"][0]), (6, 1))

    def test_answers_that_take_a_while(self) -> None:
        """Each is counted when it is made; those that wait behind one that is unfinished, too."""
        waiting: dict[int, Deferred[Any]] = {}

        async def at_once() -> Any:
            return {"type": "done", "n": 10}

        def act(session: Any, message: Do) -> Any:
            if message.n == 10:
                return at_once()
            return waiting.setdefault(message.n, Deferred())

        self.act = act
        server = self.server()
        peer = self.come(server)
        self.say(peer, do(1), echo("a"), echo("b", id=1), do(2), echo("c"), do(10), do(3, id=2), do(4, id=3))
        self.assertEqual(server.factory.stats.sent_by_type()["echo_response"][0], 3)
        waiting[2].callback(Done(n=2))
        waiting[3].errback(Forbidden())
        waiting[1].callback(None)
        self.assertCounted()
        server.advance(31)
        self.assertCounted()
        self.assertEqual((self.sent()["own"][0], self.sent()["error"][0]), (2, 2))

    def test_what_sessions_send(self) -> None:
        """In their own turn, in another's, in none."""
        server = self.server()
        one, other = self.come(server), self.come(server)

        def act(session: Any, message: Do) -> Any:
            for peer in (one, other):
                peer.connection.send({"type": "note", "n": message.n})
                peer.connection.send(Done(n=1))
            return {"type": "done"}

        self.act = act
        self.say(one, echo("a"), do(1), echo("b"), do(2))
        self.assertCounted()
        other.connection.send(Done(n=3))
        other.connection.send(Pong(ping_timestamp=Raw(b"1"), pong_timestamp="", client_id=""))
        self.assertCounted()
        self.assertEqual((self.sent()["own"][0], self.sent()["pong"][0]), (11, 1))

    def test_broadcasts(self) -> None:
        """To all, in bursts; to some; to oneself; whatever the application makes of them."""
        server = self.server(limits=Limits(max_queue=1 << 20))
        one, two, three = (self.come(server) for _ in range(3))

        def act(session: Any, message: Do) -> Any:
            news = {"type": "broadcast", "n": message.n, "long": "x" * 3000}
            session.broadcast(news)
            session.broadcast(news, to=[two.connection, session])
            server.factory.broadcast(news, to=[one.connection, three.connection])
            server.factory.broadcast(news)
            return None

        self.act = act
        self.say(three, {"type": "hello", "compression": ["zlib"]})
        self.say(one, *(cast("a" * length) for length in (1, 5000, 300_000, 10)), echo("a"), cast("b"))
        self.assertCounted()
        self.assertEqual((self.sent()["broadcast"][0], self.sent()["broadcast_sent"][0]), (10, 5))
        self.say(one, do(1), cast("a"), do(2))
        self.say(two, cast("b"), do(3), echo("x"))
        server.factory.broadcast({"type": "broadcast", "n": 4})
        server.factory.broadcast({"type": "broadcast", "n": 4}, to=[])
        self.assertCounted()
        self.assertEqual(server.factory.stats.deliveries, self.sent()["broadcast"][0])

    def test_broadcasts_that_have_no_room(self) -> None:
        """What was not sent is not counted."""
        server = self.server(limits=Limits(max_queue=10_000))
        one, slow = self.come(server), self.come(server)
        slow.stop_reading()
        for _ in range(5):
            self.say(one, cast("a" * 3000))
        self.assertEqual(server.factory.stats.sent_by_type()["broadcast"][0], 3)
        self.assertReceived()

    def test_own_types_that_are_broadcast(self) -> None:
        """The statistics tell them from what is sent to one."""
        server = self.server()
        self.come(server)
        self.come(server)
        server.factory.broadcast(Done(n=1))
        size = len(b'{"type":"done","n":1,"timestamp":"2024-01-01T12:00:00.000Z"}')
        self.assertEqual(self.sent()["broadcast"], (2, 2 * size))
        self.assertNotIn("own", self.sent())

    def test_hello_and_compression(self) -> None:
        """The bytes are those of what was said, and not of what was on the wire."""
        server = self.server()
        peer = self.come(server, {"type": "hello", "compression": ["zlib"], "heartbeat": True})
        self.say(peer, echo("x" * 5000), *[echo("y" * 3000)] * 3, {"type": "hello"})
        self.assertCounted()
        payload = deflate(json.dumps(echo("z" * 5000)).encode())
        peer.send_bytes(frame(payload, compressed=True))
        self.put.append(json.dumps(echo("z" * 5000)).encode())
        self.assertCounted()
        # The look after 25 seconds found that it had said something since.
        server.advance(33)
        self.assertSent()
        self.assertEqual(self.sent()["ping"][0], 1)
        peer.send({"type": "pong"})
        # It stands for our pings' answers alone, and for nothing where there are none.
        self.assertEqual(self.received()["pong"], (1, len(b'{"type": "pong"}')))
        plain = self.come(server, {"type": "hello", "compression": ["br"]})
        plain.send({"type": "pong"})
        self.assertEqual(self.received()["pong"][0], 1)
        self.assertEqual(self.received()["other"][0], 1)
        self.assertSent()

    def test_logins(self) -> None:
        server = self.server(checkers=[Tokens({"ann": "sesame"})])
        peer = self.come(server, {"type": "echo"}, {"type": "ping"})
        for token in ("wrong", "sesame"):
            self.say(peer, {"type": "auth", "mechanism": "token", "token": token}, {"type": "ping"})
            server.advance(1)
        self.assertSent()
        self.assertEqual(self.received()["auth"][0], 2)
        # Who has not logged in has no types but these.
        self.assertEqual((self.received()["ping"][0], self.received()["other"][0]), (3, 1))
        self.assertEqual(self.sent()["auth_result"][0], 2)

    def test_those_that_are_turned_away(self) -> None:
        server = self.server(limits=Limits(max_connections=1))
        self.come(server)
        self.come(server)
        self.assertSent()
        self.assertEqual(self.sent()["error"][0], 1)

    def test_held_in_the_midst_of_a_batch(self) -> None:
        """What is not handled yet is not counted yet, and then once."""
        waiting: list[Deferred[Any]] = []

        def act(session: Any, message: Do) -> Any:
            waiting.append(Deferred())
            return waiting[-1]

        self.act = act
        server = self.server(limits=Limits(max_handlers=1))
        peer = self.come(server)
        payloads = [json.dumps(message).encode() for message in (do(1), do(22), echo("a"), do(333))]
        peer.send_payload(*payloads)
        for handled in (1, 2, 4):
            self.put = payloads[:handled]
            self.assertReceived()
            waiting.pop().callback({"type": "done"})
            server.settle()
        self.assertCounted()
        self.assertEqual(waiting, [])

    def test_more_answers_than_are_sent_at_once(self) -> None:
        """The socket is tried in the midst of a run."""
        server = self.server()
        peer = self.come(server)
        self.say(
            peer, *(echo(f"{n}" * 20_000) for n in range(9)), {"type": "ping"}, *[echo("z" * 70_000)] * 3
        )
        self.assertCounted()
        self.act = lambda session, message: session.send({"type": "n", "x": "y" * 50_000})
        self.say(peer, do(), echo("a"), do(), do())
        self.assertCounted()

    def test_held_by_its_answers(self) -> None:
        """One who does not read; the rest is handled, and counted, when it does."""
        server = self.server()
        peer = self.come(server)
        peer.stop_reading()
        messages = [json.dumps(echo(f"{n}" * 30_000)).encode() for n in range(9)]
        peer.send_payload(*messages)
        count, size = server.factory.stats.received_by_type()["echo"]
        self.assertEqual((count, size), (3, sum(map(len, messages[:3]))))
        self.put = messages
        peer.start_reading()
        self.assertCounted()

    def test_over_the_rate(self) -> None:
        """What waits for its turn is counted when that has come."""
        server = self.server(limits=Limits(messages_per_second=1, message_burst=2))
        peer = self.come(server)
        pings = [b'{"type":"ping"}', b'{"type":"ping","id":1}', b'{"type":"ping","id":22}']
        peer.send_payload(*pings)
        self.put = pings[:2]
        self.assertCounted()
        server.advance(1.5)
        self.put = pings
        self.assertCounted()

    def test_the_handler_closes(self) -> None:
        server = self.server()
        self.act = lambda session, message: [session.close()] and {"type": "done"}
        peer = self.come(server)
        peer.send(echo("a"), do(), echo("b"))
        self.put = [json.dumps(message).encode() for message in (echo("a"), do())]
        self.assertCounted()


class Wrong(Exception):
    """What an application raises."""


class Watched:
    """Something of which can be told that nobody has it any more."""


class Kept(Message, tag="kept"):
    """A class that fails, and whose faults can be watched."""

    content: str = ""

    def __post_init__(self) -> None:
        raise watched(Wrong())


_watched: list[weakref.ref[Any]] = []


def watched(thing: Any) -> Any:
    """The thing itself."""
    _watched.append(weakref.ref(thing))
    return thing


class KeepingTests(Case):
    """What an application keeps, and what is let go of at once."""

    def setUp(self) -> None:
        super().setUp()
        # Those who read a log may keep what is in it.
        nobody: Any = lambda event: None  # noqa: E731  # typed as no function can be
        for module in (connection, exchange, lifecycle, server_module):
            self.patch(module, "log", Logger(observer=nobody))

    def test_sessions_that_are_kept(self) -> None:
        """They hold no buffers."""
        kept: list[Any] = []
        router = Router()
        router.on_disconnect(kept.append)
        router.add(Do, lambda session, message: Deferred())
        server = MemoryServer(routers=[router], limits=Limits(max_handlers=2))
        self.addCleanup(server.stop)
        long = "x" * 100_000
        for number in range(4):
            peer = self.peer(server)
            peer.stop_reading()
            peer.send(*(do(n) for n in range(3)))
            peer.send(*(echo(long) for _ in range(5)))
            peer.send_bytes(frame(json.dumps(echo(long)).encode())[:-1])
            peer.connection.send({"type": "n", "x": long})
            if number % 2:
                peer.connection.close()
            peer.close()
            # What was between them is the test's own.
            peer.connection.transport = None
        self.assertEqual(len(kept), 4)
        del peer
        sizes = [sizes_of(session, stop=server.factory) for session in kept]
        self.assertLess(max(sizes), 20_000)

    def let_go(self, act: Callable[[], None]) -> None:
        """All that is watched is gone when this is done, and not only when the collector has come by."""
        _watched.clear()
        gc.collect()
        gc.disable()
        try:
            act()
            self.assertEqual({ref() for ref in _watched}, {None})
        finally:
            gc.enable()

    def test_hooks_and_middleware(self) -> None:
        """What they had in hand is let go of with them, whatever comes of them."""

        def fails(kind: str) -> None:
            _here = watched(Watched())
            if kind != "none":
                raise {"refuses": Forbidden, "fails": Wrong}[kind]

        async def waits(kind: str) -> None:
            await succeed(None)
            fails(kind)

        for kind in ("none", "refuses", "fails"):
            for function in (fails, waits):
                for place in ("on_connect", "on_disconnect", "middleware", "handler"):
                    router = Router()

                    def hook(*_: object, function: Any = function, kind: str = kind) -> Any:
                        return function(kind)

                    if place == "handler":
                        router.add(Do, hook)
                    else:
                        getattr(router, place)(hook)
                    server = MemoryServer(routers=[router])

                    def act(server: MemoryServer = server) -> None:
                        peer = server.connect()
                        peer.send(do())
                        peer.close()

                    # The first is logged at once; of the others the log is told later.
                    for _ in range(3):
                        self.let_go(act)
                        self.assertEqual(len(_watched), 1)
                    server.stop()

    def test_faults_of_classes(self) -> None:
        """They know of the whole read: what is long must not wait for the collector."""
        router = Router()
        router.add(Kept, lambda session, message: None)
        server = MemoryServer(routers=[router])
        self.addCleanup(server.stop)
        peer = self.peer(server)
        for _ in range(3):
            self.let_go(lambda: peer.send({"type": "kept", "id": 7}, {"type": "ping"}))
            self.assertEqual(len(_watched), 1)
            error, pong = peer.receive()
            self.assertEqual((error["code"], error["id"], pong["type"]), ("internal", 7, "pong"))


def sizes_of(start: object, stop: object) -> int:
    """The bytes of all that an object leads to, but not through the server or through code."""
    seen: set[int] = {id(stop)}
    todo = [start]
    total = 0
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType, Clock)):
            continue
        seen.add(id(thing))
        total += sys.getsizeof(thing)
        todo += gc.get_referents(thing)
    return total
