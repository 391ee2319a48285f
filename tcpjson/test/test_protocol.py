"""The protocol under the server: what `Int32StringReceiver` publishes, turns, holds, and the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.basic import Int32StringReceiver, StringTooLongError
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.compression import deflate, inflate
from tcpjson.core.errors import Forbidden, ProtocolError
from tcpjson.core.framing import FrameReader, frame
from tcpjson.core.limits import HIGH_WATER
from tcpjson.protocol import Hold, TCPJSONProtocol
from tcpjson.test.hypo import given
from tcpjson.test.wires import Loop, TLSWire, Wire, connect, run_due


class Recorder(TCPJSONProtocol):
    """Notes the payloads that it is given, and does what it is told at each."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.strings: list[bytes] = []
        self.turns: list[int] = []
        self.too_long: list[int] = []
        self.lost = False
        self.act: Callable[[bytes], Any] = lambda string: None

    def stringReceived(self, string: bytes) -> None:
        self.strings.append(string)
        self.act(string)

    def turnEnded(self, handled: int) -> None:
        self.turns.append(handled)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.lost = True


def parse(data: bytes) -> list[bytes]:
    """The payloads of a run of whole frames."""
    reader = FrameReader()
    if data:
        reader.feed(data)
    payloads = reader.take(100_000, 1 << 30)
    assert not reader.begun
    return payloads


class MemoryCase(SynchronousTestCase):
    """A protocol on a transport in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.protocol = self.connect()

    def connect(self) -> Recorder:
        protocol = Recorder(self.clock)
        protocol.makeConnection(StringTransport())
        return protocol


class PublishedTests(MemoryCase):
    """The names and the meaning of `Int32StringReceiver` stay."""

    def test_it_is_one(self) -> None:
        self.assertIsInstance(self.protocol, Int32StringReceiver)
        self.assertEqual(TCPJSONProtocol.MAX_LENGTH, 1 << 20)

    def test_send_string(self) -> None:
        self.protocol.sendString(b"")
        self.protocol.sendString(b"hello")
        self.assertEqual(self.protocol.transport.value(), b"\0\0\0\0\0\0\0\5hello")

    def test_send_string_too_long(self) -> None:
        class Huge(bytes):
            def __len__(self) -> int:
                return 1 << 31

        self.assertRaises(StringTooLongError, self.protocol.sendString, Huge(b"x"))
        self.assertEqual(self.protocol.transport.value(), b"")

    @given(st.lists(st.binary(max_size=40), max_size=12), st.data())
    def test_however_it_is_cut(self, payloads: list[bytes], data: st.DataObject) -> None:
        protocol = self.connect()
        wire = b"".join(map(frame, payloads))
        while wire:
            size = data.draw(st.integers(1, len(wire)))
            protocol.dataReceived(wire[:size])
            wire = wire[size:]
        self.assertEqual(protocol.strings, payloads)
        for string in protocol.strings:
            self.assertIs(type(string), bytes)

    def test_length_limit(self) -> None:
        class Limited(Recorder):
            MAX_LENGTH = 10

            def lengthLimitExceeded(self, length: int) -> None:
                self.too_long.append(length)
                self.transport.loseConnection()

        protocol = Limited(self.clock)
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(frame(b"0123456789") + b"\0\0\0\x0b")
        self.assertEqual(protocol.strings, [b"0123456789"])
        self.assertEqual(protocol.too_long, [11])
        self.assertTrue(protocol.transport.disconnecting)
        # Nothing of it was kept.
        protocol.dataReceived(frame(b"after"))
        self.assertEqual((protocol.strings[1:], protocol.too_long), ([b"after"], [11]))

    def test_length_limit_closes(self) -> None:
        self.protocol.dataReceived(frame(b"before") + b"\x80\0\0\0 and what follows")
        self.assertEqual(self.protocol.strings, [b"before"])
        self.assertTrue(self.protocol.transport.disconnecting)
        self.protocol.dataReceived(frame(b"after"))
        self.assertEqual(self.protocol.strings, [b"before"])

    def test_pause_and_resume(self) -> None:
        self.protocol.pauseProducing()
        self.assertTrue(self.protocol.paused)
        self.assertEqual(self.protocol.transport.producerState, "paused")
        self.protocol.dataReceived(frame(b"1") + frame(b"2"))
        self.assertEqual(self.protocol.strings, [])
        self.protocol.resumeProducing()
        self.assertFalse(self.protocol.paused)
        self.assertEqual(self.protocol.strings, [b"1", b"2"])
        self.assertEqual(self.protocol.transport.producerState, "producing")

    def test_resume_without_pause(self) -> None:
        self.protocol.hold(Hold.ANSWERS)
        self.protocol.resumeProducing()
        self.assertTrue(self.protocol.paused)

    def test_pause_within_string_received(self) -> None:
        def act(string: bytes) -> None:
            if string == b"2":
                self.protocol.pauseProducing()

        self.protocol.act = act
        self.protocol.dataReceived(b"".join(frame(b"%d" % number) for number in range(5)))
        self.assertEqual(self.protocol.strings, [b"0", b"1", b"2"])
        self.assertEqual(self.protocol.transport.producerState, "paused")
        self.protocol.dataReceived(frame(b"5"))
        self.protocol.resumeProducing()
        self.assertEqual(self.protocol.strings, [b"%d" % number for number in range(6)])

    def test_pause_and_resume_within_string_received(self) -> None:
        def act(string: bytes) -> None:
            self.protocol.pauseProducing()
            self.protocol.resumeProducing()

        self.protocol.act = act
        self.protocol.dataReceived(b"".join(frame(b"%d" % number) for number in range(5)))
        self.assertEqual(self.protocol.strings, [b"%d" % number for number in range(5)])
        self.assertEqual(self.protocol.transport.producerState, "producing")

    def test_data_within_string_received(self) -> None:
        """As when a handler lets another connection go on, that sends to this one."""

        def act(string: bytes) -> None:
            if string == b"1":
                self.protocol.dataReceived(frame(b"3"))

        self.protocol.act = act
        self.protocol.dataReceived(frame(b"1") + frame(b"2"))
        self.assertEqual(self.protocol.strings, [b"1", b"2", b"3"])
        self.assertEqual(self.protocol.transport.producerState, "producing")

    def test_stop(self) -> None:
        self.protocol.stopProducing()
        self.assertTrue(self.protocol.transport.disconnecting)
        self.protocol.dataReceived(frame(b"1"))
        self.assertEqual(self.protocol.strings, [])

    def test_stop_within_string_received(self) -> None:
        self.protocol.act = lambda string: self.protocol.stopProducing()
        self.protocol.dataReceived(frame(b"1") + frame(b"2"))
        self.assertEqual(self.protocol.strings, [b"1"])
        self.assertTrue(self.protocol.transport.disconnecting)

    def test_an_exception_goes_to_the_caller(self) -> None:
        def act(string: bytes) -> None:
            raise ZeroDivisionError

        self.protocol.act = act
        self.assertRaises(ZeroDivisionError, self.protocol.dataReceived, frame(b"1"))
        # It is not stuck in that turn.
        self.protocol.act = lambda string: None
        self.protocol.dataReceived(frame(b"2"))
        self.assertEqual(self.protocol.strings[-1], b"2")

    def test_a_protocol_error_of_the_application(self) -> None:
        """It is none of the frame's."""

        def act(string: bytes) -> None:
            raise Forbidden

        self.protocol.act = act
        self.assertRaises(Forbidden, self.protocol.dataReceived, frame(b"1") + frame(b"2"))
        self.protocol.act = lambda string: None
        self.protocol.dataReceived(frame(b"3"))
        self.assertEqual(self.protocol.strings[-1], b"3")
        self.assertFalse(self.protocol.transport.disconnecting)


