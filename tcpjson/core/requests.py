"""What a client sends: payloads, with the id that the reply is to carry (docs/protocol.rst, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from tcpjson.core.encoding import check_numbers, encode
from tcpjson.core.messages import Message

_check_grammar = msgspec.json.Decoder(Raw).decode


def encode_message(message: Message | Mapping[str, Any]) -> tuple[str, bytes]:
    """
    The type of a message, and its payload.

    Raises:
        TypeError: it is no message with a type, or holds what msgspec cannot write.
        ValueError: it holds a number or a text that JSON has not, or nests too deep.
    """
    # Nearly all are dicts; to ask whether something is another mapping takes long.
    if type(message) is dict:
        kind = message.get("type")
    elif isinstance(message, Message):
        config = message.__struct_config__
        kind = None if config.array_like else config.tag
    elif isinstance(message, Mapping):
        message = dict(message)
        kind = message.get("type")
    else:
        raise TypeError(f"a {type(message).__name__} is no message")
    if not isinstance(kind, str):
        raise TypeError("a message has a type, a string")
    try:
        payload = encode(message)
        if payload.find(b"null") >= 0:
            check_numbers(message)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return kind, payload


def encode_request(message: Message | Mapping[str, Any]) -> tuple[str, bytes]:
    """
    The type of a message, and its payload without an `id`.

    Raises:
        TypeError, ValueError: as `encode_message`, and when it has an `id`.
    """
    if ("id" in message) if type(message) is dict else (_id(message) is not UNSET):
        raise ValueError("the id of a request is the client's to choose")
    return encode_message(message)


def encode_unasked(message: Message | Mapping[str, Any]) -> tuple[str, bytes]:
    """
    The type of a message that nobody waits for the reply to, and its payload. An `id` is the caller's own.

    Raises:
        TypeError, ValueError: as `encode_message`, and for an `id` below 0, which could be a request's.
    """
    kind, payload = encode_message(message)
    own = _id(message)
    if isinstance(own, int) and own < 0:
        raise ValueError("an id of your own must be a text, or a number from 0 up")
    return kind, payload


def _id(message: object) -> object:
    if isinstance(message, Message):
        return message.id
    return message.get("id", UNSET) if isinstance(message, Mapping) else UNSET


def text_payload(text: str) -> bytes:
    """
    The payload that is plain text to every server (docs/protocol.rst, section 3): the text as it is, unless
    it could be taken for JSON. Raises `ValueError` for text that is not Unicode.
    """
    payload = text.encode()
    if text and text[0] != "\ufeff" and payload.lstrip(b" \t\n\r")[:1] not in (b"{", b"["):
        try:
            _check_grammar(payload)
        except msgspec.DecodeError:
            return payload
    # A server takes a JSON text that is no object for the text that it is.
    return msgspec.json.encode(text)


def with_id(payload: bytes, key: int) -> bytes:
    """The payload of a message that has no `id`, with this one."""
    return b'%b,"id":%d}' % (payload[:-1], key)


def with_timestamp(payload: bytes, timestamp: str) -> bytes:
    """The payload of a message with a `timestamp`, which a classic server may look for."""
    return b'%b,"timestamp":"%b"}' % (payload[:-1], timestamp.encode())
