"""Frames come out the same however their bytes are cut, at a linear cost."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterable

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.compression import BrokenStream, deflate, inflate
from tcpjson.core.errors import ProtocolError, TooLarge
from tcpjson.core.framing import (
    COMPRESSED,
    PREFIX_LENGTH,
    FrameReader,
    FrameTooLong,
    frame,
    frame_boundary,
    join_frames,
    length_hint,
)
from tcpjson.core.limits import HIGH_WATER
from tcpjson.test.hypo import given

LIMIT = 300


class Model:
    """What a reader must do, written the slow and plain way."""

    def __init__(self) -> None:
        self.held = b""

    def take(self, count: int, max_length: int) -> list[bytes]:
        """As `FrameReader.take`."""
        payloads: list[bytes] = []
        while len(payloads) < count and len(self.held) >= 4:
            length = int.from_bytes(self.held[:4], "big")
            if length > max_length:
                if payloads:
                    break
                raise FrameTooLong(length)
            if len(self.held) < 4 + length:
                break
            payloads.append(self.held[4 : 4 + length])
            self.held = self.held[4 + length :]
        return payloads

    def count(self) -> int:
        """As `FrameReader.count`: what could be taken, if nothing were too long."""
        whole = Model()
        whole.held = self.held
        return len(whole.take(1000, 2**32))

    @property
    def announced(self) -> int:
        """The length of the frame at the front; only when all whole frames were taken."""
        return int.from_bytes(self.held[:4], "big") if len(self.held) >= 4 else 0


def drain(reader: FrameReader | Model, count: int = 1000) -> list[bytes | int]:
    """All that can be taken; the length that is too long, if one is, comes last."""
    taken: list[bytes | int] = []
    try:
        while payloads := reader.take(count, LIMIT):
            taken += payloads
    except FrameTooLong as error:
        taken.append(error.length)
    return taken


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The data cut at some places; no piece is empty."""
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]


