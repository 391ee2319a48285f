"""What is below a transport, and how the other end is named."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable
from ipaddress import IPv6Address as IPv6
from ipaddress import IPv6Network
from typing import Any

from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.proxied import ProxiedProtocol
from tcpjson.test.hypo import given
from tcpjson.test.wires import Loop, attach, socket_pair, tls_factory
from tcpjson.transports import client_id_of, descriptor_of, is_encrypted, layers, network_of, round_trip, tune


def v4(host: str) -> IPv4Address:
    return IPv4Address("TCP", host, 80)


def v6(host: str) -> IPv6Address:
    return IPv6Address("TCP", host, 80)


class LayerTests(SynchronousTestCase):
    """`layers`, `descriptor_of` and `is_encrypted`."""

    def connect(self, *kinds: str) -> tuple[Any, Any]:
        """A transport with layers, the outermost first, and the socket's transport below them."""
        loop = Loop()
        ours, theirs = socket_pair()
        self.addCleanup(theirs.close)
        self.addCleanup(loop.close)
        protocol = Protocol()
        factory: Any = Factory.forProtocol(lambda: protocol)
        for kind in kinds:
            if kind == "tls":
                factory = tls_factory(factory, loop)
            else:
                factory = WrappingFactory(factory)
                factory.protocol = ProxiedProtocol if kind == "proxy" else ProtocolWrapper
        descriptor = attach(loop, factory.buildProtocol(None), ours)
        return protocol.transport, descriptor

    def test_a_socket_alone(self) -> None:
        transport, descriptor = self.connect()
        self.assertIs(transport, descriptor)
        self.assertEqual(list(layers(transport)), [descriptor])
        self.assertIs(descriptor_of(transport), descriptor)
        self.assertFalse(is_encrypted(transport))

    def test_wrapped(self) -> None:
        for kind in ("plain", "proxy"):
            transport, descriptor = self.connect(kind)
            self.assertIsNot(transport, descriptor)
            self.assertIs(descriptor_of(transport), descriptor)
            self.assertFalse(is_encrypted(transport))

    def test_tls(self) -> None:
        """Whichever layer is the outer one, TLS is found, and so is the socket."""
        for kinds in (("tls",), ("tls", "proxy"), ("proxy", "tls"), ("plain", "tls", "proxy")):
            transport, descriptor = self.connect(*kinds)
            self.assertIs(descriptor_of(transport), descriptor)
            self.assertTrue(is_encrypted(transport))

    def test_the_outermost_comes_first(self) -> None:
        transport, descriptor = self.connect("tls", "proxy")
        outer, middle, lowest = layers(transport)
        self.assertIs(outer, transport)
        self.assertIsInstance(outer, TLSMemoryBIOProtocol)
        self.assertIsInstance(middle, ProxiedProtocol)
        self.assertIs(lowest, descriptor)

    def test_in_memory(self) -> None:
        self.assertIsNone(descriptor_of(StringTransport()))
        self.assertFalse(is_encrypted(StringTransport()))


class TCPCase(SynchronousTestCase):
    def accept(
        self, wrap: Callable[[Any, Loop], Any] = lambda factory, loop: factory
    ) -> tuple[Any, socket.socket]:
        """Both ends of a TCP connection: one's transport, the other's socket."""
        loop = Loop()
        protocol = Protocol()
        factory = wrap(Factory.forProtocol(lambda: protocol), loop)
        port = loop.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(loop.close)
        end = socket.create_connection(("127.0.0.1", port.getHost().port))
        self.addCleanup(end.close)
        loop.settle()
        return protocol.transport, end


class RoundTripTests(TCPCase):
    """`round_trip`."""

    def check(self, transport: Any) -> None:
        """What is told is what the system has in its place, counted by hand in linux/tcp.h."""
        descriptor: Any = descriptor_of(transport)
        information = descriptor.getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        microseconds = struct.unpack("8B24I", information)[8 + 15]
        self.assertGreater(microseconds, 0)
        self.assertEqual(round_trip(transport), microseconds / 1e6)
        self.assertLess(microseconds, 30e6)

    def test_a_tcp_socket(self) -> None:
        transport, _ = self.accept()
        self.check(transport)

    def test_below_wrappers(self) -> None:
        transport, _ = self.accept(tls_factory)
        self.assertTrue(is_encrypted(transport))
        self.check(transport)

    def test_nothing_was_measured(self) -> None:
        loop = Loop()
        self.addCleanup(loop.close)
        unconnected = socket.socket()
        self.assertIsNone(round_trip(attach(loop, Protocol(), unconnected)))

    def test_gone(self) -> None:
        transport, _ = self.accept()
        transport.connectionLost(Failure(ConnectionDone()))
        self.assertIsNone(round_trip(transport))

    def test_others(self) -> None:
        """A Unix socket, nothing at all, and what is in memory."""
        loop = Loop()
        ours, theirs = socket_pair()
        self.addCleanup(theirs.close)
        self.addCleanup(loop.close)
        for transport in (attach(loop, Protocol(), ours), None, StringTransport()):
            self.assertIsNone(round_trip(transport))

    def test_other_systems(self) -> None:
        transport, _ = self.accept()
        self.patch(sys, "platform", "freebsd14")
        self.assertIsNone(round_trip(transport))


