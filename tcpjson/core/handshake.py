"""What a client says and hears before it is served (docs/protocol.rst, sections 4 to 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec
from msgspec.structs import fields

from tcpjson.core import compression
from tcpjson.core.errors import AuthenticationFailed, AuthFailed, GoingAway, ProtocolMismatch, error_of
from tcpjson.core.session import Event, State, advance
from tcpjson.core.text import named, printable

Json = dict[str, Any]

#: The ids of the client's own `hello` and `auth`.
HELLO_ID = -1
AUTH_ID = -2
#: Bytes of a frame that is taken before the welcome; and of any, unless the client is told otherwise.
FIRST_MAX_LENGTH = 1024 * 1024
MAX_LENGTH = 16 * 1024 * 1024

_VERSION = 1
# What comes back of a message can be six times as long, as every byte of a text may be escaped; and bytes
# of what stands around it.
_GROWTH, _ENVELOPE = 6, 4096
# How many heartbeats of a server make a silence; how many seconds do where it names none; and the bounds,
# whatever it names.
_BEATS = 2
_SILENCE = 50.0
_SHORTEST_SILENCE, _LONGEST_SILENCE = 1.0, 3600.0
# Nothing that a server says of itself is as large; an integer of JSON can be larger than any float.
_LARGEST_SIZE = 1e18


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself in `welcome`. Sizes are in bytes, times in seconds."""

    #: None: a classic server, which knows sections 1 to 3 alone.
    protocol: int | None = None
    client_id: str = ""
    server: str = ""
    max_length: int | None = None
    heartbeat: float | None = None
    compression: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    auth: tuple[str, ...] = ()
    limits: dict[str, float] = {}

    @property
    def classic(self) -> bool:
        """Whether it knows sections 1 to 3 alone."""
        return self.protocol is None

    def longest_answer(self, longest: int) -> int:
        """Bytes that a payload of the server's may have, for a client that takes no more than `longest`."""
        if self.max_length is None:
            return longest
        return min(_GROWTH * self.max_length + _ENVELOPE, longest)

    @property
    def silence(self) -> float:
        """Seconds without a word of it after which it is asked whether it is there (section 8)."""
        seconds = _SILENCE if self.heartbeat is None else _BEATS * self.heartbeat
        return min(max(seconds, _SHORTEST_SILENCE), _LONGEST_SILENCE)


def _server(welcome: Json) -> ServerInfo:
    """What a welcome says; fields that are of another type, or no such value, are passed over."""
    found: dict[str, Any] = {}
    for field in fields(ServerInfo):
        value = welcome.get(field.name)
        if isinstance(value, list):
            value = [each for each in value if isinstance(each, str)]
        elif isinstance(value, dict):
            value = {name: each for name, each in value.items() if _is_size(each)}
        elif isinstance(value, (int, float)) and not _is_size(value):
            continue
        with suppress(msgspec.ValidationError):
            found[field.name] = msgspec.convert(value, field.type, strict=False)
    return ServerInfo(**found)


