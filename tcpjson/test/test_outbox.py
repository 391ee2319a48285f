"""The outbox on real sockets, on real TLS and in memory: what leaves, what waits, and what is counted."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.framing import FrameReader, frame
from tcpjson.outbox import Outbox
from tcpjson.test.hypo import given
from tcpjson.test.wires import Loop, TLSWire, Wire, attach, server_context, socket_pair, tls_factory

# The least that the system allows, so that a few kilobytes fill it.
SMALL = 4096


def numbered(size: int, start: int = 0) -> bytes:
    """Bytes that tell where they are from."""
    unit = b"".join(number.to_bytes(4, "big") for number in range(start, start + size // 4 + 1))
    return unit[:size]


class Writer(Protocol):
    """An owner of an outbox that notes what it is told."""

    outbox: Outbox
    transport: Any

    def __init__(self) -> None:
        self.told: list[str] = []
        self.lost = False
        self.received = b""
        self.drained: Callable[[], object] = lambda: None

    def connectionMade(self) -> None:
        self.outbox = Outbox(self.transport, self)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def outboxWaits(self) -> None:
        self.told.append("waits")

    def outboxDrained(self) -> None:
        self.told.append("drained")
        self.drained()

    def connectionLost(self, reason: object = None) -> None:
        self.lost = True


def maker(protocol: Protocol) -> Factory:
    """A factory that makes this one protocol."""
    return Factory.forProtocol(lambda: protocol)


class Rig:
    """An outbox and the peer that reads, or does not."""

    def __init__(self, kind: str, send_buffer: int | None = SMALL) -> None:
        self.loop = Loop()
        self.owner = Writer()
        ours, theirs = socket_pair(send_buffer)
        protocol: Any = self.owner
        self.wire: Wire
        if kind == "tls":
            protocol = tls_factory(maker(self.owner), self.loop).buildProtocol(None)
            self.wire = TLSWire(self.loop, theirs)
        else:
            self.wire = Wire(self.loop, theirs)
        if kind == "wrapped":
            factory = WrappingFactory(maker(self.owner))
            protocol = ProtocolWrapper(factory, self.owner)
        self.descriptor: Any = attach(self.loop, protocol, ours)
        self.transport = self.owner.transport
        self.outbox = self.owner.outbox
        if isinstance(self.wire, TLSWire):
            self.wire.shake_hands()
            self.loop.settle()

    def close(self) -> None:
        self.wire.socket.close()
        self.loop.close()


class Model:
    """What an outbox must have counted, by what was written and how much of it has left."""

    def __init__(self) -> None:
        self.total = b""
        self.answers: list[tuple[int, int]] = []

    def write(self, size: int, answer: bool) -> bytes:
        data = numbered(size, len(self.total))
        self.total += data
        if answer:
            self.answers.append((len(self.total), size))
        return data

    def answers_after(self, taken: int) -> int:
        return sum(size for end, size in self.answers if end > taken)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "push"]), st.integers(1, 20_000), st.booleans()),
        st.tuples(st.just("take"), st.integers(1, 20_000), st.just(False)),
        st.tuples(st.sampled_from(["flush", "turn"]), st.just(0), st.just(False)),
    ),
    max_size=30,
)


class OutboxCase(SynchronousTestCase):
    def rig(self, kind: str, send_buffer: int | None = SMALL) -> Rig:
        rig = Rig(kind, send_buffer)
        self.addCleanup(rig.close)
        return rig


class SocketTests(OutboxCase):
    """A bare socket."""

    def test_what_fits_leaves_at_once(self) -> None:
        rig = self.rig("socket")
        rig.outbox.write(b"one", True)
        rig.outbox.write(b"two")
        rig.wire.take(100)
        self.assertEqual(rig.wire.raw, b"onetwo")
        self.assertEqual((rig.outbox.taken, rig.outbox.waiting, rig.outbox.answers), (6, 0, 0))
        self.assertEqual(rig.owner.told, [])
        self.assertNotIn(rig.descriptor, rig.loop.writers)

    def test_what_does_not_fit_waits(self) -> None:
        rig = self.rig("socket")
        data = numbered(100_000)
        rig.outbox.write(data, True)
        taken = rig.outbox.taken
        self.assertGreater(taken, 0)
        self.assertEqual(rig.outbox.waiting, len(data) - taken)
        self.assertEqual(rig.outbox.answers, len(data))
        self.assertEqual(rig.owner.told, ["waits"])
        rig.outbox.write(b"end")
        self.assertEqual(rig.outbox.waiting, len(data) - taken + 3)
        rig.wire.take_all()
        self.assertEqual(rig.wire.raw, data + b"end")
        self.assertEqual((rig.outbox.taken, rig.outbox.waiting, rig.outbox.answers), (len(data) + 3, 0, 0))
        self.assertEqual(rig.owner.told[-1], "drained")
        self.assertNotIn(rig.descriptor, rig.loop.writers)

    def test_a_full_socket_takes_nothing(self) -> None:
        """The socket is filled behind the outbox's back: the very first write waits as a whole."""
        rig = self.rig("socket")
        try:
            while True:
                rig.descriptor.getHandle().send(b"x")
        except BlockingIOError:
            pass
        rig.outbox.write(b"late")
        self.assertEqual((rig.outbox.taken, rig.outbox.waiting), (0, 4))
        rig.wire.take_all()
        self.assertEqual(rig.wire.raw.lstrip(b"x"), b"late")

    def test_nothing_is_left_to_the_transport(self) -> None:
        """Every byte is counted: none is in a buffer of Twisted's."""
        rig = self.rig("socket")
        rig.outbox.write(numbered(1_000_000))
        rig.outbox.push(numbered(1000))
        rig.outbox.flush()
        rig.loop.settle()
        self.assertEqual(rig.descriptor.dataBuffer + b"".join(rig.descriptor._tempDataBuffer), b"")
        self.assertEqual(rig.outbox.taken + rig.outbox.waiting, 1_001_000)

    def test_push_sends_nothing_until_flush(self) -> None:
        rig = self.rig("socket")
        rig.outbox.push(b"one", True)
        rig.outbox.push(b"two")
        rig.loop.settle()
        self.assertEqual(rig.wire.take(100), 0)
        self.assertEqual((rig.outbox.waiting, rig.outbox.answers, rig.owner.told), (6, 3, ["waits"]))
        rig.outbox.flush()
        rig.wire.take(100)
        self.assertEqual(rig.wire.raw, b"onetwo")
        self.assertEqual((rig.outbox.waiting, rig.outbox.answers), (0, 0))

    def test_more_pieces_than_the_system_takes_at_once(self) -> None:
        rig = self.rig("socket", None)
        pieces = [numbered(10, number * 10) for number in range(3000)]
        for piece in pieces:
            rig.outbox.push(piece)
        rig.outbox.flush()
        self.assertEqual(rig.outbox.waiting, 0)
        rig.wire.take_all()
        self.assertEqual(rig.wire.raw, b"".join(pieces))

    def test_the_owner_may_write_when_it_is_told(self) -> None:
        rig = self.rig("socket")
        rig.owner.drained = lambda: rig.outbox.write(b"!")
        rig.outbox.write(numbered(50_000))
        rig.wire.take_all()
        said = rig.owner.told.count("drained")
        self.assertGreater(said, 1)
        self.assertEqual(rig.wire.raw.replace(b"!", b""), numbered(50_000).replace(b"!", b""))
        self.assertEqual(len(rig.wire.raw), 50_000 + said)

    @given(OPERATIONS, examples=150)
    def test_all_is_counted_and_arrives_in_order(self, operations: list[tuple[str, int, bool]]) -> None:
        rig = Rig("socket")
        model = Model()
        outbox = rig.outbox
        # Whether some left in a flush, of which the owner is told in a turn to come.
        untold = False
        try:
            for name, size, answer in operations:
                told = len(rig.owner.told)
                waited = outbox.waiting
                if name == "write":
                    outbox.write(model.write(size, answer), answer)
                elif name == "push":
                    outbox.push(model.write(size, answer), answer)
                elif name == "flush":
                    outbox.flush()
                elif name == "turn":
                    rig.loop.turn()
                else:
                    rig.wire.take(size)
                fresh = rig.owner.told[told:]
                self.assertEqual(outbox.taken + outbox.waiting, len(model.total))
                self.assertEqual(outbox.answers, model.answers_after(outbox.taken))
                self.assertTrue(model.total.startswith(rig.wire.raw))
                self.assertLessEqual(len(rig.wire.raw), outbox.taken)
                if name in ("write", "push"):
                    self.assertEqual(fresh, ["waits"] if outbox.waiting and not waited else [])
                if name == "flush":
                    untold = untold or outbox.waiting < waited
                if name == "turn":
                    left = outbox.waiting < waited
                    self.assertIn(fresh, ([["drained"]] if left else [["drained"], []] if untold else [[]]))
                    untold = untold and not fresh
            outbox.flush()
            rig.wire.take_all()
            self.assertEqual(rig.wire.raw, model.total)
            self.assertEqual((outbox.waiting, outbox.answers, outbox.taken), (0, 0, len(model.total)))
            self.assertNotIn(rig.descriptor, rig.loop.writers)
        finally:
            rig.close()

    def test_progress_when_the_peer_takes_what_the_system_keeps(self) -> None:
        """Nothing more leaves the outbox, and still the peer took something."""
        rig = self.rig("socket", 1 << 20)
        rig.outbox.write(numbered(3000))
        before = rig.outbox.progress()
        self.assertEqual(before, rig.outbox.progress())
        rig.wire.take_all()
        self.assertEqual(rig.outbox.taken, 3000)
        self.assertNotEqual(before, rig.outbox.progress())

    def test_progress_when_something_leaves(self) -> None:
        rig = self.rig("socket")
        rig.outbox.write(numbered(100_000))
        before = rig.outbox.progress()
        rig.wire.take(1 << 20)
        rig.loop.turn()
        self.assertNotEqual(before, rig.outbox.progress())

    def test_progress_when_the_system_takes_as_much_as_the_peer(self) -> None:
        """It keeps as much as before; the transport above it keeps less."""
        for kind in ("tls", "wrapped"):
            rig = self.rig(kind)
            rig.outbox.write(numbered(100_000))
            seen = []
            for _ in range(3):
                rig.wire.take(1 << 20)
                rig.loop.turn()
                seen.append(rig.outbox.progress())
            self.assertEqual(len({(taken, kept) for taken, _, kept in seen}), 1)
            self.assertEqual(len(set(seen)), 3)


