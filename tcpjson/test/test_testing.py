"""The kit for tests, as the tests of applications use it."""

from __future__ import annotations

from typing import Any

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tcpjson import Limits, Message, Router
from tcpjson.core.framing import FrameTooLong, frame
from tcpjson.testing import START, MemoryServer, Peer
from tcpjson.timestamps import format_timestamp


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