def _is_size(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 < value < _LARGEST_SIZE and value is not True


class Login(Protocol):
    """One exchange of section 6, from the first `auth` to the server's word."""

    #: The fields of the first `auth`.
    first: Json

    def answer(self, data: str) -> Json:
        """
        The fields of the next `auth`, after a challenge. It may take half a second.

        Raises:
            AuthenticationFailed: the challenge is not to be answered.
        """

    def finish(self, data: str | None) -> None:
        """
        Look at what came with the server's consent.

        Raises:
            AuthenticationFailed: the server did not prove who it is.
        """


class Credentials(Protocol):
    """What a client shows who it is with."""

    def begin(self, mechanisms: Sequence[str], secure: bool) -> Login:
        """
        Begin to authenticate.

        Args:
            mechanisms: what the server offers.
            secure: whether nobody between reads what is sent.

        Raises:
            AuthenticationFailed: none of them will do.
        """


#: A message to send, or what makes it and may take half a second.
Step = Json | Callable[[], Json]


class Handshake:
    """
    The beginning of a connection, at the client's side.

    Args:
        name: the client's `"name/version"`.
        credentials: None: only servers that ask for none let the client in.
        secure: whether nobody between reads what is sent.
        compress: whether to ask for compression.
    """

    def __init__(
        self, name: str, credentials: Credentials | None, secure: bool, compress: bool = True
    ) -> None:
        self._name = name
        self._credentials = credentials
        self._secure = secure
        self._compress = compress
        self._login: Login | None = None
        self._challenged = False
        # The compressions that `hello` named.
        self._asked_for: tuple[str, ...] = ()
        #: OPEN until the welcome, then AUTHENTICATING where that is asked for, then READY.
        self.state = State.OPEN
        #: What the welcome said.
        self.server: ServerInfo | None = None
        #: The welcome itself.
        self.welcome: Json = {}
        #: Who the client is for the server; None where it asks nobody.
        self.user: str | None = None
        #: The compression that was agreed on.
        self.compression: str | None = None

    def receive(self, message: Json) -> list[Step]:
        """
        Take a message: each one until the state is READY, then those with `id` `HELLO_ID`. Returns what to
        send, in order.

        Raises:
            ProtocolMismatch, AuthenticationFailed: no retry will heal it.
            ProtocolError: the server said so; a retry may.
        """
        kind = message.get("type")
        request_id = message.get("id")
        if kind == "error":
            self._look_at(message)
        if request_id == HELLO_ID:
            if kind == "hello_response" and message.get("compression") in self._asked_for:
                self.compression = message["compression"]
            return []
        if self.state is State.OPEN:
            if kind == "welcome":
                return self._welcomed(message)
            raise ProtocolMismatch(f"the first message is no welcome but of type {named(kind)}")
        if request_id == AUTH_ID and self._login is not None:
            return self._authenticate(kind, message, self._login)
        return []

    def _look_at(self, message: Json) -> None:
        """An error: raise it where it ends the handshake."""
        if self._login is not None:
            # Its text may repeat what it was sent, and errors are logged.
            message = {**message, "message": None}
        error = error_of(message)
        if isinstance(error, AuthFailed):
            raise AuthenticationFailed(str(error))
        final = message.get("fatal") or isinstance(error, GoingAway)
        if final or self.state is State.OPEN or message.get("id") == AUTH_ID:
            raise error

    def _welcomed(self, message: Json) -> list[Step]:
        self.welcome = message
        if message.get("protocol") is None:
            # Of a classic server nothing else is known, whatever these names mean to it.
            client_id = message.get("client_id")
            self.server = ServerInfo(client_id=client_id if isinstance(client_id, str) else "")
            self.state = advance(self.state, Event.IDENTIFIED)
            return []
        if message["protocol"] != _VERSION or message["protocol"] is True:
            raise ProtocolMismatch(f"the server speaks version {named(message['protocol'])}, not {_VERSION}")
        server = self.server = _server(message)
        hello: Json = {"type": "hello", "client": self._name, "heartbeat": True, "id": HELLO_ID}
        if self._compress and server.compression:
            self._asked_for = compression.NAMES
            hello["compression"] = self._asked_for
        if not server.auth:
            self.state = advance(self.state, Event.IDENTIFIED)
            return [hello]
        if self._credentials is None:
            raise AuthenticationFailed(
                f"the server asks who it is ({printable(', '.join(server.auth), 100)})"
            )
        self._login = self._credentials.begin(server.auth, self._secure)
        self.state = advance(self.state, Event.CHALLENGED)
        return [hello, {"type": "auth", **self._login.first, "id": AUTH_ID}]

    def _authenticate(self, kind: object, message: Json, login: Login) -> list[Step]:
        data = message.get("data")
        if kind == "auth_challenge" and isinstance(data, str) and not self._challenged:
            self._challenged = True
            return [lambda: {"type": "auth", **login.answer(data), "id": AUTH_ID}]
        if kind != "auth_result":
            raise ProtocolMismatch(f"the answer to auth is of type {named(kind)}")
        if message.get("status") != "authenticated":
            raise AuthenticationFailed("the server does not know the name, or not with this secret")
        login.finish(data if isinstance(data, str) else None)
        user = message.get("user")
        self.user = user if isinstance(user, str) else None
        self._login = None
        self.state = advance(self.state, Event.AUTHENTICATED)
        return []
