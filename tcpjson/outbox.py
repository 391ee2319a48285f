"""The bytes on their way to one peer, all of them counted."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections import deque
from itertools import islice
from typing import Any, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.internet.tcp import Connection as TCPConnection
from zope.interface import implementer

from tcpjson.core.framing import frame_boundary
from tcpjson.transports import descriptor_of

# What is handed at once to a transport that wraps another: it cannot be taken back from there.
_HANDED = 64 * 1024
# Pieces given to one sendmsg; the system takes at most IOV_MAX, 1024 on Linux.
_PIECES = 512


class Owner(Protocol):
    """Who writes to an outbox."""

    def outboxWaits(self) -> None:
        """Bytes begin to wait."""

    def outboxDrained(self) -> None:
        """Bytes that waited have left."""


@implementer(IPushProducer, IPullProducer)
class Outbox:
    """
    Sends bytes in order and keeps, counted, what the peer does not take yet.

    Three kinds of transport: a bare socket is sent to at once and nothing is ever handed to its
    transport; a wrapped one (TLS, PROXY) is handed a piece at a time, and the socket's transport below
    says when that has left; any other (in memory) is written to until it asks for a pause.

    Args:
        transport: a connected transport.
        owner: is told when bytes begin to wait, and when some or all of them have left; it may write.
    """

    __slots__ = (
        "_chunks",
        "_descriptor",
        "_handed",
        "_marks",
        "_offset",
        "_open",
        "_owner",
        "_registered",
        "_socket",
        "_transport",
        "_wait",
        "answers",
        "lost",
        "taken",
        "waiting",
    )

    def __init__(self, transport: Any, owner: Owner) -> None:
        self._transport = transport
        self._owner = owner
        self._chunks: deque[bytes] | None = None
        #: How much of the first chunk has left.
        self._offset = 0
        #: Bytes that wait here, and in a wrapped transport.
        self.waiting = 0
        #: Of these, bytes that were written as answers.
        self.answers = 0
        #: Bytes that left, since the start.
        self.taken = 0
        # Where in the stream of bytes waiting answers end, and how many bytes of them: (end, size).
        self._marks: deque[tuple[int, int]] | None = None
        self._handed = 0
        #: Whether sending has found the connection lost.
        self.lost = False
        self._wait = False
        self._open = False
        # A wrapper would hand through the socket below it, and plain text would go out.
        bare = isinstance(transport, TCPConnection) and not transport.TLS
        self._socket: socket.socket | None = transport.getHandle() if bare else None
        descriptor = self._descriptor = descriptor_of(transport)
        # With a socket it is registered only while bytes wait: as long as it is, nobody can close it.
        self._registered = descriptor is None
        if descriptor is None:
            transport.registerProducer(self, True)
        self._open = True

    def write(self, data: bytes, answer: bool = False) -> None:
        """Send what the socket takes now, keep the rest. `answer`: the peer itself asked for it."""
        if not (self._open and data):
            return
        if not self.waiting and self._socket is not None:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._fail(error)
                return
            if sent == len(data):
                self.taken += sent
                return
            self._enqueue(data, answer)
            self._pop(sent)
            self._left(sent)
            self._await_room()
            return
        self._enqueue(data, answer)
        if self._socket is None:
            self._hand_over()

    def push(self, data: bytes, answer: bool = False) -> None:
        """Keep the bytes for the next `flush`."""
        if self._open:
            self._enqueue(data, answer)

    def _enqueue(self, data: bytes, answer: bool) -> None:
        if self._chunks is None:
            self._chunks = deque()
        if not self.waiting:
            self._owner.outboxWaits()
        self._chunks.append(data)
        self.waiting += len(data)
        if answer:
            if self._marks is None:
                self._marks = deque()
            self.answers += len(data)
            self._marks.append((self.taken + self.waiting, len(data)))

    def flush(self) -> None:
        """Try the socket now."""
        if self._socket is not None:
            self._send_waiting(self._socket)
            return
        self._hand_over()
        descriptor = self._descriptor
        # The public face of a writable descriptor: what the reactor calls when the socket has room. Each
        # call that empties it comes back to `resumeProducing`, which hands over the next piece.
        while self._handed and descriptor is not None and descriptor.connected:
            before = self.taken
            if (reason := descriptor.doWrite()) is not None:
                self._fail(reason)
            if self.taken == before:
                return

    def _send_waiting(self, bare: socket.socket) -> None:
        """Give a bare socket what waits until it takes no more."""
        while chunks := self._chunks:
            pieces: list[bytes | memoryview] = list(islice(chunks, _PIECES))
            if self._offset:
                pieces[0] = memoryview(pieces[0])[self._offset :]
            try:
                sent = bare.sendmsg(pieces)
            except BlockingIOError:
                self._await_room()
                return
            except OSError as error:
                self._fail(error)
                return
            self._pop(sent)
            self._left(sent)

    def _await_room(self) -> None:
        """Have `resumeProducing` called when a bare socket has room."""
        assert self._descriptor is not None
        self._watch(self._descriptor)
        self._descriptor.startWriting()

    def _watch(self, descriptor: FileDescriptor) -> None:
        """Have `resumeProducing` called when the socket's transport has nothing left to send."""
        if not self._registered:
            self._registered = True
            descriptor.registerProducer(self, False)
        self._wait = True

    def _pop(self, size: int) -> None:
        """Take bytes from the front of the chunks."""
        chunks = self._chunks
        size += self._offset
        while chunks and size >= len(chunks[0]):
            size -= len(chunks.popleft())
        self._offset = size

    def _left(self, size: int) -> None:
        """Count bytes that have left."""
        self.taken += size
        self.waiting -= size
        marks = self._marks
        while marks and marks[0][0] <= self.taken:
            self.answers -= marks.popleft()[1]

    def _hand_over(self) -> None:
        """Give a transport that is not a bare socket its next piece, if it has none."""
        while not self._wait and (chunks := self._chunks):
            room = _HANDED
            pieces: list[bytes] = []
            offset = self._offset
            for chunk in chunks:
                pieces.append(chunk[offset : offset + room])
                room -= len(pieces[-1])
                offset = 0
                if not room:
                    break
            piece = b"".join(pieces)
            self._pop(len(piece))
            if self._descriptor is None:
                self._left(len(piece))
            else:
                # It has left when the transport below asks for more.
                self._handed = len(piece)
                self._watch(self._descriptor)
            self._transport.write(piece)

    # What the transport calls.

    def resumeProducing(self) -> None:
        """The transport has sent all it had."""
        if not (self._open and self._wait):
            return
        self._wait = False
        if self._socket is not None:
            self._send_waiting(self._socket)
        else:
            handed, self._handed = self._handed, 0
            self._left(handed)
            if self._descriptor is not None and self._descriptor.disconnecting:
                # TLS has ended: nothing that still waits can be sent through it.
                self.close()
                return
            self._hand_over()
        if not self._wait and self._registered and self._descriptor is not None:
            # Let the transport close when it is told to.
            self._registered = False
            self._descriptor.unregisterProducer()
        self._owner.outboxDrained()

    def pauseProducing(self) -> None:
        """A transport that is no socket's has enough."""
        self._wait = True

    def stopProducing(self) -> None:
        """The transport is gone."""
        self._registered = False
        self.close()

    # The end.

    def drop_unbegun(self) -> None:
        """Drop the frames that have not begun to leave."""
        chunks = self._chunks
        if not chunks:
            return
        first = chunks[0]
        end = frame_boundary(first, self._offset)
        chunks.clear()
        self.waiting = self._handed + end - self._offset
        if end > self._offset:
            chunks.append(first[:end])
        else:
            self._offset = 0
        self.answers = 0
        self._marks = None

    def close(self) -> None:
        """Send nothing more and let go of the transport, which may close then."""
        if not self._open:
            return
        self._open = False
        self._chunks = self._marks = None
        self.waiting = self.answers = 0
        if self._registered:
            self._registered = False
            (self._descriptor or self._transport).unregisterProducer()

    def _fail(self, reason: Exception) -> None:
        """
        Nothing can be sent any more. What the peer sent before can still be read, and is, up to the end of
        file or the error that tells the reactor.
        """
        # The system says why once, and here; to the next who reads it says "end of file". A broken pipe: the
        # peer had closed its side before.
        self.lost = self.lost or not isinstance(reason, BrokenPipeError)
        self.close()
        assert self._descriptor is not None
        if self._descriptor.disconnecting:
            # It reads no more, so nobody else will find out.
            self._transport.abortConnection()
        else:
            self._descriptor.stopWriting()
        self._owner.outboxDrained()

    def find_loss(self) -> bool:
        """
        Whether the connection is lost. The system tells nobody who neither reads nor has anything to send.
        """
        descriptor: Any = self._descriptor
        if descriptor is not None and descriptor.connected and not self.lost:
            self.lost = descriptor.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        return self.lost

    def progress(self) -> tuple[int, int, int]:
        """A value that changes whenever the peer takes something."""
        descriptor = self._descriptor
        left = 0 if descriptor is None else len(descriptor.dataBuffer) - descriptor.offset
        return self.taken, left, self._unacknowledged()

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return not self._open

    @property
    def sent(self) -> int:
        """Bytes that were written, those that wait included, since the start."""
        return self.taken + self.waiting

    @property
    def acknowledged(self) -> int:
        """Bytes that the peer took, since the start, as far as the system says."""
        return self.taken - self._unacknowledged()

    def _unacknowledged(self) -> int:
        """Bytes that the system keeps for the peer, 0 where it does not say."""
        if self._descriptor is None:
            return 0
        try:
            answer = fcntl.ioctl(self._descriptor.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        except (OSError, ValueError):
            return 0
        return int(struct.unpack("i", answer)[0])
