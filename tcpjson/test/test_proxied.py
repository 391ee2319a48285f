"""Behind a proxy: who the peer is, and when it is known (docs/protocol.rst, section 4)."""

from __future__ import annotations

import itertools
import json
import socket
import struct
from typing import Any

from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.connection import Connection
from tcpjson.core.framing import FrameReader, frame
from tcpjson.core.limits import Limits
from tcpjson.proxied import IProxyListener, ProxiedEndpoint, ProxiedProtocol, is_proxied
from tcpjson.server import TCPJSONServerFactory
from tcpjson.test.hypo import given
from tcpjson.test.wires import Loop, TLSWire, Wire, attach, socket_pair, tls_factory

V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 9999\r\n"
V1_IPV6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 9999\r\n"
V1_UNKNOWN = b"PROXY UNKNOWN\r\n"
_ADDRESSES = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") + struct.pack(">HH", 4711, 9999)
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack(">H", len(_ADDRESSES)) + _ADDRESSES
V2_LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0"
PING = frame(b'{"type":"ping"}')


class Keeper:
    """An endpoint that keeps the factory it is given."""

    factory: Any

    def listen(self, factory: Any) -> Deferred[Any]:
        self.factory = factory
        return succeed("the port")


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.loop = Loop()
        self.addCleanup(self.loop.close)
        self.factory = TCPJSONServerFactory(self.loop, limits=Limits(frame_timeout=5))

    def proxied(self, factory: Any) -> Any:
        """The factory that an endpoint behind a proxy listens with."""
        keeper: Any = Keeper()
        self.assertEqual(self.successResultOf(ProxiedEndpoint(keeper).listen(factory)), "the port")
        return keeper.factory

    def memory(self) -> Any:
        """A connection in memory, from a balancer at 10.0.0.1."""
        protocol = self.proxied(self.factory).buildProtocol(None)
        protocol.makeConnection(StringTransport(peerAddress=IPv4Address("TCP", "10.0.0.1", 1)))
        return protocol

    def wire(self) -> Wire:
        """A connection over a socket."""
        ours, theirs = socket_pair()
        attach(self.loop, self.proxied(self.factory).buildProtocol(None), ours)
        self.addCleanup(theirs.close)
        return Wire(self.loop, theirs)

    def messages(self, wire: Wire) -> list[Any]:
        return [json.loads(payload) for payload in wire.payloads()]


def received(protocol: Any) -> list[Any]:
    """The messages on a transport in memory."""
    reader = FrameReader()
    if data := protocol.transport.value():
        reader.feed(data)
    return [json.loads(payload) for payload in reader.take(1000, 1 << 20)]


