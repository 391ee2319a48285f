"""Payloads come out as they went in; what is no single whole stream, or too long, is refused."""

from __future__ import annotations

import contextlib
import gc
import gzip
import random
import tracemalloc
import zlib

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core import compression
from tcpjson.core.compression import BrokenStream, deflate, inflate, pack
from tcpjson.core.errors import BadFrame, ProtocolError, TooLarge
from tcpjson.core.framing import FrameReader, frame
from tcpjson.test.hypo import given

KIB = 1024
LIMIT = KIB * KIB


def noise(size: int) -> bytes:
    """Bytes that cannot be compressed."""
    return random.Random(size).randbytes(size)


def long_stream(size: int) -> bytes:
    """`size` bytes of payload, all alike, compressed a thousand to one."""
    stream = zlib.compressobj(9)
    pieces = [stream.compress(b"x" * min(LIMIT, size - done)) for done in range(0, size, LIMIT)]
    return b"".join([*pieces, stream.flush()])


# From nothing to a little more than all sizes that matter, compressible and not.
contents = st.one_of(
    st.binary(min_size=1, max_size=200),
    st.builds(
        lambda unit, times: (unit * times)[: 200 * KIB],
        st.binary(min_size=1, max_size=50),
        st.integers(1, 9999),
    ),
    st.integers(1, 100_000).map(noise),
)


class RoundTripTests(SynchronousTestCase):
    """`deflate`, and any other compressor, before `inflate`."""

    @given(contents)
    def test_as_it_was(self, payload: bytes) -> None:
        found = inflate(deflate(payload), len(payload))
        self.assertEqual(found, payload)
        self.assertIs(type(found), bytes)

    @given(contents, st.integers(0, 9), st.integers(9, 15), st.integers(1, 9), st.integers(0, 4))
    def test_whatever_compressed_it(
        self, payload: bytes, level: int, window: int, memory: int, strategy: int
    ) -> None:
        """All that RFC 1950 has: stored blocks, fixed and dynamic codes, small windows."""
        stream = zlib.compressobj(level, zlib.DEFLATED, window, memory, strategy)
        data = stream.compress(payload) + stream.flush()
        self.assertEqual(inflate(data, len(payload)), payload)

    @given(
        st.lists(contents, min_size=1, max_size=4), st.sampled_from([zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH])
    )
    def test_flushed_in_the_midst(self, payloads: list[bytes], mode: int) -> None:
        """As by one who compresses what it has so far: blocks without content stand between."""
        stream = zlib.compressobj()
        data = (
            b"".join(stream.compress(payload) + stream.flush(mode) for payload in payloads) + stream.flush()
        )
        self.assertEqual(inflate(data, LIMIT), b"".join(payloads))

    def test_sizes_around_those_of_pieces(self) -> None:
        """A piece that is full, when nothing is left to be read, says nothing of the end."""
        for size in (1, 16 * KIB, 32 * KIB, 64 * KIB, 96 * KIB):
            for length in range(max(1, size - 260), size + 261, 20 if size > 1 else 1):
                for payload in (b"x" * length, noise(length)):
                    for data in (deflate(payload), zlib.compress(payload, 0)):
                        self.assertEqual(inflate(data, length), payload)
                        self.assertRaises(TooLarge, inflate, data, length - 1)

    def test_it_is_shorter(self) -> None:
        """Level and window are chosen for speed, and save the most of it all the same."""
        for size in (2 * KIB, 16 * KIB, 16 * KIB + 1, 200 * KIB):
            payload = b"".join(
                b'{"id":%d,"name":"n%d","ok":true},' % (n * 7919, n % 9) for n in range(10_000)
            )
            best = len(zlib.compress(payload[:size], 9))
            self.assertLess(len(deflate(payload[:size])), 1.8 * best)

    def test_small_windows_for_small_payloads(self) -> None:
        """They are sooner set up, at both ends; the first byte of a stream says how large its window is."""
        for size, window in ((1, 12), (16 * KIB, 12), (16 * KIB + 1, 15)):
            self.assertEqual((deflate(bytes(size))[0] >> 4) + 8, window)

    def test_what_is_agreed_on(self) -> None:
        self.assertEqual(compression.NAMES, ("zlib",))


