"""Compressed payloads (docs/protocol.rst, section 7)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from tcpjson.core.errors import BadFrame, TooLarge
from tcpjson.core.framing import frame, join_frames

#: The names of what a connection can agree on, best first.
NAMES = ("zlib",)
#: Bytes over which a message is compressed, unless the server is told otherwise.
COMPRESS_OVER = 1024

# JSON repeats itself soon: higher levels save a tenth more and cost up to four times as much.
_LEVEL = zlib.Z_BEST_SPEED
# To set up zlib's usual window and tables takes longer than to compress a few kilobytes with small ones.
_SMALL = 16 * 1024
_SMALL_WINDOW, _SMALL_TABLES = 12, 5
# A payload is inflated in pieces of so many bytes, from so many: asked for all at once, zlib has its bytes
# twice before anybody knows that they are too many.
_PIECE, _READ = 32 * 1024, 16 * 1024


class BrokenStream(BadFrame):
    """A compressed payload that is not one whole stream, or of nothing."""

    fatal = True
    text = "the compressed payload is broken"


def inflate(data: bytes, max_length: int) -> bytes:
    """
    The payload that was compressed to `data`, at most `max_length` bytes. One that is longer is refused
    within the memory of `max_length` and 128 KiB.

    Raises:
        TooLarge: it is longer.
        BrokenStream: `data` is not exactly one stream, or one of nothing.
    """
    stream = zlib.decompressobj()
    rest = memoryview(data)
    pieces: list[bytes] = []
    left = max_length
    try:
        while not stream.eof:
            read = rest[:_READ]
            if not read:
                raise BrokenStream("the compressed payload is cut short")
            piece = stream.decompress(read, _PIECE)
            rest = rest[len(read) - len(stream.unconsumed_tail) :]
            left -= len(piece)
            if left < 0:
                text = f"a compressed payload is longer than max_length, {max_length} bytes, when inflated"
                raise TooLarge(text)
            pieces.append(piece)
    except zlib.error as error:
        raise BrokenStream(f"the compressed payload is broken: {error}") from None
    if stream.unused_data or rest:
        raise BrokenStream("the compressed payload has bytes behind its end")
    if left == max_length:
        raise BrokenStream("the compressed payload is empty")
    return b"".join(pieces)


def deflate(payload: bytes) -> bytes:
    """The payload compressed."""
    if len(payload) > _SMALL:
        return zlib.compress(payload, _LEVEL)
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _SMALL_WINDOW, _SMALL_TABLES)
    return stream.compress(payload) + stream.flush()


def pack(payloads: Sequence[bytes], over: int) -> bytes:
    """
    The frames of payloads, one behind the other: those longer than `over` bytes compressed, where that makes
    them shorter.
    """
    if max(map(len, payloads), default=0) <= over:
        return join_frames(payloads)
    frames = []
    for payload in payloads:
        if len(payload) > over and len(deflated := deflate(payload)) < len(payload):
            frames.append(frame(deflated, compressed=True))
        else:
            frames.append(frame(payload))
    return b"".join(frames)
