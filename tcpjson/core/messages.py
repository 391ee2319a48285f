"""The messages of docs/protocol.rst, sections 2 to 4 and 9, and the base class of a user's own."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from tcpjson.core.errors import ProtocolError

#: What a request may carry as `id` (section 2).
RequestId = Annotated[str, Meta(max_length=128)] | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class Message(Struct, tag_field="type", kw_only=True):
    """
    A message: subclass it with `tag="the type"` and typed fields.

    A field typed `msgspec.Raw` holds its JSON text unread. All of a message that an application handles was
    checked to be fit for any client. What `__post_init__` raises as `ValueError` is told as `bad_message`.
    """

    #: Set by the client that wants its reply to carry it; the server sets it on the reply.
    id: RequestId | UnsetType | None = UNSET


# Requests. `gc=False`: they hold no containers, so they can be part of no cycle.


class Ping(Message, tag="ping", gc=False):
    timestamp: Raw = Raw(b"null")


class Echo(Message, tag="echo", gc=False):
    content: Raw = Raw(b'""')


class Broadcast(Message, tag="broadcast", gc=False):
    content: Raw = Raw(b'""')


class GetStats(Message, tag="get_stats", gc=False):
    pass


class Hello(Message, tag="hello"):
    """What a client can do (section 5)."""

    client: str = ""
    heartbeat: bool = False
    compression: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


class Auth(Message, tag="auth", gc=False):
    """A step of an authentication (section 6). It is never printed: it holds what must stay secret."""

    #: It may be left out of the answer to a challenge.
    mechanism: str | UnsetType = UNSET
    username: str | UnsetType = UNSET
    password: str | UnsetType = UNSET
    token: str | UnsetType = UNSET
    data: str | UnsetType = UNSET

    def __repr__(self) -> str:
        return "Auth(...)"


class HeartbeatPong(Message, tag="pong", gc=False):
    """The answer to a ping of ours (section 8)."""


class Custom(Message, tag=False, gc=False):
    """A message of a type that nobody handles, or of none: the whole of it."""

    original: Raw


class Text(Message, tag=False, gc=False):
    """A payload that is no message: a text, or the JSON text of a value that is not an object."""

    original: Raw | str


class Refused(Message, tag=False):
    """A payload that is refused, and why."""

    error: ProtocolError
    #: What an application's class raised, if it failed on the payload.
    fault: BaseException | None = None


# Answers. A field that is relayed unread comes first: `tcpjson.core.encoding` looks at where it begins.


class Answer(Message, kw_only=True, gc=False):
    """What the server sends; it stamps it."""

    timestamp: str | UnsetType = UNSET


class Welcome(Answer, tag="welcome"):
    client_id: str
    message: str
    server: str
    max_length: int
    limits: dict[str, float]
    protocol: int = 1
    heartbeat: float | None = None
    compression: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    auth: tuple[str, ...] = ()


class HelloResponse(Answer, tag="hello_response"):
    compression: str | None = None
    heartbeat: bool = False
    features: tuple[str, ...] = ()


class AuthChallenge(Answer, tag="auth_challenge", gc=False):
    data: str


class AuthResult(Answer, tag="auth_result", gc=False):
    status: str
    user: str | UnsetType = UNSET
    data: str | UnsetType = UNSET


class HeartbeatPing(Answer, tag="ping", gc=False):
    """The ping of section 8."""


class Pong(Answer, tag="pong", gc=False):
    ping_timestamp: Raw
    pong_timestamp: str
    client_id: str


class EchoResponse(Answer, tag="echo_response", gc=False):
    content: Raw
    echoed_by: str = "TCP Server"


class BroadcastSent(Answer, tag="broadcast_sent", gc=False):
    recipients: int


class Relayed(Answer, tag="broadcast", gc=False):
    """What the others get of a broadcast."""

    content: Raw
    from_client: str
    from_user: str | UnsetType = UNSET


class ServerStats(Answer, tag="server_stats"):
    connected_clients: int
    uptime_seconds: int
    total_messages: int
    server_start_time: str
    current_time: str
    details: dict[str, object]


class Response(Answer, tag="response", gc=False):
    original_message: Raw
    from_server: bool = True


class TextEcho(Answer, tag="echo", gc=False):
    original_text: Raw | str
    from_server: bool = True


class Error(Answer, tag="error", gc=False):
    code: str
    message: str
    fatal: bool
    retry_after: float | UnsetType = UNSET