class BrokenTests(SynchronousTestCase):
    """Exactly one stream of RFC 1950, of something, at most so long."""

    def refused(self, data: bytes, max_length: int = LIMIT) -> str:
        """The error's text."""
        error = self.assertRaises(BrokenStream, inflate, data, max_length)
        self.assertIsInstance(error, BadFrame)
        self.assertEqual((error.code, error.fatal), ("bad_frame", True))
        return str(error)

    def test_cut_at_each_byte(self) -> None:
        for payload in (b"{}", b'{"type":"ping"}' * 40, noise(300)):
            data = deflate(payload)
            for end in range(len(data)):
                self.assertIn("cut short", self.refused(data[:end]))

    @given(contents, st.integers(0, 2**20))
    def test_cut_anywhere(self, payload: bytes, place: int) -> None:
        data = deflate(payload)
        self.assertIn("cut short", self.refused(data[: place % len(data)], len(payload)))

    def test_bytes_behind_its_end(self) -> None:
        for payload in (b"{}", b"x" * 100_000, noise(100_000)):
            data = deflate(payload)
            for tail in (b"\0", b"{}", bytes(100_000)):
                self.assertIn("behind its end", self.refused(data + tail))

    def test_an_end_where_a_piece_ends(self) -> None:
        """What is behind it was not read together with it."""
        data = next(
            stream
            for size in range(16 * KIB - 40, 16 * KIB)
            if len(stream := zlib.compress(noise(size), 0)) == 16 * KIB
        )
        self.assertEqual(len(inflate(data, LIMIT)), 16 * KIB - 11)
        self.assertIn("behind its end", self.refused(data + b"x"))

    def test_two_streams(self) -> None:
        self.assertIn("behind its end", self.refused(deflate(b"{}") + deflate(b"{}")))
        self.assertIn("behind its end", self.refused(deflate(b"{}") * 50_000))

    def test_nothing(self) -> None:
        self.assertIn("cut short", self.refused(b""))

    def test_a_stream_of_nothing(self) -> None:
        """What section 1 refuses as a length of 0."""
        self.assertIn("empty", self.refused(deflate(b"")))
        stream = zlib.compressobj()
        blocks = b"".join(stream.flush(zlib.Z_FULL_FLUSH) for _ in range(20_000)) + stream.flush()
        self.assertIn("empty", self.refused(blocks))

    def test_a_preset_dictionary(self) -> None:
        stream = zlib.compressobj(zdict=b'{"type":')
        self.refused(stream.compress(b'{"type":"ping"}') + stream.flush())

    def test_raw_deflate_and_gzip(self) -> None:
        payload = b'{"type":"ping"}'
        raw = zlib.compressobj(wbits=-15)
        for data in (raw.compress(payload) + raw.flush(), gzip.compress(payload), payload):
            self.assertIn("broken", self.refused(data))

    def test_a_wrong_checksum(self) -> None:
        data = deflate(b'{"type":"ping"}')
        for place in range(1, 5):
            wrong = bytearray(data)
            wrong[-place] ^= 1
            self.assertIn("check", self.refused(bytes(wrong)))

    @given(contents, st.integers(0, 2**20), st.integers(1, 255))
    def test_a_byte_changed_anywhere(self, payload: bytes, place: int, change: int) -> None:
        """The checksum finds it, where nothing else does; no other error comes than a documented one."""
        data = bytearray(deflate(payload))
        data[place % len(data)] ^= change
        try:
            found = inflate(bytes(data), 4 * len(payload))
        except (BrokenStream, TooLarge):
            return
        # A few bits of the header mean nothing to who inflates.
        self.assertEqual(found, payload)

    @given(st.one_of(st.binary(max_size=100), st.binary(max_size=100).map(lambda data: b"\x78\x9c" + data)))
    def test_any_bytes(self, data: bytes) -> None:
        try:
            payload = inflate(data, 50)
        except ProtocolError as error:
            self.assertIn(type(error), (BrokenStream, TooLarge))
            self.assertTrue(error.fatal)
        else:
            self.assertEqual(payload, zlib.decompress(data))

    def test_nothing_waits_for_the_collector(self) -> None:
        """What is refused is let go at once, with the bytes, which may be many."""
        data = deflate(b"{}")
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for broken in (data[:-1], data + data, b"", deflate(b""), b"xx", long_stream(4 * LIMIT)):
            with contextlib.suppress(ProtocolError):
                inflate(broken, LIMIT)
        self.assertEqual(gc.collect(), 0)


