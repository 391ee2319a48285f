"""The messages themselves in the log: `--log-messages`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Raw
from twisted.logger import Logger

from tcpjson.core.messages import Auth, Custom, Message, Refused, Text
from tcpjson.redaction import HIDDEN, shown

#: Bytes of a payload that are shown.
MAX_CONTENTS = 1024

# Classes that do not say which type a message has.
_UNTYPED = (Custom, Text, Refused)
# Characters of a type or an id.
_LONGEST_NAME = 128
# The name of what may be a secret, in JSON, where an escaped letter may be one of it; and what may stand for
# one where it is not.
_SECRET = re.compile(
    rb'(?:pass(?:wor|phrase|")|pwd|token|secret|credential)[^":]*+"?\s*+:|\\u00[4-7]', re.IGNORECASE
)
_IN_TEXT = re.compile(rb"auth|pass|pwd|token|secret|credential|\\u00", re.IGNORECASE)
# Where the server sends a text back.
_TEXT_IN_JSON = b'"original_text"'


class _Head(msgspec.Struct, gc=False):
    type: str | None = None
    id: Raw = Raw(b"null")


_decode_head = msgspec.json.Decoder(_Head).decode


class Peer(Protocol):
    """What is looked at of a `tcpjson.connection.Connection`."""

    client_id: str
    user: str | None

    @property
    def factory(self) -> Any: ...


class MessageLog:
    """
    Logs messages, as events `message`: `direction` (`in` or `out`), `client`, `user`, `type`, `size` (bytes
    of the payload), `id`, and `contents`, 1,024 bytes of it. Contents are hidden where there is a password, a
    token or what proves them, or there may be: so is all that is said before a login.

    Args:
        log: where to.
        contents: whether to show them.
        every: of so many messages one is logged, the first to begin with; of each direction.
    """

    def __init__(self, log: Logger, *, contents: bool = False, every: int = 1) -> None:
        self._log = log
        self._contents = contents
        self._every = every
        # How many messages go by before the next is logged.
        self._in = self._out = 0

    def received(
        self, connection: Peer, payloads: Sequence[bytes], messages: Sequence[Message], handled: int
    ) -> None:
        """
        A read was handled.

        Args:
            connection: whose it was.
            payloads: of the frames.
            messages: what they were decoded to.
            handled: how many of them, from the first; the others will come again.
        """
        # Who is logged in now may not have been when it sent this.
        hidden = self._contents and (
            _is_guest(connection) or any(type(message) is Auth for message in messages[:handled])
        )
        for index in range(self._in, handled, self._every):
            message = messages[index]
            payload = payloads[index]
            text = isinstance(message, (Text, Refused))
            if isinstance(message, _UNTYPED):
                kind, _ = _head(payload)
            else:
                kind = str(message.__struct_config__.tag)
            self._note("in", connection, kind, message.id, payload, hidden, text)
        self._in = (self._in - handled) % self._every

    def sent(self, connection: Peer, payloads: Sequence[bytes]) -> None:
        """Payloads of ours are on their way to a client."""
        for payload in payloads[self._out :: self._every]:
            kind, request_id = _head(payload)
            text = _TEXT_IN_JSON in payload[:MAX_CONTENTS]
            self._note("out", connection, kind, request_id, payload, _is_guest(connection), text)
        self._out = (self._out - len(payloads)) % self._every

    def _note(
        self,
        direction: str,
        connection: Peer,
        kind: str | None,
        request_id: object,
        payload: bytes,
        hidden: bool,
        text: bool,
    ) -> None:
        # The observers escape what they write.
        fields: dict[str, object] = {"type": kind and kind[:_LONGEST_NAME], "size": len(payload)}
        if isinstance(request_id, (str, int)):
            fields["id"] = request_id if isinstance(request_id, int) else request_id[:_LONGEST_NAME]
        if self._contents:
            fields["contents"] = HIDDEN if hidden else _contents(payload, text)
        shown_of_user = ("user",) if connection.user is not None else ()
        about = "".join(f" {name}={{{name}!r}}" for name in (*shown_of_user, *fields))
        self._log.info(
            "message {direction} {client}" + about,
            event="message",
            client=connection.client_id,
            user=connection.user,
            direction=direction,
            **fields,
        )


def _is_guest(connection: Peer) -> bool:
    """Whether it is still to say who it is."""
    return connection.user is None and connection.factory.authenticator is not None


def _head(payload: bytes) -> tuple[str | None, object]:
    """The type and the id of a message; None for what it does not have, or what is none."""
    try:
        head = _decode_head(payload)
        return head.type, msgspec.json.decode(head.id)
    except (ValueError, RecursionError):
        return None, None


def _contents(payload: bytes, text: bool) -> str:
    """What may be shown of a payload; `text`: it is no message, or has in it what was none."""
    start = payload[:MAX_CONTENTS]
    pattern = _IN_TEXT if text else _SECRET
    if pattern.search(start) or shown(payload) is not payload:
        return HIDDEN
    return start.decode(errors="backslashreplace")[:MAX_CONTENTS]
