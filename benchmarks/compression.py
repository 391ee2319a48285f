"""What compression saves on the wire, and what it costs the server: CPU time a message, beside plain ones.

Messages are lists of records as devices and games send them (an id, names of people and places, a time,
numbers, flags, a few words), another one for each message, or random text; all are made before they are
measured, and every answer is compared. The server compresses everything that gets shorter
(``--compress-over 1``), so that the table shows from which length on that is worth it. A client that
compresses does so both ways. In a broadcast, all, half or none of 200 readers take compressed frames, on
three servers.

What is compared is done in short slices to and fro, so that noise hits all alike; what is counted is the
CPU time of the server's process, user and system. The ratio is the median of the ratios within each round. A
wrong answer ends the benchmark with status 1.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import selectors
import statistics
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.clients import COMPRESSED, Access, Client
from benchmarks.servers import (
    TCPJSON,
    BenchmarkError,
    Server,
    cores,
    end_on_sigterm,
    raise_file_limit,
    started,
    usable,
)

SIZES = (300, 1_000, 2_000, 10_000, 100_000, 1_000_000)
CAST_SIZES = (2_000, 10_000)
READERS = 200
SLICES = 10  # of a round, even: each side is measured as often first as last
SLICE_BYTES = 300_000  # of payloads in a slice, at least MESSAGES[0] and at most MESSAGES[1] of them
MESSAGES = (2, 150)
IN_FLIGHT = 60_000  # bytes that are sent before the answers are read, or one message
CASTS = 10  # broadcasts of a slice
LEVEL = zlib.Z_BEST_SPEED

NAMES = (
    "Ada",
    "Alan",
    "Barbara",
    "Carl",
    "Dana",
    "Edsger",
    "Frances",
    "Grace",
    "Hedy",
    "Ida",
    "Jean",
    "Karl",
)
PLACES = ("kitchen", "hall", "cellar", "garden", "roof", "office", "workshop", "north-gate", "lab-1", "lab-2")
# fmt: off
WORDS = (
    "the", "door", "was", "open", "a", "while", "pump", "started", "late", "and", "stopped", "again",
    "please", "look", "at", "filter", "before", "tonight", "new", "battery", "needed", "reading", "seems",
    "high", "checked", "by", "hand", "all", "quiet", "nothing", "to", "report", "moved", "two", "metres",
)
# fmt: on

Make = Callable[[random.Random, int], object]


def record(chance: random.Random) -> dict[str, object]:
    """What a device or a player says of itself."""
    return {
        "id": chance.randrange(10**6),
        "name": f"{chance.choice(NAMES)} {chance.choice(NAMES)}son",
        "place": chance.choice(PLACES),
        "at": f"2024-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}T{chance.randrange(24):02}:"
        f"{chance.randrange(60):02}:{chance.randrange(60):02}.{chance.randrange(1000):03}Z",
        "x": round(chance.uniform(-500, 500), 3),
        "y": round(chance.uniform(-500, 500), 3),
        "level": chance.randrange(101),
        "ok": chance.random() < 0.9,
        "note": " ".join(chance.choice(WORDS) for _ in range(chance.randrange(12))),
    }


def records(chance: random.Random, size: int) -> object:
    """A list of records, about `size` bytes long as JSON."""
    found: list[dict[str, object]] = []
    while True:
        fresh = record(chance)
        length = len(json.dumps(fresh, separators=(",", ":"))) + 1
        if found and size < length / 2:
            return found
        found.append(fresh)
        size -= length


def noise(chance: random.Random, size: int) -> object:
    """Random text of `size` characters, 64 different ones: that much zlib can save."""
    return base64.b64encode(chance.randbytes(size * 3 // 4)).decode()


KINDS: dict[str, Make] = {"records": records, "random": noise}


def encoded(kind: str, content: object) -> bytes:
    """The payload of a request."""
    return json.dumps({"type": kind, "content": content}, separators=(",", ":")).encode()


def framed(payload: bytes, compress: bool) -> bytes:
    if compress:
        data = zlib.compress(payload, LEVEL)
        return struct.pack(">I", len(data) | COMPRESSED) + data
    return struct.pack(">I", len(payload)) + payload


@dataclass
class Side:
    """One way to send the same messages, and what it took: nanoseconds, bytes and messages of a round."""

    label: str
    spent: int = 0
    wire: int = 0
    count: int = 0
    #: Microseconds of CPU a message, one for each round.
    found: list[float] = field(default_factory=list)
    #: Bytes a message, both ways, in the last round.
    bytes_each: float = 0.0

    def end_round(self) -> None:
        self.found.append(self.spent / 1e3 / self.count)
        self.bytes_each = self.wire / self.count
        self.spent = self.wire = self.count = 0


def ratio(side: Side, base: Side) -> str:
    """The median of the ratios within each round, least and most in brackets."""
    ratios = [one / other for one, other in zip(side.found, base.found, strict=True)]
    spread = f"({min(ratios):.2f}-{max(ratios):.2f})"
    return f"{statistics.median(ratios):8.2f}{spread:>14}"


def converse(client: Client, contents: Sequence[object], frames: Sequence[bytes]) -> None:
    """Send echoes, some at a time, and compare the answers."""
    start = 0
    while start < len(frames):
        end = start
        size = 0
        while end < len(frames) and (end == start or size + len(frames[end]) <= IN_FLIGHT):
            size += len(frames[end])
            end += 1
        client.socket.sendall(b"".join(frames[start:end]))
        for content in contents[start:end]:
            answer = client.receive()
            if answer.get("content") != content:
                raise BenchmarkError(f"a wrong answer: {str(answer)[:200]}")
        start = end


def measure_echo(
    server: Server, make: Make, size: int, sides: tuple[Side, Side], chance: random.Random
) -> None:
    """One round of echoes of one size, by a plain and by a compressing client."""
    count = min(MESSAGES[1], max(MESSAGES[0], SLICE_BYTES // size))
    access = Access(server.port)
    with access.enter() as plain, access.enter() as packing:
        packing.agree_on_compression()
        pairs = list(zip(sides, (plain, packing), (False, True), strict=True))
        for turn in range(-2, SLICES):
            for side, client, compress in pairs[:: -1 if turn % 2 else 1]:
                # What JSON has around the content.
                contents = [make(chance, size - 30) for _ in range(count)]
                frames = [framed(encoded("echo", content), compress) for content in contents]
                received, before = client.received, server.cpu_ns()
                converse(client, contents, frames)
                spent = server.cpu_ns() - before
                # The first ones warm up.
                if turn >= 0:
                    side.spent += spent
                    side.wire += sum(map(len, frames)) + client.received - received
                    side.count += count
    for side in sides:
        side.end_round()


class Audience:
    """Clients that read what is broadcast on one server, some of them compressed, and one who sends it."""

    def __init__(self, server: Server, compressing: int, stack: contextlib.ExitStack) -> None:
        self.server = server
        access = Access(server.port)
        self.sender = stack.enter_context(access.enter())
        self._readers = [stack.enter_context(access.enter()) for _ in range(READERS)]
        for reader in self._readers[:compressing]:
            reader.agree_on_compression()
        self._selector = stack.enter_context(contextlib.closing(selectors.DefaultSelector()))
        for reader in self._readers:
            self._selector.register(reader.socket, selectors.EVENT_READ, bytearray())

    def cast(self, content: object, frame: bytes) -> int:
        """Broadcast a content and wait until all have it; returns the bytes that they got."""
        self.sender.socket.sendall(frame)
        self.sender.expect("broadcast_sent", recipients=READERS)
        whole: list[bytes] = []
        while len(whole) < READERS:
            for key, _ in self._selector.select():
                buffer = key.data
                data = os.read(key.fd, 1 << 18)
                if not data:
                    raise BenchmarkError("the server closed a connection")
                buffer += data
                if len(buffer) >= 4 + (int.from_bytes(buffer[:4], "big") & ~COMPRESSED):
                    whole.append(bytes(buffer))
                    buffer.clear()
        for data in set(whole):
            payload = zlib.decompress(data[4:]) if data[0] & 0x80 else data[4:]
            if json.loads(payload).get("content") != content:
                raise BenchmarkError(f"a wrong broadcast: {payload[:200]!r}")
        return sum(map(len, whole))


def measure_casts(
    audiences: Sequence[Audience], size: int, sides: Sequence[Side], chance: random.Random
) -> None:
    """One round of broadcasts of one size, on all servers."""
    pairs = list(zip(sides, audiences, strict=True))
    for turn in range(-2, SLICES):
        for side, audience in pairs[:: -1 if turn % 2 else 1]:
            contents = [records(chance, size - 90) for _ in range(CASTS)]
            frames = [framed(encoded("broadcast", content), False) for content in contents]
            before = audience.server.cpu_ns()
            wire = sum(audience.cast(content, frame) for content, frame in zip(contents, frames, strict=True))
            spent = audience.server.cpu_ns() - before
            if turn >= 0:
                side.spent += spent
                side.wire += wire
                side.count += CASTS * READERS
    for side in sides:
        side.end_round()


def echoes(options: argparse.Namespace, core: int | None) -> list[str]:
    """The lines of the table of echoes."""
    chance = random.Random(1)
    table = {(kind, size): (Side("plain"), Side("zlib")) for kind in KINDS for size in options.sizes}
    for number in range(1, options.runs + 1):
        print(f"echoes, round {number} of {options.runs}", file=sys.stderr, flush=True)
        with started(TCPJSON.with_words(["--compress-over=1", "--max-length=4000000"]), core) as server:
            for (kind, size), sides in table.items():
                measure_echo(server, KINDS[kind], size, sides, chance)
    lines = [
        f"{'echo, payload':22}{'bytes plain':>12}{'zlib':>10}{'share':>7}{'CPU us plain':>14}{'zlib':>10}"
        f"{'ratio':>8}{'(least-most)':>14}"
    ]
    for (kind, size), (plain, packed) in table.items():
        lines.append(
            f"{f'{kind}, {size:,} B':22}{plain.bytes_each:12,.0f}{packed.bytes_each:10,.0f}"
            f"{packed.bytes_each / plain.bytes_each:7.0%}{statistics.median(plain.found):14.1f}"
            f"{statistics.median(packed.found):10.1f}{ratio(packed, plain)}"
        )
    return lines


def casts(options: argparse.Namespace, core: int | None) -> list[str]:
    """The lines of the table of broadcasts."""
    chance = random.Random(2)
    shares = {"none": 0, "half": READERS // 2, "all": READERS}
    table = {size: [Side(label) for label in shares] for size in CAST_SIZES}
    for number in range(1, options.runs + 1):
        print(f"broadcasts, round {number} of {options.runs}", file=sys.stderr, flush=True)
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(started(TCPJSON, core)) for _ in shares]
            audiences = [
                Audience(server, compressing, stack)
                for server, compressing in zip(servers, shares.values(), strict=True)
            ]
            for size, sides in table.items():
                measure_casts(audiences, size, sides, chance)
    lines = [
        f"{f'broadcast to {READERS}, compressing':34}{'bytes':>10}{'share':>7}{'CPU us a delivery':>20}"
        f"{'ratio':>8}{'(least-most)':>14}"
    ]
    for size, sides in table.items():
        plain = sides[0]
        lines += [
            f"{f'{size:,} B, {side.label}':34}{side.bytes_each:10,.0f}"
            f"{side.bytes_each / plain.bytes_each:7.0%}{statistics.median(side.found):20.2f}"
            f"{ratio(side, plain)}"
            for side in sides
        ]
    return lines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compression", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="rounds")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, metavar="BYTES", help="of payloads, 100 to 2,000,000"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.runs <= 100:
        parser.error("--runs must be between 1 and 100")
    if not all(100 <= size <= 2_000_000 for size in options.sizes):
        parser.error("--sizes must be between 100 and 2000000")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    end_on_sigterm()
    raise_file_limit()
    if not usable([TCPJSON.name]):
        return 1
    server_core, client_core = cores()
    if client_core is not None:
        os.sched_setaffinity(0, {client_core})
    try:
        for lines in (echoes(options, server_core), casts(options, server_core)):
            print("\n".join(lines), flush=True)
    except (BenchmarkError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(
        "bytes: of a request and its answer, or of a delivery, with their lengths; CPU: median of rounds;\n"
        "ratio: to plain, or to none, the median of the rounds, least and most in brackets"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
