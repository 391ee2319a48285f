"""Requests that are made beforehand: contents and ids differ from one to the next."""

from __future__ import annotations

import base64
import random

from tcpjson.bench.wire import frame

# How many requests a pool has: so many that no server can keep the answers at hand, and for large ones so few
# that they fit in memory.
_MOST, _LEAST = 4096, 64
_BYTES = 4 * 1024 * 1024
# All ids have as many digits, and so all frames of a pool the same length.
_FIRST_ID = 1_000_000_000
_SEEDS = 1_000_000
_PLAIN = bytes.maketrans(b"+/", b"xy")


def amount(size: int, run: int) -> int:
    """How many contents of a size there are; at least those that are sent at once."""
    return max(_LEAST, min(_MOST, _BYTES // max(size, 1)), run)


def contents(count: int, size: int, seed: int) -> list[bytes]:
    """So many texts of `size` ASCII letters and digits; others for each seed."""
    source = random.Random(seed).randbytes(count * size * 3 // 4 + 3)
    text = base64.b64encode(source).translate(_PLAIN)
    return [text[at : at + size] for at in range(0, count * size, size)] if size else [b""] * count


class Pool:
    """
    Requests of one length, to be sent round and round.

    Args:
        size: bytes of the contents of each.
        run: how many are sent at once, at most.
        seed: what makes this pool differ from others.
    """

    def __init__(self, size: int, run: int, seed: int = 0) -> None:
        #: How many there are.
        self.count = amount(size, run)
        self.contents = contents(self.count, size, seed)
        first = _FIRST_ID + seed % 1000 * _SEEDS
        self.ids = [first + index for index in range(self.count)]
        frames = [
            frame(b'{"type":"echo","content":"%b","id":%d}' % each)
            for each in zip(self.contents, self.ids, strict=True)
        ]
        #: Bytes of each frame.
        self.length = len(frames[0])
        # Behind the last the first follow again: what is sent at once is always in one piece.
        self._frames = memoryview(b"".join([*frames, *frames[:run]]))

    def piece(self, first: int, count: int) -> memoryview:
        """The frames of `count` requests, `run` at most, from the one of this index on."""
        return self._frames[first * self.length : (first + count) * self.length]

    def index(self, request_id: object) -> int | None:
        """Which request has this id."""
        if type(request_id) is not int or not 0 <= request_id - self.ids[0] < self.count:
            return None
        return request_id - self.ids[0]
