"""The kit for tests, as the tests of applications use it."""

from __future__ import annotations

import ast
import os
import re
import textwrap
from pathlib import Path
from typing import Any

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

import tcpjson.testing
from tcpjson import Limits, Message, Router
from tcpjson.auth import VerifierChecker
from tcpjson.client import Client, Pool
from tcpjson.core.errors import (
    AuthenticationFailed,
    Disconnected,
    Internal,
    QueueFull,
    RequestTimeout,
    TooLarge,
    UnknownType,
)
from tcpjson.core.framing import FrameTooLong, frame
from tcpjson.credentials import Password
from tcpjson.testing import START, MemoryClient, MemoryServer, Peer, Wire
from tcpjson.timestamps import format_timestamp
from tcpjson.verifiers import Verifier


class Move(Message, tag="move"):
    x: int


class Case(SynchronousTestCase):
    def server(self, **options: Any) -> MemoryServer:
        server = MemoryServer(**options)
        self.addCleanup(server.stop)
        return server


class ServerTests(Case):
    def test_the_example(self) -> None:
        """That of the module's docstring."""
        server = self.server()
        peer = server.connect()
        self.assertEqual([message["type"] for message in peer.receive()], ["welcome"])
        peer.send({"type": "ping"})
        self.assertEqual([message["type"] for message in peer.receive()], ["pong"])
        server.advance(31)
        self.assertFalse(peer.closed)

    def test_the_time_of_day(self) -> None:
        self.assertEqual(format_timestamp(START), "2024-01-01T12:00:00.000Z")
        server = self.server()
        server.advance(86400)
        self.assertEqual(server.connect().receive()[0]["timestamp"], "2024-01-02T12:00:00.000Z")

    def test_options(self) -> None:
        router = Router()

        @router.handler
        def move(session: Any, message: Move) -> Any:
            return {"type": "moved", "x": message.x}

        peer = self.server(limits=Limits(max_length=500), routers=[router], strict=True).connect()
        self.assertEqual(peer.receive()[0]["max_length"], 500)
        peer.send({"type": "move", "x": 3}, {"type": "nobody"})
        moved, error = peer.receive()
        self.assertEqual((moved["x"], error["code"]), (3, "unknown_type"))

    def test_a_router_in_place_of_a_list(self) -> None:
        one: Any = Router()
        self.assertRaisesRegex(TypeError, "given as a list", self.server, routers=one)

    def test_checkers(self) -> None:
        """With any, clients must authenticate; what they send is taken as it comes."""
        server = self.server(checkers=[InMemoryUsernamePasswordDatabaseDontUse(ann=b"secret")])
        peer = server.connect()
        self.assertEqual(peer.receive()[0]["auth"], ["plain"])
        peer.send({"type": "auth", "mechanism": "plain", "username": "ann", "password": "wrong"})
        self.assertEqual(peer.receive()[0]["status"], "authentication_failed")
        self.assertEqual(server.factory.clients, set())
        peer.send({"type": "auth", "mechanism": "plain", "username": "ann", "password": "secret"})
        # An address that failed waits a little.
        server.advance(0.25)
        self.assertEqual([result["user"] for result in peer.receive()], ["ann"])
        self.assertEqual(server.factory.clients, {peer.connection})

    def test_no_checkers(self) -> None:
        self.assertEqual(self.server().connect().receive()[0]["auth"], [])

    def test_a_shutdown_in_order(self) -> None:
        """Clients are told to come back in the same order each time: nothing is left to chance."""
        server = self.server()
        peers = [server.connect() for _ in range(3)]
        drained = server.factory.drain()
        times = {id(peer.connection): peer.receive()[1]["retry_after"] for peer in peers}
        told = [times[id(connection)] for connection in server.factory.connections]
        self.assertEqual(told, sorted(told))
        for peer in peers:
            peer.close()
        self.assertIsNone(self.successResultOf(drained))

    def test_each_peer_has_an_address(self) -> None:
        server = self.server()
        names = [server.connect().receive()[0]["client_id"] for _ in range(3)]
        self.assertEqual(names, ["127.0.0.1:50000", "127.0.0.1:50001", "127.0.0.1:50002"])
        self.assertEqual({client.client_id for client in server.factory.clients}, set(names))

    def test_timers_that_set_timers(self) -> None:
        """All that a minute holds happens in it, at its time."""
        server = self.server()
        times: list[float] = []

        def again() -> None:
            times.append(round(server.clock.seconds()))
            server.clock.callLater(10, again)

        server.clock.callLater(10, again)
        server.advance(61)
        self.assertEqual(times, [10, 20, 30, 40, 50, 60])
        self.assertAlmostEqual(server.clock.seconds(), 61)

    def test_stop(self) -> None:
        server = MemoryServer()
        server.stop()
        self.assertEqual(server.clock.getDelayedCalls(), [])


