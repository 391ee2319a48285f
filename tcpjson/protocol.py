"""JSON frames on a Twisted transport: reading in turns, writing through the outbox, ending in order."""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import Int32StringReceiver, StringTooLongError
from zope.interface import implementer

from tcpjson.core.errors import ProtocolError
from tcpjson.core.framing import COMPRESSED, FrameReader, FrameTooLong, frame
from tcpjson.core.limits import CLOSE_TIMEOUT
from tcpjson.outbox import Outbox
from tcpjson.transports import descriptor_of, is_encrypted

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

# Frames taken at once; frames in one turn of the reactor; and, where they take long, the seconds after the
# first batch in which more are taken: what one peer sends holds up the others no longer.
BATCH = 128
_TURN = 512
_TURN_SECONDS = 0.0005
# Seconds in which compressed frames are handled that a peer sent before it closed the connection.
_LAST_SECONDS = 0.01


class Hold(IntFlag):
    """Why a peer's frames are not handled."""

    #: `pauseProducing` was called.
    PAUSED = 1
    #: It had its share of this turn of the reactor.
    TURN = 2
    #: Its answers wait (docs/protocol.rst, section 10).
    ANSWERS = 4
    #: Its unfinished handlers are at their bound.
    HANDLERS = 8
    #: It is over its rate.
    RATE = 16
    #: What it says of who it is is being checked.
    AUTH = 32
    #: `close` was called in the midst of a turn, at the end of which the connection ends.
    CLOSING = 64
    #: The connection ends.
    ENDING = 128


# IntFlag arithmetic in Python is slow; on the hot path a hold is a plain number.
_ENDING = int(Hold.ENDING)
# What holds frames for a time, whatever the application does.
_IN_TIME = int(Hold.TURN | Hold.ANSWERS | Hold.RATE)


