"""Every way a message or a connection can fail: one class a code of docs/protocol.rst, section 9."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from tcpjson.core.text import printable

#: The ends of a connection that no error message announces (section 9).
CLIENT_CLOSED = "client_closed"
CONNECTION_LOST = "connection_lost"
HANDSHAKE_FAILED = "handshake_failed"
CLOSED_BY_HANDLER = "closed_by_handler"

# Seconds that nobody would wait.
_LONGEST = 1e9

#: The error classes by their code on the wire.
CODES: dict[str, type[ProtocolError]] = {}


class ProtocolError(Exception):
    """
    What a peer is told in an `error` message.

    Args:
        text: the `message` of the error, for people; the class's own when left out.
        retry_after: seconds after which to try again, where that helps.
    """

    code: str
    retry_after: float | None = None
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


def error_of(message: dict[str, Any]) -> ProtocolError:
    """
    The exception that an `error` message stands for: of the class of its `code`, or a `ProtocolError` with
    that code where it is unknown. Fields that are missing or of a wrong type are passed over; texts are cut,
    and hold nothing that cannot be printed.
    """
    code = message.get("code")
    text = message.get("message")
    retry_after = message.get("retry_after")
    code = printable(code) if isinstance(code, str) and code else "error"
    text = printable(text) if isinstance(text, str) and text else code
    # An integer of JSON can be longer than any float.
    if not (isinstance(retry_after, (int, float)) and 0 <= retry_after < _LONGEST):
        retry_after = None
    kind = CODES.get(code, ProtocolError)
    # An application's own may be made of other things.
    error = kind.__new__(kind)
    ProtocolError.__init__(error, text, retry_after=retry_after)
    error.code = code
    return error


class ClientError(Exception):
    """What fails at the client's own side. No code stands for it on the wire."""


class Disconnected(ClientError):
    """No connection, or it ended before the reply came: whether the request was handled is not known."""


class RequestTimeout(ClientError, TimeoutError):
    """The reply did not come in time."""


class UnexpectedReply(ClientError):
    """The reply is of another type than the request asks for."""


class QueueFull(ClientError):
    """More waits to be sent than may: wait for replies, then go on."""


class PermanentError(ClientError):
    """What no retry heals."""


class ProtocolMismatch(PermanentError):
    """What answers is no tcpjson server, or one of another version."""


class AuthenticationFailed(PermanentError):
    """The server does not let the client in, or did not prove who it is."""