class PeerTests(Case):
    def peer(self, **options: Any) -> Peer:
        self.memory = self.server(**options)
        peer = self.memory.connect()
        peer.receive()
        return peer

    def test_sending(self) -> None:
        """Bytes, payloads and values; the last two in one read each."""
        peer = self.peer()
        peer.send_bytes(frame(b"one")[:5])
        peer.send_bytes(frame(b"one")[5:])
        peer.send_payload(b"two", b"three")
        peer.send("four", ["\xe9"])
        self.assertEqual(
            [answer["original_text"] for answer in peer.receive()], ["one", "two", "three", "four", ["\xe9"]]
        )
        self.assertEqual(peer.connection.messages_in, 5)

    def test_nothing_to_receive(self) -> None:
        peer = self.peer()
        self.assertEqual((peer.receive(), peer.receive_payloads()), ([], []))

    def test_receive_payloads(self) -> None:
        peer = self.peer()
        peer.send({"type": "echo", "content": 1, "id": 5})
        [payload] = peer.receive_payloads()
        self.assertTrue(payload.startswith(b'{"type":"echo_response"'))

    def test_compression(self) -> None:
        """What is compressed is read as what it is, from the `hello_response` on, in one go or in two."""
        hello: dict[str, object] = {"type": "hello", "compression": ["zlib"]}
        long: dict[str, object] = {"type": "echo", "content": "x" * 5000}
        for messages in ([[hello, long, long]], [[hello], [long, long]]):
            peer = self.peer()
            received = []
            for some in messages:
                peer.send(*some)
                self.assertLess(len(peer.transport.value()), 1000)
                received += peer.receive()
            self.assertEqual(
                [message["type"] for message in received], ["hello_response"] + 2 * ["echo_response"]
            )
            self.assertEqual(
                {message.get("content", long["content"]) for message in received}, {long["content"]}
            )

    def test_what_only_looks_like_an_agreement(self) -> None:
        peer = self.server().connect()
        peer.send({"type": "echo", "content": "hello_response"})
        self.assertEqual([message["type"] for message in peer.receive()], ["welcome", "echo_response"])

    def test_compression_that_was_not_agreed_on(self) -> None:
        """A word in a message is no agreement."""
        peer = self.peer(compress_over=None)
        peer.send({"type": "hello", "compression": ["zlib"]})
        self.assertIsNone(peer.receive()[0]["compression"])
        peer.send({"type": "echo", "content": {"type": "hello_response", "compression": "zlib"}})
        peer.receive()
        peer.transport.write(b"\x80\0\0\1x")
        self.assertRaises(FrameTooLong, peer.receive)

    def test_what_is_over_what_is_compressed(self) -> None:
        peer = self.peer(compress_over=200)
        peer.send({"type": "hello", "compression": ["zlib"]}, {"type": "echo", "content": "x" * 300})
        self.assertLess(len(peer.transport.value()), 400)
        self.assertEqual(peer.receive()[1]["content"], "x" * 300)

    def test_more_than_a_turn(self) -> None:
        """What takes several turns of the reactor is done when `send` returns."""
        peer = self.peer()
        peer.send(*({"type": "echo", "content": number} for number in range(3000)))
        self.assertEqual([answer["content"] for answer in peer.receive()], list(range(3000)))

    def test_stop_reading(self) -> None:
        peer = self.peer()
        peer.stop_reading()
        peer.send({"type": "ping"})
        self.assertEqual(peer.receive(), [])
        peer.start_reading()
        self.assertEqual([message["type"] for message in peer.receive()], ["pong"])

    def test_closed_by_the_server(self) -> None:
        peer = self.peer()
        self.assertFalse(peer.closed)
        peer.send_bytes(b"\xff\xff\xff\xff")
        self.assertEqual((peer.closed, peer.aborted), (True, False))
        self.memory.advance(3)
        self.assertEqual((peer.closed, peer.aborted), (True, True))
        # What was sent before can still be received.
        self.assertEqual(peer.receive()[0]["code"], "too_large")

    def test_stop_reading_after_the_end(self) -> None:
        """A peer may stop, and go on, whatever the server did meanwhile."""
        peer = self.peer()
        peer.send_bytes(b"\xff\xff\xff\xff")
        peer.stop_reading()
        peer.start_reading()
        self.assertEqual(peer.receive()[0]["code"], "too_large")

    def test_close(self) -> None:
        peer, other = self.peer(), self.memory.connect()
        peer.close()
        other.reset()
        self.assertEqual(self.memory.factory.clients, set())
        self.assertEqual(self.memory.factory.stats.disconnects, {"client_closed": 1, "connection_lost": 1})

    def test_close_runs_what_it_causes(self) -> None:
        router = Router()
        cancelled: list[bool] = []

        @router.handler
        def move(session: Any, message: Move) -> Any:
            def cancel(_: object) -> None:
                self.memory.clock.callLater(0, cancelled.append, True)

            return Deferred(cancel)

        peer = self.peer(routers=[router])
        peer.send({"type": "move", "x": 1})
        peer.close()
        self.assertEqual(cancelled, [True])


