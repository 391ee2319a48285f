"""Frames: a payload behind its length in 4 bytes, big-endian (docs/protocol.rst, section 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from struct import Struct

from tcpjson.core.errors import ProtocolError
from tcpjson.core.limits import HIGH_WATER

_LENGTH = Struct(">I")
_pack = _LENGTH.pack
_unpack_from = _LENGTH.unpack_from

#: Bytes of the length in front of every payload.
PREFIX_LENGTH = _LENGTH.size
#: The bit of a length that says that the payload is compressed, where that was agreed on (section 7).
COMPRESSED = 1 << 31


#: Gives what was compressed to some bytes, of at most so many.
Inflate = Callable[[bytes, int], bytes]


class FrameTooLong(Exception):
    """A frame announces more than is taken: `length` bytes of payload."""

    def __init__(self, length: int) -> None:
        super().__init__(f"a frame of {length} bytes")
        self.length = length


def frame(payload: bytes, compressed: bool = False) -> bytes:
    """The payload behind its length, with a bit if it is compressed. Raises `struct.error` from 4 GiB on."""
    return _pack(len(payload) | compressed << 31) + payload


def join_frames(payloads: Sequence[bytes]) -> bytes:
    """The frames of payloads, one behind the other. Raises as `frame`."""
    if len(payloads) == 1:
        return _pack(len(payloads[0])) + payloads[0]
    return b"".join(chain.from_iterable(zip(map(_pack, map(len, payloads)), payloads, strict=True)))


def length_hint(length: int) -> str:
    """What the four bytes of a length that is far too long look like; empty when like nothing known."""
    prefix = _pack(length)
    if prefix.isascii() and prefix.decode().isprintable():
        return f"its length bytes are the text {prefix.decode()!r}"
    if prefix.startswith(b"\x16\x03"):
        return "its length bytes begin a TLS handshake, on a port without TLS"
    if prefix.endswith(b"\0\0"):
        return "its length bytes are in the wrong order"
    return ""


def frame_boundary(data: bytes, offset: int) -> int:
    """The end of the frame in `data`, a run of whole frames, that `offset` lies in; `offset` at a start."""
    end = 0
    while end < offset:
        end += PREFIX_LENGTH + (int(_unpack_from(data, end)[0]) & ~COMPRESSED)
    return end


class FrameReader:
    """
    Takes bytes as they come and gives payloads, at a cost that is linear however the bytes are cut.

    It keeps what was fed and not taken: at most one frame and one read when the caller takes all it can.
    """

    __slots__ = ("_data", "_needed", "_position", "begun", "inflate", "ready")

    def __init__(self) -> None:
        # Whole reads stay the `bytes` they came as; only what waits for more becomes a bytearray, which
        # grows without being copied at every read.
        self._data: bytes | bytearray = b""
        self._position = 0
        self._needed = PREFIX_LENGTH
        #: Whether bytes are held that were not taken.
        self.begun = False
        #: Whether `take` may have something to give.
        self.ready = False
        #: None while no frame may be compressed.
        self.inflate: Inflate | None = None

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        if not data:
            return
        self.begun = self.ready = True
        if not self._data:
            self._data = data
            return
        if type(self._data) is bytes or self._position:
            self._data = bytearray(memoryview(self._data)[self._position :])
            self._position = 0
        self._data += data

    def take(self, count: int, max_length: int, inflating: bool = True) -> list[bytes]:
        """
        The next payloads, at most `count`; an empty list when no frame is complete. They end before a
        compressed frame; where that is the next one, it and what follows are taken until they come to more
        than 64 KiB, or nothing, if it is not to be inflated now.

        Raises:
            FrameTooLong: the next frame announces more than `max_length` bytes. Feed no more.
            ProtocolError: raised by `inflate` for the next frame. Feed no more.
        """
        data = self._data
        position = self._position
        size = len(data)
        payloads: list[bytes] = []
        if size - position < self._needed:
            self.ready = False
            return payloads
        needed = PREFIX_LENGTH
        append = payloads.append
        for _ in range(count):
            start = position + 4
            if start > size:
                self.ready = False
                break
            (length,) = _unpack_from(data, position)
            if length > max_length:
                if payloads:
                    break
                if self.inflate is not None:
                    return self._take_mixed(count, max_length, self.inflate if inflating else None)
                raise FrameTooLong(length)
            end = start + length
            if end > size:
                needed += length
                self.ready = False
                break
            append(data[start:end])  # type: ignore[arg-type]  # a bytearray's are made bytes below
            position = end
        self._needed = needed
        if position == size:
            self._data = b""
            self._position = 0
            self.begun = self.ready = False
        else:
            self._position = position
        if type(data) is bytearray:
            return [bytes(payload) for payload in payloads]
        return payloads

    def _take_mixed(self, count: int, max_length: int, inflate: Inflate | None) -> list[bytes]:
        """`take`, where the next frame is compressed, or too long."""
        data = self._data
        size = len(data)
        payloads: list[bytes] = []
        total = 0
        self._needed = PREFIX_LENGTH
        # What is put back is plain: it counts, too, or more would be inflated at each look.
        while len(payloads) < count and total <= HIGH_WATER:
            start = self._position + PREFIX_LENGTH
            if start > size:
                self.ready = False
                break
            (length,) = _unpack_from(data, self._position)
            compressed = length >= COMPRESSED
            length &= ~COMPRESSED
            end = start + length
            if compressed and inflate is None:
                break
            try:
                if length > max_length:
                    raise FrameTooLong(length)
                if end > size:
                    self._needed += length
                    self.ready = False
                    break
                payload = bytes(data[start:end])
                if compressed and inflate is not None:
                    payload = inflate(payload, max_length)
            except (FrameTooLong, ProtocolError):
                if payloads:
                    break
                raise
            payloads.append(payload)
            total += len(payload)
            self._position = end
        if self._position == size:
            self.clear()
        return payloads

    def untake(self, payloads: list[bytes]) -> None:
        """Put back the last payloads that `take` gave, to be taken again."""
        rest = self._data[self._position :]
        self._data = join_frames(payloads) + rest
        self._position = 0
        self._needed = PREFIX_LENGTH
        self.begun = self.ready = True

    def count(self) -> int:
        """How many frames are complete, those that are too long included."""
        data, position, size = self._data, self._position, len(self._data)
        mask = -1 if self.inflate is None else ~COMPRESSED
        count = 0
        while position + PREFIX_LENGTH <= size:
            position += PREFIX_LENGTH + (int(_unpack_from(data, position)[0]) & mask)
            count += position <= size
        return count

    def clear(self) -> None:
        """Forget everything."""
        self._data = b""
        self._position = 0
        self._needed = PREFIX_LENGTH
        self.begun = self.ready = False

    @property
    def announced(self) -> int:
        """The payload length of the frame that waits for more, 0 while its own length is not complete."""
        return self._needed - PREFIX_LENGTH