class DeadPeerTests(OutboxCase):
    """A peer that is gone: nothing raises, nothing is kept, and what it sent can still be read."""

    def check_gone(self, rig: Rig) -> None:
        """The outbox is closed; the reading side finds the end on its own."""
        self.assertEqual(rig.owner.told[-1], "drained")
        self.assertEqual((rig.outbox.waiting, rig.outbox.answers), (0, 0))
        rig.outbox.write(b"more")
        rig.outbox.push(b"more", True)
        rig.outbox.flush()
        rig.outbox.close()
        self.assertEqual((rig.outbox.waiting, rig.outbox.answers), (0, 0))
        self.assertIsNone(rig.descriptor.producer)
        rig.loop.settle()
        rig.descriptor.resumeProducing()
        rig.loop.settle()
        self.assertTrue(rig.owner.lost)
        self.assertNotIn(rig.descriptor, rig.loop.readers | rig.loop.writers)

    def test_found_when_the_transport_is_told_to_close(self) -> None:
        """It reads no more, so nobody else would find out."""
        rig = self.rig("socket")
        rig.outbox.write(bytes(100_000))
        rig.descriptor.loseConnection()
        rig.wire.socket.close()
        rig.outbox.flush()
        rig.loop.settle()
        self.assertTrue(rig.owner.lost)

    def test_found_by_asking(self) -> None:
        """The system says it once; it stays so, and does not have to be asked when all is over."""
        rig = self.rig("socket")
        rig.outbox.write(b"not read")
        self.assertFalse(rig.outbox.find_loss())
        rig.wire.socket.close()
        self.assertEqual([rig.outbox.find_loss() for _ in range(2)], [True, True])
        other = self.rig("socket")
        other.wire.socket.close()
        other.loop.settle()
        self.assertTrue(other.owner.lost)
        self.assertFalse(other.outbox.find_loss())

    def test_found_by_write(self) -> None:
        rig = self.rig("socket")
        rig.wire.socket.close()
        rig.outbox.write(b"into the void")
        self.check_gone(rig)

    def test_found_by_flush(self) -> None:
        rig = self.rig("socket")
        rig.wire.socket.close()
        rig.outbox.push(b"into the void", True)
        rig.outbox.flush()
        self.check_gone(rig)

    def test_found_by_the_reactor(self) -> None:
        rig = self.rig("socket")
        rig.descriptor.pauseProducing()
        rig.outbox.write(numbered(100_000), True)
        rig.wire.socket.close()
        rig.outbox.resumeProducing()
        self.check_gone(rig)

    def test_found_by_flush_through_tls(self) -> None:
        rig = self.rig("tls")
        rig.descriptor.pauseProducing()
        rig.outbox.write(numbered(100_000))
        rig.wire.socket.close()
        rig.outbox.flush()
        self.check_gone(rig)

    def test_found_by_flush_through_a_wrapper(self) -> None:
        rig = self.rig("wrapped")
        rig.descriptor.pauseProducing()
        rig.outbox.write(numbered(100_000), True)
        rig.wire.socket.close()
        rig.outbox.flush()
        self.check_gone(rig)

    def test_what_it_sent_is_still_read(self) -> None:
        for kind in ("socket", "wrapped"):
            rig = self.rig(kind)
            rig.wire.socket.send(b"the last words")
            rig.wire.socket.close()
            rig.outbox.write(b"into the void")
            rig.outbox.flush()
            rig.loop.settle()
            self.assertEqual(rig.owner.received, b"the last words")
            self.assertTrue(rig.owner.lost)

    def test_our_sending_side_is_shut(self) -> None:
        """That fails as a dead peer does; the peer closes when it likes."""
        rig = self.rig("socket")
        rig.descriptor.getHandle().shutdown(socket.SHUT_WR)
        rig.outbox.write(b"never")
        rig.loop.settle()
        self.assertFalse(rig.owner.lost)
        rig.wire.socket.close()
        self.check_gone(rig)

    def test_the_transport_ends(self) -> None:
        rig = self.rig("socket")
        rig.outbox.write(numbered(100_000), True)
        told = rig.owner.told
        rig.wire.close()
        self.assertTrue(rig.owner.lost)
        self.assertEqual((rig.outbox.waiting, rig.outbox.answers), (0, 0))
        rig.outbox.resumeProducing()
        rig.outbox.write(b"more")
        rig.outbox.flush()
        rig.outbox.close()
        self.assertEqual(rig.owner.told, told)

    def test_progress_of_a_closed_socket(self) -> None:
        rig = self.rig("socket")
        rig.outbox.write(b"some")
        rig.wire.close()
        before = rig.outbox.progress()
        self.assertEqual(before, rig.outbox.progress())


