"""Messages to payloads that any strict parser takes (docs/protocol.rst, section 1)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import UNSET, Raw
from msgspec.structs import force_setattr

from tcpjson.core.errors import BadJSON
from tcpjson.core.messages import (
    Answer,
    BroadcastSent,
    EchoResponse,
    Error,
    Message,
    Pong,
    Relayed,
    Response,
    ServerStats,
    TextEcho,
    Welcome,
)
from tcpjson.core.values import MAX_DEPTH, check_value


def _plain(value: object) -> object:
    """What msgspec does not know: a subclass of int is written as the number it is."""
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


encode = msgspec.json.Encoder(enc_hook=_plain).encode


def check_numbers(message: object) -> None:
    """
    Check that a message holds no number that JSON has not: NaN or an infinity. They are written as null;
    where there is none in its payload, there is nothing to check. Raises `ValueError`.
    """
    # What is no builtin type is no such number.
    plain = msgspec.to_builtins(message, enc_hook=lambda value: None)
    json.dumps(plain, allow_nan=False, skipkeys=True)


_check_grammar = msgspec.json.Decoder(Raw).decode

QUOTE = ord('"')

# The field of an answer that holds JSON text of a client, unread. It is the first, so that its place in
# the payload is known.
_RAW_FIELDS: dict[type[Answer], str] = {
    Pong: "ping_timestamp",
    EchoResponse: "content",
    Relayed: "content",
    Response: "original_message",
    TextEcho: "original_text",
}

#: The answers that need no check but one: if the byte at this place of the payload is no quote, there is a
#: client's value that is no string, and `check_raw` looks at it. (At 1 there is always a quote.)
RAW_OFFSETS: dict[type[Message], int] = {
    **{kind: len(f'{{"type":"{kind.__struct_config__.tag}","{name}":') for kind, name in _RAW_FIELDS.items()},
    **dict.fromkeys((BroadcastSent, Error, ServerStats, Welcome), 1),
}


def check_raw(answer: Message) -> None:
    """Check the client's value in an answer. Raises `BadJSON` when it must not be relayed."""
    value = getattr(answer, _RAW_FIELDS[type(answer)])  # type: ignore[index]  # RAW_OFFSETS led here
    check_value(bytes(value))


def encode_message(message: Message | dict[str, Any], timestamp: str, request_id: Any = UNSET) -> bytes:
    """
    The payload of any message, stamped with `timestamp` unless it has one, with the `id` of the request
    that it answers and no other.

    Raises:
        TypeError, ValueError, RecursionError: it cannot be written as JSON that any parser takes.
        BadJSON: it holds a client's value that must not be relayed.
    """
    if request_id is None:
        request_id = UNSET
    if isinstance(message, dict):
        if not isinstance(message.get("type"), str):
            raise TypeError("a message has a type, a string")
        fields = {"timestamp": timestamp, **message}
        if request_id is not UNSET:
            fields["id"] = request_id
        payload = encode(fields)
        _check_own(fields, payload)
        return payload
    if not isinstance(message, Message):
        raise TypeError(f"a message is a dict with a type, or a Message, not a {type(message).__name__}")
    # The message may be a request that is sent on, or an answer given again and again, frozen or not.
    message_id = message.id
    force_setattr(message, "id", request_id)
    try:
        if (offset := RAW_OFFSETS.get(type(message))) is None:
            return _encode_stamped(message, timestamp)
        assert isinstance(message, Answer)
        message.timestamp = timestamp
        payload = encode(message)
        if payload[offset] != QUOTE:
            check_raw(message)
        return payload
    finally:
        force_setattr(message, "id", message_id)


def _encode_stamped(message: Message, timestamp: str) -> bytes:
    config = message.__struct_config__
    if config.tag is None or config.array_like:
        raise TypeError(f"{type(message).__name__} is no object with a type: give its class a tag")
    payload = encode(message)
    if getattr(message, "timestamp", UNSET) is UNSET:
        payload = b'%b,"timestamp":"%b"}' % (payload[:-1], timestamp.encode())
    _check_own(message, payload)
    return payload


def _check_own(message: object, payload: bytes) -> None:
    """Check what the application made: that it is wrong is not for the client to know."""
    try:
        # It may hold a Raw of its own, which nobody has looked at.
        payload.decode()
        _check_grammar(payload)
        check_value(payload, MAX_DEPTH + 1)
    except (BadJSON, msgspec.DecodeError) as error:
        raise ValueError(f"cannot be sent: {error}") from None
    if payload.find(b"null") >= 0:
        check_numbers(message)
