"""A client of raw frames, over a socket; it waits for nothing, and keeps nothing, without a bound."""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from tcpjson.blocking.stream import Stream
from tcpjson.conform.pace import Counter, Pace, Patience
from tcpjson.conform.verdicts import Ended, Failed, Skip, Transcript
from tcpjson.core.compression import inflate
from tcpjson.core.errors import ProtocolError
from tcpjson.core.framing import COMPRESSED, frame
from tcpjson.core.text import printable
from tcpjson.vectors import Matcher, strict_json

Message = dict[str, Any]

#: Bytes of the longest payload that a server takes which does not say it.
MAX_LENGTH = 1024 * 1024
# Bytes that a server may send and nobody has looked at.
_UNREAD = 64 * 1024 * 1024
# How much a payload can grow when it is sent back: each byte to an escape.
_GROWTH = 6
_MORE = 4096


def encode(message: object) -> bytes:
    """The frame of a JSON value."""
    return frame(json.dumps(message, ensure_ascii=False).encode())


def shown(message: object, longest: int = 200) -> str:
    """A value as JSON, in one line, cut."""
    text = json.dumps(message, ensure_ascii=False)
    return printable(text, longest) + ("…" if len(text) > longest else "")


class Peer:
    """
    One connection to a server, and the client's side of it.

    Args:
        stream: connected; with TLS the hands are shaken.
        name: how a report calls it.
        transcript: is told what goes over the wire.
        patience: how long it waits.
        foreign: whether a message is none of the check's business, and is left out.
    """

    def __init__(
        self,
        stream: Stream,
        name: str,
        transcript: Transcript,
        patience: Patience,
        foreign: Callable[[Message], bool] | None = None,
    ) -> None:
        self._stream = stream
        self._selector = selectors.DefaultSelector()
        self._selector.register(stream, selectors.EVENT_READ)
        self._transcript = transcript
        self._patience = patience
        self._foreign = foreign
        self._buffer = bytearray()
        self._ended: str | None = None
        self._reset = False
        self._counter = Counter()
        self._open = True
        self.name = name
        #: What it may send; set when `welcome` has said it.
        self.pace: Pace | None = None
        self.max_length = MAX_LENGTH
        self.welcome: Message = {}
        #: Whether compression was agreed on.
        self.compresses = False

    @property
    def client_id(self) -> str:
        """What `welcome` called it; empty where it did not."""
        name = self.welcome.get("client_id")
        return name if isinstance(name, str) else ""

    # Sending.

    def write(self, data: bytes, reading: bool = True) -> None:
        """
        Send bytes, all of them, and read meanwhile, so that a server which waits for that goes on.

        Raises:
            Failed: the server does not take them.
            Skip: the server's rate lets nobody send so many at once.
        """
        self._keep_pace(data)
        self._transcript.add(self.name, "sent", data)
        rest = memoryview(data)
        end = self._patience.until()
        while rest:
            sent = self._send(rest)
            rest = rest[sent:]
            if sent:
                end = self._patience.until()
            elif not self._wait(end, reading, True):
                raise Failed(f"the server took nothing more: {len(rest)} bytes are left", hung=True)
            elif reading:
                self._fill()

    def push(self, data: bytes) -> int:
        """Send what there is room for; returns how many bytes. Raises `Ended`."""
        sent = self._send(memoryview(data))
        if sent:
            self._transcript.add(self.name, "sent", data[:sent])
        return sent

    def send(self, *messages: object) -> None:
        """Send JSON values, a frame each. Raises as `send_payload`."""
        self.send_payload(*(json.dumps(message, ensure_ascii=False).encode() for message in messages))

    def send_payload(self, *payloads: bytes) -> None:
        """Send payloads, a frame each, in one write. Raises as `write`, and `Skip` where one is too long."""
        longest = max(map(len, payloads), default=0)
        if longest > self.max_length:
            raise Skip(f"it sends a payload of {longest} bytes, and max_length is {self.max_length}")
        self.write(b"".join(map(frame, payloads)))

    def _keep_pace(self, data: bytes) -> None:
        if self.pace is not None:
            delay = self.pace.wait_for(self._counter.feed(data), len(data))
            if delay > 0:
                self._patience.extend(delay)
                time.sleep(delay)

    def _send(self, data: memoryview) -> int:
        try:
            return self._stream.send(data)
        except OSError as error:
            self._transcript.note(self.name, f"sending fails: {error}")
            raise Ended("the server closed the connection, and takes nothing more", True) from None

    # Receiving.

    def _wait(self, end: float, reading: bool = True, writing: bool = False) -> bool:
        """Wait until something can be read, or written; False when it is too late."""
        if reading and self._stream.pending:
            return True
        mask = selectors.EVENT_READ * reading | selectors.EVENT_WRITE * (writing or self._stream.blocked)
        self._selector.modify(self._stream, mask)
        left = end - self._patience.now()
        return bool(left > 0 and self._selector.select(left))

    def _fill(self) -> None:
        """Read what is there."""
        if self._ended is not None:
            return
        try:
            data = self._stream.receive()
        except OSError as error:
            self._end(f"the connection was reset ({error})", True)
            return
        if data == b"":
            self._end("the server closed the connection", False)
        self._buffer += data or b""
        if len(self._buffer) > max(_UNREAD, self._longest):
            raise Failed(f"the server sends without end: {len(self._buffer)} bytes that nobody asked for")

    def _end(self, text: str, reset: bool) -> None:
        self._ended, self._reset = text, reset
        if self._buffer:
            self._transcript.add(self.name, "came", self._buffer)
        self._transcript.note(self.name, text)

    @property
    def _longest(self) -> int:
        """Bytes of the longest payload that there is a reason for."""
        return _GROWTH * self.max_length + _MORE

    def payload(self, seconds: float | None = None) -> bytes:
        """
        The next payload, inflated.

        Args:
            seconds: how long it may take; the usual time when left out.

        Raises:
            Failed: it did not come, or what came is none.
        """
        end = self._patience.until(seconds)
        while (payload := self._take()) is None:
            if self._ended is not None:
                inside = f" within a frame, after {len(self._buffer)} bytes of it" if self._buffer else ""
                raise Ended(f"{self._ended}{inside}", self._reset)
            if not self._wait(end):
                inside = "the rest of a frame did not come" if self._buffer else "nothing came"
                if self._buffer:
                    self._transcript.add(self.name, "came", self._buffer)
                waited = self._patience.seconds if seconds is None else seconds
                raise Failed(f"{inside} in {waited:.3g} s", hung=True)
            self._fill()
        return payload

    def _take(self) -> bytes | None:
        """A payload that is there and none of others' business."""
        while (payload := self._next()) is not None:
            if self._foreign is None or b'"broadcast"' not in payload:
                return payload
            try:
                message = strict_json(payload)
            except (ValueError, RecursionError):
                return payload
            if not isinstance(message, dict) or not self._foreign(message):
                return payload
        return None

    def _next(self) -> bytes | None:
        """Cut a frame off the buffer."""
        if len(self._buffer) < 4:
            return None
        length = int.from_bytes(self._buffer[:4], "big")
        compressed = length >= COMPRESSED
        if compressed and self.compresses:
            length -= COMPRESSED
        if length > self._longest:
            self._transcript.add(self.name, "came", self._buffer)
            bit = ", or a compressed one, which nobody agreed on" if compressed else ""
            raise Failed(f"a frame of {length} bytes was announced, longer than anything asked for{bit}")
        if len(self._buffer) < 4 + length:
            return None
        whole = bytes(self._buffer[: 4 + length])
        del self._buffer[: 4 + length]
        self._transcript.add(self.name, "came", whole)
        payload = self._inflated(whole[4:]) if compressed else whole[4:]
        if b'"hello_response"' in payload and not self.compresses:
            self.compresses = agrees(payload)
        return payload

    def _inflated(self, data: bytes) -> bytes:
        try:
            return inflate(data, self._longest)
        except ProtocolError as error:
            raise Failed(f"a compressed frame is broken: {error}") from None

    def receive(self, seconds: float | None = None) -> Message:
        """
        The next message, of which a strict parser of JSON has nothing to say; arguments as of `payload`.

        Raises:
            Failed: as `payload`; it is not valid under section 1, or no object.
        """
        return message_in(self.payload(seconds))

    def ask(self, message: object) -> Message:
        """Send a message, and return the next one. Raises `Failed`."""
        self.send(message)
        return self.receive()

    def expect(self, matcher: Matcher, seconds: float | None = None) -> Message:
        """The next message, which a matcher describes; `seconds` as of `payload`. Raises `Failed`."""
        payload = self.payload(seconds)
        mismatch = matcher.mismatch(payload)
        if mismatch is not None:
            raise Failed(mismatch)
        return message_in(payload)

    def ready(self) -> bool:
        """Whether something can be read, or the end, without waiting."""
        return self._wait(self._patience.now() + 0.001)

    def quiet(self, seconds: float) -> None:
        """See that nothing comes for a time, the end included. Raises `Failed`."""
        end = self._patience.until(seconds)
        while (payload := self._take()) is None:
            if self._ended is not None:
                raise Ended(self._ended, self._reset)
            if not self._wait(end):
                return
            self._fill()
        raise Failed(f"expected nothing, got {printable(payload.decode(errors='replace'), 200)}")

    def end(self, seconds: float | None = None, reset: bool = True) -> None:
        """
        See that the connection ends now, between two frames, and nothing comes before.

        Args:
            seconds: as of `payload`.
            reset: it may end by force, too.

        Raises:
            Failed: it did not.
        """
        try:
            payload = self.payload(seconds)
        except Ended as ended:
            if self._buffer or (ended.reset and not reset):
                raise
            return
        except Failed as failed:
            if failed.hung and not self._buffer:
                raise Failed(f"expected the end of the connection, but {failed}", hung=True) from None
            raise
        came = printable(payload.decode(errors="replace"), 200)
        raise Failed(f"expected the end of the connection, got {came}")

    # Ending.

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self._transcript.note(self.name, "we close our sending side")
        self._stream.end()

    def reset(self) -> None:
        """End it by force."""
        with socket.socket(fileno=os.dup(self._stream.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def narrow(self) -> None:
        """Have the system keep little of what comes and is not read."""
        with socket.socket(fileno=os.dup(self._stream.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)

    def address(self) -> object:
        """Our own address, as `socket.getsockname` has it."""
        with socket.socket(fileno=os.dup(self._stream.fileno())) as same:
            return same.getsockname()

    def close(self) -> None:
        """Let go of it."""
        if self._open:
            self._open = False
            self._selector.close()
            self._stream.close()


def agrees(payload: bytes) -> bool:
    """Whether a payload is a `hello_response` that agrees on compression."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        return False
    if not isinstance(message, dict):
        return False
    return (message.get("type"), message.get("compression")) == ("hello_response", "zlib")


def message_in(payload: bytes) -> Message:
    """
    The message in a payload.

    Raises:
        Failed: it is not valid under section 1, or no object.
    """
    try:
        message = strict_json(payload)
    except (ValueError, RecursionError) as error:
        raise Failed(f"a strict parser of JSON refuses the payload: {printable(str(error), 200)}") from None
    if not isinstance(message, dict):
        raise Failed(f"expected an object, got {shown(message)}")
    return message