class WrappedTests(OutboxCase):
    """Transports that stand before a socket and change what goes to it."""

    def test_no_plain_text_on_a_tls_socket(self) -> None:
        rig = self.rig("tls")
        secret = b"do not read this on the wire. " * 4000
        for piece in range(0, len(secret), 10_000):
            rig.outbox.write(secret[piece : piece + 10_000])
            rig.outbox.flush()
        rig.wire.take_all()
        self.assertEqual(rig.wire.data, secret)
        self.assertNotIn(b"do not read", rig.wire.raw)
        self.assertGreater(len(rig.wire.raw), len(secret))

    def test_no_plain_text_before_the_handshake(self) -> None:
        loop = Loop()
        ours, theirs = socket_pair()
        self.addCleanup(loop.close)
        owner = Writer()
        attach(loop, tls_factory(maker(owner), loop).buildProtocol(None), ours)
        wire = TLSWire(loop, theirs)
        self.addCleanup(theirs.close)
        owner.outbox.write(b"too early")
        owner.outbox.flush()
        wire.take_all()
        self.assertEqual(wire.raw, b"")
        wire.shake_hands()
        wire.take_all()
        self.assertNotIn(b"too early", wire.raw)
        self.assertEqual(wire.data, b"too early")

    def test_no_plain_text_after_start_tls(self) -> None:
        """Here the transport stays the socket's, and TLS is within it."""
        loop = Loop()
        ours, theirs = socket_pair()
        self.addCleanup(loop.close)
        self.addCleanup(theirs.close)
        owner = Writer()

        class Late(Protocol):
            transport: Any

            def connectionMade(self) -> None:
                self.transport.startTLS(server_context())

        transport = attach(loop, Late(), ours)
        owner.transport = transport
        outbox = Outbox(transport, owner)
        self.addCleanup(outbox.close)
        outbox.write(b"secret")
        outbox.push(b"secret")
        outbox.flush()
        wire = Wire(loop, theirs)
        wire.take_all()
        self.assertNotIn(b"secret", wire.raw)

    def test_no_byte_passes_a_wrapper_by(self) -> None:
        """A wrapper that changes what passes: no byte reaches the socket but through it."""

        class Turned(ProtocolWrapper):
            def write(self, data: bytes) -> None:
                super().write(bytes(byte ^ 0x80 for byte in data))

        loop = Loop()
        ours, theirs = socket_pair(SMALL)
        self.addCleanup(loop.close)
        self.addCleanup(theirs.close)
        owner = Writer()
        attach(loop, Turned(WrappingFactory(Factory()), owner), ours)
        wire = Wire(loop, theirs)
        text = b"a lot of text, " * 10_000
        for piece in range(0, len(text), 7000):
            owner.outbox.write(text[piece : piece + 7000], True)
            owner.outbox.flush()
        wire.take_all()
        self.assertEqual(bytes(byte ^ 0x80 for byte in wire.raw), text)
        self.assertEqual((owner.outbox.waiting, owner.outbox.answers), (0, 0))

    def test_bytes_in_the_wrapped_transport_still_wait(self) -> None:
        """What was handed over has not left before the socket has taken it."""
        for kind in ("wrapped", "tls"):
            rig = self.rig(kind)
            rig.outbox.write(numbered(60_000), True)
            rig.outbox.write(numbered(60_000))
            self.assertEqual((rig.outbox.waiting, rig.outbox.answers), (120_000, 60_000))
            rig.loop.settle()
            self.assertEqual((rig.outbox.waiting, rig.outbox.answers), (120_000, 60_000))
            self.assertEqual(rig.outbox.taken, 0)
            rig.wire.take_all()
            self.assertEqual((rig.outbox.waiting, rig.outbox.answers), (0, 0))
            self.assertEqual(rig.outbox.taken, 120_000)
            self.assertEqual(rig.owner.told[0], "waits")
            self.assertIn("drained", rig.owner.told)

    def test_a_stuck_peer_is_counted_through_tls(self) -> None:
        """Little is out of our sight: what the socket and two pieces hold."""
        rig = self.rig("tls")
        for _ in range(100):
            rig.outbox.write(numbered(40_000))
            rig.outbox.flush()
            rig.loop.turn()
        self.assertGreater(rig.outbox.waiting, 4_000_000 - 300_000)

    def check(self, kind: str, operations: list[tuple[str, int, bool]]) -> None:
        rig = Rig(kind)
        model = Model()
        outbox = rig.outbox
        try:
            for name, size, answer in operations:
                told = len(rig.owner.told)
                waited = outbox.waiting
                if name == "write":
                    outbox.write(model.write(size, answer), answer)
                elif name == "push":
                    outbox.push(model.write(size, answer), answer)
                elif name == "flush":
                    outbox.flush()
                elif name == "turn":
                    rig.loop.turn()
                else:
                    rig.wire.take(size)
                self.assertEqual(outbox.taken + outbox.waiting, len(model.total))
                self.assertEqual(outbox.answers, model.answers_after(outbox.taken))
                self.assertTrue(model.total.startswith(rig.wire.data))
                if name in ("write", "push"):
                    self.assertEqual(rig.owner.told[told:], [] if waited else ["waits"])
                if kind == "wrapped":
                    self.assertLessEqual(len(rig.wire.data), len(model.total) - outbox.waiting + 64 * 1024)
            outbox.flush()
            rig.wire.take_all()
            self.assertEqual(rig.wire.data, model.total)
            self.assertEqual((outbox.waiting, outbox.answers, outbox.taken), (0, 0, len(model.total)))
        finally:
            rig.close()

    @given(OPERATIONS, examples=60)
    def test_all_is_counted_through_a_wrapper(self, operations: list[tuple[str, int, bool]]) -> None:
        self.check("wrapped", operations)

    @given(OPERATIONS, examples=40)
    def test_all_is_counted_through_tls(self, operations: list[tuple[str, int, bool]]) -> None:
        self.check("tls", operations)

    def test_progress_through_tls(self) -> None:
        rig = self.rig("tls")
        rig.outbox.write(numbered(200_000))
        rig.loop.settle()
        before = rig.outbox.progress()
        rig.loop.settle()
        self.assertEqual(before, rig.outbox.progress())
        # Less than a piece of ours, which is not done yet.
        rig.wire.take(5000)
        rig.loop.settle()
        self.assertNotEqual(before, rig.outbox.progress())
        self.assertEqual(before[0], rig.outbox.taken)