@implementer(IHalfCloseableProtocol)
class TCPJSONProtocol(Int32StringReceiver):
    """
    An `Int32StringReceiver` whose cost is linear however the bytes are cut, that handles a bounded
    number of frames in a turn of the reactor, counts what waits to be sent, and ends a connection so
    that its last message arrives.

    Override `stringReceived`, or `framesReceived` to take frames many at a time.

    Args:
        clock: calls later; the reactor.
    """

    MAX_LENGTH = 1024 * 1024
    #: How many frames are taken at once.
    batch = BATCH

    # What it offers beside ITransport depends on whether it is a socket, TLS, a proxy's or in memory.
    transport: Any

    # In the class until they are needed: a connection that is idle is small.
    _releasing = 0
    _release_call: IDelayedCall | None = None
    _abort_call: IDelayedCall | None = None
    _input_ended = False
    _shut = False

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._reader = FrameReader()
        self._holds = 0
        self._working = False
        # Whether a part of a frame was there when the last turn ended.
        self._begun = False

    def connectionMade(self) -> None:
        self._outbox = Outbox(self.transport, self)

    # Receiving.

    def dataReceived(self, data: bytes) -> None:
        """Take what was received. Frames are handled at once, or when nothing holds them any more."""
        if not (self._holds or self._working):
            self._reader.feed(data)
            self._work()
        elif not self._holds & _ENDING:
            self._reader.feed(data)

    def _work(self, inflating: bool = False) -> int:
        """
        Handle frames until none is complete, something holds them, or the turn is over; returns how many.
        `inflating`: compressed ones too; as little can make them long to do, they wait for a turn.
        """
        handled = 0
        until: float | None = None
        reader = self._reader
        self._working = True
        try:
            while reader.ready and not self._holds:
                try:
                    payloads = reader.take(self.batch, self.MAX_LENGTH, inflating)
                except FrameTooLong as error:
                    reader.clear()
                    self.lengthLimitExceeded(error.length)
                    break
                except ProtocolError as error:
                    reader.clear()
                    self.frameRefused(error)
                    break
                if payloads:
                    done = self.framesReceived(payloads)
                    if done < len(payloads) and not self._holds & _ENDING:
                        reader.untake(payloads[done:])
                    handled += done
                if self._reader.ready and not self._holds:
                    # Few reads have more than a batch: only these look at the clock.
                    now = self._clock.seconds()
                    until = until or now + _TURN_SECONDS
                    # A batch was cut short by its length, or by what is behind it: a compressed frame, or one
                    # that is refused.
                    cut = reader.inflate is not None and len(payloads) < self.batch
                    if handled >= _TURN or now > until or cut:
                        self.hold(Hold.TURN)
                        self.turnOver()
        finally:
            self._working = False
        if self._holds and not self._holds & _ENDING:
            self.transport.pauseProducing()
        if self._holds or reader.begun or self._begun:
            self._begun = reader.begun
            self.turnEnded(handled)
        return handled

    def framesReceived(self, payloads: list[bytes]) -> int:
        """Handle payloads in order; returns how many were, fewer when something holds the rest."""
        for handled, payload in enumerate(payloads, 1):
            self.stringReceived(payload)
            if self._holds:
                return handled
        return len(payloads)

    def turnEnded(self, handled: int) -> None:
        """
        All frames that can be handled now were: `handled` of them. Not called when these were whole, and the
        turn before ended between frames too.
        """

    def turnOver(self) -> None:
        """There is more than fits in one turn of the reactor: have it go on in another."""
        self.release(Hold.TURN)

    def lengthLimitExceeded(self, length: int) -> None:
        """A frame announces `length` bytes, more than `MAX_LENGTH`. Nothing of it is kept."""
        self.end()

    def frameRefused(self, error: ProtocolError) -> None:
        """A compressed frame cannot be taken (section 7). Nothing of it is kept."""
        self.end()

    # Pausing.

    @property
    def paused(self) -> bool:  # type: ignore[override]  # an attribute there, which we alone set
        """Whether frames wait to be handled, for whatever reason."""
        return bool(self._holds)

    def hold(self, reason: Hold) -> None:
        """Handle no frames until `release`."""
        held = self._holds
        self._holds = held | int(reason)
        if not (held or self._working):
            self.transport.pauseProducing()

    def release(self, reason: Hold) -> None:
        """Handle frames again, from the next turn of the reactor, if nothing else holds them."""
        if self._holds & reason:
            self._releasing |= int(reason)
            if self._release_call is None:
                self._release_call = self._clock.callLater(0, self._release)

    def release_now(self, reason: Hold) -> None:
        """Handle frames again, at once, if nothing else holds them."""
        if self._holds & reason:
            self._holds &= ~int(reason)
            self._resume(reason)

    def _release(self) -> None:
        self._release_call = None
        released = self._releasing
        self._holds &= ~released
        self._releasing = 0
        self._resume(released)

    def _resume(self, released: int) -> None:
        if not (self._holds or self._working):
            self.transport.resumeProducing()
            self._work(bool(released & Hold.TURN) and self.may_inflate())

    def may_inflate(self) -> bool:
        """Whether compressed frames are worth their turn."""
        return True

    def pauseProducing(self) -> None:
        """Handle no frames, and read nothing, until `resumeProducing`."""
        self.hold(Hold.PAUSED)

    def resumeProducing(self) -> None:
        """Handle what was received meanwhile, at once, and read on."""
        self.release_now(Hold.PAUSED)

    def stopProducing(self) -> None:
        """Handle nothing more, and close, as `end` does."""
        self.end()

    # Sending.

    def sendString(self, string: bytes) -> None:
        """
        Send a payload, behind its length.

        Raises:
            StringTooLongError: the payload is 2 GiB long or longer.
        """
        if len(string) >= COMPRESSED:
            raise StringTooLongError(f"{len(string)} bytes do not fit a 31-bit length")
        self._outbox.write(frame(string))

    def outboxWaits(self) -> None:
        """Bytes begin to wait for the peer."""

    def outboxDrained(self) -> None:
        """Bytes that waited for the peer have left."""
        if self._holds & _ENDING and not self._outbox.waiting:
            self._shut_down()

    # The end.

    def end(self, last: bytes = b"", timeout: float = CLOSE_TIMEOUT) -> None:
        """
        Handle nothing more; send what waits, then the frames `last`, then close the sending side and
        discard what arrives. After `timeout` seconds the connection is aborted, whatever the peer does
        (docs/protocol.rst, section 9).
        """
        if self._holds & _ENDING:
            return
        held = self._holds
        self._holds = _ENDING
        self._reader.clear()
        self._abort_call = self._clock.callLater(timeout, self._abort)
        if held and not self._working:
            self.transport.resumeProducing()
        if last:
            self._outbox.push(last)
        self._outbox.flush()
        if not self._outbox.waiting:
            self._shut_down()

    def _abort(self) -> None:
        self._abort_call = None
        self.transport.abortConnection()

    def _shut_down(self) -> None:
        """Close the sending side: all is sent."""
        if self._shut:
            return
        self._shut = True
        transport = self.transport
        self._outbox.close()
        descriptor = descriptor_of(transport)
        if self._input_ended or descriptor is None or is_encrypted(transport):
            transport.loseConnection()
        else:
            # Closing a socket with unread bytes resets the connection, and the reset overtakes what was
            # sent: close one side, and read on until the peer closes the other.
            descriptor.loseWriteConnection()

    def readConnectionLost(self) -> None:
        """The peer closed its sending side."""
        self._input_ended = True
        if self._shut:
            self.transport.loseConnection()
        elif not self._holds & _ENDING:
            self.inputEnded()

    def writeConnectionLost(self) -> None:
        """Our sending side is closed."""

    def inputEnded(self) -> None:
        """The peer sends no more, but may still read."""
        self.end()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._outbox.stopProducing()
        # There is nothing to shut down any more, should one of these frames end the connection.
        self._shut = True
        # One that sends and goes has sent all the same: only we had not come to it yet.
        # What is compressed can be long to do: of one that ended in order, some is done.
        until = self._clock.seconds() + (_LAST_SECONDS if reason.check(ConnectionDone) else 0)
        while self._reader.ready and not self._holds & ~_IN_TIME:
            self._holds = 0
            if not self._work(self._clock.seconds() < until):
                break
        self._holds = _ENDING
        self._reader.clear()
        for call in (self._abort_call, self._release_call):
            if call is not None:
                call.cancel()
        self._abort_call = self._release_call = None