class HeaderTests(Case):
    """`welcome` comes after the header and with the real address, however the header comes."""

    def test_the_header_alone(self) -> None:
        for header, name in (
            (V1, "192.0.2.1:4711"),
            (V1_IPV6, "[2001:db8::1]:4711"),
            (V2, "192.0.2.1:4711"),
            (V1_UNKNOWN, "10.0.0.1:1"),
            (V2_LOCAL, "10.0.0.1:1"),
        ):
            protocol = self.memory()
            self.assertEqual(received(protocol), [])
            protocol.dataReceived(header)
            [welcome] = received(protocol)
            self.assertEqual((welcome["type"], welcome["client_id"]), ("welcome", name))

    def test_the_header_with_the_first_request(self) -> None:
        for header in (V1, V2):
            protocol = self.memory()
            protocol.dataReceived(header + PING + PING[:3])
            protocol.dataReceived(PING[3:])
            self.assertEqual([message["type"] for message in received(protocol)], ["welcome", "pong", "pong"])
            self.assertEqual(received(protocol)[1]["client_id"], "192.0.2.1:4711")

    @given(st.sampled_from([V1, V2, V1_IPV6, V1_UNKNOWN, V2_LOCAL]), st.lists(st.integers(0, 80), max_size=8))
    def test_however_it_is_cut(self, header: bytes, cuts: list[int]) -> None:
        protocol = self.memory()
        data = header + PING + PING
        places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        for start, end in itertools.pairwise(places):
            if start < end:
                protocol.dataReceived(data[start:end])
        self.assertEqual([message["type"] for message in received(protocol)], ["welcome", "pong", "pong"])

    @given(st.sampled_from([V1, V2, b""]), st.binary(max_size=300), st.integers(1, 300))
    def test_whatever_comes(self, header: bytes, data: bytes, size: int) -> None:
        """Nothing raises, and without a header nobody is welcomed."""
        protocol = self.memory()
        before = self.factory.stats.connections, self.factory.stats.messages_out
        data = header[: size % (len(header) + 1)] + data
        for start in range(0, len(data), size):
            if not protocol.transport.disconnecting:
                protocol.dataReceived(data[start : start + size])
        messages = received(protocol)
        if data.startswith((V1, V2)):
            self.assertEqual(messages[0]["type"], "welcome")
        elif not messages:
            self.assertEqual(before[1], self.factory.stats.messages_out)
            waits = V1.startswith(data[:6]) or V2.startswith(data[:12])
            self.assertTrue(protocol.transport.disconnecting or waits)

    def test_nobody_is_a_client_before(self) -> None:
        protocol = self.memory()
        self.assertEqual(self.factory.clients, set())
        self.assertEqual(self.factory.stats.connections, 1)
        protocol.dataReceived(V1)
        self.assertEqual(len(self.factory.clients), 1)

    def test_the_header_is_in_no_frame(self) -> None:
        protocol = self.memory()
        protocol.dataReceived(V1 + PING)
        [connection] = self.factory.clients
        self.assertEqual(connection.bytes_in, len(PING))

    def test_a_protocol_that_wants_to_know_nothing(self) -> None:
        """Any protocol can be behind a proxy."""
        taken: list[bytes] = []

        class Plain(Protocol):
            def dataReceived(self, data: bytes) -> None:
                taken.append(data)

        protocol = self.proxied(Factory.forProtocol(Plain)).buildProtocol(None)
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(V1)
        protocol.dataReceived(b"data")
        self.assertEqual(taken, [b"data"])

    def test_a_server_connection_wants_to_know(self) -> None:
        self.assertTrue(IProxyListener.implementedBy(Connection))
        self.assertIsInstance(self.memory(), ProxiedProtocol)


class IsProxiedTests(Case):
    def test_in_the_clear(self) -> None:
        self.memory()
        [connection] = self.factory.connections
        self.assertTrue(is_proxied(connection.transport))
        self.assertFalse(is_proxied(connection.transport.transport))

    def test_with_tls(self) -> None:
        """Whether it is inside or outside, before the header has come and after it."""
        for outer, expected in (
            (self.proxied(tls_factory(self.factory, self.loop)), True),
            (tls_factory(self.proxied(self.factory), self.loop), True),
            (tls_factory(self.factory, self.loop), False),
        ):
            before = set(self.factory.connections)
            ours, theirs = socket_pair()
            attach(self.loop, outer.buildProtocol(None), ours)
            self.addCleanup(theirs.close)
            [connection] = self.factory.connections - before
            self.assertIs(is_proxied(connection.transport), expected)

    def test_bare(self) -> None:
        self.assertFalse(is_proxied(StringTransport()))