class MemoryTests(OutboxCase):
    """A transport without a socket, as in tests and on pipes: it says when it has enough."""

    def setUp(self) -> None:
        self.transport: Any = StringTransport(peerAddress=IPv4Address("TCP", "127.0.0.1", 50000))
        self.owner = Writer()
        self.owner.makeConnection(self.transport)
        self.outbox = self.owner.outbox

    def test_writes_until_it_is_paused(self) -> None:
        self.assertTrue(self.transport.streaming)
        self.outbox.write(b"one", True)
        self.assertEqual((self.transport.value(), self.outbox.taken, self.outbox.answers), (b"one", 3, 0))
        self.transport.producer.pauseProducing()
        self.outbox.write(b"two", True)
        self.outbox.write(b"three")
        self.outbox.flush()
        self.assertEqual(self.transport.value(), b"one")
        self.assertEqual((self.outbox.waiting, self.outbox.answers), (8, 3))
        self.transport.producer.resumeProducing()
        self.assertEqual(self.transport.value(), b"onetwothree")
        self.assertEqual((self.outbox.taken, self.outbox.waiting, self.outbox.answers), (11, 0, 0))
        self.assertEqual(self.owner.told, ["waits", "waits", "drained"])

    def test_it_may_have_enough_in_the_middle(self) -> None:
        """It is given no more than a piece after it asked for a pause."""
        write = self.transport.write

        def sip(data: bytes) -> None:
            write(data)
            self.transport.producer.pauseProducing()

        self.transport.producer.pauseProducing()
        self.outbox.write(numbered(150_000), True)
        self.transport.write = sip
        sizes = []
        while self.outbox.waiting:
            self.transport.producer.resumeProducing()
            self.assertEqual(self.outbox.answers, 150_000 if self.outbox.waiting else 0)
            sizes.append(len(self.transport.value()))
            self.assertEqual(self.outbox.taken, sizes[-1])
        self.assertEqual(sizes, [65536, 131072, 150_000])
        self.assertEqual(self.transport.value(), numbered(150_000))

    def test_a_second_resume_means_nothing(self) -> None:
        self.transport.producer.resumeProducing()
        self.assertEqual(self.owner.told, [])

    def test_close(self) -> None:
        self.transport.producer.pauseProducing()
        self.outbox.write(b"never")
        self.outbox.close()
        self.assertIsNone(self.transport.producer)
        self.outbox.resumeProducing()
        self.outbox.write(b"never")
        self.outbox.flush()
        self.outbox.close()
        self.assertEqual((self.transport.value(), self.outbox.waiting), (b"", 0))
        self.assertEqual(self.owner.told, ["waits"])

    def test_progress(self) -> None:
        before = self.outbox.progress()
        self.assertEqual(before, self.outbox.progress())
        self.outbox.write(b"some")
        self.assertNotEqual(before, self.outbox.progress())