class LengthTests(SynchronousTestCase):
    """`max_length`, and the memory that it takes to find out."""

    def test_exactly_so_long(self) -> None:
        for limit in (1, 4096, 64 * KIB, LIMIT):
            for payload in (b"x" * limit, noise(limit)):
                self.assertEqual(inflate(deflate(payload), limit), payload)

    def test_one_more(self) -> None:
        for limit in (1, 4096, 64 * KIB, LIMIT):
            for payload in (b"x" * (limit + 1), noise(limit + 1)):
                error = self.assertRaises(TooLarge, inflate, deflate(payload), limit)
                self.assertTrue(error.fatal)
                self.assertIn(str(limit), str(error))

    def _peak(self, data: bytes, limit: int) -> int:
        """The most bytes that were allocated at once to refuse a stream as too long."""
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        self.assertRaises(TooLarge, inflate, data, limit)
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        return peak

    def test_a_bomb_takes_no_more_memory(self) -> None:
        for limit in (4096, LIMIT, 8 * LIMIT):
            for size in (limit + 1, 64 * LIMIT):
                self.assertLess(self._peak(long_stream(size), limit), limit + 128 * KIB)

    def test_one_that_is_hardly_compressed(self) -> None:
        """Its own bytes are there already, and are not copied again and again."""
        data = zlib.compress(noise(2 * LIMIT), 1)
        self.assertLess(self._peak(data, LIMIT), LIMIT + 128 * KIB)

    def test_a_stream_of_nothing_takes_none(self) -> None:
        stream = zlib.compressobj()
        data = b"".join(stream.flush(zlib.Z_FULL_FLUSH) for _ in range(200_000)) + stream.flush()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        self.assertRaises(BrokenStream, inflate, data, LIMIT)
        self.assertLess(tracemalloc.get_traced_memory()[1] - before, 128 * KIB)


class PackTests(SynchronousTestCase):
    """Frames, those of long payloads compressed."""

    def unpacked(self, data: bytes) -> list[tuple[bytes, bool]]:
        """The payloads of frames, and whether they were compressed."""
        found = []
        while data:
            length = int.from_bytes(data[:4], "big")
            compressed, length = bool(length & 1 << 31), length & (1 << 31) - 1
            payload, data = data[4 : 4 + length], data[4 + length :]
            found.append((zlib.decompress(payload) if compressed else payload, compressed))
        return found

    def test_only_what_is_longer(self) -> None:
        for over in (0, 1, 100, 1024):
            payloads = [b"x" * size for size in (over, over + 1, over + 100)]
            expected = [False, over + 1 > 12, over + 100 > 12]
            self.assertEqual(
                self.unpacked(pack(payloads, over)), list(zip(payloads, expected, strict=True)), over
            )

    def test_only_where_it_is_shorter(self) -> None:
        """A stream has 8 bytes and more around it."""
        random_bytes = noise(5000)
        for payload in (random_bytes, b"{}", b"", bytes(10)):
            self.assertEqual(pack([payload], 0), frame(payload))
        mixed = [random_bytes, b"x" * 5000, random_bytes]
        self.assertEqual(
            self.unpacked(pack(mixed, 1024)), list(zip(mixed, [False, True, False], strict=True))
        )

    def test_never_longer(self) -> None:
        """Where it would be as long it is sent as it is: that costs the receiver nothing."""
        for size in range(40):
            payload = b"x" * size
            [(found, compressed)] = self.unpacked(pack([payload], 0))
            self.assertEqual(found, payload)
            self.assertEqual(compressed, len(deflate(payload)) < size)
            self.assertLessEqual(len(pack([payload], 0)), 4 + size)

    def test_nothing(self) -> None:
        self.assertEqual(pack([], 0), b"")

    @given(st.lists(contents, max_size=5), st.sampled_from([0, 10, 1024]))
    def test_a_reader_takes_them(self, payloads: list[bytes], over: int) -> None:
        reader = FrameReader()
        reader.inflate = inflate
        found: list[bytes] = []
        reader.feed(pack(payloads, over))
        while taken := reader.take(3, 2**20):
            found += taken
        self.assertEqual(found, payloads)
