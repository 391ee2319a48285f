"""The client's side of one connection: the handshake, requests and their replies, signs of life."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from tcpjson._version import __version__
from tcpjson.core import compression
from tcpjson.core.errors import (
    AuthenticationFailed,
    ClientError,
    Disconnected,
    GoingAway,
    ProtocolError,
    ProtocolMismatch,
    QueueFull,
    TooLarge,
    error_of,
)
from tcpjson.core.framing import join_frames, length_hint
from tcpjson.core.handshake import (
    FIRST_MAX_LENGTH,
    HELLO_ID,
    Credentials,
    Handshake,
    Json,
    ServerInfo,
    Step,
)
from tcpjson.core.heartbeat import Heartbeat, Verdict
from tcpjson.core.limits import HIGH_WATER, LARGEST_FRAME
from tcpjson.core.replies import LATE, Replies
from tcpjson.core.requests import encode_message, with_id, with_timestamp
from tcpjson.core.session import State
from tcpjson.protocol import Hold, TCPJSONProtocol
from tcpjson.tls import handshake_error
from tcpjson.transports import descriptor_of, is_encrypted, tune

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

log = Logger()

#: How the client names itself in `hello`.
NAME = f"tcpjson/{__version__}"
# Seconds from the connection to the end of the handshake, the login included.
_HANDSHAKE_TIMEOUT = 10.0

# What OpenSSL says, or the class of an error, in words for people.
_PLAIN_WORDS = {
    "wrong version number": "what answers does not speak TLS",
    "certificate verify failed": "the server's certificate is expired, or from nobody who is trusted",
    "ConnectionLost": "the connection was lost",
    "VerificationError": "the server's certificate is for another name",
}
_CLOSED = "the server closed the connection"

_decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode

#: Called with "sent" or "received", and the payloads.
Trace = Callable[[str, Sequence[bytes]], object]


def reason_of(failure: Failure) -> str:
    """Why there is no connection, in one line for people."""
    error: Any = failure.value
    text = handshake_error(error).replace("_", " ")
    text = _PLAIN_WORDS.get(text or type(error).__name__, text)
    if not text:
        # Of Twisted's own errors, what the system said.
        text = error.args[0] if isinstance(error, ConnectError) and error.args[0] else str(error)
    return " ".join(text.split()) or type(error).__name__


def _pong(timestamp: object) -> bytes:
    """The answer to a ping of the server's."""
    try:
        return encode_message({"type": "pong", "ping_timestamp": timestamp})[1]
    except ValueError:
        # It can nest deeper than is written.
        return encode_message({"type": "pong", "ping_timestamp": None})[1]


class Reply(Deferred[Any]):
    """A request that waits for its reply, wherever that is: for a connection, or at one."""

    #: The type of the reply; None for any.
    expects: str | None = None
    #: What of the reply is the result.
    extract: Callable[[Reply, Json], Any]
    #: The connection it was sent on, and its key there.
    connection: ClientProtocol | None = None
    key = 0
    #: The time it was sent.
    sent = 0.0


@dataclass(frozen=True)
class Options:
    """
    What is the same for all connections of a client.

    `timestamp` tells the time as section 2 writes it; the others are as `tcpjson.client.Client` takes them.
    """

    credentials: Credentials | None
    compress: bool
    silence: float | None
    max_queue: int
    max_length: int
    trace: Trace | None
    timestamp: Callable[[], str]
    run: Callable[[Callable[[], Json]], Deferred[Json]]


class Owner(Protocol):
    """Whose connection it is."""

    def ready(self, connection: ClientProtocol) -> None:
        """It is served now."""

    def replied(self, reply: Reply, message: Json) -> None:
        """The reply to a request has come."""

    def refused(self, reply: Reply, error: ProtocolError) -> None:
        """The reply to a request has come, and is an error."""

    def leaving(self, connection: ClientProtocol) -> None:
        """It is about to end: the server answers what it was asked (section 11), if that."""

    def heard(self, message: Json) -> None:
        """A message that is no reply has come."""

    def gone(self, connection: ClientProtocol, error: Exception, waiting: list[Reply]) -> None:
        """The connection is no more; these still waited for their replies."""


