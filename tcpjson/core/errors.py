"""Every way a message or a connection can fail: one class a code of docs/protocol.rst, section 9."""

from __future__ import annotations

from typing import ClassVar, Self

#: The ends of a connection that no error message announces (section 9).
CLIENT_CLOSED = "client_closed"
CONNECTION_LOST = "connection_lost"
HANDSHAKE_FAILED = "handshake_failed"
CLOSED_BY_HANDLER = "closed_by_handler"

#: The error classes by their code on the wire.
CODES: dict[str, type[ProtocolError]] = {}


class ProtocolError(Exception):
    """
    What a peer is told in an `error` message.

    Args:
        text: the `message` of the error, for people; the class's own when left out.
        retry_after: seconds after which to try again, where that helps.
    """

    code: ClassVar[str]
    #: Whether the connection closes after the error.
    fatal: ClassVar[bool] = False
    text: ClassVar[str]

    def __init_subclass__(cls) -> None:
        # An application may derive its own from one of these.
        CODES.setdefault(cls.code, cls)

    def __init__(self, text: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(text or self.text)
        self.retry_after = retry_after

    def forget_origin(self) -> Self:
        """
        Let go of where the error was raised: of frames, and so of payloads, which would otherwise wait in a
        cycle for the garbage collector, that counts objects and not their bytes.
        """
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class BadFrame(ProtocolError):
    code = "bad_frame"
    text = "a frame of length 0"


class TooLarge(ProtocolError):
    code = "too_large"
    fatal = True
    text = "the frame is longer than max_length"


class FrameTimeout(ProtocolError):
    code = "frame_timeout"
    fatal = True
    text = "the frame was not completed in time"


class BadJSON(ProtocolError):
    code = "bad_json"
    text = "not valid JSON"


class BadMessage(ProtocolError):
    code = "bad_message"
    text = "a field is wrong"


class UnknownType(ProtocolError):
    code = "unknown_type"
    text = "no such message type"


class Unauthenticated(ProtocolError):
    code = "unauthenticated"
    text = "authenticate first"


class Forbidden(ProtocolError):
    code = "forbidden"
    text = "not allowed"


class AuthTimeout(ProtocolError):
    code = "auth_timeout"
    fatal = True
    text = "no authentication in time"


class AuthFailed(ProtocolError):
    code = "auth_failed"
    fatal = True
    text = "authentication failed too often"


class RateLimited(ProtocolError):
    code = "rate_limited"
    fatal = True
    text = "more than the server's rate"


class SlowConsumer(ProtocolError):
    code = "slow_consumer"
    fatal = True
    text = "messages were not read in time"


class ServerFull(ProtocolError):
    code = "server_full"
    fatal = True
    text = "the server has no room for another connection"


class TooManyConnections(ProtocolError):
    code = "too_many_connections"
    fatal = True
    text = "too many connections from one address"


class IdleTimeout(ProtocolError):
    code = "idle_timeout"
    fatal = True
    text = "nothing was sent or taken for too long"


class HeartbeatTimeout(ProtocolError):
    code = "heartbeat_timeout"
    fatal = True
    text = "the ping was not answered"


class GoingAway(ProtocolError):
    code = "going_away"
    text = "the server shuts down"


class Internal(ProtocolError):
    code = "internal"
    text = "the server failed on this message"


class HandlerTimeout(ProtocolError):
    code = "timeout"
    text = "the message took too long to handle"