def packed(payload: bytes) -> bytes:
    """A compressed frame."""
    return frame(deflate(payload), compressed=True)


class CompressedTests(MemoryCase):
    """Frames that are compressed, once that is agreed on (section 7)."""

    def connect(self) -> Recorder:
        protocol = super().connect()
        protocol._reader.inflate = inflate
        return protocol

    @given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.booleans()), max_size=12), st.data())
    def test_however_it_is_cut(self, frames: list[tuple[bytes, bool]], data: st.DataObject) -> None:
        protocol = self.connect()
        wire = b"".join(packed(payload) if compressed else frame(payload) for payload, compressed in frames)
        while wire:
            size = data.draw(st.integers(1, len(wire)))
            protocol.dataReceived(wire[:size])
            wire = wire[size:]
            if data.draw(st.booleans()):
                self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual(protocol.strings, [payload for payload, _ in frames])
        for string in protocol.strings:
            self.assertIs(type(string), bytes)

    def test_a_batch_that_was_long_is_a_turn(self) -> None:
        """However fast it was handled, others come next."""
        other = self.connect()
        order: list[bytes] = []
        self.protocol.act = other.act = lambda string: order.append(string[:1])
        self.protocol.dataReceived((packed(b"a" * HIGH_WATER) + packed(b"b")) * 3)
        run_due(self.clock)
        self.assertEqual(order, [b"a", b"b"])
        self.assertTrue(self.protocol.paused)
        self.assertEqual(self.protocol.transport.producerState, "paused")
        other.dataReceived(frame(b"o"))
        run_due(self.clock)
        self.assertEqual(order, [b"a", b"b", b"o", b"a", b"b"])
        run_due(self.clock)
        self.assertEqual(order, [b"a", b"b", b"o", b"a", b"b", b"a", b"b"])
        self.assertFalse(self.protocol.paused)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_they_wait_for_a_turn(self) -> None:
        """What stands before the first is handled at once."""
        self.protocol.dataReceived(frame(b"1") + frame(b"2") + packed(b"3") + frame(b"4"))
        self.assertEqual(self.protocol.strings, [b"1", b"2"])
        self.assertTrue(self.protocol.paused)
        run_due(self.clock)
        self.assertEqual(self.protocol.strings, [b"1", b"2", b"3", b"4"])
        self.assertFalse(self.protocol.paused)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_other_release_is_a_turn(self) -> None:
        for hold in (Hold.PAUSED, Hold.RATE):
            protocol = self.connect()
            protocol.hold(hold)
            protocol.dataReceived(packed(b"1"))
            protocol.release_now(hold)
            self.assertEqual(protocol.strings, [])
            run_due(self.clock)
            self.assertEqual(protocol.strings, [b"1"])
        protocol = self.connect()
        protocol.hold(Hold.ANSWERS)
        protocol.dataReceived(packed(b"1"))
        protocol.release(Hold.ANSWERS)
        run_due(self.clock)
        self.assertEqual(protocol.strings, [])
        run_due(self.clock)
        self.assertEqual(protocol.strings, [b"1"])

    def test_short_ones_are_one_turn(self) -> None:
        self.protocol.dataReceived(packed(b"x") * 500)
        run_due(self.clock)
        self.assertEqual(len(self.protocol.strings), 500)
        self.assertFalse(self.protocol.paused)

    def test_a_long_one_alone_is_one_turn(self) -> None:
        """Nothing is left for another."""
        self.protocol.dataReceived(packed(bytes(HIGH_WATER + 1)))
        run_due(self.clock)
        self.assertEqual(len(self.protocol.strings), 1)
        self.assertFalse(self.protocol.paused)

    def test_one_at_a_time(self) -> None:
        """A batch of one is whole."""
        self.protocol.batch = 1
        self.protocol.dataReceived(packed(b"x") * 300)
        run_due(self.clock)
        self.assertEqual(len(self.protocol.strings), 300)

    def test_put_back(self) -> None:
        """What was inflated and not handled is handled later, as what it is."""
        self.protocol.act = lambda string: self.protocol.hold(Hold.ANSWERS)
        self.protocol.dataReceived(b"".join(packed(b"%d" % number) for number in range(4)))
        run_due(self.clock)
        for number in range(4):
            self.assertEqual(len(self.protocol.strings), number + 1)
            self.protocol.release_now(Hold.ANSWERS)
        self.assertEqual(self.protocol.strings, [b"0", b"1", b"2", b"3"])

    def test_what_is_refused(self) -> None:
        """After all before it were handled; nothing is kept of what follows."""

        class Refusing(Recorder):
            MAX_LENGTH = 100

            def frameRefused(self, error: ProtocolError) -> None:
                self.act(str(error).encode())
                kept.append(self._reader.begun)
                super().frameRefused(error)

        kept: list[bool] = []

        for bad, text in (
            (frame(b"xx", True), "the compressed payload is broken"),
            (packed(bytes(101)), "100 bytes, when inflated"),
        ):
            protocol = Refusing(self.clock)
            protocol.makeConnection(StringTransport())
            protocol._reader.inflate = inflate
            said: list[bytes] = []
            protocol.act = said.append
            protocol.dataReceived(frame(b"1") + packed(b"2") + bad + packed(b"3"))
            self.clock.advance(0)
            self.assertEqual((protocol.strings, said[:2]), ([b"1", b"2"], [b"1", b"2"]))
            self.assertIn(text, said[2].decode())
            self.assertTrue(protocol.transport.disconnecting)
            self.assertFalse(kept.pop())
            protocol.dataReceived(packed(b"4"))
            self.assertEqual(len(said), 3)

    def test_it_ends_by_default(self) -> None:
        self.protocol.dataReceived(packed(b"1") + frame(b"", True))
        self.clock.advance(0)
        self.assertEqual(self.protocol.strings, [b"1"])
        self.assertTrue(self.protocol.transport.disconnecting)

    def lost(self, reason: Exception, frames: bytes, clock: Clock | None = None) -> list[bytes]:
        """What of some frames was handled when the connection is lost in the same turn."""
        protocol = Recorder(clock or self.clock)
        protocol.makeConnection(StringTransport())
        protocol._reader.inflate = inflate
        protocol.dataReceived(frames)
        protocol.connectionLost(Failure(reason))
        self.assertFalse(protocol._reader.begun)
        return protocol.strings

    def test_the_connection_is_lost_between_turns(self) -> None:
        """What is compressed would have its turn, and nobody waits for it any more."""
        frames = frame(b"1") * 200 + packed(b"2") + frame(b"3")
        self.assertEqual(self.lost(ConnectionLost(), frames), [b"1"] * 200)
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_connection_is_closed_between_turns(self) -> None:
        """One that sends and goes has sent all the same, if it is not too much."""
        frames = (frame(b"1") * 200 + packed(b"2") + frame(b"3")) * 2
        self.assertEqual(len(self.lost(ConnectionDone(), frames)), 404)
        handled = self.lost(ConnectionDone(), packed(bytes(HIGH_WATER + 1)) * 50, BusyClock())
        self.assertTrue(1 <= len(handled) <= 10, len(handled))


