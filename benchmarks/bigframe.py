"""CPU time of one frame of 16 MiB that arrives in pieces of 1,448 bytes, what an Ethernet packet holds.

A frame that arrives in pieces must cost linear time. Over loopback the kernel joins the pieces, so they are
fed in process: the server's protocol on an in-memory transport. Beside it stands a plain
``Int32StringReceiver``, which copies what it has so far on every read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import sys
import time
from collections.abc import Callable, Sequence

from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.basic import Int32StringReceiver

TARGET = 0.1
PIECE = 1448
FRAME = 16 * 2**20
MAX_LENGTH = 33_554_432

Build = Callable[[], Protocol]


class Plain(Int32StringReceiver):
    """The peer: it sends each payload back and looks into none."""

    MAX_LENGTH = MAX_LENGTH

    def stringReceived(self, string: bytes) -> None:
        self.sendString(string)


def build_tcpjson() -> Protocol:
    """The protocol of our server, as its factory builds it."""
    from twisted.internet.task import Clock

    from tcpjson import Limits, TCPJSONServerFactory

    return TCPJSONServerFactory(Clock(), limits=Limits(max_length=MAX_LENGTH)).buildProtocol(None)


def make_request(size: int) -> tuple[bytes, str]:
    """Return an echo whose payload is `size` bytes long, framed, and its content."""
    empty = json.dumps({"type": "echo", "content": ""}, separators=(",", ":"))
    content = ("0123456789abcdef" * (size // 16 + 1))[: size - len(empty)]
    payload = json.dumps({"type": "echo", "content": content}, separators=(",", ":")).encode()
    return struct.pack(">I", len(payload)) + payload, content


def last_message(wire: bytes) -> dict[str, object]:
    """The last message of what a server wrote."""
    position, payload = 0, b"{}"
    while position < len(wire):
        (length,) = struct.unpack_from(">I", wire, position)
        payload = wire[position + 4 : position + 4 + length]
        position += 4 + length
    message: dict[str, object] = json.loads(payload)
    return message


def feed(build: Build, request: bytes, content: str, piece: int) -> float:
    """Feed the request in pieces and return the CPU seconds that took; the answer is checked."""
    pieces = [request[i : i + piece] for i in range(0, len(request), piece)]
    protocol, transport = build(), StringTransport()
    protocol.makeConnection(transport)
    begin = time.process_time()
    for data in pieces:
        protocol.dataReceived(data)
    spent = time.process_time() - begin
    if last_message(transport.value()).get("content") != content:
        raise SystemExit("the answer is missing or wrong")
    return spent


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bigframe", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--size", type=int, default=FRAME, metavar="BYTES", help="of the payload")
    parser.add_argument("--piece", type=int, default=PIECE, metavar="BYTES")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of ours; the peer runs once")
    parser.add_argument("--no-peer", action="store_true", help="the peer takes long; leave it out")
    options = parser.parse_args(arguments)
    if not 64 <= options.size <= MAX_LENGTH or options.piece < 1 or options.runs < 1:
        parser.error(f"--size must be between 64 and {MAX_LENGTH}, --piece and --runs at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    request, content = make_request(options.size)
    print(f"one frame of {options.size} bytes in pieces of {options.piece}: CPU seconds")
    try:
        times = [feed(build_tcpjson, request, content, options.piece) for _ in range(options.runs)]
    except ImportError as error:
        print(f"{'tcpjson':22}left out: {error}")
    else:
        spent = statistics.median(times)
        verdict = "met" if spent < TARGET else "NOT MET"
        spread = f"({min(times):.3f}-{max(times):.3f})"
        print(f"{'tcpjson':22}{spent:8.3f} {spread}  target {TARGET}: {verdict}")
    if not options.no_peer:
        print(f"{'Int32StringReceiver':22}{feed(Plain, request, content, options.piece):8.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