class ClientProtocol(TCPJSONProtocol):
    """
    One connection to a server, made by `tcpjson.client.TCPJSONClientFactory`.

    Args:
        clock: the reactor.
        owner: is told what happens.
        options: what is the same for all connections of a client.
    """

    #: Why it ends, where that is known before it did.
    error: Exception | None = None
    #: Called with the reason when it is gone, where the transport's connector does not see it.
    lost: Callable[[Failure], object] | None = None
    #: Whether it was ever ready.
    served = False

    _complained = False
    # Whether this turn sends a ping to see which replies never came.
    _probed = False
    _batch_open = False
    _flush_call: IDelayedCall | None = None
    _handshake_call: IDelayedCall | None = None
    _look_call: IDelayedCall | None = None
    _step: Deferred[None] | None = None
    _heartbeat: Heartbeat | None = None

    def __init__(self, clock: IReactorTime, owner: Owner, options: Options) -> None:
        super().__init__(clock)
        self.MAX_LENGTH = FIRST_MAX_LENGTH
        self._owner = owner
        self._options = options
        self._trace = options.trace
        self._replies = Replies[Reply]()
        # What the server takes.
        self._longest = FIRST_MAX_LENGTH
        self._bytes_in = 0
        # What this turn of the reactor sends.
        self._unsent: list[bytes] = []
        self._unsent_size = 0

    def connectionMade(self) -> None:
        super().connectionMade()
        transport = self.transport
        tune(descriptor_of(transport))
        secure = is_encrypted(transport) or isinstance(transport.getPeer(), UNIXAddress)
        self._handshake = Handshake(NAME, self._options.credentials, secure, self._options.compress)
        self._handshake_call = self._clock.callLater(_HANDSHAKE_TIMEOUT, self._too_late)

    @property
    def server(self) -> ServerInfo | None:
        """What the welcome said."""
        return self._handshake.server

    @property
    def welcome(self) -> Json:
        """The welcome."""
        return self._handshake.welcome

    @property
    def user(self) -> str | None:
        """Who the client is for the server."""
        return self._handshake.user

    @property
    def compression(self) -> str | None:
        """The compression that was agreed on."""
        return self._handshake.compression

    # Receiving.

    def dataReceived(self, data: bytes) -> None:
        self._bytes_in += len(data)
        super().dataReceived(data)

    def framesReceived(self, payloads: list[bytes]) -> int:
        if self._trace is not None:
            self._show("received", payloads)
        messages: list[Any] = []
        decoding = map(_decode, payloads)
        while True:
            try:
                messages += decoding
                break
            except (ValueError, RecursionError):
                # The map goes on behind what failed.
                messages.append(None)
        take = self._replies.take
        owner = self._owner
        served = self._handshake.state is State.READY
        self._batch_open = True
        try:
            for handled, message in enumerate(messages, 1):
                if type(message) is not dict:
                    self._take_no_message()
                elif not served:
                    self._shake_hands(message)
                    served = self._handshake.state is State.READY
                    take = self._replies.take
                elif (waiting := take(message)) is None:
                    self._hear(message)
                elif waiting is LATE:
                    self._take_late(message)
                elif message.get("type") == "error":
                    owner.refused(waiting, self._take_error(message))
                else:
                    owner.replied(waiting, message)
                if self._holds:
                    return handled
        finally:
            self._batch_open = False
            if self._unsent:
                self._flush()
        return len(messages)

    def _show(self, direction: str, payloads: Sequence[bytes]) -> None:
        assert self._trace is not None
        try:
            self._trace(direction, payloads)
        except Exception:
            self._trace = None
            log.failure("nothing more of this connection is traced")

    def _take_no_message(self) -> None:
        """The server sent what is no JSON object: it is none of ours, or that is passed over."""
        if self._handshake.state is State.OPEN:
            self.fail(ProtocolMismatch("what answers is no tcpjson server: it sent what is no message"))
        elif not self._complained:
            self._complained = True
            log.warn("the server sent what is no message, which is passed over, and so is more of it")

    def _hear(self, message: Json) -> None:
        kind = message.get("type")
        if kind == "ping" and not self._replies.classic:
            # As we asked for in `hello`. One that does not read needs no further sign of life.
            if self._outbox.waiting + self._unsent_size <= HIGH_WATER:
                self._put(_pong(message.get("timestamp")))
            return
        if kind == "error" and isinstance(self._take_error(message), GoingAway):
            self._owner.leaving(self)
        self._owner.heard(message)

    def _take_late(self, message: Json) -> None:
        """A reply to who waits no more, or to `hello`, for which nobody ever did."""
        if message.get("id") == HELLO_ID:
            self._shake_hands(message)
        elif message.get("type") == "error":
            self._take_error(message)

    def _take_error(self, message: Json) -> ProtocolError:
        """What the server says is wrong, which may be why the connection is about to end."""
        error = error_of(message)
        if message.get("fatal") or (isinstance(error, GoingAway) and message.get("id") is None):
            self.error = error
        return error

    def lengthLimitExceeded(self, length: int) -> None:
        if self._handshake.state is State.OPEN:
            hint = length_hint(length)
            self.fail(ProtocolMismatch("what answers is no tcpjson server" + (f": {hint}" if hint else "")))
        else:
            longest = self.MAX_LENGTH
            self.fail(Disconnected(f"the server sent a frame of {length} bytes; at most {longest} are taken"))

    def frameRefused(self, error: ProtocolError) -> None:
        self.fail(Disconnected(f"the server sent a bad frame: {error}"))

    # The handshake.

    def _shake_hands(self, message: Json) -> None:
        handshake = self._handshake
        before = handshake.state
        try:
            steps = handshake.receive(message)
        except (ClientError, ProtocolError) as error:
            # It is kept; what it was raised from holds messages.
            self.fail(error.with_traceback(None))
            return
        server = handshake.server
        if server is not None:
            self.MAX_LENGTH = server.longest_answer(self._options.max_length)
            self._longest = server.max_length or LARGEST_FRAME
        if handshake.compression is not None:
            self._reader.inflate = compression.inflate
        for step in steps:
            self._take_step(step)
        if before is not State.READY and handshake.state is State.READY:
            self._served()

    def _take_step(self, step: Step) -> None:
        if isinstance(step, dict):
            self._put(encode_message(step)[1])
            return
        self._step = self._options.run(step).addCallbacks(self._stepped, self._step_failed)

    def _stepped(self, message: Json) -> None:
        self._step = None
        self._put(encode_message(message)[1])

    def _step_failed(self, failure: Failure) -> None:
        self._step = None
        if isinstance(failure.value, ClientError):
            self.fail(failure.value)
        elif not failure.check(CancelledError):
            log.failure("the login failed", failure)
            self.fail(AuthenticationFailed(f"the login failed: {failure.value!r}"))

    def _served(self) -> None:
        server = self.server
        assert server is not None
        self._cancel_handshake_timeout()
        self._replies = Replies[Reply](server.classic)
        now = self._clock.seconds()
        self._heartbeat = Heartbeat(self._options.silence or server.silence, now, self._bytes_in)
        self._look_call = self._clock.callLater(self._heartbeat.next_look(now) - now, self._look)
        self.served = True
        self._owner.ready(self)

    def _too_late(self) -> None:
        self._handshake_call = None
        said = "no end of the login" if self._handshake.server is not None else "no welcome"
        self.fail(Disconnected(f"{said} within {_HANDSHAKE_TIMEOUT:g} seconds{self._guess()}"))

    def _guess(self) -> str:
        """What may be wrong with a server that never said a word, behind the reason."""
        silent = self._bytes_in == 0 and not is_encrypted(self.transport)
        return " (does the server want TLS?)" if silent else ""

    def _cancel_handshake_timeout(self) -> None:
        if self._handshake_call is not None:
            self._handshake_call.cancel()
            self._handshake_call = None

    # Requests.

    def ask(self, reply: Reply, kind: str, payload: bytes) -> None:
        """
        Send a request, whose payload has no `id`; the reply goes to the owner.

        Raises:
            TooLarge: the server would not take it.
            QueueFull: too much waits to be sent.
        """
        replies = self._replies
        key = replies.next_key
        payload = self._stamped(payload) if replies.classic else with_id(payload, key)
        self._check_room(len(payload))
        reply.connection = self
        reply.key = key
        replies.add(reply, kind)
        self._put(payload)

    def tell(self, kind: str | None, payload: bytes) -> None:
        """Send a message to which no reply is awaited; `kind` is None for a text. Raises as `ask`."""
        if kind is not None and self._replies.classic:
            payload = self._stamped(payload)
        self._check_room(len(payload))
        if kind is not None:
            self._replies.note(kind)
        self._put(payload)

    def forget(self, reply: Reply) -> None:
        """It waits no more."""
        self._replies.forget(reply.key)
        if self._replies.classic and not (self._probed or self._holds & Hold.ENDING):
            # If the reply never comes, the one to this says so.
            self._probed = True
            self._ping()

    def _ping(self) -> None:
        """Ask for any reply, for which nobody waits."""
        replies = self._replies
        key = replies.next_key
        replies.add(Reply(), "ping")
        replies.forget(key)
        _, ping = encode_message({"type": "ping"})
        self._put(self._stamped(ping) if replies.classic else with_id(ping, key))

    @property
    def waiting(self) -> int:
        """How many requests wait for their replies."""
        return len(self._replies)

    def _stamped(self, payload: bytes) -> bytes:
        """What a classic server is sent: it may look for a `timestamp`."""
        try:
            if "timestamp" in _decode(payload):
                return payload
        except (ValueError, RecursionError):
            # It holds a Raw that is no JSON, or too deep. The server will say so.
            return payload
        return with_timestamp(payload, self._options.timestamp())

    def _check_room(self, size: int) -> None:
        if size > self._longest:
            raise TooLarge(f"{size} bytes are more than the server takes: max_length is {self._longest}")
        waiting = self._outbox.waiting + self._unsent_size
        if waiting and waiting + size > self._options.max_queue:
            raise QueueFull(f"{waiting} bytes wait to be sent already")

    def _put(self, payload: bytes) -> None:
        """Have it sent at the end of this turn of the reactor."""
        self._unsent.append(payload)
        self._unsent_size += len(payload)
        if not self._batch_open and self._flush_call is None:
            self._flush_call = self._clock.callLater(0, self._flush_later)

    def _flush_later(self) -> None:
        self._flush_call = None
        self._flush()

    def _flush(self) -> None:
        payloads, self._unsent = self._unsent, []
        self._unsent_size = 0
        self._probed = False
        if not payloads:
            return
        if self._trace is not None:
            self._show("sent", payloads)
        if self.compression is None:
            data = join_frames(payloads)
        else:
            data = compression.pack(payloads, compression.COMPRESS_OVER)
        self._outbox.write(data)

    # Signs of life.

    def _look(self) -> None:
        """See whether the server is still there (section 8)."""
        self._look_call = None
        heartbeat = self._heartbeat
        assert heartbeat is not None
        now = self._clock.seconds()
        outbox = self._outbox
        held = bool(self._holds)
        verdict = heartbeat.look(now, self._bytes_in, outbox.sent, outbox.acknowledged, held)
        if verdict is Verdict.DEAD:
            self.fail(Disconnected("the server went silent: it did not answer a ping"))
            return
        if verdict is Verdict.PING:
            self._ping()
        self._look_call = self._clock.callLater(heartbeat.next_look(now) - now, self._look)

    # The end.

    def close(self, error: Exception) -> list[Reply]:
        """Send what is to be sent, and close the connection, for this reason; returns who waits in vain."""
        self.error = error
        self._flush()
        self.end()
        return self._replies.clear()

    def inputEnded(self) -> None:
        if self.error is None:
            self.error = Disconnected(_CLOSED)
        self._leave()
        super().inputEnded()

    def _leave(self) -> None:
        if self.served:
            self._owner.leaving(self)

    def fail(self, error: Exception) -> None:
        """End the connection at once, for this reason."""
        self.error = error
        self._leave()
        self.end()
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._cancel_handshake_timeout()
        for call in (self._flush_call, self._look_call):
            if call is not None:
                call.cancel()
        self._flush_call = self._look_call = None
        if self._step is not None:
            self._step.cancel()
        error = self.error
        if error is None:
            how = _CLOSED if reason.check(ConnectionDone) else reason_of(reason)
            error = Disconnected(how + self._guess())
        self._owner.gone(self, error, self._replies.clear())
        if self.lost is not None:
            self.lost(reason)
