"""
A real server in memory: no sockets, no reactor, time that stands still until it is told to move.

    server = MemoryServer()
    peer = server.connect()
    peer.receive()                     # [{"type": "welcome", ...}]
    peer.send({"type": "ping"})
    peer.receive()                     # [{"type": "pong", ...}]
    server.advance(31)                 # half a minute later

And the real client of it, which connects again when its connection is cut:

    server = MemoryServer()
    heard = []
    client = server.client(on_message=heard.append)
    server.result(client.connect())    # {"type": "welcome", ...}
    server.result(client.echo("x"))    # "x"
    server.connect().send({"type": "broadcast", "content": "hello"})
    heard                              # [{"type": "broadcast", "content": "hello", ...}]
    client.wire.cut()
    client.connected                   # False
    server.advance(1)
    client.connected                   # True
    server.result(client.close())
"""

from __future__ import annotations

import json
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
)
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IProtocolFactory,
    IPushProducer,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from tcpjson.auth import Authenticator
from tcpjson.client import Client
from tcpjson.connection import Connection
from tcpjson.core.compression import COMPRESS_OVER, inflate
from tcpjson.core.framing import FrameReader, frame
from tcpjson.core.limits import LARGEST_FRAME, Limits
from tcpjson.handlers import Router
from tcpjson.server import TCPJSONServerFactory

#: The time of day when a `MemoryServer` starts, in seconds since 1970: 2024-01-01T12:00:00.000Z.
START = 1704110400.0

# The port that clients see themselves connected to.
_PORT = 9999
# Seconds of a step in which time passes: at the least, and while something is waited for.
_LEAST_STEP = 1e-6
_STEP = 0.125
# Bytes that a transport keeps before it asks for a pause, and that are read at once.
_BUFFER = 64 * 1024

