"""The server: its clients, broadcasts, statistics."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ServerFactory
from twisted.internet.task import LoopingCall
from twisted.internet.tcp import Connection as TCPConnection
from twisted.logger import Logger

from tcpjson._version import __version__
from tcpjson.connection import Connection
from tcpjson.core import compression
from tcpjson.core.admission import Admission
from tcpjson.core.encoding import encode_message
from tcpjson.core.errors import GoingAway, ProtocolError, SlowConsumer
from tcpjson.core.framing import join_frames
from tcpjson.core.limits import Limits
from tcpjson.core.messages import Message, ServerStats, Welcome
from tcpjson.core.ordering import Slot
from tcpjson.core.stats import SAMPLE_INTERVAL, ClosedConnection, Stats
from tcpjson.deadlines import Deadlines
from tcpjson.dialects import Dialects
from tcpjson.exchange import Exchange, Turn
from tcpjson.handlers import Recipients, Router, Session
from tcpjson.lifecycle import Lifecycle
from tcpjson.notices import Notices
from tcpjson.timestamps import Timestamps
from tcpjson.transports import descriptor_of, tune
from tcpjson.turns import Turns

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime

    from tcpjson.auth import Authenticator
    from tcpjson.messagelog import MessageLog

log = Logger()

# Seconds longer than `write_timeout` in which the other end may acknowledge nothing: whoever can be told why
# the connection ends, is told before.
_USER_TIMEOUT_MARGIN = 30
# Connections that were refused and are still there; more are closed without waiting for the peer to do so.
_LINGERING = 32
# Seconds that the clients have to hear that the server goes away, and to end what they are about.
_FAREWELL = 1.0
# Clients that may come back in one second after a shutdown, and the bounds of the time they are spread over.
_RETURNS = 500
_SPREAD = (2.0, 30.0)
# Characters of a user's name in the log.
_NAME_LENGTH = 80


class TCPJSONServerFactory(ServerFactory):
    """
    The shared state of a server: its clients, its limits, its router, its statistics.

    Args:
        clock: the reactor; its `seconds` must be steady.
        limits: what a client may do.
        routers: the application's handlers, which may take over classic types, and hooks.
        strict: refuse plain text and types that nobody handles.
        authenticator: who may be a client; None: whoever comes.
        message_log: is told of each message.
        wall: tells the time of day in seconds since 1970.
        compress_over: bytes over which a message is compressed for clients that ask for it (section 7); None:
            no compression.
        send_buffer, receive_buffer: bytes of the sockets' buffers; the system's when None.
        shuffle: brings a list into a random order.

    Raises:
        ValueError, TypeError: the routers handle a type twice, one of the protocol's own (`hello`, `auth`),
            or one that cannot be decoded. When it begins to listen, `tcpjson.lifecycle.StartFailed`.
    """

    noisy = False

    def __init__(
        self,
        clock: IReactorTime,
        *,
        limits: Limits | None = None,
        routers: Sequence[Router] = (),
        strict: bool = False,
        authenticator: Authenticator | None = None,
        message_log: MessageLog | None = None,
        wall: Callable[[], float] = time.time,
        compress_over: int | None = compression.COMPRESS_OVER,
        send_buffer: int | None = None,
        receive_buffer: int | None = None,
        shuffle: Callable[[list[Any]], None] = random.shuffle,
    ) -> None:
        self.clock = clock
        self.limits = limits or Limits()
        self.authenticator = authenticator
        self.message_log = message_log
        router = Router().merged(*routers)
        self.dialects = Dialects(Connection.hello, Connection.authenticate, router, strict)
        self.timestamps = Timestamps(wall)
        #: The names of the compressions that clients may choose from.
        self.compression = () if compress_over is None else compression.NAMES
        self._compress_over = compress_over
        #: Those that are served.
        self.clients: set[Exchange] = set()
        #: Those that are connected, whatever their state.
        self.connections: set[Connection] = set()
        self.admission = Admission(self.limits)
        #: Tells the log of what happens again and again.
        self.notices = Notices(clock, log)
        self.lifecycle = Lifecycle(clock, router, self.limits.handler_timeout, self.notices)
        self._stopped = False
        #: Whether the server shuts down: it is not ready to be sent new clients.
        self.draining = False
        self._drained: Deferred[None] | None = None
        self._drain_until = 0.0
        self._drain_calls: list[IDelayedCall] = []
        self._shuffle = shuffle
        self.stats = Stats(clock.seconds(), self.dialects.kinds)
        self.turn: Turn | None = None
        self.usual_turn = Turn()
        self.auth_deadlines = Deadlines[Connection](clock, Connection.auth_expired)
        self.frame_deadlines = Deadlines[Exchange](clock, Exchange.frame_expired)
        self.write_deadlines = Deadlines[Exchange](clock, Exchange.look_at_progress)
        self.silence_deadlines = Deadlines[Connection](clock, Connection.look_for_life)
        self.connection_deadlines: tuple[Deadlines[Any], ...] = (
            self.auth_deadlines,
            self.frame_deadlines,
            self.write_deadlines,
            self.silence_deadlines,
        )
        self.handler_deadlines = Deadlines[tuple[Exchange, Slot]](
            clock, lambda key: key[0].handler_expired(key[1])
        )
        self.turns = Turns(clock)
        self._start_time = self.timestamps.now()
        self._buffers = ((socket.SO_SNDBUF, send_buffer), (socket.SO_RCVBUF, receive_buffer))
        self._user_timeout = int(1000 * (self.limits.write_timeout + _USER_TIMEOUT_MARGIN))
        self._sampler = LoopingCall(self._sample)
        self._sampler.clock = clock

    def _sample(self) -> None:
        self.stats.sample(self.clock.seconds())

    def startFactory(self) -> None:
        self.lifecycle.start(self)
        self._stopped = False
        self._sampler.start(SAMPLE_INTERVAL, now=False)

    def stopFactory(self) -> None:
        self._stopped = True
        self._sampler.stop()
        self._stop_timers()

    def _stop_timers(self) -> None:
        """Leave no delayed call behind when there is nobody left to serve, or to come."""
        if self._stopped and not self.connections:
            for deadlines in (*self.connection_deadlines, self.handler_deadlines):
                deadlines.stop()
            self.turns.stop()
            self.lifecycle.stop(self)
            self.notices.stop()

    def buildProtocol(self, addr: IAddress | None) -> Connection:  # type: ignore[override]  # no ProtocolFactory of Twisted's own
        connection = Connection(self.clock)
        connection.factory = self
        return connection

    def opened(self, connection: Connection) -> ProtocolError | None:
        """A connection is there: set up its socket, or say why it cannot be taken."""
        self.connections.add(connection)
        self.stats.connections += 1
        refusal = GoingAway(retry_after=1) if self.draining else self.admission.enter()
        descriptor = descriptor_of(connection.transport)
        if refusal is not None or not isinstance(descriptor, TCPConnection):
            return refusal
        handle = descriptor.getHandle()
        if tune(descriptor):
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._user_timeout)
        for option, size in self._buffers:
            if size is not None:
                handle.setsockopt(socket.SOL_SOCKET, option, size)
        return None

    def refused(self, connection: Connection, code: str) -> None:
        """There is no room for a connection; `code` is one of section 9."""
        self.stats.refused[code] += 1
        self.notices.warn(
            "refused", "refused {client}: {code}", item=code, client=connection.client_id, code=code
        )

    def may_linger(self) -> bool:
        """Whether a connection that was refused may wait for the peer to close it."""
        return len(self.connections) - self.admission.admitted <= _LINGERING

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if self.turn is None:
            # It may be the last who had it.
            self.usual_turn = Turn()
        if not connection.turned_away:
            self._remember(connection)
        if connection.reason == SlowConsumer.code:
            self.notices.warn(
                "slow_consumer",
                "{client}{_user} was closed: it did not read what was sent to it",
                client=connection.client_id,
                user=connection.user,
                _user=_user(connection),
                code=connection.reason,
            )
        self.stats.disconnects[connection.reason] += 1
        self._stop_timers()
        if not self.connections:
            self._end_drain()

    def _remember(self, connection: Connection) -> None:
        """Keep, and log, what there is to say of a connection that was."""
        age = self.clock.seconds() - connection.opened
        self.stats.durations.observe(age)
        self.stats.closed.append(
            ClosedConnection(
                connection.client_id,
                connection.user,
                connection.reason,
                age,
                connection.bytes_in,
                connection.bytes_out,
                connection.messages_in,
                connection.messages_out,
                connection.detail,
                self.timestamps.now(),
            )
        )
        log.info(
            "disconnected {client}{_user} reason={code}{_detail} seconds={seconds:.3f}"
            " messages_in={messages_in} messages_out={messages_out}"
            " bytes_in={bytes_in} bytes_out={bytes_out}",
            event="disconnected",
            client=connection.client_id,
            user=connection.user,
            _user=_user(connection),
            code=connection.reason,
            detail=connection.detail,
            _detail=f" why={connection.detail}" if connection.detail else "",
            seconds=round(age, 6),
            messages_in=connection.messages_in,
            messages_out=connection.messages_out,
            bytes_in=connection.bytes_in,
            bytes_out=connection.bytes_out,
        )

    def welcome(self, client_id: str, mechanisms: tuple[str, ...]) -> bytes:
        """The payload of `welcome` (section 4); `mechanisms`: of section 6, empty when none is asked for."""
        welcome = Welcome(
            client_id=client_id,
            message="Welcome to the tcpjson server",
            server=f"tcpjson/{__version__}",
            max_length=self.limits.max_length,
            limits=self.limits.announced(auth=bool(mechanisms)),
            heartbeat=self.limits.heartbeat,
            compression=self.compression,
            auth=mechanisms,
        )
        payload = encode_message(welcome, self.timestamps.now())
        self.stats.count_sent(Welcome, 1, len(payload))
        return payload

    def join(self, connection: Connection) -> None:
        """A client is there."""
        self.clients.add(connection)
        self.stats.peak_clients = max(self.stats.peak_clients, len(self.clients))
        log.info(
            "connected {client}{_user} clients={clients}",
            event="connected",
            client=connection.client_id,
            user=connection.user,
            _user=_user(connection),
            clients=len(self.clients),
        )

    def login_failed(self, connection: Connection, mechanism: str) -> None:
        """Somebody did not prove who it is; `mechanism` is one of section 6."""
        self.stats.failed_logins += 1
        self.notices.warn(
            "login_failed",
            "login failed {client} mechanism={mechanism}",
            item=connection.client_id.rpartition(":")[0],
            client=connection.client_id,
            mechanism=mechanism,
        )

    def held_up(self, connection: Exchange, kind: type[Message] | None, handled: int, seconds: float) -> None:
        """Handling messages of one client, the last of a kind, took so long that all others waited."""
        self.notices.warn(
            "held_up",
            "nobody else was served for {seconds:.1f} seconds: {count} messages of {client} were handled,"
            " the last a {kind}",
            seconds=seconds,
            count=handled,
            client=connection.client_id,
            kind=getattr(kind, "__name__", None),
        )

    def leave(self, connection: Exchange) -> None:
        """A client is served no more."""
        self.clients.discard(connection)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those that are served now."""
        return tuple(self.clients)

    def broadcast(self, message: Message | dict[str, Any], to: Iterable[Session] | None = None) -> Recipients:
        """
        Send a message to all clients, or to those of `to` that are still there; returns to how many. Raises
        as `Session.send`.
        """
        timestamp = self.timestamps.now() if self.turn is None else self.turn.timestamp
        return self.relay(encode_message(message, timestamp), None, to)

    def relay(
        self, payload: bytes, sender: Exchange | None, to: Iterable[Session] | None = None
    ) -> Recipients:
        """Hand a payload to all clients, or those of `to`, but its sender; returns to how many."""
        self.stats.broadcasts += 1
        turn = self.turn
        if to is not None:
            if isinstance(to, (Exchange, str)):
                raise TypeError(f"to= takes sessions, as a set or a list of them, not a {type(to).__name__}")
            chosen = self.clients.intersection(to)
            chosen.discard(sender)
            if turn is not None:
                self.deliver_burst(turn)
            self._deliver(chosen, [payload], turn)
            return Recipients(len(chosen))
        recipients = len(self.clients) - (sender in self.clients)
        if turn is not None and turn.connection is sender:
            # A quarter of a queue: a burst alone fills no queue whose socket takes something.
            if turn.burst_size + len(payload) > self.limits.max_queue // 4:
                self.deliver_burst(turn)
            turn.burst.append(payload)
            turn.burst_size += len(payload)
        else:
            if turn is not None:
                self.deliver_burst(turn)
            self._deliver(self._others(sender), [payload], turn)
        return Recipients(recipients)

    def commit(self, turn: Turn) -> None:
        """Send what a turn has for others."""
        self.deliver_burst(turn)
        if turn.dirty:
            for connection in turn.dirty:
                connection._outbox.flush()
            turn.dirty.clear()

    def deliver_burst(self, turn: Turn) -> None:
        """Send the broadcasts of a turn's own client."""
        if turn.burst:
            burst, turn.burst = turn.burst, []
            turn.burst_size = 0
            self._deliver(self._others(turn.connection), burst)

    def _others(self, sender: Exchange | None) -> set[Exchange]:
        """All clients but one."""
        others = set(self.clients)
        others.discard(sender)
        return others

    def _deliver(self, clients: set[Exchange], payloads: list[bytes], turn: Turn | None = None) -> None:
        """Send payloads to clients; in the midst of a turn they are flushed at its end."""
        data = join_frames(payloads)
        size = len(data)
        packed: bytes | None = None
        saved = 0
        count = len(payloads)
        length = sum(map(len, payloads))
        deliveries = 0
        for client in clients:
            if turn is not None and client is turn.connection:
                # It must not overtake the answers of the turn.
                client._gather(turn, payloads)
                self.stats.count_delivered(count, length)
                continue
            outbox = client._outbox
            chunk = data
            if client.compresses:
                if packed is None:
                    packed = self.pack(payloads)
                chunk = packed
            if outbox.waiting and not client.has_room(len(chunk)):
                continue
            if turn is None:
                outbox.write(chunk)
            else:
                outbox.push(chunk)
                turn.dirty[client] = None
            if chunk is packed:
                saved += size - len(chunk)
            if self.message_log is not None:
                self.message_log.sent(client, payloads)
            client.messages_out += count
            deliveries += count
        stats = self.stats
        stats.count_delivered(deliveries, deliveries // count * length)
        stats.messages_out += deliveries
        stats.bytes_out += deliveries // count * size - saved

    def pack(self, payloads: list[bytes]) -> bytes:
        """The frames of payloads for clients that take compressed ones."""
        assert self._compress_over is not None
        return compression.pack(payloads, self._compress_over)

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

    # The shutdown.

    def drain(self) -> Deferred[None]:
        """
        End all connections in order (section 11), once nothing listens any more. After the grace period
        what is left is aborted. Fires when no connection is left.
        """
        drained = self._drained = Deferred[None]()
        self.draining = True
        self._drain_until = self.clock.seconds() + self.limits.grace
        connections = list(self.connections)
        # They are told to come back one after the other, and not in the order in which they came.
        self._shuffle(connections)
        least, most = _SPREAD
        spread = min(most, max(least, len(connections) / _RETURNS))
        for index, connection in enumerate(connections):
            connection.go_away(round(1 + spread * index / len(connections), 1))
        self._drain_calls = [
            self.clock.callLater(min(_FAREWELL, self.limits.grace / 2), self._finish_leaving),
            self.clock.callLater(self.limits.grace, self.abort),
        ]
        if not self.connections:
            self._end_drain()
        return drained

    def _finish_leaving(self) -> None:
        for connection in tuple(self.connections):
            connection.finish_leaving()

    def abort(self) -> None:
        """Abort all connections: they had their time to end."""
        for connection in tuple(self.connections):
            connection.abort(GoingAway.code)

    def grace_left(self) -> float:
        """Seconds that a shutdown may still take."""
        return self._drain_until - self.clock.seconds()

    def _end_drain(self) -> None:
        for call in self._drain_calls:
            if call.active():
                call.cancel()
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.callback(None)


def _user(connection: Connection) -> str:
    """Who a connection has authenticated as, for a line of the log, which it stays whatever a name holds."""
    return "" if connection.user is None else f" user={ascii(connection.user)[:_NAME_LENGTH]}"