class PipeTests(OutboxCase):
    """A descriptor that is no socket."""

    def test_progress_where_the_system_does_not_say(self) -> None:
        loop = Loop()
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)

        class Pipe(FileDescriptor):
            def fileno(self) -> int:
                return writing

            def getHandle(self) -> int:
                return writing

            def writeSomeData(self, data: bytes) -> int:
                return os.write(writing, data)

        reactor: Any = loop
        pipe = Pipe(reactor)
        pipe.connected = True
        owner = Writer()
        outbox = Outbox(pipe, owner)
        before = outbox.progress()
        outbox.write(b"some")
        loop.settle()
        self.assertNotEqual(before, outbox.progress())
        self.assertEqual(os.read(reading, 100), b"some")
        self.assertEqual(owner.told, ["waits", "drained"])


FRAMES = st.lists(st.lists(st.integers(0, 9000), min_size=1, max_size=4), min_size=1, max_size=8)


class DropTests(OutboxCase):
    """`drop_unbegun`: what is on the wire stays a run of whole frames."""

    def check(self, kind: str, chunks: list[list[int]], taken: int, *, again: bool = False) -> None:
        rig = Rig(kind)
        try:
            number = 0
            written = []
            for sizes in chunks:
                joined = b""
                for size in sizes:
                    written.append(number.to_bytes(4, "big") + bytes(size))
                    joined += frame(written[-1])
                    number += 1
                rig.outbox.write(joined, True)
            rig.wire.take(taken)
            rig.loop.turn()
            begun = rig.outbox.taken
            rig.outbox.drop_unbegun()
            if again:
                rig.outbox.drop_unbegun()
            if kind == "socket":
                self.assertEqual(rig.outbox.answers, 0)
            waiting = rig.outbox.waiting
            last = b"the last frame"
            rig.outbox.push(frame(last))
            rig.outbox.flush()
            rig.wire.take_all()
            self.assertEqual((rig.outbox.waiting, rig.outbox.answers), (0, 0))
            self.assertEqual(rig.outbox.taken, begun + waiting + len(frame(last)))
            reader = FrameReader()
            reader.feed(rig.wire.data)
            payloads = reader.take(1000, 1 << 20)
            self.assertFalse(reader.begun)
            self.assertEqual(payloads[-1], last)
            self.assertEqual(payloads[:-1], written[: len(payloads) - 1])
            if kind == "socket":
                # Nothing but the frame that had begun: none follows it.
                ends = [
                    sum(len(frame(payload)) for payload in written[:count]) for count in range(number + 1)
                ]
                self.assertEqual(
                    sum(map(len, map(frame, payloads[:-1]))), min(end for end in ends if end >= begun)
                )
        finally:
            rig.close()

    @given(FRAMES, st.integers(1, 30_000), st.booleans(), examples=150)
    def test_on_a_socket(self, chunks: list[list[int]], taken: int, again: bool) -> None:
        self.check("socket", chunks, taken, again=again)

    @given(FRAMES, st.integers(1, 30_000), examples=60)
    def test_through_a_wrapper(self, chunks: list[list[int]], taken: int) -> None:
        self.check("wrapped", chunks, taken)

    @given(FRAMES, st.integers(1, 30_000), examples=30)
    def test_through_tls(self, chunks: list[list[int]], taken: int) -> None:
        self.check("tls", chunks, taken)

    def test_most_of_what_waits_goes(self) -> None:
        rig = self.rig("socket")
        for _ in range(200):
            rig.outbox.write(frame(bytes(5000)))
        rig.outbox.drop_unbegun()
        self.assertLess(rig.outbox.waiting, 5004)

    def test_at_the_end_of_a_frame(self) -> None:
        """Exactly one frame of a joined chunk has left: nothing of it is to come."""
        transport: Any = StringTransport()
        owner = Writer()
        owner.makeConnection(transport)
        first = frame(bytes(65536 - 4))
        write = transport.write

        def sip(data: bytes) -> None:
            write(data)
            transport.producer.pauseProducing()

        transport.write = sip
        owner.outbox.push(first + frame(b"never"))
        owner.outbox.flush()
        owner.outbox.drop_unbegun()
        self.assertEqual(owner.outbox.waiting, 0)
        owner.outbox.push(frame(b"last"))
        transport.producer.resumeProducing()
        self.assertEqual(transport.value(), first + frame(b"last"))

    def test_nothing_waits(self) -> None:
        rig = self.rig("socket")
        rig.outbox.drop_unbegun()
        rig.outbox.write(frame(b"x"))
        rig.outbox.drop_unbegun()
        rig.wire.take_all()
        self.assertEqual(rig.wire.raw, frame(b"x"))


