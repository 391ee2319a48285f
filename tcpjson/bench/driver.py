"""How the fan-out speaks to a server: the functions here, for our own protocol.

A module with the same functions lets the same work run against a broker that speaks another one; it is named
by `Peer.driver`. All of them are pure: bytes in, bytes out.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tcpjson.bench.wire import frame, take

_PLACE = b'"CONTENT"'


def hello_receiver() -> bytes:
    """What a receiver sends when it has connected (a subscription, say); empty: nothing."""
    return b""


def hello_sender() -> bytes:
    """What the sender sends when it has connected; empty: nothing."""
    return b""


def ready(data: bytes, sender: bool) -> int | None:
    """
    Whether a connection is ready for the work.

    Args:
        data: all that has come on it so far.
        sender: it is the one that sends.

    Returns:
        How many of these bytes belong to the greeting, None: more must come.

    Raises:
        ValueError: the server is another one than it should be; the message says in words what came.
    """
    found = take(data, 0)
    if found is None:
        return None
    payload, end = found
    message = _decode(payload)
    if message.get("type") == "error":
        raise ValueError(f"the server said {message.get('code')}: {message.get('message')}")
    if message.get("type") != "welcome":
        raise ValueError(f"no welcome, but {payload[:60]!r}")
    return end


def publish(content: bytes) -> bytes:
    """
    What the sender sends to have a message go to all receivers.

    Args:
        content: bytes of ASCII letters and digits; all messages of a run have as many.
    """
    return frame(b'{"type":"broadcast","content":"%b"}' % content)


def delivered(data: bytes, at: int) -> tuple[bytes | None, int] | None:
    """
    The next message of what a receiver got.

    Args:
        data: a piece of it.
        at: where in `data` the message begins.

    Returns:
        The content, None where it is no delivery (a ping of the server's, say), and where the message ends;
        None: it is not whole yet.

    Raises:
        ValueError: it is none at all.
    """
    found = take(data, at)
    if found is None:
        return None
    payload, end = found
    message = _decode(payload)
    kind = message.get("type")
    if kind != "broadcast":
        if kind == "error":
            raise ValueError(f"the server said {message.get('code')}: {message.get('message')}")
        return None, end
    content = message.get("content")
    return content.encode() if isinstance(content, str) else b"", end


def acknowledged(data: bytes, at: int) -> tuple[int | None, int] | None:
    """
    The next message of what the sender got, as `delivered`: how many receivers a message went to, None where
    it does not say that. A driver whose server acknowledges nothing has `ACKNOWLEDGES = False`, and this is
    not called.
    """
    found = take(data, at)
    if found is None:
        return None
    payload, end = found
    message = _decode(payload)
    kind = message.get("type")
    if kind != "broadcast_sent":
        if kind == "error":
            raise ValueError(f"the server said {message.get('code')}: {message.get('message')}")
        return None, end
    recipients = message.get("recipients")
    return (recipients if isinstance(recipients, int) else -1), end


#: Whether the sender gets a message back for each that it sends.
ACKNOWLEDGES = True


def _decode(payload: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(payload, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"no message, but {payload[:60]!r}") from None
