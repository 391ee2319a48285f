"""The messages of docs/protocol.rst, sections 2 to 9, described for those who read a schema of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec import Meta

from tcpjson.core.errors import CODES
from tcpjson.core.messages import (
    Auth,
    AuthChallenge,
    AuthResult,
    Broadcast,
    BroadcastSent,
    Custom,
    Echo,
    EchoResponse,
    Error,
    GetStats,
    HeartbeatPing,
    HeartbeatPong,
    Hello,
    HelloResponse,
    Message,
    Ping,
    Pong,
    Relayed,
    Response,
    ServerStats,
    Text,
    TextEcho,
    Welcome,
)

Notes = Mapping[str, Meta]


def note(description: str, **schema: Any) -> Meta:
    """What is said of a field, beside what its type says."""
    return Meta(description=description, extra_json_schema=schema)


class Described(NamedTuple):
    """A class of messages. `notes` are of its fields; those that are no fields of it may hold anything."""

    kind: type[Message]
    text: str
    notes: Notes = MappingProxyType({})
    #: What the server replies to it.
    answers: tuple[type[Message], ...] = ()


def _time(description: str) -> Meta:
    return note(
        description,
        format="date-time",
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$",
    )


#: Of every request, where its class does not say otherwise.
REQUEST_NOTES = {
    "id": note("The reply carries it, an error too."),
    "timestamp": note("When it was sent; any JSON value."),
}
#: Of everything that the server sends.
ANSWER_NOTES = {
    "id": note("That of the request, if it had one."),
    "timestamp": _time("When the server sent it, in UTC."),
}


_FEATURES = "Names of what goes beyond this protocol."

#: What a client sends. The last two have no `type` of their own.
CLIENT = (
    Described(
        Hello,
        "What the client can do (section 5). Optional, once, before anything but `auth` and `ping`.",
        {
            "client": note('Its name and version: "name/version".'),
            "heartbeat": note("Whether it answers the server's pings."),
            "compression": note("Names of compressions, best first."),
            "features": note(_FEATURES),
        },
        (HelloResponse,),
    ),
    Described(
        Auth,
        "A step of an authentication (section 6): which mechanisms there are says `auth` in `welcome`.",
        {
            "mechanism": note(
                'One of those in `welcome`: "scram-sha-256", "plain", "token".'
                " It may be left out of the answer to a challenge."
            ),
            "username": note('With "plain".'),
            "password": note('With "plain".'),
            "token": note('With "token".'),
            "data": note('With "scram-sha-256": the client\'s message of RFC 5802.'),
        },
        (AuthChallenge, AuthResult),
    ),
    Described(
        Ping,
        "Asks for a sign of life (section 3).",
        {
            "timestamp": note("It comes back as `ping_timestamp`; any JSON value."),
            "client_info": note("Any JSON value."),
        },
        (Pong,),
    ),
    Described(
        HeartbeatPong,
        "Answers a `ping` of the server's, which `hello` asks for (section 8). There is no reply to it.",
        {"ping_timestamp": note("The `timestamp` of the ping.")},
    ),
    Described(
        Echo,
        "Asks for its content (section 3).",
        {"content": note("It comes back unchanged; any JSON value.")},
        (EchoResponse,),
    ),
    Described(
        Broadcast,
        "Sends its content to all other clients (section 3).",
        {"content": note("The others get it unchanged; any JSON value.")},
        (BroadcastSent,),
    ),
    Described(GetStats, "Asks for the statistics of the server (section 3).", {}, (ServerStats,)),
    Described(
        Custom,
        "Any other object (section 3). In strict mode the reply is the error `unknown_type`.",
        {},
        (Response,),
    ),
    Described(
        Text,
        "Plain text: a payload that is JSON, but no object; or that is none, and begins neither as an object"
        " nor as an array (section 3). In strict mode the reply is an error.",
        {},
        (TextEcho,),
    ),
)

#: What a server sends, but for `error`.
SERVER = (
    Described(
        Welcome,
        "The first message of a connection (section 4). A client reads the limits here instead of guessing.",
        {
            "client_id": note("The peer's address as the server sees it; it means nothing to the client."),
            "message": note("For people."),
            "server": note('Its name and version: "name/version".'),
            "max_length": note("The longest payload that is taken, in bytes."),
            "limits": note(
                "What the server enforces, of `max_queue`, `messages_per_second`, `bytes_per_second`,"
                " `frame_timeout`, `write_timeout`, `idle_timeout`, `auth_timeout` and `pre_auth_max_length`;"
                " bytes and seconds."
            ),
            "protocol": note("The version of the protocol.", const=1),
            "heartbeat": note(
                "Seconds of silence after which a client that wants it gets a `ping`, or null."
            ),
            "compression": note("Names of the compressions that `hello` may ask for."),
            "features": note(_FEATURES),
            "auth": note("The mechanisms of `auth`, best first; empty when none is asked for."),
        },
    ),
    Described(
        HelloResponse,
        "What was agreed on (section 5).",
        {
            "compression": note("The one chosen, or null."),
            "heartbeat": note("Whether the server sends pings."),
            "features": note("Those agreed on."),
        },
    ),
    Described(
        AuthChallenge,
        "The server's first message of an authentication by scram-sha-256 (section 6).",
        {"data": note("The server's message of RFC 5802.")},
    ),
    Described(
        AuthResult,
        "The end of an authentication (section 6).",
        {
            "status": note("Whether the client is let in.", enum=["authenticated", "authentication_failed"]),
            "user": note("Who the client is, once it is let in."),
            "data": note('With "scram-sha-256": the server\'s last message of RFC 5802.'),
        },
    ),
    Described(
        Pong,
        "Answers a `ping` (section 3).",
        {
            "ping_timestamp": note("The `timestamp` of the ping, null without one; any JSON value."),
            "pong_timestamp": _time("When it was answered, in UTC."),
            "client_id": note("The peer's address as the server sees it."),
        },
    ),
    Described(
        HeartbeatPing,
        "Asks a client that said `heartbeat` in its `hello` for a `pong` (section 8).",
    ),
    Described(
        EchoResponse,
        "Answers an `echo` (section 3).",
        {
            "content": note("That of the request; any JSON value."),
            "echoed_by": note("Always the same.", const="TCP Server"),
        },
    ),
    Described(
        BroadcastSent,
        "Answers a `broadcast` (section 3).",
        {"recipients": note("How many others on this server it was handed to.", minimum=0)},
    ),
    Described(
        Relayed,
        "A `broadcast` of another client (section 3). It is nobody's reply, and has no `id`.",
        {
            "content": note("What the other client sent; any JSON value."),
            "from_client": note("The other client's `client_id`."),
            "from_user": note("Who the other client is, where it authenticated."),
        },
    ),
    Described(
        ServerStats,
        "Answers `get_stats` (section 3).",
        {
            "connected_clients": note("Those who are served now.", minimum=0),
            "uptime_seconds": note("Since the server started.", minimum=0),
            "total_messages": note("Received since the server started.", minimum=0),
            "server_start_time": _time("When the server started, in UTC."),
            "current_time": _time("The time of the server, in UTC."),
            "details": note("More figures."),
        },
    ),
    Described(
        Response,
        "Answers an object of a type that nobody handles, or of none (section 3).",
        {
            "original_message": note("The whole request.", type="object"),
            "from_server": note("Always true.", const=True),
        },
    ),
    Described(
        TextEcho,
        "Answers plain text (section 3).",
        {
            "original_text": note("The text; of a JSON text that is not an object, its value."),
            "from_server": note("Always true.", const=True),
        },
    ),
)


def error() -> Described:
    """The `error`, with the codes that there are by now: an application may have derived its own."""
    return Described(
        Error,
        "What went wrong (section 9): the answer to any request, or the reason why the connection ends.",
        {
            "code": note(
                "Which error it is. There may be others than these.",
                anyOf=[{"enum": list(CODES)}, {"type": "string"}],
            ),
            "message": note("For people; it may change from release to release."),
            "fatal": note("Whether the connection closes after it."),
            "retry_after": note("Seconds after which to try again, where that helps.", minimum=0),
        },
    )


#: What handlers send besides.
OTHER = Described(Message, "Any other message of the application's: handlers may send what they like.")
#: What comes from a server, whatever its handlers are: `pong` too, before an authentication.
ALWAYS = (Welcome, HelloResponse, AuthChallenge, AuthResult, Pong, HeartbeatPing, Error)
#: What the other clients get of a message.
RELAYED = {Broadcast: Relayed}
