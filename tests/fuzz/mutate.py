"""Frames that are nearly right: the vectors of the contract, damaged; all of it follows from a seed."""

from __future__ import annotations

import functools
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

from tcpjson.core.limits import PRE_AUTH_MAX_LENGTH
from tcpjson.test.oracle import is_json
from tcpjson.vectors import load

_pack = struct.Struct(">I").pack

#: Bit 31 of a length (docs/protocol.rst, section 7).
COMPRESSED = 1 << 31

# What stands in for the `max_length` of a vector.
_VECTOR_LENGTH = 2048

_TOKENS = [
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u", b"\\ud800", b"\\udc00", b"\\ud83d\\ude00"),
    *(b"\\u0000", b"\\x", b"\0", b"\x1f", b"\x7f", b"\x0b", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xc3"),
    *(b"\xf0\x9f\x98", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b" ", b"\n\t\r ", b"//", b"/*"),
    *(b"NaN", b"-Infinity", b"tru", b"null", b"false", b"-", b"+", b".", b"e", b"E+", b"0", b"00", b"0x1"),
    *(b"1e308", b"1e309", b"-1E+400", b"1e-999", b"-0", b"1.0", b"0.1e1", b"9223372036854775807"),
    *(b"9223372036854775808", b"-9223372036854775808", b"-9223372036854775809", b"18446744073709551615"),
    *(b"18446744073709551616", b"-99999999999999999999999", b"1" * 309, b"9" * 330, b"0." + b"1" * 40),
    *(b',"type":"echo"', b'"type":1,', b',"id":null', b',"id":"x"', b',"content":1', b'"a":{"type":"ping"}'),
    *(b'{"type":"ping"}', b'"\\"', b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"\x16\x03\x01", b"GET / HTTP/1.1"),
]

# JSON texts for any field: of every type, at every bound.
_VALUES = [
    *(b"null", b"true", b"false", b"0", b"-0", b"1", b"-1", b"1.0", b"1.5", b"1e2", b"1E400", b"-1e999"),
    *(b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"-9223372036854775809"),
    *(b"18446744073709551615", b"18446744073709551616", b"-18446744073709551616", b"1" * 400, b"1e-400"),
    *(
        b'""',
        b'"x"',
        b'"a b"',
        b'"\\u0000"',
        b'"\\ud83d\\ude00"',
        b'"\\ud83d"',
        b'"\\udc00\\ud800"',
        b'"\\/"',
    ),
    *('"é😀"'.encode(), b'"\x7f"', b'"\\\\\\""', b'"12345678901234567890"', b'"1e999"', b'"[[[["', b'"}"'),
    *(b"[]", b"{}", b"[[]]", b'[""]', b"[1,2]", b'["zlib"]', b'["zlib","zlib"]', b"[null]", b'{"a":1}'),
    *(b'{"a":1,"a":2}', b'{"":[{}]}', b"[1e999]", b'{"x":18446744073709551616}', b'[ 1 , "2" ]'),
    *(
        b"x",
        b"'x'",
        b"01",
        b"1.",
        b".5",
        b"-",
        b"nul",
        b"NaN",
        b"Infinity",
        b"[1,]",
        b'{"a"}',
        b"{,}",
        b'"\n"',
    ),
    *(b'"' + b"i" * size + b'"' for size in (127, 128, 129)),
    *(b'"' + "é".encode() * size + b'"' for size in (64, 128, 129)),
    *(b"[" * depth + b"]" * depth for depth in (62, 63, 64, 65, 66, 67)),
    *(b'{"a":' * depth + b"1" + b"}" * depth for depth in (63, 64, 65, 66)),
    b'"zlib"',
    b'"token"',
    b'"plain"',
    b'"scram-sha-256"',
    b'"2024-01-01T12:00:00.000Z"',
]

_TYPES = [
    *("ping", "echo", "broadcast", "get_stats", "hello", "pong", "move", "", "Ping", "error", "welcome"),
    *("auth_result", "echo_response", "broadcast_sent", "hello_response", "t" * 70, "é", "ping ", "typed"),
]
_FIELDS = [
    *("id", "content", "timestamp", "client_info", "client", "heartbeat", "compression", "features", "fatal"),
    *(
        "original_message",
        "original_text",
        "ping_timestamp",
        "from_client",
        "from_user",
        "recipients",
        "code",
    ),
    *("", "a", "Id", "type ", "x", "n", "data", "to"),
]
_AUTH_FIELDS = ["mechanism", "username", "password", "token", "data", "id", "x"]
_AUTH_VALUES = [
    *(b'"token"', b'"plain"', b'"scram-sha-256"', b'"alice"', b'"sesame"', b'"wrong"', b'"Alice"', b'"bob"'),
    *(
        b'"open-sesame"',
        b'"n,,n=alice,r=abcdef"',
        b'"n,,n=bob,r="',
        b'"y,,n=alice,r=x"',
        b'"n,a=b,n=alice,r=x"',
    ),
    *(
        b'"p=tls-unique,,n=alice,r=x"',
        b'"c=biws,r=abcdef,p=AAAA"',
        b'"c=biws"',
        b'"n,,"',
        b'"n,,m=1,n=a,r=b"',
    ),
    *(b'"n,,n=a=2C=3D,r=x"', b'"n,,n=a=XX,r=x"', b'"' + b"n" * 600 + b'"'),
    *(b'"alice\\u00ad"', b'"\\u0000"', b'"a\\u0627b"'),
]


@functools.cache
def corpus() -> tuple[bytes, ...]:
    """The payloads of the vectors, those that are short."""
    found: dict[bytes, None] = {}
    for vector in load():
        if any(not isinstance(piece, str) and piece.times > 100 for piece in vector.send):
            continue
        data = b"".join(vector.pieces(_VECTOR_LENGTH))
        position = 0
        while position + 4 <= len(data):
            end = position + 4 + int.from_bytes(data[position : position + 4], "big")
            if end <= len(data) and end - position <= _VECTOR_LENGTH:
                found[data[position + 4 : end]] = None
            position = end
    return tuple(found)


def _is_json(text: bytes) -> bool:
    try:
        return is_json(text.decode())
    except UnicodeDecodeError:
        return False


@functools.cache
def _mostly_right(texts: tuple[bytes, ...], times: int) -> list[bytes]:
    """The texts, those that are JSON so many times more: else too much is refused at once."""
    return [text for text in texts if _is_json(text)] * times + list(texts)


def frame(payload: bytes) -> bytes:
    """The payload behind its length."""
    return _pack(len(payload)) + payload


class Mutator:
    """
    Makes payloads, frames, streams and cuts.

    Args:
        random: where all chance comes from.
        max_length: of the server, in bytes.
        tags: types of an application's own, to be met among the others.
    """

    def __init__(self, random: Random, max_length: int, tags: Sequence[str] = ()) -> None:
        self._random = random
        # Most of what `Random` offers beside it is slow.
        self._chance = random.random
        self._max_length = max_length
        self._corpus = _mostly_right(corpus(), 3)
        self._types = [json.dumps(tag).encode() for tag in (*_TYPES, *tags, *tags, *_TYPES[:6])]
        self._names = [json.dumps(name).encode() for name in _FIELDS]
        self._auth_names = [json.dumps(name).encode() for name in _AUTH_FIELDS]
        self._values = _mostly_right(tuple(_VALUES), 12)
        self._count = 0
        self._ways: list[Callable[[bytes], bytes]] = [
            self._flip,
            self._flip,
            self._replace,
            self._delete,
            self._repeat,
            self._insert,
            self._insert,
            self._insert,
            self._splice,
            self._cut_off,
            self._swap_value,
            self._swap_value,
            self._double_key,
            self._nest,
            self._escape,
            self._pad,
        ]

    def pick(self, things: Sequence[bytes]) -> bytes:
        """Any of these."""
        return things[int(self._chance() * len(things))]

    def below(self, bound: int) -> int:
        """A number from 0 to below `bound`."""
        return int(self._chance() * bound)

    # Payloads.

    def payload(self) -> bytes:
        """A payload that is right, or nearly so, or not at all."""
        chance = self._chance()
        if chance < 0.45:
            payload = self.pick(self._corpus)
        elif chance < 0.98:
            payload = self.message()
        elif chance < 0.998:
            return self._noise(self.below(60))
        else:
            return self._large()
        chance = self._chance()
        if chance < 0.5:
            return payload
        payload = self._ways[int(self._chance() * len(self._ways))](payload)
        if chance > 0.85:
            payload = self._ways[int(self._chance() * len(self._ways))](payload)
        return payload

    def message(self) -> bytes:
        """An object with a type and some of the known fields, of right and of wrong types."""
        parts = [b'"type":' + self.pick(self._types)]
        parts += [
            self.pick(self._names) + b":" + self.pick(self._values) for _ in range(int(self._chance() * 4))
        ]
        chance = self._chance()
        if chance < 0.5:
            self._count += 1
            parts.append(b'"id":%d' % self._count if chance < 0.25 else b'"id":"%x"' % self._count)
        if chance > 0.7:
            parts.reverse()
        return b"{" + b",".join(parts) + b"}"

    def auth(self) -> bytes:
        """An `auth`, seldom a right one."""
        chance = self._chance()
        if chance < 0.1:
            return b'{"type":"auth","mechanism":"token","token":"wrong"}'
        if chance < 0.25:
            first = b"n,,n=%b,r=%d" % (self.pick([b"alice", b"bob", b"nobody"]), self.below(10**9))
            payload = b'{"type":"auth","mechanism":"scram-sha-256","data":"%b"}' % first
        else:
            parts = [b'"type":"auth"']
            for _ in range(1 + int(self._chance() * 4)):
                value = self.pick(_AUTH_VALUES) if self._chance() < 0.8 else self.pick(_VALUES)
                parts.append(self.pick(self._auth_names) + b":" + value)
            payload = b"{" + b",".join(parts) + b"}"
        return payload if self._chance() < 0.6 else self.pick_way(payload)

    def pick_way(self, payload: bytes) -> bytes:
        """The payload, damaged in one way."""
        return self._ways[int(self._chance() * len(self._ways))](payload)

    def _noise(self, size: int) -> bytes:
        return self._random.getrandbits(8 * size).to_bytes(size, "big") if size else b""

    def _large(self) -> bytes:
        size = min(self._max_length - 40, int(2 ** (9 + 7 * self._chance())))
        filling = self.pick([b"x", b"\\n", "é".encode(), b"[1],"[:3] + b",", b"12345678901234567890"])
        tag = self.pick([b"echo", b"broadcast", b"large"])
        if filling.startswith(b"["):
            inside = b"[" + filling * (size // 4) + b"0]"
        else:
            inside = b'"' + filling * (size // len(filling)) + b'"'
        return b'{"type":"%b","content":%b}' % (tag, inside)

    def _flip(self, payload: bytes) -> bytes:
        if not payload:
            return b"\1"
        place = int(self._chance() * len(payload))
        changed = bytearray(payload)
        changed[place] ^= 1 << int(self._chance() * 8)
        return bytes(changed)

    def _replace(self, payload: bytes) -> bytes:
        if not payload:
            return b"0"
        place = int(self._chance() * len(payload))
        return payload[:place] + self.pick(_TOKENS) + payload[place + 1 :]

    def _delete(self, payload: bytes) -> bytes:
        place = int(self._chance() * len(payload))
        return payload[:place] + payload[place + 1 + int(self._chance() * 4) :]

    def _repeat(self, payload: bytes) -> bytes:
        start = int(self._chance() * len(payload))
        end = start + int(self._chance() * 20)
        return payload[:end] + payload[start:end] * (1 + int(self._chance() * 3)) + payload[end:]

    def _insert(self, payload: bytes) -> bytes:
        place = int(self._chance() * (len(payload) + 1))
        return payload[:place] + self.pick(_TOKENS) + payload[place:]

    def _splice(self, payload: bytes) -> bytes:
        other = self.pick(self._corpus)
        return payload[: int(self._chance() * len(payload))] + other[int(self._chance() * len(other)) :]

    def _cut_off(self, payload: bytes) -> bytes:
        return payload[: int(self._chance() * len(payload))]

    def _swap_value(self, payload: bytes) -> bytes:
        """Another value behind one of the colons."""
        colon = payload.find(b":", int(self._chance() * len(payload)))
        if colon < 0:
            return self._insert(payload)
        ends = [end for end in (payload.find(b",", colon), payload.rfind(b"}", colon)) if end > 0]
        return payload[: colon + 1] + self.pick(_VALUES) + payload[min(ends, default=len(payload)) :]

    def _double_key(self, payload: bytes) -> bytes:
        if payload[:1] != b"{":
            return b"{" + payload + b"}"
        name = self.pick(self._names) if self._chance() < 0.7 else b'"type"'
        value = self.pick(_VALUES) if self._chance() < 0.7 else self.pick(self._types)
        return b"{" + name + b":" + value + b"," + payload[1:]

    def _nest(self, payload: bytes) -> bytes:
        depth = (1, 2, 3, 62, 63, 64, 65, 66, 100, 300)[int(self._chance() * 10)]
        if self._chance() < 0.003:
            depth = 3000
        chance = self._chance()
        if chance < 0.4:
            return b"[" * depth + payload + b"]" * depth
        if chance < 0.8:
            value = b"[" * depth + self.pick(_VALUES) + b"]" * depth
            tag = self.pick(self._types)
            return b'{"type":%b,"content":%b,"timestamp":%b}' % (tag, value, self.pick(_VALUES))
        return b'{"a":' * depth + payload + b"}" * (depth - (chance > 0.95))

    def _escape(self, payload: bytes) -> bytes:
        """One of its characters as an escape, which changes nothing within a string."""
        if not payload:
            return b"\\u0020"
        place = int(self._chance() * len(payload))
        return b"%b\\u%04x%b" % (payload[:place], payload[place], payload[place + 1 :])

    def _pad(self, payload: bytes) -> bytes:
        return (
            self.pick([b" ", b"\n", b"\t \r", b"\x0b", b"\xc2\xa0"])
            + payload
            + self.pick([b" ", b"\n", b"\0"])
        )

    # Frames.

    def frames(self, count: int, dirt: float, guest: bool = False, compressed: bool = False) -> list[bytes]:
        """
        Frames with their lengths.

        Args:
            count: how many.
            dirt: the share of those whose length lies, or that are damaged with their lengths.
            guest: of one that has not authenticated: with logins among them, none too long.
            compressed: some of them are compressed, or nearly so.
        """
        made = []
        for _ in range(count):
            if guest:
                payload = self.auth() if self._chance() < 0.3 else self.payload()
                if len(payload) > PRE_AUTH_MAX_LENGTH:
                    payload = payload[:PRE_AUTH_MAX_LENGTH]
            else:
                payload = self.payload() if self._chance() < 0.99 else self.auth()
            if compressed and self._chance() < 0.3:
                made.append(self.compressed(payload))
            elif len(payload) > self._max_length:
                made.append(frame(payload[: self._max_length]))
            else:
                made.append(_pack(len(payload)) + payload)
            if dirt and self._chance() < dirt:
                made[-1] = self._soil(made[-1])
        return made

    def _soil(self, whole: bytes) -> bytes:
        chance = self._chance()
        length = len(whole) - 4
        if chance < 0.4:
            lies = (length + 1, max(0, length - 1), 0, length + 4, length * 256 % 2**32, self._max_length)
            return _pack(lies[int(self._chance() * 6)]) + whole[4:]
        if chance < 0.6:
            return self.pick_way(whole)
        if chance < 0.8:
            return whole[: 1 + int(self._chance() * len(whole))]
        if chance < 0.9:
            return self._noise(1 + self.below(12))
        return self.oversize()

    def oversize(self) -> bytes:
        """A length that is too long, and something behind it."""
        lengths = (self._max_length + 1, 2**31 - 1, 2**32 - 1, 0x47455420, 0x16030101, 0x20000000)
        return _pack(max(self._max_length + 1, lengths[int(self._chance() * 6)])) + self._noise(
            self.below(30)
        )

    def compressed(self, payload: bytes) -> bytes:
        """A frame with the payload compressed, or nearly so."""
        chance = self._chance()
        if chance < 0.02:
            # A bomb.
            payload = b" " * (self._max_length + 1 + self.below(self._max_length))
        data = zlib.compress(payload or b" ", int(self._chance() * 10))
        if chance > 0.985:
            data = self.pick_way(data)
        elif chance > 0.98:
            data += data
        data = data[: self._max_length]
        return _pack(len(data) | COMPRESSED) + data

    # Streams.

    def cuts(self, data: bytes, pieces: int) -> list[bytes]:
        """The data in at most so many pieces, none of them empty."""
        places = sorted({int(self._chance() * len(data)) for _ in range(pieces - 1)} - {0})
        return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]

    def proxy_header(self, host: str, port: int) -> bytes:
        """A PROXY header of a version that says this address, of an IPv4 network."""
        if self._chance() < 0.5:
            return b"PROXY TCP4 %b 127.0.0.1 %d 9999\r\n" % (host.encode(), port)
        source = bytes(map(int, host.split(".")))
        addresses = source + b"\x7f\0\0\1" + struct.pack(">HH", port, 9999)
        tail = self._noise(self.below(20)) if self._chance() < 0.3 else b""
        size = len(addresses) + len(tail)
        return b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack(">H", size) + addresses + tail

    def any_proxy_header(self) -> bytes:
        """A header that is nearly right."""
        other = (
            b"PROXY UNKNOWN\r\n",
            b"PROXY UNKNOWN ffff::1 1 2 3\r\n",
            b"PROXY TCP6 ::1 ::2 1 2\r\n",
            b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 65535 0\r\n",
            b"PROXY TCP4 256.2.3.4 5.6.7.8 1 2\r\n",
            b"PROXY " + b"x" * 120,
            b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24" + bytes(36),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd8" + bytes(216),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b" + bytes(12),
            b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\x0c" + bytes(12),
        )
        header = (
            self.pick(other) if self._chance() < 0.5 else self.proxy_header("10.1.2.3", self.below(65536))
        )
        chance = self._chance()
        if chance < 0.3:
            return header
        return self.pick_way(header) if chance < 0.8 else self.pick_way(self.pick_way(header))
