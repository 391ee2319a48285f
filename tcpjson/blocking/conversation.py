"""The client's side of one connection: bytes in, messages out, and what is to be said to the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tcpjson.core import compression
from tcpjson.core.errors import (
    ClientError,
    Disconnected,
    GoingAway,
    ProtocolError,
    ProtocolMismatch,
    error_of,
)
from tcpjson.core.framing import FrameReader, FrameTooLong, join_frames, length_hint
from tcpjson.core.handshake import FIRST_MAX_LENGTH, HELLO_ID, MAX_LENGTH, Handshake, Json
from tcpjson.core.requests import encode_message
from tcpjson.core.session import State

#: Is told "sent" or "received", and the payloads.
Trace = Callable[[str, Sequence[bytes]], None]

#: Bytes over which a message is compressed where that was agreed on.
COMPRESS_OVER = 1024

# Messages that are taken at once.
_BATCH = 128
# Messages that may be due: a server that sends pings and takes no answer gets no more of them.
_MAX_DUE = 16

_decode = msgspec.json.Decoder(dict[str, Any]).decode
# What it raises for what is no JSON object, beside its own.
_NO_OBJECT = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Conversation:
    """
    One connection, from its first byte on. No socket, no clock, no thread.

    Args:
        handshake: what is said before the client is served.
        trace: is told all that comes and goes.
        max_length: bytes of the longest message that is taken.
    """

    def __init__(
        self, handshake: Handshake, trace: Trace | None = None, max_length: int = MAX_LENGTH
    ) -> None:
        #: What the server said of itself, and of the client.
        self.handshake = handshake
        self._trace = trace
        self._reader = FrameReader()
        self._longest = max_length
        self._max_length = FIRST_MAX_LENGTH
        # Whether all of the handshake is behind us, the answer to `hello` too.
        self._settled = False
        self._greeted = False
        self._answers_pings = False
        self._compresses = False
        self._failure: Exception | None = None
        #: Bytes that came; and messages that were none, which a server relays that looks at less than we do.
        self.received = 0
        self.passed_over = 0
        #: Messages that are to be sent without anybody having asked for it.
        self.due: list[Json] = []
        #: The error that announced the end of the connection, or of the server.
        self.farewell: ProtocolError | None = None

    @property
    def ready(self) -> bool:
        """Whether the server serves the client."""
        return self.handshake.state is State.READY

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        self.received += len(data)
        self._reader.feed(data)

    def take(self) -> list[Json]:
        """
        The next messages, in order; none when none is complete. Send what is `due` then.

        Raises:
            ProtocolMismatch, AuthenticationFailed: no retry will heal it.
            Disconnected: what the server sends cannot be understood.
            ProtocolError: the server does not serve the client.
        """
        if self._failure is not None:
            raise self._failure
        messages: list[Json] = []
        while not messages and (payloads := self._payloads()):
            messages = self._decoded(payloads)
        try:
            for message in messages:
                self._look_at(message)
        except (ClientError, ProtocolError) as error:
            # The message itself is still to be seen.
            self._failure = error
        if self._failure is not None and not messages:
            raise self._failure
        return messages

    def _payloads(self) -> list[bytes]:
        if self._failure is not None or not self._reader.ready:
            return []
        try:
            # How to read what follows an answer of the handshake is known when that was read.
            payloads = self._reader.take(_BATCH if self._settled else 1, self._max_length)
        except FrameTooLong as error:
            hint = length_hint(error.length) or f"at most {self._max_length} are taken"
            raise self._nonsense(f"a frame of {error.length} bytes", hint) from None
        except ProtocolError as error:
            raise self._nonsense("what cannot be read", str(error)) from None
        if payloads and self._trace is not None:
            self._trace("received", payloads)
        return payloads

    def _decoded(self, payloads: list[bytes]) -> list[Json]:
        messages: list[Json] = []
        for payload in payloads:
            try:
                messages.append(_decode(payload))
            except _NO_OBJECT:
                if self.handshake.state is State.OPEN:
                    self._failure = self._nonsense("what is no message", "")
                    break
                self.passed_over += 1
        return messages

    def _nonsense(self, what: str, why: str) -> ClientError:
        """The error for what no server would send."""
        text = f"the server sent {what}" + (f": {why}" if why else "")
        return ProtocolMismatch(text) if self.handshake.state is State.OPEN else Disconnected(text)

    def _look_at(self, message: Json) -> None:
        if not self._settled:
            self._shake(message)
        kind = message.get("type")
        if kind == "ping" and self._answers_pings and len(self.due) < _MAX_DUE:
            self.due.append({"type": "pong", "ping_timestamp": message.get("timestamp")})
        elif kind == "error":
            error = error_of(message)
            if message.get("fatal") or isinstance(error, GoingAway):
                self.farewell = error

    def _shake(self, message: Json) -> None:
        """Go on with the handshake."""
        handshake = self.handshake
        if not self.ready or message.get("id") == HELLO_ID:
            for step in handshake.receive(message):
                self.due.append(step() if callable(step) else step)
        server = handshake.server
        if server is None:
            return
        self._max_length = server.longest_answer(self._longest)
        if message.get("id") == HELLO_ID:
            self._greeted = True
            self._answers_pings = message.get("heartbeat") is True
            if handshake.compression is not None:
                self._reader.inflate = compression.inflate
                self._compresses = True
        self._settled = self.ready and (self._greeted or server.classic)

    def frames(self, payloads: Sequence[bytes]) -> bytes:
        """The bytes to send for payloads, at least one."""
        if self._trace is not None:
            self._trace("sent", payloads)
        if self._compresses:
            return compression.pack(payloads, COMPRESS_OVER)
        return join_frames(payloads)

    def due_payloads(self) -> list[bytes]:
        """What is `due`, which it is then no more."""
        due, self.due = self.due, []
        return [encode_message(message)[1] for message in due]