class ExampleTests(SynchronousTestCase):
    def test_what_the_docstring_shows(self) -> None:
        """It runs, and each line whose comment is a value comes to that."""
        assert tcpjson.testing.__doc__ is not None
        blocks = re.findall(r"(?:^ {4}.*\n)+", tcpjson.testing.__doc__, re.MULTILINE)
        self.assertEqual(len(blocks), 2)
        compared = 0
        for block in blocks:
            names = dict(vars(tcpjson.testing))
            for line in textwrap.dedent(block).splitlines():
                code, _, comment = line.partition("  # ")
                try:
                    value = eval(code, names)
                except SyntaxError:
                    exec(code, names)
                    continue
                if comment.lstrip().startswith(("[", "{", '"', "True", "False")):
                    self.like(value, ast.literal_eval(comment.replace(", ...", "")))
                    compared += 1
        self.assertEqual(compared, 7)

    def like(self, value: Any, expected: Any) -> None:
        """See that all that is expected is there."""
        if isinstance(expected, list):
            self.assertEqual(len(value), len(expected))
            for one, other in zip(value, expected, strict=True):
                self.like(one, other)
        elif isinstance(expected, dict):
            self.assertEqual({**value, **expected}, value)
        else:
            self.assertEqual(value, expected)


class ResultTests(Case):
    """`MemoryServer.result`."""

    def test_a_deferred(self) -> None:
        server = self.server()
        self.assertEqual(server.result(succeed(3)), 3)
        self.assertEqual(server.result(deferLater(server.clock, 0, lambda: 4)), 4)
        self.assertIsNone(server.result(succeed(None)))

    def test_a_coroutine(self) -> None:
        server = self.server()
        client = server.client()

        async def main() -> float:
            async with client:
                await client.echo("x")
                return await client.ping()

        self.assertEqual(server.result(main()), 0)
        self.assertFalse(client.connected)

    def test_a_failure(self) -> None:
        server = self.server()
        failed: Deferred[int] = Deferred()
        failed.errback(ZeroDivisionError("twice"))
        self.assertRaisesRegex(ZeroDivisionError, "twice", server.result, failed)

    def test_what_takes_time(self) -> None:
        server = self.server()
        self.assertEqual(server.result(deferLater(server.clock, 2, lambda: 5), within=2), 5)
        self.assertEqual(server.clock.seconds(), 2)
        # No longer than it takes.
        server.result(deferLater(server.clock, 0.5, lambda: 5), within=100)
        self.assertEqual(server.clock.seconds(), 2.5)

    def test_what_takes_too_long(self) -> None:
        server = self.server()
        with self.assertRaisesRegex(AssertionError, "^no result within 0 seconds$"):
            server.result(deferLater(server.clock, 0.1, lambda: 5))
        self.assertEqual(server.clock.seconds(), 0)
        with self.assertRaisesRegex(AssertionError, "^no result within 0.3 seconds$"):
            server.result(deferLater(server.clock, 1, lambda: 5), within=0.3)
        self.assertAlmostEqual(server.clock.seconds(), 0.3)


