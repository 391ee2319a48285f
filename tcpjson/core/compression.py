"""Compressed payloads (docs/protocol.rst, section 7)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from tcpjson.core.errors import BadFrame, TooLarge
from tcpjson.core.framing import frame

#: The names of what a connection can agree on, best first.
NAMES = ("zlib",)

# JSON repeats itself soon: higher levels save a tenth more and cost up to four times as much.
_LEVEL = zlib.Z_BEST_SPEED
# To set up zlib's usual window and tables takes longer than to compress a few kilobytes with small ones.
_SMALL = 16 * 1024
_SMALL_WINDOW, _SMALL_TABLES = 12, 5


class BrokenStream(BadFrame):
    """A compressed payload that is not one whole stream, or of nothing."""

    fatal = True
    text = "the compressed payload is broken"


def inflate(data: bytes | bytearray, max_length: int) -> bytes:
    """
    The payload that was compressed to `data`, at most `max_length` bytes; little more memory is used.

    Raises:
        TooLarge: it is longer.
        BrokenStream: `data` is not exactly one stream, or one of nothing.
    """
    stream = zlib.decompressobj()
    try:
        payload = stream.decompress(data, max_length + 1)
    except zlib.error as error:
        raise BrokenStream(f"the compressed payload is broken: {error}") from None
    if len(payload) > max_length:
        raise TooLarge(f"a compressed payload is longer than max_length, {max_length} bytes, when inflated")
    if not stream.eof:
        raise BrokenStream("the compressed payload is cut short")
    if stream.unused_data:
        raise BrokenStream("the compressed payload has bytes behind its end")
    if not payload:
        raise BrokenStream("the compressed payload is empty")
    return payload


def deflate(payload: bytes) -> bytes:
    """The payload compressed."""
    if len(payload) > _SMALL:
        return zlib.compress(payload, _LEVEL)
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _SMALL_WINDOW, _SMALL_TABLES)
    return stream.compress(payload) + stream.flush()


def pack(payloads: Iterable[bytes], over: int) -> bytes:
    """
    The frames of payloads, one behind the other: those longer than `over` bytes compressed, where that makes
    them shorter.
    """
    frames = []
    for payload in payloads:
        if len(payload) > over and len(deflated := deflate(payload)) < len(payload):
            frames.append(frame(deflated, compressed=True))
        else:
            frames.append(frame(payload))
    return b"".join(frames)