class CloseTests(OutboxCase):
    """The end of a connection."""

    def test_the_socket_can_close(self) -> None:
        for kind in ("socket", "wrapped"):
            rig = self.rig(kind)
            rig.outbox.write(b"bye")
            rig.loop.settle()
            rig.outbox.close()
            self.assertIsNone(rig.descriptor.producer)
            rig.transport.loseConnection()
            rig.wire.take_all()
            self.assertEqual(rig.wire.raw, b"bye")
            self.assertTrue(rig.wire.ended)
            self.assertTrue(rig.owner.lost)

    def test_tls_can_close(self) -> None:
        rig = self.rig("tls")
        rig.outbox.write(b"bye")
        rig.loop.settle()
        rig.outbox.close()
        rig.transport.loseConnection()
        rig.wire.take_all()
        self.assertEqual(rig.wire.data, b"bye")
        assert isinstance(rig.wire, TLSWire)
        rig.wire.say_goodbye()
        rig.wire.take_all()
        self.assertTrue(rig.wire.ended)
        self.assertTrue(rig.owner.lost)

    def test_others_can_close_the_socket(self) -> None:
        """`loseConnection` by somebody who knows nothing of the outbox sends what waits, and closes."""
        rig = self.rig("socket")
        rig.outbox.write(numbered(100_000))
        rig.transport.loseConnection()
        rig.wire.take_all()
        self.assertEqual(rig.wire.raw, numbered(100_000))
        self.assertTrue(rig.wire.ended)
        self.assertTrue(rig.owner.lost)

    def test_a_wrapper_can_close_the_socket(self) -> None:
        rig = self.rig("wrapped")
        rig.transport.loseConnection()
        rig.wire.take_all()
        self.assertTrue(rig.wire.ended)
        self.assertTrue(rig.owner.lost)

    def test_the_peer_closes_tls(self) -> None:
        rig = self.rig("tls")
        assert isinstance(rig.wire, TLSWire)
        rig.wire.say_goodbye()
        rig.wire.take_all()
        self.assertTrue(rig.wire.ended)
        self.assertTrue(rig.owner.lost)

    def test_the_peer_closes_tls_while_something_waits(self) -> None:
        rig = self.rig("tls")
        assert isinstance(rig.wire, TLSWire)
        rig.outbox.write(numbered(500_000))
        rig.loop.settle()
        rig.wire.say_goodbye()
        rig.wire.take_all()
        self.assertTrue(rig.wire.ended)
        self.assertTrue(rig.owner.lost)