payloads = st.one_of(st.binary(max_size=12), st.integers(0, LIMIT).map(bytes))
cuts = st.lists(st.integers(0, 2000), max_size=12)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Whole frames, and perhaps at the end one that is cut or too long."""
    data = b"".join(map(frame, draw(st.lists(payloads, max_size=8))))
    tail = draw(st.sampled_from(["", "cut", "too long", "any"]))
    if tail == "cut":
        last = frame(draw(payloads))
        data += last[: draw(st.integers(0, len(last) - 1))]
    elif tail == "too long":
        data += struct.pack(">I", draw(st.sampled_from([LIMIT + 1, LIMIT + 2, 2**31, 2**32 - 1])))
        data += draw(st.binary(max_size=10))
    elif tail == "any":
        data += draw(st.binary(max_size=10))
    return data


class FrameTests(SynchronousTestCase):
    """`frame` and `frame_boundary`."""

    def test_a_frame_is_its_length_and_its_payload(self) -> None:
        self.assertEqual(frame(b"{}"), b"\0\0\0\x02{}")
        self.assertEqual(frame(bytes(0x010203)), b"\0\x01\x02\x03" + bytes(0x010203))
        self.assertEqual(frame(b""), bytes(PREFIX_LENGTH))

    def test_a_bit_says_that_it_is_compressed(self) -> None:
        self.assertEqual(frame(b"{}", compressed=True), b"\x80\0\0\x02{}")
        self.assertEqual(frame(b"", True), b"\x80\0\0\0")

    def test_frames_are_joined(self) -> None:
        for contents in ([], [b"{}"], [b""], [b"{}", b"", b"[1]"]):
            self.assertEqual(join_frames(contents), b"".join(map(frame, contents)))

    @given(
        st.lists(st.tuples(payloads, st.booleans()), min_size=1, max_size=6),
        st.integers(0, 2000),
    )
    def test_the_boundary_is_the_end_of_the_frame_begun(
        self, frames: list[tuple[bytes, bool]], place: int
    ) -> None:
        """Compressed or not: what a compressed frame has behind its length is no other than here."""
        data = b"".join(frame(content, compressed) for content, compressed in frames)
        contents = [content for content, _ in frames]
        offset = place % (len(data) + 1)
        ends = [0]
        for content in contents:
            ends.append(ends[-1] + 4 + len(content))
        self.assertEqual(frame_boundary(data, offset), min(end for end in ends if end >= offset))


class SplitTests(SynchronousTestCase):
    """However the bytes come, the frames are the same."""

    def _assert_same(self, data: bytes, cut: list[bytes], count: int) -> None:
        model = Model()
        model.held = data
        expected = drain(model)
        reader = FrameReader()
        taken: list[bytes | int] = []
        for piece in cut:
            reader.feed(piece)
            self.assertTrue(reader.begun)
            taken += drain(reader, count)
            if taken and isinstance(taken[-1], int):
                break
            self.assertFalse(reader.ready)
            self.assertEqual(reader.count(), 0)
        self.assertEqual(taken, expected)
        self.assertEqual({type(payload) for payload in taken} - {bytes, int}, set())
        if not (taken and isinstance(taken[-1], int)):
            self.assertEqual(reader.announced, model.announced)
            self.assertEqual(reader.begun, bool(model.held))

    @given(streams(), cuts, st.integers(1, 4), examples=400)
    def test_any_split(self, data: bytes, places: list[int], count: int) -> None:
        self._assert_same(data, pieces(data, places), count)

    @given(streams())
    def test_every_split_in_two(self, data: bytes) -> None:
        # Of a long payload the middle is like its neighbours.
        for place in {*range(min(len(data), 40)), *range(max(0, len(data) - 40), len(data) + 1)}:
            self._assert_same(data, pieces(data, [place]), 1000)

    @given(streams())
    def test_byte_by_byte(self, data: bytes) -> None:
        self._assert_same(data, pieces(data, range(len(data))), 1000)

    def test_a_frame_of_the_greatest_length(self) -> None:
        reader = FrameReader()
        reader.feed(frame(bytes(LIMIT)) + frame(bytes(LIMIT + 1)))
        self.assertEqual(reader.take(10, LIMIT), [bytes(LIMIT)])
        self.assertTrue(reader.ready)
        error = self.assertRaises(FrameTooLong, reader.take, 10, LIMIT)
        self.assertEqual(error.length, LIMIT + 1)
        self.assertEqual(str(error), f"a frame of {LIMIT + 1} bytes")

    def test_a_length_is_refused_with_its_last_byte(self) -> None:
        """Section 1: as soon as its four bytes are there."""
        reader = FrameReader()
        for byte in struct.pack(">I", LIMIT + 1)[:3]:
            reader.feed(bytes([byte]))
            self.assertEqual(reader.take(1, LIMIT), [])
        reader.feed(struct.pack(">I", LIMIT + 1)[3:])
        self.assertRaises(FrameTooLong, reader.take, 1, LIMIT)

    def test_bit_31_is_part_of_the_length(self) -> None:
        """Section 7: where no compression was agreed on."""
        reader = FrameReader()
        reader.feed(b"\x80\0\0\x01x")
        self.assertEqual(self.assertRaises(FrameTooLong, reader.take, 1, LIMIT).length, 2**31 + 1)


class StepTests(SynchronousTestCase):
    """Feeding, taking and putting back in any order."""

    steps = st.lists(
        st.one_of(
            st.tuples(st.just("feed"), st.integers(1, 700)),
            st.tuples(st.just("take"), st.integers(1, 5)),
            st.tuples(st.just("untake"), st.integers(1, 5)),
            st.tuples(st.just("clear"), st.just(0)),
        ),
        max_size=25,
    )

    @given(st.lists(payloads, max_size=10), steps, examples=400)
    def test_any_order(self, contents: list[bytes], steps: list[tuple[str, int]]) -> None:
        """`ready` is never False while a frame is whole, and what was put back comes again."""
        data = b"".join(map(frame, contents))
        reader, model = FrameReader(), Model()
        last: list[bytes] = []
        for step, number in steps:
            if step == "feed" and data:
                reader.feed(data[:number])
                model.held += data[:number]
                data = data[number:]
            elif step == "take":
                last = reader.take(number, LIMIT)
                self.assertEqual(last, model.take(number, LIMIT))
            elif step == "untake" and last:
                back = last[-number:]
                del last[-number:]
                reader.untake(back)
                model.held = b"".join(map(frame, back)) + model.held
            elif step == "clear":
                reader.clear()
                model.held, data, last = b"", b"", []
                self.assertFalse(reader.ready)
                self.assertEqual(reader.announced, 0)
            self.assertEqual(reader.begun, bool(model.held))
            self.assertEqual(reader.count(), model.count())
            if model.count():
                self.assertTrue(reader.ready)
        self.assertEqual(drain(reader), drain(model))

    def test_a_small_count_leaves_the_rest(self) -> None:
        reader = FrameReader()
        reader.feed(b"".join(frame(b"%d" % number) for number in range(5)))
        self.assertEqual(reader.take(2, LIMIT), [b"0", b"1"])
        self.assertTrue(reader.ready)
        self.assertEqual(reader.take(3, LIMIT), [b"2", b"3", b"4"])
        self.assertFalse(reader.ready)
        self.assertFalse(reader.begun)

    def test_a_reader_that_is_new(self) -> None:
        reader = FrameReader()
        self.assertFalse(reader.begun or reader.ready)
        self.assertEqual(reader.announced, 0)
        self.assertEqual(reader.take(1, LIMIT), [])

    def test_nothing_is_fed(self) -> None:
        """No frame has begun by it."""
        reader = FrameReader()
        reader.feed(b"")
        reader.take(1, LIMIT)
        self.assertFalse(reader.begun)
        reader.feed(b"\0")
        reader.feed(b"")
        self.assertTrue(reader.begun)

    def test_frames_are_counted(self) -> None:
        """Whole ones, one that is too long too; it changes nothing."""
        reader = FrameReader()
        self.assertEqual(reader.count(), 0)
        reader.feed(frame(b"one") + frame(b"") + frame(bytes(LIMIT + 1)) + frame(b"last") + b"\0\0")
        self.assertEqual([reader.count(), reader.count()], [4, 4])
        self.assertEqual(reader.take(1, LIMIT), [b"one"])
        self.assertEqual(reader.count(), 3)
        self.assertEqual(reader.take(9, LIMIT), [b""])
        self.assertEqual(reader.count(), 2)
        reader.clear()
        self.assertEqual(reader.count(), 0)

    def test_a_frame_is_counted_with_its_last_byte(self) -> None:
        reader = FrameReader()
        for byte in frame(b"abc")[:-1]:
            reader.feed(bytes([byte]))
            self.assertEqual(reader.count(), 0)
        reader.feed(b"c")
        self.assertEqual(reader.count(), 1)

    @given(streams())
    def test_the_count_of_any_bytes(self, data: bytes) -> None:
        reader, model = FrameReader(), Model()
        reader.feed(data)
        model.held = data
        self.assertEqual(reader.count(), model.count())

    def test_the_length_of_the_frame_that_waits(self) -> None:
        reader = FrameReader()
        reader.feed(b"\0\0\x01")
        self.assertEqual((reader.take(1, LIMIT), reader.announced), ([], 0))
        reader.feed(b"\x02abc")
        self.assertEqual((reader.take(1, LIMIT), reader.announced), ([], 258))
        reader.feed(bytes(255) + b"\0\0\0")
        self.assertEqual((reader.take(9, LIMIT), reader.announced), ([b"abc" + bytes(255)], 0))
        reader.feed(b"\x07")
        self.assertEqual((reader.take(9, LIMIT), reader.announced), ([], 7))

    def test_what_was_put_back_before_a_long_frame(self) -> None:
        """It comes again, however much is still to come of the frame behind it."""
        reader = FrameReader()
        reader.feed(frame(b"one") + frame(b"two") + frame(bytes(LIMIT))[:20])
        self.assertEqual(reader.take(9, LIMIT), [b"one", b"two"])
        reader.untake([b"two"])
        self.assertEqual((reader.take(9, LIMIT), reader.announced), ([b"two"], LIMIT))

    def test_clear_behind_a_frame(self) -> None:
        """What was taken is forgotten with what was not."""
        reader = FrameReader()
        reader.feed(frame(b"one") + frame(b"two"))
        self.assertEqual(reader.take(1, LIMIT), [b"one"])
        reader.clear()
        reader.feed(frame(b"three") + frame(b"four"))
        self.assertEqual(reader.take(9, LIMIT), [b"three", b"four"])

    def test_clear_in_the_midst_of_a_frame(self) -> None:
        """A frame that comes next is taken from its start."""
        reader = FrameReader()
        reader.feed(frame(bytes(100))[:50])
        reader.take(1, LIMIT)
        reader.clear()
        reader.feed(frame(b"{}"))
        self.assertEqual(reader.take(1, LIMIT), [b"{}"])


def packed(payload: bytes) -> bytes:
    """A compressed frame."""
    return frame(deflate(payload), compressed=True)


class CompressedModel(Model):
    """As `Model`, of frames some of which are compressed."""

    def take(self, count: int, max_length: int) -> list[bytes]:
        """As `FrameReader.take` with `inflate`."""
        taken: list[bytes] = []
        inflated = 0
        while len(taken) < count and len(self.held) >= 4 and inflated <= HIGH_WATER:
            length = int.from_bytes(self.held[:4], "big")
            compressed = length >= COMPRESSED
            length %= COMPRESSED
            payload = self.held[4 : 4 + length]
            if length <= max_length and len(payload) < length:
                break
            try:
                if length > max_length:
                    raise FrameTooLong(length)
                if compressed:
                    payload = inflate(payload, max_length)
                    inflated += len(payload)
            except (FrameTooLong, ProtocolError):
                if taken:
                    break
                raise
            taken.append(payload)
            self.held = self.held[4 + length :]
        return taken


def take_all(reader: FrameReader | Model, count: int = 1000) -> list[object]:
    """All that can be taken; last comes the length that is too long, or what is wrong, if anything is."""
    taken: list[object] = []
    try:
        while found := reader.take(count, LIMIT):
            taken += found
    except FrameTooLong as error:
        taken.append(error.length)
    except ProtocolError as error:
        taken.append((type(error), str(error)))
    return taken


@st.composite
def mixed_streams(draw: st.DrawFn) -> bytes:
    """Frames, compressed and not, and perhaps at the end one that is cut, too long or broken."""
    some = st.tuples(payloads, st.booleans())
    data = b"".join(
        packed(payload or b"x") if compressed else frame(payload)
        for payload, compressed in draw(st.lists(some, max_size=8))
    )
    stream = deflate(draw(payloads) or b"x")
    tail = draw(
        st.sampled_from(
            [
                b"",
                frame(stream, True)[: draw(st.integers(0, len(stream) + 3))],
                frame(stream[:-1], True),
                frame(stream + b"x", True),
                frame(stream * 2, True),
                frame(b"", True),
                packed(b""),
                packed(bytes(LIMIT + 1)),
                packed(bytes(100 * LIMIT)),
                struct.pack(">I", COMPRESSED + LIMIT + 1) + b"xyz",
                struct.pack(">I", LIMIT + 1) + b"xyz",
                b"\xff\xff\xff\xff",
            ]
        )
    )
    return data + tail + draw(st.sampled_from([b"", frame(b"{}"), packed(b"{}"), b"\x80\0"]))


class CompressedTests(SynchronousTestCase):
    """Frames with bit 31, where compression was agreed on (section 7)."""

    def reader(self, data: bytes = b"") -> FrameReader:
        """A reader that has been fed some bytes."""
        reader = FrameReader()
        reader.inflate = inflate
        reader.feed(data)
        return reader

    def _assert_same(self, data: bytes, cut: list[bytes], count: int) -> None:
        model = CompressedModel()
        model.held = data
        expected = take_all(model)
        reader = self.reader()
        taken: list[object] = []
        for piece in cut:
            reader.feed(piece)
            taken += take_all(reader, count)
            if taken and not isinstance(taken[-1], bytes):
                break
            self.assertFalse(reader.ready)
            self.assertEqual(reader.count(), 0)
        self.assertEqual(taken, expected)
        self.assertLessEqual({type(payload) for payload in taken[:-1]}, {bytes})
        if not taken or isinstance(taken[-1], bytes):
            self.assertEqual(reader.announced, model.announced % COMPRESSED)
            self.assertEqual(reader.begun, bool(model.held))

    @given(mixed_streams(), cuts, st.integers(1, 4), examples=400)
    def test_any_split(self, data: bytes, places: list[int], count: int) -> None:
        self._assert_same(data, pieces(data, places), count)

    @given(mixed_streams())
    def test_byte_by_byte(self, data: bytes) -> None:
        self._assert_same(data, pieces(data, range(len(data))), 1000)

    @given(mixed_streams())
    def test_whole(self, data: bytes) -> None:
        self._assert_same(data, pieces(data, []), 1000)

    steps = st.lists(
        st.one_of(
            st.tuples(st.just("feed"), st.integers(1, 700)),
            st.tuples(st.just("take"), st.integers(1, 5)),
            st.tuples(st.just("untake"), st.integers(1, 5)),
        ),
        max_size=25,
    )

    @given(st.lists(st.tuples(payloads, st.booleans()), max_size=10), steps, examples=400)
    def test_any_order(self, frames: list[tuple[bytes, bool]], steps: list[tuple[str, int]]) -> None:
        """What was inflated and put back comes again, once."""
        contents = [payload or b"x" for payload, _ in frames]
        data = b"".join(
            packed(payload) if compressed else frame(payload)
            for payload, (_, compressed) in zip(contents, frames, strict=True)
        )
        reader = self.reader()
        taken: list[bytes] = []
        last: list[bytes] = []
        for step, number in steps:
            if step == "feed":
                reader.feed(data[:number])
                data = data[number:]
            elif step == "take":
                last = reader.take(number, LIMIT)
                taken += last
            elif last:
                back = last[-number:]
                del last[-number:], taken[len(taken) - len(back) :]
                reader.untake(back)
            self.assertEqual(taken, contents[: len(taken)])
            whole = reader.count()
            self.assertLessEqual(len(taken) + whole, len(contents))
            if whole:
                self.assertTrue(reader.ready)
        reader.feed(data)
        while last := reader.take(3, LIMIT):
            taken += last
        self.assertEqual(taken, contents)
        self.assertFalse(reader.begun)

    def test_without_an_agreement(self) -> None:
        """Bit 31 is part of the length, as soon as its four bytes are there."""
        reader = FrameReader()
        reader.feed(packed(b"{}"))
        length = len(deflate(b"{}"))
        self.assertEqual(self.assertRaises(FrameTooLong, reader.take, 1, LIMIT).length, 2**31 + length)

    def test_too_long_while_none_is_inflated(self) -> None:
        """That is said at once."""
        reader = FrameReader()
        reader.inflate = lambda payload, max_length: payload
        reader.feed(struct.pack(">I", LIMIT + 1))
        self.assertRaises(FrameTooLong, reader.take, 1, LIMIT, False)

    def test_agreed_on_in_the_midst(self) -> None:
        """From then on, for what was fed already too."""
        reader = FrameReader()
        reader.feed(frame(b"hello") + packed(b"1") + packed(b"2") + frame(b"3"))
        self.assertEqual(reader.take(9, LIMIT), [b"hello"])
        reader.inflate = inflate
        self.assertEqual(reader.take(9, LIMIT), [b"1", b"2", b"3"])

    def test_the_greatest_lengths(self) -> None:
        """Of the payload, and of what it is compressed to."""
        noise = random.Random(1).randbytes(LIMIT)
        for payload in (bytes(LIMIT), noise[: LIMIT - 11]):
            data = zlib.compress(payload, 0 if payload in noise else 9)
            self.assertEqual(self.reader(frame(data, True)).take(1, LIMIT), [payload])
        self.assertEqual(len(zlib.compress(noise[: LIMIT - 11], 0)), LIMIT)

    def test_a_compressed_length_that_is_too_long(self) -> None:
        """Even where the payload would not be; and as soon as the four bytes are there."""
        for data in (
            frame(zlib.compress(bytes(LIMIT - 10), 0), True),
            struct.pack(">I", COMPRESSED + LIMIT + 1),
        ):
            error = self.assertRaises(FrameTooLong, self.reader(data).take, 1, LIMIT)
            self.assertEqual(error.length, LIMIT + 1)

    def test_a_plain_length_that_is_too_long(self) -> None:
        error = self.assertRaises(FrameTooLong, self.reader(struct.pack(">I", LIMIT + 1)).take, 1, LIMIT)
        self.assertEqual(error.length, LIMIT + 1)

    def test_good_frames_come_before_an_error(self) -> None:
        for bad, error in (
            (packed(bytes(LIMIT + 1)), TooLarge),
            (packed(b""), BrokenStream),
            (frame(b"x", True), BrokenStream),
            (frame(b"", True), BrokenStream),
            (struct.pack(">I", COMPRESSED + LIMIT + 1), FrameTooLong),
        ):
            reader = self.reader(frame(b"1") + packed(b"2") + bad + packed(b"3"))
            self.assertEqual(reader.take(9, LIMIT), [b"1"])
            self.assertEqual(reader.take(9, LIMIT), [b"2"])
            self.assertTrue(reader.ready)
            for _ in range(2):
                self.assertRaises(error, reader.take, 9, LIMIT)

    def test_a_limit_that_changes(self) -> None:
        """As when a client has authenticated: it holds for the next frame."""
        reader = self.reader(packed(bytes(LIMIT)) * 2)
        self.assertRaises(TooLarge, reader.take, 1, LIMIT - 1)
        self.assertEqual(reader.take(1, LIMIT), [bytes(LIMIT)])
        self.assertRaises(TooLarge, reader.take, 1, LIMIT - 1)

    def test_few_at_once_where_they_are_long(self) -> None:
        """More than 64 KiB are enough."""
        payload = bytes(HIGH_WATER // 4)
        reader = self.reader(packed(payload) * 12)
        self.assertEqual([len(reader.take(100, 2**20)) for _ in range(3)], [5, 5, 2])
        self.assertFalse(reader.begun)
        reader.feed(packed(bytes(2**20)) * 2 + packed(b"x"))
        self.assertEqual([len(reader.take(100, 2**20)) for _ in range(3)], [1, 1, 1])

    def test_what_is_put_back_counts(self) -> None:
        """However little is taken at a time, no more than one long payload is inflated beside it."""
        reader = self.reader(frame(b"1") * 50 + packed(bytes(2**20)) * 5)
        for _ in range(50):
            payloads = reader.take(100, 2**20)
            reader.untake(payloads[1:])
            self.assertLess(len(reader._data), 2 * 2**20)
        self.assertEqual([len(reader.take(100, 2**20)) for _ in range(5)], [1] * 5)
        self.assertFalse(reader.begun)

    def test_not_now(self) -> None:
        """What stands before the first compressed one is taken; whether that is whole is seen later."""
        for rest in (packed(b"2"), packed(b"2")[:-1]):
            reader = self.reader(frame(b"1") * 2 + rest)
            self.assertEqual(reader.take(9, LIMIT, False), [b"1"] * 2)
            self.assertEqual((reader.take(9, LIMIT, False), reader.ready), ([], True))
        self.assertEqual((reader.take(9, LIMIT), reader.ready), ([], False))
        reader.feed(packed(b"2")[-1:])
        self.assertEqual((reader.take(9, LIMIT, False), reader.ready), ([], True))
        self.assertEqual(reader.take(9, LIMIT), [b"2"])
        self.assertFalse(reader.begun)

    def test_the_length_of_the_frame_that_waits(self) -> None:
        """That of its bytes on the wire; the bit is no part of it."""
        data = packed(bytes(LIMIT))
        reader = self.reader(data[:3])
        self.assertEqual((reader.take(1, LIMIT), reader.announced), ([], 0))
        reader.feed(data[3:-1])
        self.assertEqual((reader.take(1, LIMIT), reader.announced), ([], len(data) - 4))
        self.assertFalse(reader.ready)
        reader.feed(data[-1:])
        self.assertEqual(reader.take(1, LIMIT), [bytes(LIMIT)])
        self.assertEqual(reader.announced, 0)

    def test_frames_are_counted(self) -> None:
        reader = self.reader(packed(b"1") + frame(b"2") + packed(b"3")[:-1])
        self.assertEqual(reader.count(), 2)
        reader.feed(packed(b"3")[-1:])
        self.assertEqual(reader.count(), 3)
        # Those that are broken too: an answer is due.
        reader.feed(frame(b"?", True))
        self.assertEqual(reader.count(), 4)

    def test_frames_are_counted_without_an_agreement(self) -> None:
        reader = FrameReader()
        reader.feed(frame(b"1") + packed(b"2") + frame(b"3"))
        self.assertEqual(reader.count(), 1)

    def test_another_way_to_inflate(self) -> None:
        """It is given the bytes of one frame, and the limit."""
        calls: list[tuple[bytes, int]] = []

        def note(data: bytes | bytearray, max_length: int) -> bytes:
            calls.append((bytes(data), max_length))
            return b"found"

        way: Callable[[bytes | bytearray, int], bytes] = note
        reader = FrameReader()
        reader.inflate = way
        reader.feed(frame(b"a") + frame(b"bc", True))
        self.assertEqual(reader.take(9, 77), [b"a"])
        self.assertEqual(reader.take(9, 77), [b"found"])
        self.assertEqual(calls, [(b"bc", 77)])


class CostTests(SynchronousTestCase):
    """
    The cost is linear in the bytes, counted in bytes that were allocated.

    A reader that copies what it holds at each read allocates hundreds of times what is bound here.
    """

    def _allocated(self, reads: list[bytes], count: int) -> int:
        """The sum, over all calls, of how far each raised the memory in use."""
        reader = FrameReader()
        total = taken = 0
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for read in reads:
            before = self._begin()
            reader.feed(read)
            total += tracemalloc.get_traced_memory()[1] - before
            while True:
                before = self._begin()
                payloads = reader.take(count, 2**30)
                total += tracemalloc.get_traced_memory()[1] - before
                if not payloads:
                    break
                taken += sum(map(len, payloads)) + 4 * len(payloads)
        tracemalloc.stop()
        self.assertEqual(taken, sum(map(len, reads)))
        return total

    @staticmethod
    def _begin() -> int:
        tracemalloc.reset_peak()
        return tracemalloc.get_traced_memory()[0]

    def _assert_linear(self, data: bytes, size: int, count: int = 1000, factor: int = 8) -> None:
        reads = [data[start : start + size] for start in range(0, len(data), size)]
        # Each call has some small objects of its own.
        self.assertLess(self._allocated(reads, count), factor * len(data) + 2000 * len(reads))

    def test_a_long_frame_in_small_reads(self) -> None:
        self._assert_linear(frame(bytes(4 * 2**20)), 1448)

    def test_frames_that_end_within_a_read(self) -> None:
        self._assert_linear(frame(bytes(50_000)) * 40, 1448)

    def test_frames_that_never_end_with_a_read(self) -> None:
        """What was taken is not kept."""
        reader = FrameReader()
        data = frame(bytes(996)) * 100
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        reader.feed(data[:500])
        for _ in range(50):
            reader.feed(data[500:] + data[:500])
            self.assertEqual(len(reader.take(100, LIMIT * 4)), 100)
        self.assertLess(tracemalloc.get_traced_memory()[0], 5 * len(data))

    def test_many_frames_in_one_read(self) -> None:
        """Each payload is an object, 33 bytes larger than its content."""
        data = frame(bytes(100)) * 5_000
        self._assert_linear(data, len(data), count=16)

    def test_many_frames_behind_a_long_one(self) -> None:
        data = frame(bytes(500_000)) + frame(bytes(100)) * 5_000
        self._assert_linear(data, 300_000, count=16)


class HintTests(SynchronousTestCase):
    """What a length that is far too long was meant to be."""

    def hint(self, data: bytes) -> str:
        return length_hint(int.from_bytes(data, "big"))

    def test_text(self) -> None:
        self.assertIn("'GET '", self.hint(b"GET "))
        self.assertIn("""'{"ty'""", self.hint(b'{"ty'))

    def test_tls(self) -> None:
        self.assertIn("TLS", self.hint(b"\x16\x03\x01\x02"))

    def test_little_endian(self) -> None:
        self.assertIn("order", self.hint(b"\x80\x02\x00\x00"))

    def test_nothing_known(self) -> None:
        self.assertEqual([self.hint(b"\xff\xff\xff\xff"), self.hint(b"\x00\x20\x00\x01")], ["", ""])
