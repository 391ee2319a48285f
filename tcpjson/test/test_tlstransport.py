"""TLS connections whose peers make something of TLS itself."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.test.wires import Loop, TLSWire, attach, socket_pair, tls_factory
from tcpjson.tlstransport import BoundedTLS
from tcpjson.transports import descriptor_of


class Counting(Protocol):
    """Counts what it gets as our connections do, unless it is told to be blind to it."""

    blind = False

    def __init__(self) -> None:
        self.bytes_in = 0
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        if not self.blind:
            self.bytes_in += len(data)

    def connectionLost(self, reason: object = None) -> None:
        self.lost = True


class Silent(Protocol):
    """Counts nothing."""


class BoundTests(SynchronousTestCase):
    def wire(self, protocol: Protocol) -> TLSWire:
        loop = Loop()
        self.addCleanup(loop.close)
        factory = Factory.forProtocol(lambda: protocol)
        ours, theirs = socket_pair(1 << 16)
        self.addCleanup(theirs.close)
        self.tls: Any = tls_factory(factory, loop).buildProtocol(None)
        attach(loop, self.tls, ours)
        wire = TLSWire(loop, theirs)
        wire.shake_hands()
        return wire

    def test_content_is_taken_for_ever(self) -> None:
        protocol = Counting()
        wire = self.wire(protocol)
        for _ in range(100):
            wire.send(b"x" * 10_000)
        self.assertEqual(protocol.bytes_in, 1_000_000)
        self.assertFalse(protocol.lost)

    def test_records_without_content(self) -> None:
        """As messages of TLS are, which no limit of the application's sees."""
        protocol = Counting()
        wire = self.wire(protocol)
        wire.send(b"x" * 1000)
        protocol.blind = True
        for _ in range(31):
            wire.send(b"x" * 1000)
        self.assertFalse(protocol.lost)
        # What comes with content pays for what came before.
        protocol.blind = False
        wire.send(b"x")
        protocol.blind = True
        for _ in range(31):
            wire.send(b"x" * 1000)
        self.assertFalse(protocol.lost)
        for _ in range(2):
            wire.send(b"x" * 1000)
        self.assertTrue(protocol.lost)

    def test_an_end_without_close_notify_leaves_no_garbage(self) -> None:
        """OpenSSL's memory goes at once, whenever the garbage collector comes."""
        wire = self.wire(Counting())
        secret = weakref.ref(self.tls.getHandle())
        gc.disable()
        self.addCleanup(gc.enable)
        wire.close()
        self.assertIsNone(secret())

    def test_a_protocol_that_does_not_count(self) -> None:
        protocol = Silent()
        wire = self.wire(protocol)
        for _ in range(10):
            wire.send(b"x" * 10_000)
        self.assertTrue(protocol.connected)

    def test_answers_of_tls_that_are_not_read(self) -> None:
        """What is written below the application waits for the socket without a bound of its own."""
        protocol = Counting()
        wire = self.wire(protocol)
        descriptor: Any = descriptor_of(self.tls)
        # More than the socket takes, and less than the bound.
        descriptor.write(b"x" * 100_000)
        wire.send(b"x")
        self.assertFalse(protocol.lost)
        descriptor.write(b"x" * 300_000)
        wire.send(b"x")
        self.assertTrue(protocol.lost)

    def test_short_reads(self) -> None:
        self.wire(Counting())
        self.assertEqual(descriptor_of(self.tls).bufferSize, 16 * 1024)  # type: ignore[union-attr]  # there is one

    def test_in_memory(self) -> None:
        """Where there is no socket, nothing waits."""
        tls = tls_factory(Factory.forProtocol(Counting), Loop()).buildProtocol(None)
        assert isinstance(tls, BoundedTLS)
        tls.makeConnection(StringTransport())
        tls.dataReceived(b"\x16\x03\x01")
        self.assertTrue(tls.connected)
