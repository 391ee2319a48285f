"""Lines from the standard input, and to the standard output, when there is no terminal to draw on."""

from __future__ import annotations

import os
import select
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from tcpjson.core.limits import LARGEST_FRAME

#: Bytes of a line: as long as the longest payload, and a command before it.
MAX_LINE = LARGEST_FRAME + 1024


class Lines:
    """
    Cuts what comes in pieces into lines.

    Args:
        limit: bytes of a line. A longer one is not kept.
    """

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._too_long = False

    def feed(self, data: bytes) -> list[str | None]:
        """The lines that are complete now, without their ends; None for one that was too long."""
        *lines, rest = data.split(b"\n")
        found = []
        for line in lines:
            self._keep(line)
            found.append(self._take())
        self._keep(rest)
        return found

    def end(self) -> list[str | None]:
        """There is no more: the last line, if it had no end."""
        return [self._take()] if self._buffer or self._too_long else []

    def _keep(self, data: bytes) -> None:
        if len(self._buffer) + len(data) > self._limit:
            self._too_long = True
            self._buffer.clear()
        else:
            self._buffer += data

    def _take(self) -> str | None:
        too_long, self._too_long = self._too_long, False
        line = bytes(self._buffer).removesuffix(b"\r")
        self._buffer.clear()
        # What is no UTF-8 is for the parser of commands to refuse.
        return None if too_long else line.decode(errors="surrogateescape")


class Reader(Protocol):
    """Who takes the lines."""

    @property
    def full(self) -> bool:
        """Whether to give it no more for now."""

    def line(self, text: str | None) -> None:
        """Take one; None: it was too long."""

    def end(self) -> None:
        """There are no more."""

    def hold(self) -> None:
        """What was written is not read."""

    def release(self) -> None:
        """It is read again."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class LineIO(TwistedProtocol):
    """Both ends of the program, as the protocol of a `StandardIO`."""

    def __init__(self, reader: Reader, limit: int = MAX_LINE) -> None:
        self._reader = reader
        self._lines = Lines(limit)
        self._paused = False
        self._closing = False
        self._ended = False
        #: Fires when nobody reads the output any more.
        self.broken: Deferred[None] = Deferred()
        #: Fires when all that was written is out.
        self.closed: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            self._reader.line(line)
        if self._reader.full:
            self._paused = True
            self._stdio.pauseProducing()

    def room(self) -> None:
        """The reader is not full any more."""
        if self._paused:
            self._paused = False
            self._stdio.resumeProducing()

    @property
    def _stdio(self) -> Any:
        return self.transport

    def readConnectionLost(self) -> None:
        for line in self._lines.end():
            self._reader.line(line)
        self._reader.end()

    def writeConnectionLost(self) -> None:
        self._break()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._break()
        if not self.closed.called:
            self.closed.callback(None)

    def _break(self) -> None:
        self._ended = True
        if not self.broken.called:
            self.broken.callback(None)

    def write(self, line: str) -> None:
        """Write a line, without its end."""
        if not self._ended:
            self._stdio.write(line.encode(errors="backslashreplace") + b"\n")

    def close(self) -> Deferred[None]:
        """Read nothing more; the result comes when all is written."""
        if self._ended:
            return self.broken
        if not self._closing:
            self._closing = True
            self._stdio.unregisterProducer()
            self._stdio.loseConnection()
        return self.closed

    # As the producer of what is written.

    def pauseProducing(self) -> None:
        self._reader.hold()

    def resumeProducing(self) -> None:
        self._reader.release()

    def stopProducing(self) -> None:
        pass


def write_all(descriptor: int, data: bytes) -> None:
    """
    Write to a descriptor that may have been made non-blocking by another that leads to the same terminal.
    What cannot be written is left out.
    """
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError:
            return