class BusyClock(Clock):
    """A clock that goes on by 1.5 milliseconds at each look."""

    def seconds(self) -> float:
        self.rightNow += 0.0015
        return self.rightNow


class TurnTests(MemoryCase):
    """What one peer sends holds up the others no longer than a turn."""

    def test_a_turn_is_short(self) -> None:
        """However few frames were handled: here they take long."""
        clock = BusyClock()
        protocol = Recorder(clock)
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(frame(b"x") * 500)
        self.assertEqual(len(protocol.strings), 256)
        clock.advance(0)
        self.assertEqual(len(protocol.strings), 500)

    def test_a_flood_is_handled_in_turns(self) -> None:
        flood = [b"%d" % number for number in range(2500)]
        self.protocol.dataReceived(b"".join(map(frame, flood)))
        self.assertEqual(self.protocol.strings, flood[:512])
        self.assertEqual(self.protocol.transport.producerState, "paused")
        seen = [len(self.protocol.strings)]
        while len(self.protocol.strings) < len(flood):
            run_due(self.clock)
            seen.append(len(self.protocol.strings))
        self.assertEqual(seen, [512, 1024, 1536, 2048, 2500])
        self.assertEqual(self.protocol.strings, flood)
        self.assertEqual(self.protocol.transport.producerState, "producing")
        self.assertEqual(sum(self.protocol.turns), len(flood))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_others_get_their_turn(self) -> None:
        other = self.connect()
        order: list[bytes] = []
        self.protocol.act = other.act = order.append
        self.protocol.dataReceived(frame(b"flood") * 1000)
        other.dataReceived(frame(b"other"))
        self.clock.advance(0)
        self.assertEqual(order, [b"flood"] * 512 + [b"other"] + [b"flood"] * 488)

    def test_many_at_once(self) -> None:
        class Batches(TCPJSONProtocol):
            batches: list[int]

            def framesReceived(self, payloads: list[bytes]) -> int:
                self.batches.append(len(payloads))
                return len(payloads)

        protocol = Batches(self.clock)
        protocol.batches = []
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(frame(b"") * 300)
        self.assertEqual(protocol.batches, [128, 128, 44])

    def test_one_at_a_time(self) -> None:
        """What a frame changes holds for the next one in the same read."""

        def act(string: bytes) -> None:
            if string == b"long":
                self.protocol.MAX_LENGTH = 100
                self.protocol.batch = 128

        self.protocol.act = act
        self.protocol.MAX_LENGTH = 4
        self.protocol.batch = 1
        self.protocol.dataReceived(frame(b"a") + frame(b"long") + frame(b"x" * 100) + frame(b"b") * 600)
        self.assertEqual(self.protocol.strings[:4], [b"a", b"long", b"x" * 100, b"b"])
        self.clock.advance(0)
        self.assertEqual(len(self.protocol.strings), 603)
        self.protocol.dataReceived(frame(b"x" * 101))
        self.assertTrue(self.protocol.transport.disconnecting)

    def test_a_turn_of_single_frames(self) -> None:
        """It is as long as one of batches."""
        self.protocol.batch = 1
        self.protocol.dataReceived(frame(b"x") * 1000)
        self.assertEqual(len(self.protocol.strings), 512)
        self.clock.advance(0)
        self.assertEqual(len(self.protocol.strings), 1000)

    def test_a_frame_in_pieces_costs_linear_time(self) -> None:
        """Copying all that is there at every piece would take seconds; this takes milliseconds."""
        payload = bytes(16 << 20)

        class Large(Recorder):
            MAX_LENGTH = 1 << 30

        protocol = Large(self.clock)
        protocol.makeConnection(StringTransport())
        data = frame(payload)
        pieces = [data[start : start + 1448] for start in range(0, len(data), 1448)]
        before = time.process_time()
        for piece in pieces:
            protocol.dataReceived(piece)
        spent = time.process_time() - before
        self.assertEqual(protocol.strings, [payload])
        self.assertLess(spent, 1.0)

    def test_the_connection_is_lost_between_turns(self) -> None:
        """One that sends and goes has sent all the same."""
        self.protocol.act = self.protocol.sendString
        self.protocol.dataReceived(frame(b"x") * 2000 + b"\0\0")
        self.protocol.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.protocol.strings, [b"x"] * 2000)
        # No answer is sent to one who is gone.
        self.assertEqual(parse(self.protocol.transport.value()), [b"x"] * 512)

    def test_the_connection_is_lost_while_answers_wait(self) -> None:
        def act(string: bytes) -> None:
            self.protocol.sendString(string)
            self.protocol.hold(Hold.ANSWERS)

        self.protocol.act = act
        self.protocol.dataReceived(frame(b"x") * 10)
        self.assertEqual(len(self.protocol.strings), 1)
        self.protocol.connectionLost()
        self.assertEqual(len(self.protocol.strings), 10)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_connection_is_lost_while_the_application_pauses(self) -> None:
        """It wanted no more for now, and later is never."""
        for hold in (
            Hold.PAUSED,
            Hold.HANDLERS,
            Hold.AUTH,
            Hold.PAUSED | Hold.ANSWERS,
            Hold.AUTH | Hold.RATE,
        ):
            protocol = self.connect()
            protocol.hold(hold)
            protocol.dataReceived(frame(b"x"))
            protocol.connectionLost()
            self.assertEqual(protocol.strings, [])

    def test_the_connection_is_lost_while_something_holds_for_a_time(self) -> None:
        for hold in (Hold.TURN, Hold.ANSWERS, Hold.RATE, Hold.RATE | Hold.ANSWERS):
            protocol = self.connect()
            protocol.hold(hold)
            protocol.dataReceived(frame(b"x"))
            protocol.connectionLost()
            self.assertEqual(protocol.strings, [b"x"])

    def test_the_connection_is_lost_after_the_end(self) -> None:
        self.protocol.hold(Hold.ANSWERS)
        self.protocol.dataReceived(frame(b"x"))
        self.protocol.end()
        self.protocol.connectionLost()
        self.assertEqual(self.protocol.strings, [])

    def test_too_long_a_frame_after_the_loss(self) -> None:
        self.protocol.dataReceived(frame(b"x") * 600 + b"\xff\xff\xff\xff")
        self.protocol.connectionLost()
        self.assertEqual(len(self.protocol.strings), 600)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class HoldTests(MemoryCase):
    """Several reasons to hold a peer's frames, each its own."""

    def test_each_reason_must_be_released(self) -> None:
        self.protocol.hold(Hold.ANSWERS)
        self.protocol.hold(Hold.HANDLERS)
        self.protocol.dataReceived(frame(b"1"))
        self.protocol.release(Hold.ANSWERS)
        self.clock.advance(0)
        self.assertEqual(self.protocol.strings, [])
        self.assertEqual(self.protocol.transport.producerState, "paused")
        self.protocol.release(Hold.HANDLERS)
        self.assertEqual(self.protocol.strings, [])
        self.clock.advance(0)
        self.assertEqual(self.protocol.strings, [b"1"])
        self.assertEqual(self.protocol.transport.producerState, "producing")

    def test_releases_come_together(self) -> None:
        self.protocol.hold(Hold.ANSWERS | Hold.HANDLERS)
        self.protocol.release(Hold.ANSWERS)
        self.protocol.release(Hold.HANDLERS)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(0)
        self.assertFalse(self.protocol.paused)

    def test_a_release_is_of_one_hold(self) -> None:
        """What is held anew waits for a release of its own."""
        self.protocol.hold(Hold.ANSWERS)
        self.protocol.release(Hold.ANSWERS)
        self.clock.advance(0)
        self.protocol.hold(Hold.ANSWERS)
        self.protocol.hold(Hold.HANDLERS)
        self.protocol.release(Hold.HANDLERS)
        self.clock.advance(0)
        self.assertTrue(self.protocol.paused)

    def test_release_of_what_is_not_held(self) -> None:
        self.protocol.release(Hold.ANSWERS)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.protocol.hold(Hold.AUTH)
        self.protocol.dataReceived(frame(b"1"))
        self.protocol.release_now(Hold.RATE)
        self.assertEqual(self.protocol.strings, [])
        self.assertTrue(self.protocol.paused)

    def test_release_now(self) -> None:
        """In the same pass of the reactor, if nothing else holds."""
        self.protocol.hold(Hold.RATE | Hold.AUTH)
        self.protocol.dataReceived(frame(b"1"))
        self.protocol.release_now(Hold.RATE)
        self.assertEqual(self.protocol.strings, [])
        self.assertEqual(self.protocol.transport.producerState, "paused")
        self.protocol.release_now(Hold.AUTH)
        self.assertEqual(self.protocol.strings, [b"1"])
        self.assertEqual(self.protocol.transport.producerState, "producing")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_release_now_within_string_received(self) -> None:
        """What follows is handled after it, not in the midst of it."""
        order: list[bytes] = []

        def act(string: bytes) -> None:
            self.protocol.hold(Hold.AUTH)
            self.protocol.release_now(Hold.AUTH)
            order.append(string)

        self.protocol.act = act
        self.protocol.batch = 2
        self.protocol.dataReceived(frame(b"1") + frame(b"2") + frame(b"3"))
        self.assertEqual(order, [b"1", b"2", b"3"])
        self.assertEqual(self.protocol.transport.producerState, "producing")

    def test_hold_in_the_midst_of_many(self) -> None:
        self.protocol.act = lambda string: self.protocol.hold(Hold.ANSWERS)
        numbers = [b"%d" % number for number in range(10)]
        self.protocol.dataReceived(b"".join(map(frame, numbers)))
        for count in range(1, 11):
            self.assertEqual(self.protocol.strings, numbers[:count])
            self.assertEqual(self.protocol.transport.producerState, "paused")
            self.protocol.release(Hold.ANSWERS)
            self.clock.advance(0)
        self.assertEqual(self.protocol.strings, numbers)

    def test_held_frames_take_their_turns(self) -> None:
        """What came while it was held is no reason to take longer than a turn, either."""
        self.protocol.hold(Hold.ANSWERS)
        self.protocol.dataReceived(frame(b"x") * 1000)
        self.protocol.release(Hold.ANSWERS)
        run_due(self.clock)
        self.assertEqual(len(self.protocol.strings), 512)

    def test_pause_during_a_turn_of_its_own(self) -> None:
        """`pauseProducing` between two turns: the flood waits."""
        self.protocol.dataReceived(frame(b"x") * 1000)
        self.protocol.pauseProducing()
        self.clock.advance(1)
        self.assertEqual(len(self.protocol.strings), 512)
        self.protocol.resumeProducing()
        self.assertEqual(len(self.protocol.strings), 1000)