Result = TypeVar("Result")


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
        self._running = False
        # The ends of wires that have something for the other end.
        self._due: dict[_End, None] = {}
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
        return Peer(self, self._new_address())

    def client(self, **options: Any) -> MemoryClient:
        """
        A new `tcpjson.Client`, with its options, not connected yet. Unless these say otherwise, its waits are
        half of the longest, which is 0.25 seconds for the first, and logins take no time. It is not over TLS:
        credentials that are sent as they are need `allow_plain=True`.
        """
        return MemoryClient(self, **options)

    def wire(self) -> Wire:
        """A way to the server: an endpoint for a `Pool`, say, whose reactor is `clock`."""
        return Wire(self)

    def result(self, awaitable: Deferred[Result] | Coroutine[Any, Any, Result], within: float = 0) -> Result:
        """
        What a Deferred or a coroutine comes to; raises what it fails with.

        Args:
            awaitable: what to wait for.
            within: seconds that may pass.

        Raises:
            AssertionError: it came to nothing in this time.
        """
        deferred = awaitable if isinstance(awaitable, Deferred) else Deferred.fromCoroutine(awaitable)
        results: list[Any] = []
        deferred.addBoth(results.append)
        self.settle()
        end = self.clock.seconds() + within
        while not results and self.clock.seconds() < end:
            self.advance(min(_STEP, end - self.clock.seconds()))
        if not results:
            raise AssertionError(f"no result within {within:g} seconds")
        [result] = results
        if isinstance(result, Failure):
            result.raiseException()
        return result  # type: ignore[no-any-return]  # the Deferred's own

    def advance(self, seconds: float) -> None:
        """Let time pass. Each timer is called at its time, also one that another sets."""
        # What happens may be what let it happen: that goes on then.
        if self._running:
            return
        self._running = True
        try:
            end = self.clock.seconds() + seconds
            self.clock.advance(0)
            while (left := end - self.clock.seconds()) > 0:
                due = min((call.getTime() for call in self.clock.getDelayedCalls()), default=end)
                # Not so little that the time stays what it is.
                self.clock.advance(min(left, max(due - self.clock.seconds(), _LEAST_STEP)))
        finally:
            self._running = False

    def settle(self) -> None:
        """Let all happen that is to happen now; `Peer`, `Wire`, `result` and `advance` do it themselves."""
        self.advance(0)

    def stop(self) -> None:
        """Stop the factory, as when its last port is closed: no client can connect any more."""
        self.factory.doStop()

    def _move_soon(self, end: _End) -> None:
        if not self._due:
            self.clock.callLater(0, self._move_due)
        self._due[end] = None

    def _move_due(self) -> None:
        # A broadcast goes to a set, which has no order that is the same each time.
        due = sorted(self._due, key=lambda end: end.number)
        self._due.clear()
        for end in due:
            self.clock.callLater(0, end.moved)

    def _new_address(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", next(self._ports))


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


class MemoryClient(Client):
    """The client that `MemoryServer.client` makes; `wire` is what leads from it to the server."""

    def __init__(self, server: MemoryServer, **options: Any) -> None:
        self.wire = server.wire()
        usual = {"random": lambda: 0.5, "run": maybeDeferred}
        super().__init__(server.clock, self.wire, **{**usual, **options})


@implementer(IStreamClientEndpoint)
class Wire:
    """
    A way to a `MemoryServer`, on which bytes take no time, and which can be cut, stalled and closed.

    Whoever connects while it is stalled is connected, and hears nothing.
    """

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._ends: list[_End] = []
        #: Whether attempts to connect fail, as they do when the server has stopped.
        self.refuses = False
        #: Whether nothing goes through.
        self.stalled = False

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """As every endpoint."""

        def cancel(_: object) -> None:
            call.cancel()

        deferred: Deferred[Any] = Deferred(cancel)
        call = self._server.clock.callLater(0, self._connect, protocolFactory, deferred)
        return deferred

    def _connect(self, protocolFactory: IProtocolFactory, deferred: Deferred[Any]) -> None:
        server = self._server.factory
        if self.refuses or server.draining or not server.numPorts:
            deferred.errback(ConnectionRefusedError())
            return
        there = IPv4Address("TCP", "127.0.0.1", _PORT)
        here = self._server._new_address()
        protocol: Any = protocolFactory.buildProtocol(there)
        connection = server.buildProtocol(here)
        ours = _End(self._server, self, protocol, here, there)
        theirs = _End(self._server, self, connection, there, here)
        ours.other, theirs.other = theirs, ours
        self._ends += [ours, theirs]
        protocol.makeConnection(ours)
        deferred.callback(protocol)
        connection.makeConnection(theirs)

    @property
    def connections(self) -> list[Connection]:
        """The server's ends of what is connected."""
        return [end.protocol for end in self._ends if isinstance(end.protocol, Connection)]

    def cut(self) -> None:
        """Have both ends lose the connection, and what is on its way between them."""
        for end in self._ends:
            end.lose_soon(ConnectionLost())
        self._server.settle()

    def stall(self) -> None:
        """Have nothing go through, neither way, until `go_on`."""
        self.stalled = True

    def go_on(self) -> None:
        """Have everything go through again, and what waits for it, too."""
        self.stalled = False
        for end in self._ends:
            # The other one may be gone, and have left word of it.
            end.other.move()
        self._server.settle()


@implementer(ITransport, IConsumer, IPushProducer)
class _End:
    """The transport of one end of a connection."""

    other: _End

    def __init__(
        self, server: MemoryServer, wire: Wire, protocol: Any, host: IPv4Address, peer: IPv4Address
    ) -> None:
        self.protocol = protocol
        self.disconnecting = False
        #: In the order of connections.
        self.number = max(host.port, peer.port), host.port
        self._server = server
        self._wire = wire
        self._host = host
        self._peer = peer
        # What was written, and has not left.
        self._data = bytearray()
        self._producer: Any = None
        # Whether that was asked for a pause, and whether we were.
        self._full = False
        self._paused = False
        self._aborted = False

    @property
    def connected(self) -> bool:
        """Whether its protocol has not been told of the end."""
        return self in self._wire._ends

    # What its protocol calls.

    def getHost(self) -> IPv4Address:
        return self._host

    def getPeer(self) -> IPv4Address:
        return self._peer

    def write(self, data: bytes) -> None:
        if not self.disconnecting:
            self._data += data
            if len(self._data) > _BUFFER and self._producer is not None and not self._full:
                self._full = True
                self._producer.pauseProducing()
            self.move()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None
        self._full = False

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self.other.move()

    def stopProducing(self) -> None:
        self.loseConnection()

    def loseConnection(self) -> None:
        self.disconnecting = True
        self.move()

    def abortConnection(self) -> None:
        if self.connected:
            self.disconnecting = self._aborted = True
            self.lose_soon(ConnectionAborted())
            self.move()

    # What happens on the wire.

    def move(self) -> None:
        """Have the other end get what there is for it, as soon as it may."""
        self._server._move_soon(self)

    def moved(self) -> None:
        """Have it get that now, if it may."""
        other = self.other
        if self._wire.stalled:
            return
        if self._aborted:
            other.lose(ConnectionLost())
            return
        if not self.connected or other._paused:
            return
        data = bytes(self._data[:_BUFFER])
        del self._data[:_BUFFER]
        if self._full:
            self._full = False
            self._producer.resumeProducing()
        if data and other.connected:
            other.protocol.dataReceived(data)
        if self._data:
            self.move()
        elif self.disconnecting:
            self.lose(ConnectionDone())
            other._ended()

    def _ended(self) -> None:
        """The other end has closed."""
        if not self.connected:
            return
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()
        else:
            self.lose(ConnectionDone())

    def lose_soon(self, error: Exception) -> None:
        """Have its protocol lose the connection in the next turn."""
        self._server.clock.callLater(0, self.lose, error)

    def lose(self, error: Exception) -> None:
        """Have its protocol lose the connection, if it has one."""
        if not self.connected:
            return
        self._wire._ends.remove(self)
        self.disconnecting = True
        self._paused = False
        if self._producer is not None:
            self._producer.stopProducing()
        self.protocol.connectionLost(Failure(error))
