"""contrib/wireshark/tcpjson.lua, by tshark: what it shows of captures that are made here."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tcpjson.core.limits import LARGEST_FRAME
from tcpjson.test.hypo import given
from tcpjson.test.oracle import Pairs, damaged, levels, parse, strings, texts
from tests.harness import (
    COMPRESSED,
    TIMEOUT,
    Message,
    Peer,
    ServerTestCase,
    certificates,
    encode,
    folder,
    frame,
    inflate,
)
from tests.identities import new_path

SCRIPT = Path(__file__).resolve().parent.parent / "contrib" / "wireshark" / "tcpjson.lua"

MIB = 1 << 20
PORT = 9999

#: Who sends it, "client" or "server", and the bytes of one segment.
Segment = tuple[str, bytes]
#: What is shown of a frame, or of what is not framed.
Piece = dict[str, Any]

WELCOME = {"type": "welcome", "protocol": 1, "max_length": 1000}
PING = {"type": "ping", "id": 1}
AGREED = {"type": "hello_response", "compression": "zlib"}
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def packed(message: object) -> bytes:
    """A message in a compressed frame."""
    return frame(zlib.compress(json.dumps(message).encode()), True)


@functools.cache
def tshark() -> str:
    """The path of tshark; skips the test where there is none that runs scripts."""
    path = shutil.which("tshark")
    if path is None:
        raise SkipTest("needs tshark")
    about = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    if "with Lua" not in " ".join(about.stdout.split()):
        raise SkipTest("needs a tshark with Lua")
    return path


# Captures.


class Capture:
    """A capture of conversations over TCP between two hosts, by Ethernet and IPv4, segment by segment."""

    CLIENT, SERVER = bytes((127, 0, 0, 1)), bytes((127, 0, 0, 2))

    def __init__(self, port: int = PORT) -> None:
        self._port = port
        self._records: list[bytes] = []
        #: Where the two sides of each conversation, by the port of its client, stand in their sequences.
        self._next: dict[int, dict[str, int]] = {}

    def open(self, client: int) -> None:
        """The handshake of a connection from a port."""
        start = len(self._records) * 7919 % 2**32
        self._next[client] = {"client": start, "server": start + 1_000_000}
        for side, flags in (("client", 0x02), ("server", 0x12), ("client", 0x10)):
            self.add(client, side, b"", flags)

    def add(self, client: int, side: str, data: bytes, flags: int = 0x18, *, again: bool = False) -> int:
        """One segment; returns the number of its packet. `again`: the bytes before it were sent already."""
        sequences = self._next[client]
        other = "server" if side == "client" else "client"
        sequence = sequences[side] - (len(data) if again else 0)
        self._write(client, side, sequence, sequences[other] if flags & 0x10 else 0, flags, data)
        if not again:
            sequences[side] += len(data) + bool(flags & 0x03)
        return len(self._records)

    def swapped(self, client: int, side: str, first: bytes, second: bytes) -> None:
        """Two segments, of which the second one overtakes the first."""
        sequences = self._next[client]
        other = sequences["server" if side == "client" else "client"]
        self._write(client, side, sequences[side] + len(first), other, 0x18, second)
        self._write(client, side, sequences[side], other, 0x18, first)
        sequences[side] += len(first) + len(second)

    def _write(self, client: int, side: str, sequence: int, ack: int, flags: int, data: bytes) -> None:
        ends = [(self.CLIENT, client), (self.SERVER, self._port)]
        (source, source_port), (target, target_port) = ends if side == "client" else reversed(ends)
        ports = struct.pack(">HH", source_port, target_port)
        tcp = ports + struct.pack(">IIBBHHH", sequence % 2**32, ack % 2**32, 80, flags, 65535, 0, 0) + data
        number = len(self._records) + 1
        ip = struct.pack(">BBHHHBBH", 69, 0, 20 + len(tcp), number % 65536, 0x4000, 64, 6, 0)
        packet = bytes(12) + b"\x08\x00" + ip + source + target + tcp
        seconds, micros = divmod(number * 1000, 10**6)
        self._records.append(struct.pack("<IIII", seconds, micros, len(packet), len(packet)) + packet)

    def save(self, snap: int = 262144) -> Path:
        """Write it to a file; of each packet no more than so many bytes."""
        data = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)]
        for record in self._records:
            kept = record[16 : 16 + snap]
            data += (record[:8], struct.pack("<I", len(kept)), record[12:16], kept)
        path = new_path(".pcap")
        path.write_bytes(b"".join(data))
        return path


def cut(segments: Iterable[Segment], sizes: Callable[[], int]) -> list[Segment]:
    """The same bytes in segments of other sizes; what one side sends without a pause may share a segment."""
    runs: list[tuple[str, bytearray]] = []
    for side, data in segments:
        if not runs or runs[-1][0] != side:
            runs.append((side, bytearray()))
        runs[-1][1].extend(data)
    found = []
    for side, whole in runs:
        while whole:
            size = sizes()
            found.append((side, bytes(whole[:size])))
            del whole[:size]
    return found


# What is to be shown, written from docs/protocol.rst, and not from the script.


def message_piece(value: Pairs, sender: str) -> Piece:
    """What is shown of an object."""
    fields = dict(value)
    piece: Piece = {"json": True}
    kind, identifier, code = fields.get("type"), fields.get("id"), fields.get("code")
    if type(kind) is str:
        piece["type"] = kind
        if kind == "error" and sender == "server" and type(code) is str:
            fatal = fields.get("fatal") is True
            piece |= {"code": code, "experts": ["fatal" if fatal else "error"]}
            if "fatal" in fields:
                piece["fatal"] = fatal
    if isinstance(identifier, str):
        piece["id"] = str(identifier)
    return piece


def payload_piece(payload: bytes, sender: str) -> Piece:
    """What is shown of a payload; of an object that is broken, less than may be shown."""
    try:
        value = parse(payload)
    except ValueError:
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            return {"experts": ["broken"]}
        if text.lstrip(" \t\r\n")[:1] in ("{", "[", "\ufeff"):
            return {"experts": ["broken"]}
        return {"text": text, "experts": ["text"]}
    if isinstance(value, Pairs):
        piece = message_piece(value, sender)
        if levels(value) > 100:
            del piece["json"]
            piece["experts"] = [*piece.get("experts", []), "unread"]
        return piece
    return {"text": payload.decode(), "experts": ["text"]}


def pieces(segments: Iterable[Segment]) -> list[list[Piece]]:
    """What is shown of each segment of a conversation whose start is there."""
    all_found: list[list[Piece]] = []
    buffers = {"client": bytearray(), "server": bytearray()}
    stopped: set[str] = set()
    longest = {"client": LARGEST_FRAME, "server": LARGEST_FRAME}
    compresses = False
    for sender, data in segments:
        buffer = buffers[sender]
        buffer += data
        found: list[Piece] = []
        all_found.append(found)
        while buffer:
            if sender in stopped:
                found.append({"sender": sender, "unframed": len(buffer)})
                buffer.clear()
                break
            if len(buffer) < 4:
                break
            length = int.from_bytes(buffer[:4], "big")
            piece: Piece = {"sender": sender}
            if compressed := compresses and length >= COMPRESSED:
                length -= COMPRESSED
                piece["compressed"] = True
            piece["length"] = length
            if length > longest[sender]:
                found.append(piece | {"oversize": True, "experts": ["oversize"]})
                stopped.add(sender)
                buffer.clear()
                break
            if len(buffer) < 4 + length:
                break
            payload = bytes(buffer[4 : 4 + length])
            del buffer[: 4 + length]
            if compressed:
                try:
                    payload = inflate(payload)
                except (zlib.error, AssertionError):
                    payload = b""
                if not payload:
                    found.append(piece | {"experts": ["deflate"]})
                    continue
                piece["inflated"] = len(payload)
            found.append(piece | (payload_piece(payload, sender) if payload else {"experts": ["empty"]}))
            if sender == "server" and found[-1].get("type") == "welcome":
                most = json.loads(payload)["max_length"]
                if isinstance(most, int):
                    longest = {"client": most, "server": 6 * most + 4096}
            elif sender == "server" and found[-1].get("type") == "hello_response":
                compresses = json.loads(payload)["compression"] == "zlib"
    return all_found


# What tshark shows.


def _collect(pairs: Pairs, piece: Piece) -> None:
    for name, value in pairs:
        if name.startswith("tcpjson.expert."):
            piece.setdefault("experts", []).append(name.rpartition(".")[2])
        elif name == "json":
            piece["json"] = True
        elif isinstance(value, Pairs):
            _collect(value, piece)
        elif name.startswith("tcpjson."):
            name = name.partition(".")[2]
            if name in ("length", "inflated"):
                value = int(value)
            elif name in ("compressed", "oversize", "fatal"):
                # Newer releases write words.
                value = value in ("1", "True")
            elif name == "unframed":
                value = len(value.replace(":", "")) // 2
            piece[name] = value


def run(path: Path, *options: str) -> str:
    """
    What tshark prints of a capture.

    Raises:
        AssertionError: it failed, or complained.
    """
    words = [tshark(), "-n", "-r", str(path), "-X", f"lua_script:{SCRIPT}", *options]
    # Nobody's own settings and plugins.
    environment = os.environ | {"HOME": str(folder()), "XDG_CONFIG_HOME": str(folder())}
    result = subprocess.run(words, capture_output=True, env=environment, timeout=4 * TIMEOUT, check=False)
    errors = [line for line in result.stderr.decode().splitlines() if "This could be dangerous" not in line]
    if result.returncode or any(errors):
        raise AssertionError(f"{words} ended with {result.returncode}: {errors}")
    output = result.stdout.decode(errors="replace")
    if "Lua Error" in output:
        raise AssertionError(re.findall("Lua Error.*", output)[:3])
    return output


def shown(path: Path, *options: str) -> dict[int, list[Piece]]:
    """What tshark shows of each packet of a capture that holds something of ours, or an error of Lua."""
    output = run(path, "-T", "json", "-Y", "tcpjson or _ws.lua.error", *options)
    found: dict[int, list[Piece]] = {}
    for packet in json.loads(output, object_pairs_hook=Pairs):
        layers = dict(dict(packet)["_source"])["layers"]
        number = int(dict(dict(layers)["frame"])["frame.number"])
        found[number] = []
        for name, value in layers:
            if name == "tcpjson":
                piece: Piece = {}
                _collect(value, piece)
                found[number].append(piece)
    return found


def summary(path: Path, *options: str) -> list[str]:
    """The info column of all packets that hold something of ours."""
    lines = run(path, "-Y", "tcpjson", *options).splitlines()
    return [re.split(r" tcpjson +\d+ ", line)[-1] for line in lines]


class Recorder:
    """What goes between clients and a server, as it came: it stands between them."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._changed = threading.Lock()
        #: The segments of each connection, in order.
        self.connections: list[list[Segment]] = []
        self._sockets = [self._listener]

    def connect(self) -> socket.socket:
        """A connection to the server that is recorded."""
        ours = socket.create_connection(self._listener.getsockname())
        near, _ = self._listener.accept()
        far = socket.create_connection(self._server)
        self._sockets += [ours, near, far]
        segments: list[Segment] = []
        self.connections.append(segments)
        for sender, source, target in (("client", near, far), ("server", far, near)):
            arguments = (segments, sender, source, target)
            threading.Thread(target=self._pass_on, args=arguments, daemon=True).start()
        return ours

    def _pass_on(
        self, segments: list[Segment], sender: str, source: socket.socket, target: socket.socket
    ) -> None:
        try:
            # As much as fits a packet of the capture.
            while data := source.recv(60000):
                with self._changed:
                    segments.append((sender, data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        """Close all sockets."""
        for each in self._sockets:
            each.close()


class WiresharkTestCase(ServerTestCase):
    """Captures, and what tshark makes of them."""

    maxDiff = None

    def setUp(self) -> None:
        tshark()

    def capture(self, *conversations: list[Segment]) -> tuple[Path, dict[int, list[Piece]]]:
        """A capture of conversations, one after the other, and what is to be shown of it."""
        capture = Capture()
        expected = {}
        for number, segments in enumerate(conversations):
            client = 40000 + number
            capture.open(client)
            for (sender, data), found in zip(segments, pieces(segments), strict=True):
                packet = capture.add(client, sender, data)
                if found:
                    expected[packet] = found
        return capture.save(), expected

    def same(self, found: Mapping[int, list[Piece]], expected: Mapping[int, list[Piece]]) -> None:
        """See that what is shown is what shall be shown, packet for packet."""
        for number in sorted({*found, *expected}):
            here, due = found.get(number, []), expected.get(number, [])
            if due and due[-1].get("oversize") and "unframed" in here[-1]:
                # A length that came in two segments is a piece by itself, and so is what stands behind it.
                here = here[:-1]
            for piece, wanted in zip(here, due, strict=False):
                if wanted.get("experts") == ["broken"]:
                    # What is found in front of the fault is shown.
                    for name in ("type", "id", "code", "fatal"):
                        piece.pop(name, None)
            self.assertEqual(here, due, f"packet {number}")


def conversation() -> list[Segment]:
    """Something of everything, a frame a segment."""
    text = "the same again, " * 40
    client, server = "client", "server"
    return [
        (server, encode(WELCOME)),
        (client, encode({"x": {"type": "no", "id": 9}, "type": "echo", "id": 'a"b\\', "content": "é"})),
        (client, encode({"type": "hello", "compression": ["zlib"]})),
        (server, encode(AGREED)),
        (client, packed({"type": "broadcast", "content": text})),
        (client, frame(b"")),
        (client, frame(b"hello there")),
        (client, frame(b"[1, 2]")),
        (client, frame(b'{"type": "ping", "id": 2')),
        (server, encode({"type": "error", "code": "bad_json", "message": "m", "fatal": False, "id": 2})),
        (server, packed({"type": "echo_response", "content": text * 9})),
        (client, encode(PING)),
        (client, GET),
        (server, encode({"type": "error", "code": "too_large", "message": "m", "fatal": True})),
        (client, encode(PING)),
    ]


#: Payloads of all kinds: messages whose names are written oddly, other JSON, and what is almost JSON.
PAYLOADS = (
    texts()
    | damaged()
    | st.text(max_size=9)
    | st.builds(
        lambda names, values, tail: (
            "{" + ", ".join(map(": ".join, zip(names, values, strict=False))) + "}" + tail
        ),
        st.permutations(['"x"', r'"\u0074ype"', r'"i\u0064"', '"code"', r'"\"type"', '"fatal"']),
        st.lists(strings() | texts(), max_size=6),
        st.sampled_from(["", "", "", " ", ",", "}", "\0"]),
    )
)


class FrameTests(WiresharkTestCase):
    """Captures that are written here."""

    def test_one_by_one(self) -> None:
        """A frame a segment: each is shown with all that is known of it."""
        path, expected = self.capture(conversation())
        found = shown(path)
        self.same(found, expected)
        self.assertEqual(len(found), 15)

    def test_summary(self) -> None:
        """The info column says who, and what; several frames are joined."""
        segments = cut(conversation(), lambda: 60000)
        path, _ = self.capture(segments)
        self.assertEqual(
            summary(path),
            [
                "S welcome",
                r'C echo id="a\"b\\", hello',
                "S hello_response",
                "C broadcast, empty frame, text, text, ping id=2 (broken JSON)",
                "S error bad_json id=2, echo_response",
                "C ping id=1, oversize frame",
                "S error too_large fatal",
                "C behind an oversize frame",
            ],
        )

    def test_column_of_two_calls(self) -> None:
        """A frame that ends in a packet and those behind it share the column."""
        data = (
            encode(PING) + encode({**PING, "id": 2}) + encode({**PING, "id": 3}) + encode({**PING, "id": 4})
        )
        path, expected = self.capture([("client", data[:40]), ("client", data[40:])])
        self.same(shown(path), expected)
        self.assertEqual(summary(path), ["C ping id=1", "C ping id=2, ping id=3, ping id=4"])

    def test_one_packet_twice(self) -> None:
        """What the end of a packet changes is not for its start, when it is looked at again."""
        for data in (
            encode(PING) + GET,
            encode(WELCOME) + frame(b"x" * 20000),
            encode(AGREED) + packed(PING),
        ):
            path, expected = self.capture([("server", data)])
            for options in ((), ("-2",)):
                self.same(shown(path, *options), expected)

    def test_byte_by_byte(self) -> None:
        """A byte a segment, in both directions."""
        path, expected = self.capture(cut(conversation(), lambda: 1))
        found = shown(path)
        self.same(found, expected)
        self.assertGreater(len(expected), 14)

    def test_cuts(self) -> None:
        """Cut anywhere, in many conversations, and the same in a second pass."""
        source = random.Random(1)
        conversations = [conversation(), cut(conversation(), lambda: 60000)]
        for most in [2, 3, 5, 9, 20, 60, 200, 400] * 2:
            conversations += [cut(conversation(), functools.partial(source.randint, 1, most))]
        path, expected = self.capture(*conversations)
        self.same(shown(path), expected)
        self.same(shown(path, "-2"), expected)

    def test_payloads(self) -> None:
        """Whether payloads are messages, text or broken, and what stands in them; as the oracle says."""
        payloads: list[str] = []

        # To start tshark takes longer than a thousand payloads, so they are gathered first.
        @given(PAYLOADS, examples=1500)
        def gather(case: object, payload: str) -> None:
            payloads.append(payload)

        gather(self)
        path, expected = self.capture([("client", frame(payload.encode())) for payload in payloads])
        found = shown(path)
        for number, due in expected.items():
            for piece, wanted in zip(found.get(number, []), due, strict=False):
                for name in ("text", "type", "id"):
                    # How signs that cannot be printed are shown is up to tshark.
                    if not re.fullmatch(r"[ !#-\[\]-~]*", wanted.get(name, "")):
                        piece[name], wanted[name] = name in piece, True
        for payload, number in zip(payloads, sorted(expected), strict=True):
            try:
                self.same({number: found.get(number, [])}, {number: expected[number]})
            except AssertionError as error:
                raise AssertionError(f"{payload!r}: {error}") from None

    def test_fields(self) -> None:
        """Those of the message itself; the last one of a name; escapes in names and values."""
        cases: list[tuple[bytes, Piece]] = [
            (
                rb'{"\u0074yp\u0065":"p\u0069ng","id":"\"\u00e9\ud83d\ude00\\"}',
                {"type": "ping", "id": '"é😀\\'},
            ),
            (b'{"x":{"type":"a","id":1},"y":[{"type":"b"}],"type":"c"}', {"type": "c"}),
            (b'{"type":{"type":"a"},"id":[1]}', {}),
            (
                b'{"type":"a","type":"b","id":-12345678901234567890}',
                {"type": "b", "id": "-12345678901234567890"},
            ),
            (b'{"type":null,"id":null}', {}),
            # Clients have no errors to tell of: the type is their own.
            (b'{"type":"error","code":"x","fatal":true}', {"type": "error"}),
            (b'{"a":"\\"type\\":\\"no\\"","type":"\x7f"}', {"type": "\x7f"}),
            (b" \t\r\n{ } ", {}),
        ]
        path, _ = self.capture([("client", frame(payload)) for payload, _ in cases])
        found = list(shown(path).values())
        for (payload, fields), [piece] in zip(cases, found, strict=True):
            for name in ("type", "id"):
                value = piece.get(name)
                if value is not None:
                    # An older tshark escapes what it prints twice.
                    value = value.replace("\\x7f", "\x7f").replace("\\177", "\x7f")
                self.assertEqual(value, fields.get(name), payload)
            self.assertNotIn("experts", piece)

    def test_broken_utf8(self) -> None:
        """Payloads that are no UTF-8 are not JSON, nor text."""
        bad = [
            b"\x80",
            b"\xc0\x80",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xe0\x80\x80",
            b"\xf0\x80\x80\x80",
            b"\xff",
        ]
        bad += [b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xef\xbb\xbf{}"]
        good = [
            "\x80",
            "\u07ff",
            "\u0800",
            "\ud7ff",
            "\ue000",
            "\uffff",
            "\U00010000",
            "\U0010ffff",
            "\ufeff",
        ]
        payloads = [each + b"x" for each in bad] + [b'{"a":"' + each + b'"}' for each in bad]
        payloads += [b"x" + each.encode() for each in good] + [b'{"a":"%s"}' % each.encode() for each in good]
        path, expected = self.capture([("client", frame(payload)) for payload in payloads])
        experts = [piece.get("experts", []) for [piece] in shown(path).values()]
        # In a string, a byte order mark is a sign like others.
        self.assertEqual(experts, [["broken"]] * 21 + [[]] + [["text"]] * 9 + [[]] * 9)
        self.assertEqual(experts, [piece.get("experts", []) for [piece] in expected.values()])

    def test_oversize(self) -> None:
        """By the word of `welcome`, and without; answers may be longer than requests, as they hold them."""
        empty = struct.pack
        segments = [
            ("server", encode(WELCOME)),
            ("client", frame(b"x" * 1000)),
            ("server", frame(b"x" * 10096)),
        ]
        conversations = [
            [*segments, ("client", empty(">I", 1001)), ("client", frame(b"x"))],
            [*segments, ("server", empty(">I", 10097)), ("server", frame(b"x")), ("client", frame(b"x"))],
            [("client", empty(">I", LARGEST_FRAME + 1)), ("client", frame(b"x"))],
            # Nobody agreed on compression, or not yet.
            [("client", packed(PING))],
            [("client", encode(AGREED)), ("client", packed(PING))],
            [("client", packed(PING)), ("server", encode(AGREED)), ("server", packed(PING))],
            # A client does not say how long frames may be.
            [("client", encode({**WELCOME, "max_length": 1})), ("client", frame(b"xx"))],
            [("server", encode({**WELCOME, "max_length": "1"})), ("client", frame(b"xx"))],
        ]
        path, expected = self.capture(*(each for each in conversations if each[-1][1] != frame(b"xx")))
        found = shown(path, "-2")
        self.same(found, expected)
        marks = ["oversize" in piece for packet in found.values() for piece in packet]
        self.assertEqual(marks.count(True), 6)
        path, _ = self.capture(*conversations[-2:])
        self.assertEqual([piece["length"] for [piece] in list(shown(path).values())[1::2]], [2, 2])

    def test_strangers(self) -> None:
        """Other protocols on the port: marked at once, never waited for, be it megabytes."""
        source = random.Random(1)
        noise = [b"\x7f" + source.randbytes(50000) for _ in range(20)]
        conversations: list[list[Segment]] = [
            [("client", GET), ("server", b"HTTP/1.1 400 Bad Request\r\n\r\n"), ("client", GET)],
            [("client", each) for each in noise],
            [("server", b"SSH-2.0-OpenSSH_9.2\r\n"), ("client", b"SSH-2.0-x\r\n")],
            [("client", b"\xff" * 3), ("client", b"\xff" * 9)],
        ]
        path, expected = self.capture(*conversations)
        found = shown(path)
        self.same(found, expected)
        self.assertEqual(len(found), 3 + 20 + 2 + 1)

    def test_ports_come_again(self) -> None:
        """What one connection agreed on, and where it stopped, is not for the next from the same port."""
        capture = Capture()
        first = [
            ("server", encode(WELCOME)),
            ("server", encode(AGREED)),
            ("client", packed(PING)),
            ("client", GET),
        ]
        second = [("server", encode({**WELCOME, "max_length": 2000})), ("client", frame(b"x" * 1500))]
        third = [("server", encode(WELCOME)), ("client", packed(PING))]
        expected = {}
        for segments in (first, second, third):
            capture.open(40000)
            for (sender, data), found in zip(segments, pieces(segments), strict=True):
                expected[capture.add(40000, sender, data)] = found
            capture.add(40000, "client", b"", 0x11)
            capture.add(40000, "server", b"", 0x11)
        path = capture.save()
        self.same(shown(path), expected)
        self.same(shown(path, "-2"), expected)

    def test_sent_again(self) -> None:
        """A segment that comes twice, and two in the wrong order."""
        capture = Capture()
        capture.open(40000)
        data = encode(PING)
        capture.add(40000, "client", data)
        capture.add(40000, "client", data, again=True)
        capture.swapped(40000, "client", data[:10], data[10:])
        capture.add(40000, "client", encode({**PING, "id": 2}))
        option = ("-o", "tcp.reassemble_out_of_order:TRUE")
        for options in (option, (*option, "-2")):
            found = shown(capture.save(), *options)
            ids = [piece["id"] for packet in found.values() for piece in packet]
            self.assertEqual([*dict.fromkeys(ids)], ["1", "2"])
            self.assertEqual(ids[-2:], ["1", "2"])
            self.assertNotIn("oversize", str(found))

    def test_not_whole(self) -> None:
        """Packets that were cut by the capture, and segments that are not to be put together."""
        big = encode({"type": "echo", "content": "x" * 500})
        capture = Capture()
        capture.open(40000)
        capture.add(40000, "client", big)
        capture.add(40000, "server", encode(PING))
        for snap in range(54, 120):
            [experts, *_] = [piece.get("experts") for [piece] in shown(capture.save(snap)).values()] or [
                ["cut"]
            ]
            self.assertEqual(experts, ["cut"])
            if snap > 60:
                break
        path, _ = self.capture([("client", big[:99]), ("client", big[99:]), ("client", encode(PING))])
        found = shown(path, "-o", "tcp.desegment_tcp_streams:FALSE")
        self.assertEqual(
            [piece.get("type") or piece["experts"] for [piece] in found.values()][::2], [["cut"], "ping"]
        )

    def test_ports(self) -> None:
        """Another port, by the preference and by "Decode As"; the server may have the higher one."""
        for port, client in ((7777, 40000), (50505, 40000)):
            capture = Capture(port)
            capture.open(client)
            for sender, data in conversation()[:3]:
                capture.add(client, sender, data)
            path = capture.save()
            self.assertEqual(shown(path), {})
            for options in (("-o", f"tcpjson.port:{port}"), ("-d", f"tcp.port=={port},tcpjson")):
                self.assertEqual(
                    summary(path, *options), ["S welcome", r'C echo id="a\"b\\"', "C hello"], options
                )
        path, _ = self.capture(conversation())
        for port in (0, 7777):
            self.assertEqual(shown(path, "-o", f"tcpjson.port:{port}"), {})

    def test_begun_late(self) -> None:
        """Without the start of the connection: the preference says that compression was agreed on."""
        path, _ = self.capture([("client", packed(PING)), ("server", packed({"type": "pong"}))])
        self.assertEqual(summary(path), ["C oversize frame", "S oversize frame"])
        self.assertEqual(summary(path, "-o", "tcpjson.compressed:TRUE"), ["C ping id=1", "S pong"])

    def test_filters(self) -> None:
        """The fields can be asked for."""
        path, _ = self.capture(conversation())
        for expression, count in {
            'tcpjson.type == "ping"': 2,
            "tcpjson.id == 1": 1,
            "tcpjson.compressed": 2,
            "tcpjson.oversize": 1,
            'tcpjson.code == "too_large"': 1,
            "tcpjson.fatal == 1": 1,
            'tcpjson.sender == "server"': 5,
            "tcpjson.length > 100": 1,
            'tcpjson.text contains "hello"': 1,
            'json.value.string == "échange" or json.value.string == "zlib"': 2,
            "tcpjson.expert.error": 1,
        }.items():
            with self.subTest(expression):
                self.assertEqual(len(run(path, "-Y", expression).splitlines()), count, expression)


class CompressionTests(WiresharkTestCase):
    """Frames with bit 31."""

    START = (("server", encode(WELCOME)), ("server", encode(AGREED)))

    def test_broken(self) -> None:
        """What is not one whole stream of zlib, by the checks of section 7."""
        good = zlib.compress(b'{"type": "ping", "x": "%s"}' % (b"y" * 200))
        raw = zlib.compressobj(9, wbits=-15)
        deflated = raw.compress(b'{"type": "ping"}') + raw.flush()
        gzipped = zlib.compressobj(9, wbits=31)
        broken = [
            *(
                good[:-1],
                good[:-4],
                good[:20],
                good + b"x",
                good + zlib.compress(b"{}"),
                b"x",
                b"\x78\x9c",
                b'{"type":"ping"}',
            ),
            *(deflated, gzipped.compress(b"{}") + gzipped.flush(), good[:-1] + bytes([good[-1] ^ 1])),
        ]
        path, _ = self.capture(
            [*self.START, *(("client", frame(each, True)) for each in [good, *broken, good])]
        )
        found = [piece for [piece] in shown(path).values()][2:]
        self.assertEqual(
            [piece.get("experts", []) for piece in found], [[], *[["deflate"]] * len(broken), []]
        )
        self.assertEqual({piece["compressed"] for piece in found}, {True})

    def test_nothing(self) -> None:
        """An empty stream holds an empty payload; no bytes at all are no stream."""
        path, _ = self.capture(
            [*self.START, ("client", frame(zlib.compress(b""), True)), ("client", frame(b"", True))]
        )
        found = [piece for [piece] in shown(path).values()][2:]
        self.assertEqual([piece["experts"] for piece in found], [["deflate"], ["deflate"]])

    def test_too_long(self) -> None:
        """Inflated to more than the server takes; then nothing more is framed."""
        for size, marked in ((1000, False), (1001, True)):
            segments = [*self.START, ("client", frame(zlib.compress(b"x" * size), True) + encode(PING))]
            path, _ = self.capture([*segments, ("client", encode(PING))])
            for options in ((), ("-2",)):
                lines = summary(path, *options)[2:]
                end = ["C oversize frame", "C behind an oversize frame"]
                self.assertEqual(lines, end if marked else ["C text, ping id=1", "C ping id=1"])

    def test_not_inflated(self) -> None:
        """What is longer than the preference says stays as it is."""
        noise = random.Random(1).randbytes(400).hex()
        path, _ = self.capture([*self.START, ("client", packed({"type": "echo", "content": noise}))])
        self.assertEqual(summary(path)[-1], "C echo")
        self.assertEqual(summary(path, "-o", "tcpjson.inflate:300")[-1], "C compressed frame")
        self.assertEqual(
            list(shown(path, "-o", "tcpjson.inflate:300").values())[-1][0]["experts"], ["unread"]
        )


class SizeTests(WiresharkTestCase):
    """Payloads that are long, deep or many."""

    def test_payloads(self) -> None:
        """What cannot be shown as a tree is said to be so; what stands in front is found."""
        start = b'{"type": "echo", "id": 5, "content": '
        cases = {
            start + b'"' + b"x" * (2 * MIB) + b'", "id": 6}': ["unread"],
            start + b'"' + b"x" * (2 * MIB - 100) + b'", "id": 5}': [],
            start + b"[" * 99 + b"]" * 99 + b"}": [],
            start + b"[" * 100 + b"]" * 100 + b"}": ["unread"],
            start + b"[" * 300000 + b"]" * 300000 + b"}": ["unread"],
            start + b"[" * 500000 + b"}": ["broken"],
            start + b"[0" + b",0" * 110000 + b"]}": ["unread"],
            start + b"[0" + b",0" * 90000 + b"]}": [],
            start + b'"' + rb"\u00e9" * 170000 + b'"}': [],
            b" " * 900000 + start + b"0}": [],
            start + ("é" * 400000).encode() + b"}": ["broken"],
        }
        segments = [("client", frame(payload)) for payload in cases]
        path, _ = self.capture(cut(segments, lambda: 60000))
        found = [piece for packet in shown(path).values() for piece in packet]
        self.assertEqual([piece.get("experts", []) for piece in found], list(cases.values()))
        self.assertEqual({(piece["type"], piece["id"]) for piece in found}, {("echo", "5")})
        self.assertEqual([piece["length"] for piece in found], list(map(len, cases)))

    def test_many_frames(self) -> None:
        """Thousands in one segment: all are shown, and two hundred of them with the tree of their JSON."""
        path, expected = self.capture([("client", encode(PING) * 1000 + frame(b"") * 5000)])
        [pieces] = expected.values()
        for piece in pieces[200:1000]:
            del piece["json"]
            piece["experts"] = ["unread"]
        self.same(shown(path), expected)
        self.assertEqual(len(pieces), 6000)


class SessionTests(WiresharkTestCase):
    """Sessions with a real server."""

    def record(self) -> Recorder:
        """A recorder in front of the shared server."""
        recorder = Recorder(self.server.address)
        self.addCleanup(recorder.close)
        return recorder

    def talk(self, connect: Callable[[], Peer]) -> list[tuple[list[str], list[str]]]:
        """Two clients and a server; returns the types that each client sent and got."""
        first, second = connect(), connect()
        for peer in (first, second):
            peer.welcome = peer.receive()
        sent: list[Message] = [
            {"x": {"type": "no"}, "type": "ping", "id": 'a"b'},
            {"type": "hello", "compression": ["zlib"]},
            {"type": "echo", "content": "é" * 2000, "id": 7},
            {"type": "echo", "content": "x" * (MIB - 100)},
            {"type": "broadcast", "content": "to all"},
        ]
        got = [first.ask(message)["type"] for message in sent]
        first.write(packed({"type": "echo", "content": "the same again, " * 1000}))
        got.append(first.receive()["type"])
        relayed = second.receive()["type"]
        first.write(frame(b"") + frame(b"hello") + frame(b'{"type":') + struct.pack(">I", MIB + 1))
        got += [message["type"] for message in first.rest()]
        second.close()
        types = [message["type"] for message in sent]
        return [(types, ["welcome", *got]), ([], ["welcome", relayed])]

    def see(self, found: dict[int, list[Piece]], told: list[tuple[list[str], list[str]]]) -> None:
        """See that what is shown is what the clients said and heard."""
        self.assertEqual(told[0][1][-4:], ["error", "echo", "error", "error"])
        everything = [piece for number in sorted(found) for piece in found[number]]
        for sender, place in (("client", 0), ("server", 1)):
            types = [
                p["type"]
                for p in everything
                if p["sender"] == sender and "type" in p and "broken" not in p.get("experts", [])
            ]
            due = [kind for each in told for kind in each[place]]
            if sender == "client":
                due.append("echo")
            self.assertEqual(sorted(types), sorted(due))
        codes = [(piece["code"], piece["fatal"]) for piece in everything if "code" in piece]
        self.assertEqual(codes, [("bad_frame", False), ("bad_json", False), ("too_large", True)])
        self.assertEqual([p["length"] for p in everything if p.get("oversize")], [MIB + 1])
        self.assertEqual(
            [p["type"] for p in everything if p.get("compressed")],
            ["echo_response"] * 2 + ["echo", "echo_response"],
        )

    def test_session(self) -> None:
        """In the clear: as it came, and cut anew."""
        recorder = self.record()
        told = self.talk(lambda: Peer(recorder.connect()))
        recorded = recorder.connections
        source = random.Random(2)
        for again in (recorded, [cut(each, lambda: source.randint(1, 9000)) for each in recorded]):
            path, expected = self.capture(*again)
            found = shown(path)
            self.same(found, expected)
            self.see(found, told)


class TLSSessionTests(SessionTests):
    """Over TLS."""

    tls = True

    def test_session(self) -> None:
        """With the keys all is shown, without them nothing of ours is."""
        recorder = self.record()
        keys = new_path(".keys")
        context = certificates().context()
        context.keylog_filename = str(keys)
        told = self.talk(
            lambda: Peer(context.wrap_socket(recorder.connect(), server_hostname="127.0.0.1")),
        )
        path, _ = self.capture(*recorder.connections)
        self.assertEqual(shown(path), {})
        options = ("-o", f"tls.keylog_file:{keys}")
        found = shown(path, *options)
        self.see(found, told)
        self.assertEqual(shown(path, *options, "-2"), found)


class ScriptTests(SynchronousTestCase):
    """What the script says of itself."""

    def test_constants(self) -> None:
        """They are those of the package."""
        text = SCRIPT.read_text(encoding="utf-8")
        self.assertIn(f"local LARGEST = {LARGEST_FRAME}\n", text)