class MemoryEndTests(MemoryCase):
    """`end` on a transport that cannot close one side."""

    def test_the_last_words_follow_all_else(self) -> None:
        self.protocol.sendString(b"answer")
        self.protocol.end(frame(b"error"))
        self.assertEqual(parse(self.protocol.transport.value()), [b"answer", b"error"])
        self.assertTrue(self.protocol.transport.disconnecting)
        self.assertFalse(self.protocol.transport.disconnected)
        self.assertIsNone(self.protocol.transport.producer)

    def test_without_words(self) -> None:
        self.protocol.end()
        self.assertEqual(self.protocol.transport.value(), b"")
        self.assertTrue(self.protocol.transport.disconnecting)

    def test_once(self) -> None:
        self.protocol.end(frame(b"error"))
        self.protocol.end(frame(b"another"))
        self.assertEqual(parse(self.protocol.transport.value()), [b"error"])
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_its_time(self) -> None:
        for protocol, seconds in ((self.protocol, 2), (self.connect(), 7)):
            transport = protocol.transport
            if seconds == 2:
                protocol.end()
            else:
                protocol.end(timeout=seconds)
            self.clock.advance(seconds - 0.01)
            self.assertFalse(transport.disconnected)
            self.clock.advance(0.01)
            self.assertTrue(transport.disconnected)

    def test_it_waits_for_what_waits(self) -> None:
        self.protocol.transport.producer.pauseProducing()
        self.protocol.sendString(b"answer")
        self.protocol.end(frame(b"error"))
        self.assertFalse(self.protocol.transport.disconnecting)
        self.protocol.transport.producer.resumeProducing()
        self.assertEqual(parse(self.protocol.transport.value()), [b"answer", b"error"])
        self.assertTrue(self.protocol.transport.disconnecting)

    def test_it_goes_on_waiting_while_some_leave(self) -> None:
        transport = self.protocol.transport
        write = transport.write

        def sip(data: bytes) -> None:
            write(data)
            transport.producer.pauseProducing()

        transport.producer.pauseProducing()
        self.protocol.sendString(bytes(100_000))
        transport.write = sip
        self.protocol.end(frame(b"error"))
        transport.producer.resumeProducing()
        self.assertFalse(transport.disconnecting)
        transport.producer.resumeProducing()
        self.assertTrue(transport.disconnecting)
        self.assertEqual(parse(transport.value()), [bytes(100_000), b"error"])

    def test_abort_after_two_seconds(self) -> None:
        self.protocol.transport.producer.pauseProducing()
        self.protocol.end(frame(b"error"))
        self.clock.advance(1.9)
        self.assertFalse(self.protocol.transport.disconnected)
        self.clock.advance(0.2)
        self.assertTrue(self.protocol.transport.disconnected)
        self.protocol.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_abort_of_what_has_closed(self) -> None:
        self.protocol.end()
        self.protocol.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_frames_of_the_same_read_are_dropped(self) -> None:
        self.protocol.act = lambda string: self.protocol.end(frame(b"error"))
        self.protocol.dataReceived(frame(b"1") + frame(b"2") + b"\0\0")
        self.protocol.dataReceived(b"\0\1x")
        self.clock.advance(1)
        self.assertEqual(self.protocol.strings, [b"1"])

    def test_what_was_held_is_read_to_be_dropped(self) -> None:
        """It must read on, or it would not see that the peer closes."""
        self.protocol.hold(Hold.ANSWERS)
        self.protocol.dataReceived(frame(b"1"))
        self.protocol.end()
        self.assertEqual(self.protocol.transport.producerState, "producing")
        self.protocol.release(Hold.ANSWERS)
        self.clock.advance(1)
        self.assertEqual(self.protocol.strings, [])

    def test_ended_between_turns(self) -> None:
        self.protocol.dataReceived(frame(b"x") * 1000)
        self.protocol.end()
        self.clock.advance(1)
        self.assertEqual(len(self.protocol.strings), 512)

    def test_nothing_is_sent_afterwards(self) -> None:
        self.protocol.end(frame(b"error"))
        self.protocol.sendString(b"late")
        self.assertEqual(parse(self.protocol.transport.value()), [b"error"])

    def test_nothing_is_handled_after_the_loss(self) -> None:
        self.protocol.connectionLost()
        self.protocol.dataReceived(frame(b"late"))
        self.protocol.sendString(b"late")
        self.assertEqual(self.protocol.strings, [])
        self.assertEqual(self.protocol.transport.value(), b"")


