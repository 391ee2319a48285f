"""What a connection understands at each time of its life: how payloads are read, and who handles them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tcpjson import classic
from tcpjson.core.codec import Codec, check_fields
from tcpjson.core.errors import ProtocolError, Unauthenticated
from tcpjson.core.messages import Auth, Custom, HeartbeatPong, Hello, Message, Ping, Refused, Text
from tcpjson.handlers import Router, name_of

if TYPE_CHECKING:
    from tcpjson.connection import Connection

Handler = Callable[[Any, Any], Any]

# Types that belong to the protocol on every connection: an application's handlers cannot take them over.
_RESERVED = ("hello", "auth")
# Those behind which `hello` may still come (section 5).
_EARLY = (*_RESERVED, "ping")


def _tag(kind: type[Message]) -> object:
    return kind.__struct_config__.tag


class Dialect:
    """A codec, and the handler of each class of message that it gives."""

    def __init__(self, codec: Codec, handlers: dict[type[Message], Handler]) -> None:
        self.codec = codec
        self.handlers = handlers

    @cached_property
    def leaving(self) -> Dialect:
        """The same messages when the server goes away: all are told so (section 11)."""
        handlers: dict[type[Message], Handler] = dict.fromkeys(self.handlers, _going_away)
        if HeartbeatPong in handlers:
            handlers[HeartbeatPong] = _heartbeat_pong
        return Dialect(self.codec, handlers)


class Dialects:
    """
    The dialects of a server.

    Args:
        hello, auth: the handlers of these messages.
        router: the application's.
        strict: whether unknown types are refused.

    Raises:
        ValueError, TypeError: as `tcpjson.server.TCPJSONServerFactory`.
    """

    def __init__(self, hello: Handler, auth: Handler, router: Router, strict: bool) -> None:
        for kind, handler in router.handlers.items():
            if _tag(kind) in _RESERVED:
                raise ValueError(f"{name_of(handler)}: {_tag(kind)} belongs to the protocol")
            check_fields(kind)
        served: dict[type[Message], Handler] = {
            kind: handler if kind is Refused else router.wrapped(handler)
            for kind, handler in classic.router.merged(router).handlers.items()
        }
        # What the application sees: all of it, where it has middleware.
        seen = [kind for kind, handler in served.items() if handler is not classic.router.handlers.get(kind)]
        served |= {Hello: hello, Auth: auth}

        def dialect(handlers: dict[type[Message], Handler]) -> Dialect:
            codec = Codec(
                [kind for kind in handlers if _tag(kind)],
                strict,
                checked=seen,
            )
            return Dialect(codec, handlers)

        #: Of those that are to authenticate.
        self.guest = Dialect(
            Codec([Hello, Auth, Ping]),
            {
                Hello: hello,
                Auth: auth,
                Ping: classic.ping,
                Custom: _unauthenticated,
                Text: _unauthenticated,
                Refused: classic.refused,
            },
        )
        #: Of those that are served.
        self.ready = dialect(served)
        #: Of these, before their first request: `hello` may still come (section 5).
        self.opening = Dialect(
            self.ready.codec,
            {
                kind: handler if kind is Refused or _tag(kind) in _EARLY else self._first(handler)
                for kind, handler in served.items()
            },
        )
        #: Of those that answer our pings (section 8).
        self.beating = dialect(
            {
                **{kind: handler for kind, handler in served.items() if _tag(kind) != "pong"},
                HeartbeatPong: _heartbeat_pong,
            }
        )

    @property
    def kinds(self) -> set[type[Message]]:
        """All classes of messages that there are."""
        return {*self.guest.handlers, *self.ready.handlers, *self.beating.handlers}

    def _first(self, handler: Handler) -> Handler:
        """A handler of a request with which the time for `hello` is over."""

        def handle(connection: Connection, message: Message) -> Any:
            if connection.dialect is self.opening:
                connection.dialect = self.ready
            return handler(connection, message)

        return handle


def _unauthenticated(connection: Connection, message: Message) -> ProtocolError:
    return Unauthenticated()


def _going_away(connection: Connection, message: Message) -> ProtocolError:
    return connection.going_away


def _heartbeat_pong(connection: Connection, message: Message) -> None:
    """That it came is all there is to it."""
