"""The shape that all replies of a server have in common, so that many are compared at once."""

from __future__ import annotations

import re
import struct

import msgspec

from tcpjson.bench.pool import Pool
from tcpjson.bench.wire import take

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9:]+)?")
# What JSON texts of ASCII letters, digits and times never have in them.
_CONTENT, _ID, _ANY = b"\x00", b"\x01", b"\x02"


class Shape:
    """
    What the reply to each request of a pool must be, byte for byte, times aside.

    A server's replies to texts and ids of one length have one length, too, and times stand in one place. So
    one reply that was read with care tells all others, and a row of them is taken apart and compared in one
    step of the interpreter's.

    Args:
        pool: the requests.
        run: how many replies are compared at once, at most.
        reply: the frame of one reply, known to be right.
        index: which request it answers.

    Raises:
        ValueError: the reply gives no shape; each must be read with care.
    """

    def __init__(self, pool: Pool, run: int, reply: bytes, index: int) -> None:
        #: Bytes of the frame of each reply.
        self.length = len(reply)
        self._count = pool.count
        header = reply[:4]
        pieces, skipped = _template(pool, reply, index)
        self._fields = len(pieces)
        expected = []
        for content, request_id in zip(pool.contents, pool.ids, strict=True):
            filled = [piece.replace(_CONTENT, content).replace(_ID, b"%d" % request_id) for piece in pieces]
            expected += [header + filled[0], *filled[1:]]
        self._codes = f"{skipped}x".join(f"{len(part)}s" for part in expected[: self._fields])
        self._expected = (*expected, *expected[: run * self._fields])
        self._rows: dict[int, struct.Struct] = {}

    def same(self, data: bytes | bytearray, count: int, first: int) -> bool:
        """
        Whether `data` begins with right replies to `count` requests, `run` at most, from the one of this
        index on.
        """
        row = self._rows.get(count)
        if row is None:
            row = self._rows[count] = struct.Struct(self._codes * count)
        fields = self._fields
        return row.unpack_from(data) == self._expected[first * fields : (first + count) * fields]


def _template(pool: Pool, reply: bytes, index: int) -> tuple[list[bytes], int]:
    """The parts of a payload between its times, with marks for content and id; and the bytes of each time."""
    found = take(reply, 0)
    if found is None or found[1] != len(reply):
        raise ValueError("no whole frame")
    marked, _ = found
    times = {
        value.encode()
        for value in msgspec.json.decode(marked, type=dict[str, object]).values()
        if isinstance(value, str) and _TIME.fullmatch(value)
    }
    for mark, value in ((_CONTENT, pool.contents[index]), (_ID, b"%d" % pool.ids[index])):
        # Where it stands twice, nothing tells which one it is.
        if marked.count(value) != 1:
            raise ValueError("the content or the id is not to be found")
        marked = marked.replace(value, mark)
    lengths = {len(time) for time in times} or {0}
    if len(lengths) > 1:
        raise ValueError("times of several lengths")
    for time in times:
        marked = marked.replace(time, _ANY)
    return marked.split(_ANY), lengths.pop()