class SocketCase(SynchronousTestCase):
    """A protocol on a socket."""

    protocol: Recorder

    def wire(self, *, tls: bool = False, send_buffer: int | None = None) -> Wire:
        loop = Loop()
        self.addCleanup(loop.close)
        self.protocol = Recorder(loop)
        wire = connect(loop, Factory.forProtocol(lambda: self.protocol), tls=tls, send_buffer=send_buffer)
        self.addCleanup(wire.socket.close)
        return wire


class SocketEndTests(SocketCase):
    """`end` on real sockets."""

    def test_half_close(self) -> None:
        """The sending side closes, the receiving side goes on discarding until the peer closes, too."""
        wire = self.wire()
        self.protocol.end(frame(b"error"))
        wire.send(frame(b"more") * 1000 + b"\0\0\0\x09")
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertEqual(parse(wire.data), [b"error"])
        self.assertEqual(self.protocol.strings, [])
        # Discarded, not kept.
        self.assertFalse(self.protocol._reader.begun)
        self.assertFalse(self.protocol.lost)
        wire.close()
        self.assertTrue(self.protocol.lost)
        self.assertEqual(wire.loop.getDelayedCalls(), [])

    def test_the_peer_closes_in_the_same_turn(self) -> None:
        """Its end is read before ours is written."""
        wire = self.wire()
        self.protocol.end()
        self.protocol.readConnectionLost()
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertTrue(self.protocol.lost)

    def test_the_peer_closes_one_side_before_the_end_has_left(self) -> None:
        """It gets all that waits, the last words too, and nothing is left open."""
        wire = self.wire(send_buffer=4096)
        self.protocol.sendString(bytes(100_000))
        self.protocol.end(frame(b"error"))
        wire.end()
        self.assertFalse(self.protocol.lost)
        wire.take_all()
        self.assertEqual(parse(wire.data), [bytes(100_000), b"error"])
        self.assertTrue(wire.ended)
        self.assertTrue(self.protocol.lost)

    def test_abort_of_a_peer_that_goes_on(self) -> None:
        wire = self.wire()
        self.protocol.end()
        for _ in range(10):
            wire.send(b"more")
            wire.loop.advance(0.19)
            self.assertFalse(self.protocol.lost)
        wire.loop.advance(0.2)
        wire.loop.settle()
        self.assertTrue(self.protocol.lost)
        self.assertEqual(wire.loop.getDelayedCalls(), [])

    def test_abort_of_a_peer_that_does_not_read(self) -> None:
        wire = self.wire(send_buffer=4096)
        self.protocol.sendString(bytes(1 << 20))
        self.protocol.end(frame(b"error"))
        wire.loop.settle()
        self.assertFalse(self.protocol.lost)
        wire.loop.advance(2)
        wire.loop.settle()
        self.assertTrue(self.protocol.lost)

    def test_all_that_waits_arrives(self) -> None:
        wire = self.wire(send_buffer=4096)
        self.protocol.sendString(bytes(1 << 20))
        self.protocol.end(frame(b"error"))
        wire.take_all()
        self.assertEqual(parse(wire.data), [bytes(1 << 20), b"error"])
        self.assertTrue(wire.ended)

    def test_a_held_peer_can_close(self) -> None:
        wire = self.wire()
        self.protocol.hold(Hold.ANSWERS)
        wire.loop.settle()
        self.protocol.end(frame(b"error"))
        wire.take_all()
        self.assertEqual(parse(wire.data), [b"error"])
        wire.close()
        self.assertTrue(self.protocol.lost)

    def test_tls(self) -> None:
        """TLS has no half-close that all clients understand: it closes, and waits for the answer."""
        wire = self.wire(tls=True)
        self.protocol.sendString(b"answer")
        self.protocol.end(frame(b"error"))
        wire.send(frame(b"more"))
        wire.take_all()
        self.assertEqual(parse(wire.data), [b"answer", b"error"])
        self.assertEqual(self.protocol.strings, [])
        assert isinstance(wire, TLSWire)
        wire.say_goodbye()
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertTrue(self.protocol.lost)
        self.assertEqual(wire.loop.getDelayedCalls(), [])

    def test_tls_with_much_to_send(self) -> None:
        wire = self.wire(tls=True, send_buffer=4096)
        self.protocol.sendString(bytes(1 << 20))
        self.protocol.end(frame(b"error"))
        wire.take_all()
        self.assertEqual(parse(wire.data), [bytes(1 << 20), b"error"])

    def test_tls_of_a_peer_that_says_nothing_more(self) -> None:
        wire = self.wire(tls=True)
        self.protocol.end()
        wire.loop.settle()
        self.assertFalse(self.protocol.lost)
        wire.loop.advance(2)
        wire.loop.settle()
        self.assertTrue(self.protocol.lost)

    def test_stop(self) -> None:
        wire = self.wire()
        self.protocol.act = lambda string: self.protocol.stopProducing()
        wire.send(frame(b"1") + frame(b"2"))
        wire.take_all()
        self.assertEqual(self.protocol.strings, [b"1"])
        self.assertTrue(wire.ended)
        wire.close()
        self.assertTrue(self.protocol.lost)

    def test_stop_for_a_peer_that_reads_nothing(self) -> None:
        wire = self.wire()
        self.protocol.sendString(bytes(1 << 20))
        self.protocol.stopProducing()
        wire.loop.advance(2)
        wire.loop.settle()
        self.assertTrue(self.protocol.lost)


