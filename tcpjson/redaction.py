"""What of a payload may be shown: passwords, tokens and what proves them may not."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Raw

from tcpjson.core.handshake import AUTH_ID

#: Stands for what is not shown.
HIDDEN = "(hidden)"

# What is shown of an `auth`; of the answers to it, which may repeat what it said, these fields are.
_SHOWN = frozenset({"type", "mechanism", "id", "username"})
_SHOWN_OF_ANSWERS = frozenset({"type", "id", "status", "user", "code", "fatal", "retry_after", "timestamp"})
_ANSWERS = ("auth_challenge", "auth_result")
_AUTH_ID = str(AUTH_ID).encode()

_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.encode


def _without_secrets(payload: bytes, look_inside: bool = True) -> bytes:
    """
    The payload, or what is left of it when it holds secrets.

    Raises:
        ValueError, RecursionError: it is no JSON object, or one that cannot be understood.
    """
    fields = _decode_fields(payload)
    kind = msgspec.json.decode(fields.get("type", b"null"))
    changed: dict[str, Any] = {}
    if kind == "auth":
        changed = dict.fromkeys(fields.keys() - _SHOWN, HIDDEN)
    elif kind in _ANSWERS or bytes(fields.get("id", b"")) == _AUTH_ID:
        changed = dict.fromkeys(fields.keys() - _SHOWN_OF_ANSWERS, HIDDEN)
    elif look_inside and "original_message" in fields:
        # A server that does not know what `auth` is sends all of it back.
        with suppress(ValueError):
            original = _without_secrets(bytes(fields["original_message"]), False)
            changed = {"original_message": Raw(original)}
    return _encode({**fields, **changed}) if changed else payload


def shown(payload: bytes) -> bytes:
    """What of a payload may be shown: itself, or what is left of it without the secrets in it."""
    try:
        return _without_secrets(payload)
    except (ValueError, RecursionError):
        # It may have been meant as one.
        broken = b'"auth' in payload and payload.lstrip().startswith(b"{")
        return HIDDEN.encode() if broken else payload
