"""The fan-out over NATS: PUB and SUB of its text protocol (https://docs.nats.io/reference/reference-protocols/nats-protocol)."""

from __future__ import annotations

#: A publication is answered only where "verbose" is asked for, which nobody does who wants speed.
ACKNOWLEDGES = False

_CONNECT = (
    b'CONNECT {"verbose":false,"pedantic":false,"tls_required":false,"lang":"python","version":"0"}\r\n'
)
_MESSAGE = b"MSG bench 1 "
# What the server says beside deliveries, and needs no answer within a minute.
_ASIDE = (b"PING", b"PONG", b"+OK", b"INFO ")
# Bytes of a line; NATS itself allows 4096 of a client's, and an INFO may be longer.
_LINE = 64 * 1024
# Digits of a length; a message has 64 MB at most.
_DIGITS = 9
# Characters of what is no message that are shown.
_SHOWN = 60


def hello_receiver() -> bytes:
    """A subscription, and a question behind it: the answer says that it is there."""
    return _CONNECT + b"SUB bench 1\r\nPING\r\n"


def hello_sender() -> bytes:
    """A question, so that it is known when the server serves it."""
    return _CONNECT + b"PING\r\n"


def ready(data: bytes, sender: bool) -> int | None:
    """As `tcpjson.bench.driver.ready`: the question is answered."""
    at = 0
    while (found := _line(data, at)) is not None:
        line, at = found
        if line == b"PONG":
            return at
        if not line.startswith(_ASIDE):
            raise _unexpected(line)
    return None


def publish(content: bytes) -> bytes:
    """As `tcpjson.bench.driver.publish`."""
    return b"PUB bench %d\r\n%b\r\n" % (len(content), content)


def delivered(data: bytes, at: int) -> tuple[bytes | None, int] | None:
    """As `tcpjson.bench.driver.delivered`."""
    found = _line(data, at)
    if found is None:
        return None
    line, begin = found
    if not line.startswith(_MESSAGE):
        if line.startswith(_ASIDE):
            return None, begin
        raise _unexpected(line)
    digits = line[len(_MESSAGE) :]
    if not digits.isdigit() or len(digits) > _DIGITS:
        raise _unexpected(line)
    end = begin + int(digits)
    if len(data) < end + 2:
        return None
    if data[end : end + 2] != b"\r\n":
        raise _unexpected(data[at:])
    return data[begin:end], end + 2


def acknowledged(data: bytes, at: int) -> tuple[int | None, int] | None:
    """Only what the server says to all its clients: nothing is acknowledged."""
    found = _line(data, at)
    if found is None:
        return None
    line, end = found
    if not line.startswith(_ASIDE):
        raise _unexpected(line)
    return None, end


def _line(data: bytes, at: int) -> tuple[bytes, int] | None:
    """The line that begins there, and where the next begins; None while it is not whole."""
    end = data.find(b"\r\n", at, at + _LINE)
    if end >= 0:
        return bytes(data[at:end]), end + 2
    if len(data) - at >= _LINE:
        raise _unexpected(data[at:])
    return None


def _unexpected(data: bytes) -> ValueError:
    return ValueError(f"NATS is not expected to say {bytes(data[:_SHOWN])!r}")
