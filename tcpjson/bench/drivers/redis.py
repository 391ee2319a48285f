"""The fan-out over Redis: PUBLISH and SUBSCRIBE in RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""

from __future__ import annotations

#: PUBLISH is answered with the number of its receivers.
ACKNOWLEDGES = True

_MESSAGE = b"*3\r\n$7\r\nmessage\r\n$5\r\nbench\r\n$"
_SUBSCRIBED = b"*3\r\n$9\r\nsubscribe\r\n$5\r\nbench\r\n:1\r\n"
_PONG = b"+PONG\r\n"
# Digits of a length; the longest bulk string of Redis has 512 MB.
_DIGITS = 9
# Characters of what is no message that are shown.
_SHOWN = 60


def hello_receiver() -> bytes:
    """A subscription."""
    return b"*2\r\n$9\r\nSUBSCRIBE\r\n$5\r\nbench\r\n"


def hello_sender() -> bytes:
    """A question, so that it is known when the server serves it."""
    return b"*1\r\n$4\r\nPING\r\n"


def ready(data: bytes, sender: bool) -> int | None:
    """As `tcpjson.bench.driver.ready`: the subscription, or the question, is answered."""
    wanted = _PONG if sender else _SUBSCRIBED
    if data.startswith(wanted):
        return len(wanted)
    if wanted.startswith(data):
        return None
    raise _unexpected(data, 0)


def publish(content: bytes) -> bytes:
    """As `tcpjson.bench.driver.publish`."""
    return b"*3\r\n$7\r\nPUBLISH\r\n$5\r\nbench\r\n$%d\r\n%b\r\n" % (len(content), content)


def delivered(data: bytes, at: int) -> tuple[bytes | None, int] | None:
    """As `tcpjson.bench.driver.delivered`."""
    begin = at + len(_MESSAGE)
    if not data.startswith(_MESSAGE, at):
        if _MESSAGE.startswith(data[at:begin]):
            return None
        raise _unexpected(data, at)
    found = _number(data, begin)
    if found is None:
        return None
    length, begin = found
    end = begin + length
    if len(data) < end + 2:
        return None
    if data[end : end + 2] != b"\r\n":
        raise _unexpected(data, at)
    return data[begin:end], end + 2


def acknowledged(data: bytes, at: int) -> tuple[int | None, int] | None:
    """As `tcpjson.bench.driver.acknowledged`."""
    if at >= len(data):
        return None
    if data[at] != ord(":"):
        raise _unexpected(data, at)
    return _number(data, at + 1)


def _number(data: bytes, at: int) -> tuple[int, int] | None:
    """The number up to the end of a line, and where the next begins; None while it is not whole."""
    end = data.find(b"\r\n", at, at + _DIGITS + 2)
    digits = data[at:end] if end >= 0 else data[at : at + _DIGITS + 2].removesuffix(b"\r")
    # Of a line that is not whole, even the first digit can be missing.
    if (digits and not digits.isdigit()) or (end >= 0 and not digits) or len(digits) > _DIGITS:
        raise _unexpected(data, at)
    return None if end < 0 else (int(digits), end + 2)


def _unexpected(data: bytes, at: int) -> ValueError:
    return ValueError(f"Redis is not expected to say {bytes(data[at : at + _SHOWN])!r}")