class EndTests(Case):
    """Connections that come to no header, or to their end."""

    def test_no_header(self) -> None:
        wire = self.wire()
        self.loop.advance(4.9)
        self.loop.settle()
        self.assertEqual(self.factory.stats.disconnects, {})
        self.loop.advance(0.2)
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertEqual(wire.raw, b"")
        self.assertEqual(self.factory.stats.disconnects, {"handshake_failed": 1})

    def test_the_client_closes_its_sending_side(self) -> None:
        """It gets its answers all the same."""
        wire = self.wire()
        wire.socket.send(V1 + PING * 20)
        wire.end()
        self.assertEqual([message["type"] for message in self.messages(wire)], ["welcome"] + ["pong"] * 20)
        self.assertTrue(wire.ended)
        self.assertEqual(self.factory.stats.disconnects, {"client_closed": 1})

    def test_its_sending_side_closes_in_the_header(self) -> None:
        wire = self.wire()
        wire.socket.send(V1[:10])
        wire.end()
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertEqual(self.factory.stats.disconnects, {"handshake_failed": 1})

    def test_no_header_but_something_else(self) -> None:
        for data in (
            b"GET / HTTP/1.0\r\n\r\n",
            PING,
            b"PROXY NONSENSE 1 2 3\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 x y\r\n",
        ):
            wire = self.wire()
            wire.send(data)
            wire.take_all()
            self.assertTrue(wire.ended, data)
            self.assertEqual(wire.raw, b"")
        self.assertEqual(self.factory.stats.disconnects, {"handshake_failed": 4})
        self.assertEqual(self.factory.stats.messages_in, 0)

    def test_in_time(self) -> None:
        wire = self.wire()
        self.loop.advance(4)
        wire.send(V1)
        self.loop.advance(100)
        self.loop.settle()
        self.assertEqual([message["type"] for message in self.messages(wire)], ["welcome"])
        self.assertFalse(wire.ended)

    def test_the_client_closes(self) -> None:
        wire = self.wire()
        wire.send(V1 + PING)
        self.assertEqual(len(self.messages(wire)), 2)
        wire.close()
        self.assertEqual(self.factory.stats.disconnects, {"client_closed": 1})

    def test_a_fatal_error(self) -> None:
        """The error arrives, though more is on its way."""
        wire = self.wire()
        wire.send(V1 + PING + b"\xff\xff\xff\xff")
        wire.send(bytes(50_000))
        messages = self.messages(wire)
        self.assertEqual([message["type"] for message in messages], ["welcome", "pong", "error"])
        self.assertTrue(wire.ended)
        wire.close()
        self.assertEqual(self.factory.stats.disconnects, {"too_large": 1})

    def test_backpressure(self) -> None:
        """Behind a proxy, too, a client that does not read is handled no further; all answers come."""
        wire = self.wire()
        wire.send(V1)
        request = frame(json.dumps({"type": "echo", "content": "x" * 10_000}).encode())
        sent = 0
        while sent < 10_000_000:
            try:
                sent += wire.socket.send(request)
            except BlockingIOError:
                break
            self.loop.settle()
        self.assertLess(sent, 10_000_000)
        self.assertLess(self.factory.stats.bytes_out, 2_000_000)
        wire.payloads()
        self.assertEqual(wire.data.count(b"echo_response"), sent // len(request))


class TLSTests(Case):
    """A proxy that passes on TLS, and one that speaks it."""

    def check(self, outer: Any, *, header_first: bool) -> None:
        ours, theirs = socket_pair()
        attach(self.loop, outer.buildProtocol(None), ours)
        self.addCleanup(theirs.close)
        wire = TLSWire(self.loop, theirs)
        if header_first:
            wire.socket.send(V1)
            wire.take_all()
            self.assertEqual(wire.raw, b"")
        wire.shake_hands()
        if not header_first:
            self.assertEqual(self.messages(wire), [])
            wire.send(V1)
        wire.send(PING)
        welcome, pong = self.messages(wire)
        self.assertEqual((welcome["type"], pong["type"]), ("welcome", "pong"))
        self.assertEqual(welcome["client_id"], "192.0.2.1:4711")
        self.assertNotIn(b"welcome", wire.raw)
        wire.say_goodbye()
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertEqual(self.factory.stats.disconnects, {"client_closed": 1})

    def test_the_header_before_the_handshake(self) -> None:
        self.check(self.proxied(tls_factory(self.factory, self.loop)), header_first=True)

    def test_the_client_goes_without_a_goodbye(self) -> None:
        """At each stage: nothing is logged but that it has gone."""
        for stage in range(3):
            ours, theirs = socket_pair()
            outer = self.proxied(tls_factory(self.factory, self.loop))
            attach(self.loop, outer.buildProtocol(None), ours)
            self.addCleanup(theirs.close)
            wire = TLSWire(self.loop, theirs)
            wire.socket.send(V1[: 10 if stage == 0 else len(V1)])
            wire.take_all()
            if stage == 2:
                wire.shake_hands()
            wire.end()
            wire.take_all()
            self.assertTrue(wire.ended, stage)
        self.assertEqual(sum(self.factory.stats.disconnects.values()), 3)
        self.assertEqual(self.factory.stats.disconnects["handshake_failed"], 2)

    def test_tls_after_the_header(self) -> None:
        self.check(self.proxied(tls_factory(self.factory, self.loop)), header_first=True)

    def test_the_header_within_tls(self) -> None:
        self.check(tls_factory(self.proxied(self.factory), self.loop), header_first=False)
