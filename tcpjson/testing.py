"""
A real server in memory: no sockets, no reactor, time that stands still until it is told to move.

    server = MemoryServer()
    peer = server.connect()
    peer.receive()                     # [{"type": "welcome", ...}]
    peer.send({"type": "ping"})
    peer.receive()                     # [{"type": "pong", ...}]
    server.advance(31)                 # half a minute later
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.address import IPv4Address
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tcpjson.auth import Authenticator
from tcpjson.connection import Connection
from tcpjson.core.compression import inflate
from tcpjson.core.framing import FrameReader, frame
from tcpjson.core.limits import LARGEST_FRAME, Limits
from tcpjson.handlers import Router
from tcpjson.server import COMPRESS_OVER, TCPJSONServerFactory

#: The time of day when a `MemoryServer` starts, in seconds since 1970: 2024-01-01T12:00:00.000Z.
START = 1704110400.0


class MemoryServer:
    """
    A server with a clock of its own. Its `factory` has the clients and the statistics.

    Args:
        limits, routers (a list), strict, compress_over: as `TCPJSONServerFactory` takes them.
        checkers: of `twisted.cred`, or made by `tcpjson.auth`; with any, clients must authenticate, and may
            send passwords and tokens as they are.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        routers: Sequence[Router] = (),
        strict: bool = False,
        compress_over: int | None = COMPRESS_OVER,
        checkers: Sequence[ICredentialsChecker] = (),
    ) -> None:
        self.clock = Clock()
        authenticator = None
        if checkers:
            authenticator = Authenticator(
                checkers,
                self.clock,
                lambda key, function, *args: maybeDeferred(function, *args),
                allow_plain=True,
            )
        self.factory = TCPJSONServerFactory(
            self.clock,
            limits=limits,
            routers=routers,
            strict=strict,
            compress_over=compress_over,
            authenticator=authenticator,
            wall=lambda: START + self.clock.seconds(),
            shuffle=lambda connections: None,
        )
        self.factory.doStart()
        self._ports = iter(range(50000, 65536))

    def connect(self) -> Peer:
        """A new client; `welcome` is the first that its `receive` returns."""
        return Peer(self, IPv4Address("TCP", "127.0.0.1", next(self._ports)))

    def advance(self, seconds: float) -> None:
        """Let time pass, in steps of an eighth of a second, as timers that set timers need it."""
        steps, rest = divmod(seconds, 0.125)
        self.clock.pump([0.125] * int(steps) + [rest])
        self.settle()

    def settle(self) -> None:
        """Let all happen that is to happen now; `Peer` and `advance` do it by themselves."""
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.advance(0)

    def stop(self) -> None:
        """Stop the factory, as when its last port is closed."""
        self.factory.doStop()


def _agrees_on_compression(payload: bytes) -> bool:
    if b'"hello_response"' not in payload:
        return False
    message = json.loads(payload)
    return message["type"] == "hello_response" and message["compression"] is not None


class Peer:
    """
    The other end of a connection to a `MemoryServer`: frames in, frames out.

    `connection` is the server's end of it, `transport` what is between.
    """

    def __init__(self, server: MemoryServer, address: IPv4Address) -> None:
        self._server = server
        self._reader = FrameReader()
        self.transport = StringTransport(peerAddress=address)
        self.connection: Connection = server.factory.buildProtocol(address)
        self.connection.makeConnection(self.transport)

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are, and let the server handle them."""
        self.connection.dataReceived(data)
        self._server.settle()

    def send_payload(self, *payloads: bytes) -> None:
        """Send payloads, each in a frame, all in one read of the server's."""
        self.send_bytes(b"".join(map(frame, payloads)))

    def send(self, *messages: object) -> None:
        """Send values as JSON, each in a frame, all in one read of the server's."""
        self.send_payload(*(json.dumps(message).encode() for message in messages))

    def receive_payloads(self) -> list[bytes]:
        """The payloads that came since the last call."""
        data = self.transport.value()
        self.transport.clear()
        if data:
            self._reader.feed(data)
        payloads: list[bytes] = []
        while taken := self._reader.take(1000, LARGEST_FRAME):
            payloads += taken
            if any(map(_agrees_on_compression, taken)):
                self._reader.inflate = inflate
        return payloads

    def receive(self) -> list[Any]:
        """The messages that came since the last call."""
        return [json.loads(payload) for payload in self.receive_payloads()]

    def stop_reading(self) -> None:
        """Take nothing more, as one whose buffers are full."""
        self.connection._outbox.pauseProducing()

    def start_reading(self) -> None:
        """Take again what is sent."""
        self.connection._outbox.resumeProducing()
        self._server.settle()

    @property
    def closed(self) -> bool:
        """Whether the server has closed, or aborted, the connection."""
        return bool(self.transport.disconnecting or self.transport.disconnected)

    @property
    def aborted(self) -> bool:
        """Whether the server has aborted the connection."""
        return bool(self.transport.disconnected)

    def close(self) -> None:
        """Close the connection."""
        self._lose(Failure(ConnectionDone()))

    def reset(self) -> None:
        """Lose the connection without a proper end."""
        self._lose(Failure(ConnectionLost()))

    def _lose(self, reason: Failure) -> None:
        self.connection.connectionLost(reason)
        self._server.settle()
