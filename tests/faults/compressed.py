"""Faults of compressed frames (section 7)."""

from __future__ import annotations

import functools
import zlib

from tests.faults.arena import MEBIBYTE, PING, Guest, Stage
from tests.faults.catalogue import fault
from tests.harness import encode

_BIT = 1 << 31
_GUEST = 4096


def _deflated(data: bytes) -> bytes:
    """The frame of data that are a stream already."""
    return (_BIT | len(data)).to_bytes(4, "big") + data


def _agreed(stage: Stage) -> Guest:
    """A peer that may send compressed frames."""
    guest = stage.peer(login=False)
    answer = guest.ask({"type": "hello", "compression": ["zlib"]})
    assert answer["compression"] == "zlib", answer
    if not stage.before:
        stage.log_in(guest)
    return guest


def _limit(stage: Stage) -> int:
    return _GUEST if stage.before else MEBIBYTE


def _padded(size: int) -> bytes:
    """A ping so long."""
    ping = b'{"type":"ping"}'
    return b" " * (size - len(ping)) + ping


@functools.cache
def _bomb(mebibytes: int) -> bytes:
    """A stream of so many MiB of spaces."""
    stream = zlib.compressobj(9)
    return b"".join([*(stream.compress(b" " * MEBIBYTE) for _ in range(mebibytes)), stream.flush()])


def _each_ends(stage: Stage, *frames: bytes) -> None:
    """Each of the frames, behind a ping, ends a connection in the same way."""
    codes = set()
    for data in frames:
        guest = _agreed(stage)
        stage.ended = None
        stage.complete()
        guest.write(encode(PING) + data + encode(PING))
        assert [answer["type"] for answer in stage.ends(guest)] == ["pong"]
        codes.add(stage.came)
    assert len(codes) == 1, codes


@fault("a bomb", section="7", expected="too_large", seconds=1, growth=3)
def bomb(stage: Stage) -> None:
    """What is 1,000 times as long when inflated: 512 MiB, or of a guest, 3 MiB."""
    stream = _bomb(3 if stage.before else stage.many(64, 512))
    assert len(stream) < _limit(stage)
    _each_ends(stage, _deflated(stream))


@fault("inflated, one byte more than the limit", section="7", expected="too_large", seconds=1)
def one_byte_more(stage: Stage) -> None:
    """The limit holds for what was inflated too; of a guest, 4,096 bytes. One byte less passes."""
    guest = _agreed(stage)
    guest.write(_deflated(zlib.compress(_padded(_limit(stage)))))
    assert guest.receive()["type"] == "pong"
    _each_ends(stage, _deflated(zlib.compress(_padded(_limit(stage) + 1))))


@fault("a compressed frame, oversize as it is", section="7", expected="too_large", seconds=1)
def oversize_compressed(stage: Stage) -> None:
    """The length with bit 31 is bounded as any."""
    _each_ends(stage, (_BIT | (_limit(stage) + 1)).to_bytes(4, "big"), b"\xff\xff\xff\xff")


@fault("broken streams", section="7", expected="bad_frame", seconds=1)
def broken_streams(stage: Stage) -> None:
    """Cut, with a tail, two in one, empty, of nothing, with a preset dictionary, garbage, a wrong sum."""
    good = zlib.compress(b'{"type":"ping"}')
    preset = zlib.compressobj(zdict=b'{"type":"ping"}')
    with_dictionary = preset.compress(b'{"type":"ping"}') + preset.flush()
    raw = zlib.compressobj(wbits=-15)
    without_head = raw.compress(b'{"type":"ping"}') + raw.flush()
    streams = (good[:-1], good[:5], good + b"x", good + good, b"", zlib.compress(b""), with_dictionary)
    others = (without_head, b"x" * 50, b'{"type":"ping"}', good[:-1] + bytes([good[-1] ^ 1]))
    _each_ends(stage, *map(_deflated, (*streams, *others)))


@fault("compressed without agreement", section="7", expected="too_large", seconds=1)
def without_agreement(stage: Stage) -> None:
    """Bit 31 is part of the length then."""
    guest = stage.peer()
    guest.write(encode(PING) + _deflated(zlib.compress(b'{"type":"ping"}')))
    stage.complete()
    assert [answer["type"] for answer in stage.ends(guest)] == ["pong"]


@fault("a flood of frames that inflate to the limit", section="design", expected="goes on", growth=6)
def inflating_flood(stage: Stage) -> None:
    """A kilobyte costs what a megabyte costs: it must not keep the others waiting."""
    guest = _agreed(stage)
    request = _deflated(zlib.compress(_padded(_limit(stage)), 9))
    answers = stage.converse(guest, [request] * stage.many(200, 2000))
    assert {answer["type"] for answer in answers} == {"pong"}
    stage.goes_on(guest)


@fault("gone in the midst of long frames", section="9", expected="connection_lost", seconds=5)
def gone_within_long_frames(stage: Stage) -> None:
    """It resets while much of it waits: what is inside its messages must not be taken for frames."""
    inner = encode({"type": "broadcast", "content": "never sent"})
    reasons = set()
    for number in range(stage.many(30, 60)):
        guest = _agreed(stage)
        text = b"x" * (number % len(inner) + 1) + inner * 60
        stage.ended = None
        guest.write_what_fits((len(text).to_bytes(4, "big") + text) * 400)
        stage.complete()
        guest.reset()
        reasons.add(stage.reason(guest))
        stage.closed()
    stage.came = ", ".join(sorted(reasons))