class TuneTests(TCPCase):
    """`tune`."""

    def test_a_tcp_socket(self) -> None:
        transport, _ = self.accept()
        handle = transport.getHandle()
        for level, option in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        ):
            self.assertFalse(handle.getsockopt(level, option))
        self.assertTrue(tune(transport))
        self.assertTrue(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertTrue(handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        self.assertEqual(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 60)
        self.assertEqual(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 15)

    def test_others(self) -> None:
        """A Unix socket, nothing at all, and what is in memory."""
        loop = Loop()
        ours, theirs = socket_pair()
        self.addCleanup(theirs.close)
        self.addCleanup(loop.close)
        self.assertFalse(tune(attach(loop, Protocol(), ours)))
        self.assertFalse(tune(None))
        self.assertFalse(tune(StringTransport()))


class ClientIdTests(SynchronousTestCase):
    """`client_id_of` (section 2)."""

    def test_addresses(self) -> None:
        self.assertEqual(client_id_of(v4("192.0.2.1")), "192.0.2.1:80")
        self.assertEqual(client_id_of(v6("2001:db8::1")), "[2001:db8::1]:80")
        self.assertEqual(client_id_of(v6("::ffff:192.0.2.1")), "192.0.2.1:80")
        self.assertEqual(client_id_of(v6("fe80::1%eth0")), "[fe80::1%eth0]:80")

    def test_others(self) -> None:
        self.assertIn("/run/x", client_id_of(UNIXAddress("/run/x")))


class NetworkTests(SynchronousTestCase):
    """`network_of`: what is counted as one holder of addresses."""

    def same(self, *peers: IAddress) -> bool:
        return len({network_of(peer) for peer in peers}) == 1

    def test_ipv4(self) -> None:
        """Each address by itself, whatever the port."""
        self.assertEqual(network_of(v4("192.0.2.1")), "192.0.2.1")
        self.assertEqual(network_of(IPv4Address("TCP", "192.0.2.1", 81)), "192.0.2.1")
        self.assertFalse(self.same(v4("192.0.2.1"), v4("192.0.2.2")))

    def test_ipv6(self) -> None:
        """A /64, however its addresses are written."""
        self.assertEqual(network_of(v6("2001:db8:1:2:3:4:5:6")), "2001:db8:1:2::/64")
        self.assertEqual(network_of(v6("2001:0DB8:0001:0002::")), "2001:db8:1:2::/64")
        self.assertEqual(network_of(v6("::1")), "::/64")
        self.assertTrue(self.same(v6("2001:db8::1"), v6("2001:db8:0:0:ffff:ffff:ffff:ffff")))
        self.assertFalse(self.same(v6("2001:db8:0:0::1"), v6("2001:db8:0:1::1")))

    def test_ipv4_in_ipv6(self) -> None:
        """A socket for both shows IPv4 so: else all of IPv4 would be one network, and one client two."""
        self.assertTrue(self.same(v6("::ffff:192.0.2.1"), v4("192.0.2.1"), v6("::ffff:c000:201")))
        self.assertFalse(self.same(v6("::ffff:192.0.2.1"), v6("::ffff:192.0.2.2")))

    def test_scopes(self) -> None:
        """Of a link-local address: the interface is ours, not the peer's."""
        self.assertEqual(network_of(v6("fe80::1%eth0")), "fe80::/64")
        self.assertTrue(self.same(v6("fe80::1%eth0"), v6("fe80::2%1"), v6("fe80::3")))
        self.assertEqual(network_of(v6("::ffff:192.0.2.1%1")), "192.0.2.1")

    def test_neither(self) -> None:
        for name in (None, "/run/x", b"/run/x"):
            self.assertIsNone(network_of(UNIXAddress(name)))

    @given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1), st.integers(0, 127))
    def test_any_ipv6(self, address: IPv6, low: int, bit: int) -> None:
        """The lower 64 bits make no difference; any other does."""
        if address.ipv4_mapped is not None or int(address) >> 64 == 0:
            address = IPv6(int(address) | 1 << 127)
        number = int(address)
        network = network_of(v6(str(address)))
        assert network is not None
        self.assertIn(address, IPv6Network(network))
        self.assertEqual(network_of(v6(str(IPv6(number >> 64 << 64 | low)))), network)
        other = network_of(v6(str(IPv6(number ^ 1 << bit))))
        self.assertEqual(other == network, bit < 64)
