"""The server: its clients, broadcasts, statistics."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import ServerFactory
from twisted.internet.task import LoopingCall
from twisted.internet.tcp import Connection as TCPConnection
from twisted.logger import Logger

from tcpjson import classic
from tcpjson._version import __version__
from tcpjson.connection import Connection, Turn
from tcpjson.core.codec import Codec
from tcpjson.core.encoding import encode_message
from tcpjson.core.framing import join_frames
from tcpjson.core.limits import Limits
from tcpjson.core.messages import Message, ServerStats, Welcome
from tcpjson.core.ordering import Slot
from tcpjson.core.stats import SAMPLE_INTERVAL, Stats
from tcpjson.deadlines import Deadlines
from tcpjson.handlers import Router
from tcpjson.outbox import descriptor_of
from tcpjson.timestamps import Timestamps

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IReactorTime

log = Logger()


class TCPJSONServerFactory(ServerFactory):
    """
    The shared state of a server: its clients, its limits, its router, its statistics.

    Args:
        clock: the reactor; its `seconds` must be steady.
        limits: what a client may do.
        routers: the application's handlers; they may take over classic types.
        strict: refuse plain text and types that nobody handles.
        wall: tells the time of day in seconds since 1970.
        send_buffer, receive_buffer: bytes of the sockets' buffers; the system's when None.

    Raises:
        ValueError, TypeError: the routers handle a type twice, or a type that cannot be decoded.
    """

    noisy = False

    def __init__(
        self,
        clock: IReactorTime,
        *,
        limits: Limits | None = None,
        routers: Sequence[Router] = (),
        strict: bool = False,
        wall: Callable[[], float] = time.time,
        send_buffer: int | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self.clock = clock
        self.limits = limits or Limits()
        self.handlers: dict[type[Message], Callable[[Any, Any], Any]] = classic.router.merged(
            *routers
        ).handlers
        own = classic.router.handlers
        self.codec = Codec(
            [kind for kind in self.handlers if kind.__struct_config__.tag],
            strict,
            checked=[kind for kind, handler in self.handlers.items() if handler is not own.get(kind)],
        )
        self.timestamps = Timestamps(wall)
        #: Those that are served.
        self.clients: set[Connection] = set()
        # Those that are connected, whatever their state.
        self._connections = 0
        self._stopped = False
        self.stats = Stats(clock.seconds(), self.handlers)
        self.turn: Turn | None = None
        self.usual_turn = Turn()
        self.frame_deadlines = Deadlines[Connection](clock, Connection.frame_expired)
        self.write_deadlines = Deadlines[Connection](clock, Connection.look_at_progress)
        self.handler_deadlines = Deadlines[tuple[Connection, Slot]](
            clock, lambda key: key[0].handler_expired(key[1])
        )
        self._start_time = self.timestamps.now()
        self._buffers = ((socket.SO_SNDBUF, send_buffer), (socket.SO_RCVBUF, receive_buffer))
        self._sampler = LoopingCall(self._sample)
        self._sampler.clock = clock

    def _sample(self) -> None:
        self.stats.sample(self.clock.seconds())

    def startFactory(self) -> None:
        self._stopped = False
        self._sampler.start(SAMPLE_INTERVAL, now=False)

    def stopFactory(self) -> None:
        self._stopped = True
        self._sampler.stop()
        self._stop_timers()

    def _stop_timers(self) -> None:
        """Leave no delayed call behind when there is nobody left to serve, or to come."""
        if self._stopped and not self._connections:
            for deadlines in (self.frame_deadlines, self.write_deadlines, self.handler_deadlines):
                deadlines.stop()

    def buildProtocol(self, addr: IAddress | None) -> Connection:  # type: ignore[override]  # no ProtocolFactory of Twisted's own
        connection = Connection(self.clock)
        connection.factory = self
        return connection

    def opened(self, connection: Connection) -> None:
        """A connection is there; set up its socket."""
        self._connections += 1
        self.stats.connections += 1
        descriptor = descriptor_of(connection.transport)
        if not isinstance(descriptor, TCPConnection):
            return
        handle = descriptor.getHandle()
        if handle.family != socket.AF_UNIX:
            # Answers are written once a read: there is nothing for Nagle's algorithm to gather.
            descriptor.setTcpNoDelay(True)
            descriptor.setTcpKeepAlive(True)
        for option, size in self._buffers:
            if size is not None:
                handle.setsockopt(socket.SOL_SOCKET, option, size)

    def closed(self, connection: Connection, reason: str) -> None:
        """A connection is gone; `reason` is a code of section 9."""
        self._connections -= 1
        self._stop_timers()
        self.stats.disconnects[reason] += 1
        log.info(
            "disconnected {client} reason={reason} seconds={seconds:.3f} messages_in={messages_in}"
            " messages_out={messages_out} bytes_in={bytes_in} bytes_out={bytes_out}",
            client=connection.client_id,
            reason=reason,
            seconds=self.clock.seconds() - connection.opened,
            messages_in=connection.messages_in,
            messages_out=connection.messages_out,
            bytes_in=connection.bytes_in,
            bytes_out=connection.bytes_out,
        )

    def welcome(self, client_id: str) -> bytes:
        """The payload of `welcome` (section 4)."""
        welcome = Welcome(
            client_id=client_id,
            message="Welcome to the tcpjson server",
            server=f"tcpjson/{__version__}",
            max_length=self.limits.max_length,
            limits=self.limits.announced(),
        )
        return encode_message(welcome, self.timestamps.now())

    def join(self, connection: Connection) -> None:
        """A client is there."""
        self.clients.add(connection)
        self.stats.peak_clients = max(self.stats.peak_clients, len(self.clients))
        log.info(
            "connected {client} clients={clients}", client=connection.client_id, clients=len(self.clients)
        )

    def leave(self, connection: Connection) -> None:
        """A client is served no more."""
        self.clients.discard(connection)

    def broadcast(self, sender: Connection, payload: bytes) -> int:
        """Hand a payload to all clients but its sender; returns to how many."""
        recipients = len(self.clients) - (sender in self.clients)
        self.stats.broadcasts += 1
        turn = self.turn
        if turn is not None and turn.connection is sender:
            # A quarter of a queue: a burst alone fills no queue whose socket takes something.
            if turn.burst_size + len(payload) > self.limits.max_queue // 4:
                self.commit(turn)
            turn.burst.append(payload)
            turn.burst_size += len(payload)
        else:
            if turn is not None:
                self.commit(turn)
            self._deliver(sender, [payload])
        return recipients

    def commit(self, turn: Turn) -> None:
        """Send what a turn has for others."""
        if turn.burst:
            burst, turn.burst = turn.burst, []
            turn.burst_size = 0
            self._deliver(turn.connection, burst)
        if turn.dirty:
            for connection in turn.dirty:
                connection._outbox.flush()
            turn.dirty.clear()

    def _deliver(self, sender: Connection, payloads: list[bytes]) -> None:
        """Send payloads to all clients but one."""
        data = join_frames(payloads)
        size = len(data)
        count = len(payloads)
        deliveries = 0
        # One that is found full leaves the set meanwhile.
        for client in tuple(self.clients):
            if client is sender:
                continue
            outbox = client._outbox
            if outbox.waiting and not client.has_room(size):
                continue
            outbox.write(data)
            client.messages_out += count
            deliveries += count
        stats = self.stats
        stats.deliveries += deliveries
        stats.messages_out += deliveries
        stats.bytes_out += deliveries // count * size

    def server_stats(self) -> ServerStats:
        """The statistics (section 3)."""
        now = self.clock.seconds()
        return ServerStats(
            connected_clients=len(self.clients),
            uptime_seconds=int(now - self.stats.started),
            total_messages=self.stats.messages_in,
            server_start_time=self._start_time,
            current_time=self.timestamps.now(),
            details=self.stats.details(now),
        )