class ClientTests(Case):
    """`MemoryServer.client`, as those use it who test their own."""

    def client(self, server: MemoryServer, **options: Any) -> MemoryClient:
        """A client that is connected."""
        client = server.client(**options)
        server.result(client.connect())
        return client

    def test_it_is_the_client(self) -> None:
        server = self.server()
        client = server.client()
        self.assertIsInstance(client, Client)
        server.settle()
        self.assertFalse(client.connected)
        self.assertEqual(server.result(client.connect())["client_id"], "127.0.0.1:50000")
        self.assertTrue(client.connected)
        self.assertEqual(server.result(client.stats())["connected_clients"], 1)
        self.assertEqual(server.result(client.ping()), 0)
        self.assertEqual(client.compression, "zlib")
        self.assertEqual(server.result(client.echo("x" * 500_000)), "x" * 500_000)

    def test_own_handlers(self) -> None:
        router = Router()

        @router.handler
        def move(session: Any, message: Move) -> Any:
            if message.x < 0:
                raise ZeroDivisionError
            return {"type": "moved", "x": message.x + 1}

        server = self.server(routers=[router], strict=True, limits=Limits(max_length=1000))
        client = self.client(server)
        self.assertEqual(server.result(client.request("move", x=3))["x"], 4)
        self.assertRaises(UnknownType, server.result, client.request("nobody"))
        self.assertRaises(TooLarge, server.result, client.echo("x" * 1000))
        self.assertRaises(Internal, server.result, client.request("move", x=-1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_slow_handlers(self) -> None:
        router = Router()

        @router.handler
        async def move(session: Any, message: Move) -> Any:
            await deferLater(server.clock, message.x, lambda: None)
            return {"type": "moved", "x": message.x}

        server = self.server(routers=[router])
        client = self.client(server, timeout=5)
        slow, quick = client.request("move", x=3), client.request("move", x=1)
        self.assertEqual(server.result(quick, within=1)["x"], 1)
        self.assertNoResult(slow)
        self.assertEqual(server.result(slow, within=2)["x"], 3)
        self.assertRaises(RequestTimeout, server.result, client.request("move", x=6), 5)

    def test_clients_and_peers(self) -> None:
        """They hear each other."""
        server = self.server()
        heard: list[Any] = []
        self.client(server, on_message=heard.append)
        other = self.client(server)
        peer = server.connect()
        peer.receive()
        self.assertEqual(server.result(other.broadcast("one")), 2)
        self.assertEqual([message["content"] for message in peer.receive()], ["one"])
        peer.send({"type": "broadcast", "content": "two"})
        self.assertEqual([message["content"] for message in heard], ["one", "two"])
        self.assertEqual([message["from_client"][-2:] for message in heard], ["01", "02"])

    def verifiers(self) -> VerifierChecker:
        path = Path(self.mktemp())
        path.write_text(f"ann:{Verifier.make('secret', 4096, os.urandom).format()}\n")
        path.chmod(0o600)
        return VerifierChecker(str(path))

    def test_logins(self) -> None:
        """Also the slow step of SCRAM is done at once."""
        for checker, password in (
            (self.verifiers(), Password("ann", "secret")),
            (
                InMemoryUsernamePasswordDatabaseDontUse(ann=b"secret"),
                Password("ann", "secret", allow_plain=True),
            ),
        ):
            server = self.server(checkers=[checker])
            client = self.client(server, credentials=password)
            self.assertEqual(client.user, "ann")
            failed: list[Exception] = []
            wrong = Password("ann", "wrong", allow_plain=True)
            other = server.client(credentials=wrong, on_failure=failed.append)
            self.assertRaises(AuthenticationFailed, server.result, other.connect(), 3)
            self.assertEqual(len(failed), 1)
            self.assertRaises(AuthenticationFailed, server.result, server.client().connect())

    def test_cut_while_a_password_is_hashed(self) -> None:
        """It is no failed login: the next connection may be a better one."""
        server = self.server(checkers=[self.verifiers()])
        steps: list[Any] = []

        def run(step: Any) -> Deferred[Any]:
            steps.append(step)
            return Deferred() if len(steps) == 1 else succeed(step())

        client = server.client(run=run, credentials=Password("ann", "secret"))
        connected = client.connect()
        server.settle()
        self.assertEqual(len(steps), 1)
        client.wire.cut()
        server.advance(1)
        self.assertEqual(server.result(connected)["client_id"], "127.0.0.1:50001")
        self.assertEqual((client.user, len(steps)), ("ann", 2))

    def test_a_cut(self) -> None:
        """Both ends lose the connection, and the client makes another one."""
        server = self.server()
        told: list[Any] = []
        client = self.client(
            server,
            on_connect=lambda welcome: told.append(welcome["client_id"]),
            on_disconnect=lambda error: told.append(type(error)),
            on_retry=lambda error, seconds: told.append(seconds),
        )
        waiting = client.echo("x")
        client.wire.cut()
        self.assertRaises(Disconnected, server.result, waiting)
        self.assertEqual(server.factory.clients, set())
        self.assertEqual(server.factory.stats.disconnects, {"connection_lost": 1})
        server.advance(0.125)
        self.assertFalse(client.connected)
        server.advance(0.125)
        self.assertTrue(client.connected)
        self.assertEqual(told, ["127.0.0.1:50000", Disconnected, 0.25, "127.0.0.1:50001"])

    def test_the_waits_can_be_chosen(self) -> None:
        server = self.server()
        seconds: list[float] = []
        client = self.client(server, random=lambda: 0.25, on_retry=lambda error, wait: seconds.append(wait))
        client.wire.cut()
        self.assertEqual(seconds, [0.125])

    def test_a_server_that_refuses(self) -> None:
        server = self.server()
        errors: list[str] = []
        client = server.client(on_retry=lambda error, seconds: errors.append(str(error)))
        client.wire.refuses = True
        connected = client.connect(timeout=None)
        server.advance(2)
        self.assertNoResult(connected)
        self.assertEqual(len(errors), 4)
        self.assertIn("refused", errors[0])
        client.wire.refuses = False
        self.assertEqual(server.result(connected, within=3)["type"], "welcome")

    def test_a_server_that_stops(self) -> None:
        server = self.server()
        client = self.client(server)
        drained = server.factory.drain()
        server.advance(20)
        self.assertIsNone(server.result(drained))
        self.assertEqual(server.factory.stats.connections, 1)
        self.assertFalse(client.connected)
        self.assertIn("refused", str(client.error))
        server = MemoryServer()
        server.stop()
        self.assertRaises(ConnectionRefusedError, server.result, server.wire().connect(Factory()))

    def test_a_stall(self) -> None:
        """Neither end hears of the other, and each finds that out by itself."""
        server = self.server()
        client = self.client(server, timeout=2)
        client.wire.stall()
        self.assertTrue(client.wire.stalled)
        lost = client.echo("lost")
        self.assertRaises(RequestTimeout, server.result, lost, 2)
        [connection] = client.wire.connections
        self.assertEqual(connection.messages_in, 1)
        client.wire.go_on()
        self.assertEqual(connection.messages_in, 2)
        self.assertEqual(server.result(client.echo("x")), "x")
        client.wire.stall()
        server.advance(45)
        self.assertEqual(server.factory.stats.disconnects, {"heartbeat_timeout": 1})
        self.assertTrue(client.connected)
        # It connects again, and gets no welcome.
        server.advance(40)
        self.assertFalse(client.connected)
        self.assertGreater(server.factory.stats.connections, 1)
        client.wire.go_on()
        server.advance(40)
        self.assertTrue(client.connected)

    def test_more_than_fits(self) -> None:
        """Who writes into a stall is asked to pause, and goes on when it is over."""
        server = self.server()
        client = self.client(server, max_queue=10**6, compress=False, timeout=100)
        client.wire.stall()
        replies = [client.echo("x" * 200_000) for _ in range(4)]
        server.settle()
        self.assertRaises(QueueFull, server.result, client.echo("x" * 800_000))
        client.wire.go_on()
        for reply in replies:
            self.assertEqual(server.result(reply), "x" * 200_000)

    def test_a_slow_reader(self) -> None:
        """A server that is paused by a peer's answers takes nothing more of it."""
        server = self.server()
        client = self.client(server)
        [connection] = client.wire.connections
        connection.pauseProducing()
        reply = client.echo("x")
        server.advance(1)
        self.assertNoResult(reply)
        connection.resumeProducing()
        self.assertEqual(server.result(reply), "x")

    def test_close(self) -> None:
        """In order, at both ends, and nothing is left behind."""
        server = self.server()
        client = self.client(server)
        client.send({"type": "broadcast", "content": "last"})
        peer = server.connect()
        self.assertIsNone(server.result(client.close()))
        self.assertEqual(client.wire.connections, [])
        self.assertEqual([message["type"] for message in peer.receive()], ["welcome", "broadcast"])
        self.assertEqual(server.factory.stats.disconnects, {"client_closed": 1})
        peer.close()
        server.advance(60)
        server.stop()
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_close_in_a_stall(self) -> None:
        """The client gives up after its two seconds, and the server hears of it later."""
        server = self.server()
        client = self.client(server)
        client.wire.stall()
        closed = client.close()
        server.advance(1.875)
        self.assertNoResult(closed)
        server.result(closed, within=0.125)
        self.assertEqual(len(client.wire.connections), 1)
        client.wire.go_on()
        self.assertEqual(client.wire.connections, [])
        self.assertEqual(server.factory.stats.disconnects, {"connection_lost": 1})

    def test_ended_by_the_server(self) -> None:
        """What it said before is heard."""
        server = self.server()
        heard: list[Any] = []
        client = self.client(server, on_message=heard.append)
        [connection] = client.wire.connections
        reply = client.request({"type": "x", "content": "y" * 5000})
        connection.transport.write(frame(b'{"type":"last"}'))
        connection.end()
        server.settle()
        self.assertRaises(Disconnected, server.result, reply)
        self.assertEqual([message["type"] for message in heard], ["last"])
        self.assertEqual(client.wire.connections, [])
        server.advance(1)
        self.assertTrue(client.connected)

    def test_aborted_by_the_server(self) -> None:
        server = self.server()
        client = self.client(server)
        [connection] = client.wire.connections
        connection.transport.write(frame(b'{"type":"last"}'))
        connection.transport.abortConnection()
        server.settle()
        self.assertFalse(client.connected)
        self.assertEqual(str(client.error), "the connection was lost")

    def test_a_handler_that_cuts(self) -> None:
        """What happens on the wire may happen anywhere."""
        router = Router()

        @router.handler
        def move(session: Any, message: Move) -> Any:
            client.wire.cut()
            self.assertTrue(client.connected)

        server = self.server(routers=[router])
        client: MemoryClient = self.client(server)
        self.assertRaises(Disconnected, server.result, client.request("move", x=1))

    def test_twice_the_same(self) -> None:
        """A test gives the same each time: nothing is left to chance."""
        traces: list[list[Any]] = []
        for _ in range(2):
            trace: list[Any] = []
            server = self.server(checkers=[InMemoryUsernamePasswordDatabaseDontUse(ann=b"x")])

            def shown(direction: str, payloads: Any, trace: list[Any] = trace) -> None:
                trace.append((direction, list(payloads)))

            clients = [
                self.client(server, credentials=Password("ann", "x", allow_plain=True), trace=shown)
                for _ in range(12)
            ]
            for client in clients:
                client.send({"type": "broadcast", "content": trace[0][0]})
            server.settle()
            clients[1].wire.cut()
            server.advance(30)
            traces.append(trace)
        self.assertEqual(traces[0], traces[1])
        self.assertGreater(len(traces[0]), 50)

    def test_a_pool(self) -> None:
        server = self.server()
        wires = [server.wire(), server.wire()]
        pool = Pool(server.clock, wires, size=2, random=lambda: 0.5)
        server.result(pool.connect(4))
        self.assertEqual(len(server.factory.clients), 4)
        wires[0].refuses = True
        wires[0].cut()
        self.assertEqual((pool.connected, len(wires[1].connections)), (2, 2))

        async def main() -> Any:
            async with pool.client() as client:
                return await client.echo("x")

        self.assertEqual(server.result(main()), "x")
        server.result(pool.close())


class Recorder(Protocol):
    """Notes what happens to it; knows nothing of sides that close by themselves."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def dataReceived(self, data: bytes) -> None:
        self.events.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.events.append(reason.type)


@implementer(IHalfCloseableProtocol)
class HalfCloser(Recorder):
    """One that knows of sides."""

    def readConnectionLost(self) -> None:
        self.events.append("end")

    def writeConnectionLost(self) -> None:
        """Nothing of ours closes one side."""


class Feeder:
    """A producer that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def pauseProducing(self) -> None:
        self.asked.append("pause")

    def resumeProducing(self) -> None:
        self.asked.append("resume")

    def stopProducing(self) -> None:
        self.asked.append("stop")


class WireTests(Case):
    """The transport, as any protocol sees it."""

    def setUp(self) -> None:
        self.memory = self.server()
        self.wire = self.memory.wire()

    def recorder(self, wire: Wire | None = None, kind: type[Recorder] = Recorder) -> Any:
        """A protocol that is connected, and was welcomed."""
        protocol = self.memory.result((wire or self.wire).connect(Factory.forProtocol(kind)))
        [welcome] = protocol.events
        self.assertIn(b'"welcome"', welcome)
        protocol.events.clear()
        return protocol

    def test_addresses(self) -> None:
        transport = self.recorder().transport
        self.assertEqual((transport.getHost().host, transport.getHost().port), ("127.0.0.1", 50000))
        self.assertEqual((transport.getPeer().host, transport.getPeer().port), ("127.0.0.1", 9999))
        [connection] = self.wire.connections
        self.assertEqual(connection.client_id, "127.0.0.1:50000")
        self.assertEqual(connection.transport.getHost(), transport.getPeer())

    def test_writing(self) -> None:
        protocol = self.recorder()
        [connection] = self.wire.connections
        ping = frame(b'{"type":"ping"}')
        protocol.transport.writeSequence([ping[:6], ping[6:]])
        protocol.transport.write(b"")
        # Nothing is delivered before whoever wrote has returned.
        self.assertEqual(connection.messages_in, 0)
        self.memory.settle()
        self.assertEqual(connection.messages_in, 1)
        [pong] = protocol.events
        self.assertIn(b'"pong"', pong)
        # Who has no producer may write as much as it likes.
        protocol.transport.write(frame(b"x" * 200_000))
        self.memory.settle()
        self.assertEqual(connection.messages_in, 2)

    def test_no_more_than_a_read(self) -> None:
        protocol = self.recorder()
        [connection] = self.wire.connections
        connection.transport.write(b"x" * 150_000)
        self.assertEqual(protocol.events, [])
        self.memory.settle()
        self.assertEqual([len(data) for data in protocol.events], [65536, 65536, 18928])

    def test_paused(self) -> None:
        """Neither bytes nor the end come to one that is paused."""
        protocol = self.recorder()
        [connection] = self.wire.connections
        protocol.transport.pauseProducing()
        connection.transport.write(b"x")
        connection.transport.loseConnection()
        self.memory.settle()
        self.assertEqual((protocol.events, len(self.wire.connections)), ([], 1))
        protocol.transport.resumeProducing()
        self.memory.settle()
        self.assertEqual(protocol.events, [b"x", ConnectionDone])
        self.assertEqual(self.wire.connections, [])

    def test_half_closed(self) -> None:
        """One that knows of sides is told of the end once, and not behind its own."""
        protocol = self.recorder(kind=HalfCloser)
        [connection] = self.wire.connections
        connection.transport.loseConnection()
        self.memory.settle()
        self.assertEqual(self.wire.connections, [])
        for _ in range(2):
            protocol.transport.resumeProducing()
            self.memory.settle()
            self.assertEqual(protocol.events, ["end"])
        protocol.transport.write(b"x")
        protocol.transport.loseConnection()
        self.memory.settle()
        self.assertEqual(protocol.events, ["end", ConnectionDone])
        protocol = self.recorder(kind=HalfCloser)
        protocol.transport.loseConnection()
        self.memory.settle()
        self.assertEqual(protocol.events, [ConnectionDone])

    def test_the_other_end_takes_its_time(self) -> None:
        """It is not cut short by one that has gone in order."""
        protocol = self.recorder(kind=HalfCloser)
        self.wire.connections[0].transport.loseConnection()
        self.memory.settle()
        other = protocol.transport.other
        other.abortConnection()
        self.memory.settle()
        self.assertEqual(protocol.events, ["end"])
        protocol.transport.abortConnection()
        self.memory.settle()
        self.assertEqual(protocol.events, ["end", ConnectionAborted])

    def test_closed_while_paused(self) -> None:
        """Whoever is gone holds nobody up."""
        protocol = self.recorder()
        protocol.transport.pauseProducing()
        protocol.transport.loseConnection()
        self.memory.settle()
        self.assertEqual(protocol.events, [ConnectionDone])
        self.assertEqual(self.wire.connections, [])

    def test_lose_connection(self) -> None:
        """What was written before arrives, what is written behind it does not."""
        for close in ("loseConnection", "stopProducing"):
            protocol = self.recorder()
            [connection] = self.wire.connections
            protocol.transport.write(frame(b'{"type":"ping"}'))
            getattr(protocol.transport, close)()
            protocol.transport.write(frame(b'{"type":"ping"}'))
            self.assertTrue(protocol.transport.disconnecting)
            self.memory.settle()
            self.assertEqual(connection.messages_in, 1)
            self.assertEqual(protocol.events, [ConnectionDone])
            # It is gone: nothing follows, and nothing is kept.
            protocol.transport.write(b"x" * 100_000)
            self.assertEqual(len(protocol.transport._data), 0)
            protocol.transport.loseConnection()
            protocol.transport.abortConnection()
            self.memory.advance(5)
            self.assertEqual(protocol.events, [ConnectionDone])
            self.assertEqual(self.wire.connections, [])

    def test_abort(self) -> None:
        """At once, whatever is on its way; but not before the caller has returned."""
        protocol = self.recorder()
        protocol.transport.write(frame(b'{"type":"ping"}'))
        [connection] = self.wire.connections
        protocol.transport.abortConnection()
        protocol.transport.abortConnection()
        self.assertEqual(protocol.events, [])
        self.memory.settle()
        self.assertEqual(protocol.events, [ConnectionAborted])
        self.assertEqual((connection.messages_in, self.wire.connections), (0, []))
        self.assertEqual(self.memory.factory.stats.disconnects, {"connection_lost": 1})

    def test_abort_of_one_that_closes(self) -> None:
        protocol = self.recorder()
        self.wire.connections[0].pauseProducing()
        protocol.transport.loseConnection()
        self.memory.settle()
        self.assertEqual(protocol.events, [])
        protocol.transport.abortConnection()
        self.memory.settle()
        self.assertEqual(protocol.events, [ConnectionAborted])

    def test_the_server_closes(self) -> None:
        protocol = self.recorder()
        protocol.transport.write(b"\xff\xff\xff\xff")
        self.memory.settle()
        error, end = protocol.events
        self.assertIn(b'"too_large"', error)
        self.assertEqual(end, ConnectionDone)

    def test_cut(self) -> None:
        """All connections of one wire, and no others."""
        other = self.recorder(self.memory.wire())
        protocols = [self.recorder(), self.recorder()]
        for protocol in protocols:
            protocol.transport.write(frame(b'{"type":"ping"}'))
        self.wire.cut()
        self.assertEqual([protocol.events for protocol in protocols], [[ConnectionLost], [ConnectionLost]])
        self.wire.cut()
        kept = len(protocols[0].transport._data)
        protocols[0].transport.write(b"x")
        self.assertEqual(len(protocols[0].transport._data), kept)
        self.assertEqual(other.events, [])
        self.assertEqual(self.wire.connections, [])
        self.assertEqual(len(self.memory.factory.clients), 1)
        self.assertEqual(self.memory.factory.stats.messages_in, 0)

    def test_producers(self) -> None:
        protocol = self.recorder()
        feeder = Feeder()
        transport = protocol.transport
        transport.registerProducer(feeder, True)
        self.wire.stall()
        transport.write(frame(b"x" * 65532))
        self.assertEqual(feeder.asked, [])
        transport.write(frame(b"x"))
        transport.write(frame(b"x"))
        self.assertEqual(feeder.asked, ["pause"])
        self.wire.go_on()
        self.assertEqual(feeder.asked, ["pause", "resume"])
        transport.abortConnection()
        self.memory.settle()
        self.assertEqual(feeder.asked, ["pause", "resume", "stop"])

    def test_a_producer_that_left(self) -> None:
        protocol = self.recorder()
        feeder = Feeder()
        protocol.transport.registerProducer(feeder, True)
        self.wire.stall()
        protocol.transport.write(frame(b"x" * 65533))
        protocol.transport.unregisterProducer()
        self.wire.go_on()
        protocol.transport.abortConnection()
        self.memory.settle()
        self.assertEqual(feeder.asked, ["pause"])

    def test_an_attempt_given_up(self) -> None:
        attempt = self.wire.connect(Factory.forProtocol(Recorder))
        attempt.cancel()
        self.assertRaises(CancelledError, self.memory.result, attempt)
        self.assertEqual(self.memory.factory.stats.connections, 0)
        self.assertEqual(self.wire.connections, [])

    def test_no_connection_before_the_caller_has_returned(self) -> None:
        attempt = self.wire.connect(Factory.forProtocol(Recorder))
        self.assertNoResult(attempt)
        self.memory.result(attempt)