class InputEndTests(SocketCase):
    """A peer that closes its sending side, and reads."""

    def test_it_gets_what_waits(self) -> None:
        wire = self.wire(send_buffer=4096)
        self.protocol.act = lambda string: self.protocol.sendString(string * 100_000)
        wire.send(frame(b"1") + frame(b"2"))
        wire.end()
        wire.take_all()
        self.assertEqual(parse(wire.data), [b"1" * 100_000, b"2" * 100_000])
        self.assertTrue(wire.ended)
        self.assertTrue(self.protocol.lost)

    def test_a_flood_and_an_end(self) -> None:
        """The end comes behind all frames, however many turns they take."""
        wire = self.wire()
        self.protocol.act = self.protocol.sendString
        wire.socket.send(frame(b"x") * 3000)
        wire.end()
        wire.take_all()
        self.assertEqual(parse(wire.data), [b"x"] * 3000)
        self.assertTrue(self.protocol.lost)

    def test_while_it_is_held(self) -> None:
        wire = self.wire()

        def act(string: bytes) -> None:
            self.protocol.sendString(string)
            self.protocol.hold(Hold.ANSWERS)

        self.protocol.act = act
        wire.socket.send(frame(b"1") + frame(b"2"))
        wire.end()
        wire.take_all()
        self.assertFalse(wire.ended)
        self.protocol.release(Hold.ANSWERS)
        wire.take_all()
        self.assertEqual(parse(wire.data), [b"1", b"2"])
        self.protocol.release(Hold.ANSWERS)
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertTrue(self.protocol.lost)

    def test_half_a_frame(self) -> None:
        wire = self.wire()
        wire.send(frame(b"whole") + b"\0\0\0\5ha")
        wire.end()
        wire.take_all()
        self.assertEqual(self.protocol.strings, [b"whole"])
        self.assertTrue(self.protocol.lost)

    def test_the_interface(self) -> None:
        self.assertTrue(IHalfCloseableProtocol.providedBy(Recorder(Clock())))
