"""Faults of frames, and of the JSON in them."""

from __future__ import annotations

import json
import socket
import time

from tests.faults.arena import MEBIBYTE, PING, Guest, Stage
from tests.faults.catalogue import fault
from tests.harness import encode, frame

#: One more than the limit.
TOO_LARGE = (MEBIBYTE + 1).to_bytes(4, "big")

STRICT = ("--strict",)

# Where a value stands that goes back to whoever sent it, logged in or not.
_ECHOED = b'{"type":"ping","timestamp":%s}'

_NOT_WITHIN = "no program that makes this mistake has logged in before"


def _refused(stage: Stage, *payloads: bytes) -> None:
    """Send payloads of which each gets an error."""
    guest = stage.peer()
    guest.write(b"".join(map(frame, payloads)))
    answers = [guest.receive() for _ in payloads]
    assert {answer["type"] for answer in answers} == {"error"}, answers
    stage.goes_on(guest, answers)


# Lengths.


@fault("oversize length", section="1", expected="too_large", seconds=1)
def oversize(stage: Stage) -> None:
    """A length beyond the limit: memory for what is announced, or work for what stands behind it."""
    guest = stage.peer()
    guest.write(encode(PING) + TOO_LARGE + encode(PING))
    stage.complete()
    assert [answer["type"] for answer in stage.ends(guest)] == ["pong"]


@fault("oversize length, 8 MB on the way", section="1", expected="too_large", seconds=2.5)
def oversize_on_the_way(stage: Stage) -> None:
    """
    What is unread when a server closes makes a reset of the close, which overtakes the error, so that
    nobody learns why.
    """
    for _ in range(stage.many(1, 10)):
        guest = stage.peer()
        stage.complete()
        stage.ended = None
        guest.write(TOO_LARGE + b"x" * 8_000_000)
        stage.ends(guest)


@fault("oversize length, sends for ever", section="9", expected="too_large, unread", seconds=3, slow=True)
def oversize_for_ever(stage: Stage) -> None:
    """It ignores the error and the end of the server's sending (close_notify over TLS), and sends on."""
    guest = stage.peer()
    guest.write(TOO_LARGE)
    stage.complete()
    sent = stage.sends_on(guest, b"x" * (MEBIBYTE // 4), 1 << 40)
    assert sent > 16 * MEBIBYTE, f"no more than {sent} bytes were sent"
    stage.came = f"{stage.reason(guest)}, unread"


@fault("oversize length, never closes", section="9", expected="too_large", seconds=2.6, slow=True)
def oversize_and_stays(stage: Stage) -> None:
    """It takes the error and the end, and keeps its own side open: the connection must end all the same."""
    guest = stage.peer()
    guest.write(TOO_LARGE)
    stage.complete()
    error = guest.receive()
    assert stage.reason(guest) == error["code"]
    stage.closed()
    stage.came = error["code"]


@fault("a long frame of a guest", section="6", expected="too_large", seconds=1, never={"after": "it may"})
def long_frame_of_a_guest(stage: Stage) -> None:
    """Memory for those of whom nothing is known: more than 4,096 bytes."""
    guest = stage.peer()
    guest.write(encode(PING) + (4097).to_bytes(4, "big") + b"x" * 4097)
    stage.complete()
    assert [answer["type"] for answer in stage.ends(guest)] == ["pong"]


@fault("length 0", section="1", expected="bad_frame, goes on")
def empty(stage: Stage) -> None:
    """Frames with nothing in them."""
    _refused(stage, b"", b"", b"")


@fault("another protocol: HTTP", section="1", expected="too_large", seconds=1, never={"after": _NOT_WITHIN})
def http(stage: Stage) -> None:
    """A browser, or a health check, that has the wrong port."""
    guest = stage.peer()
    guest.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n")
    stage.complete()
    stage.ends(guest)


@fault(
    "another protocol: TLS",
    section="1",
    expected="too_large",
    seconds=1,
    never={"tls": "there it is the right one", "after": _NOT_WITHIN},
)
def tls_in_the_clear(stage: Stage) -> None:
    """A client that speaks TLS on a port without it: its hello is a length."""
    guest = stage.peer()
    guest.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506))
    stage.complete()
    stage.ends(guest)


# JSON.


@fault("bytes that are not UTF-8", section="1", expected="bad_json, goes on")
def not_utf_8(stage: Stage) -> None:
    """Relayed, they would break the others' parsers."""
    bad = (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82")
    _refused(stage, b"\xff\xfe", *(_ECHOED % (b'"%s"' % each) for each in bad))


@fault("a byte order mark", section="1", expected="bad_json, goes on")
def byte_order_mark(stage: Stage) -> None:
    """Not JSON, and no parser but some would take it."""
    _refused(stage, b"\xef\xbb\xbf" + json.dumps(PING).encode())


@fault("broken JSON", section="1", expected="bad_json, goes on")
def broken(stage: Stage) -> None:
    """Objects and arrays that are none, and lone surrogates."""
    bad = (b"{", b"[1,", b'{"type":"ping",}', b'{"type":"ping"}}', b'{"type" "ping"}', b" \n{'type':'ping'}")
    _refused(stage, *bad, _ECHOED % rb'"\ud800"', _ECHOED % rb'"\udc00\ud800"')


@fault("NaN and Infinity", section="1", expected="bad_json, goes on")
def not_a_number(stage: Stage) -> None:
    """What some languages take for JSON, and strict parsers do not."""
    _refused(stage, *(_ECHOED % each for each in (b"NaN", b"Infinity", b"-Infinity", b"[1,NaN]")))


@fault("huge numbers", section="1", expected="bad_json, goes on")
def huge_numbers(stage: Stage) -> None:
    """Digits whose value takes quadratic time, or that others cannot hold."""
    bad = (b"9" * 4000, b"1" + b"0" * 400, b"18446744073709551616", b"-9223372036854775809", b"1e999")
    _refused(stage, *(_ECHOED % each for each in bad))


@fault("deep nesting", section="1", expected="bad_json, goes on", growth=5)
def deep(stage: Stage) -> None:
    """A parser that calls itself for each level has no stack left."""
    depths = (65, 1000, 2000) if stage.before else (65, 1000, 100_000, 500_000)
    _refused(stage, *(_ECHOED % (b"[" * depth + b"]" * depth) for depth in depths))


@fault("deep nesting, never closed", section="1", expected="bad_json, goes on", growth=5)
def deep_and_cut(stage: Stage) -> None:
    """The same, as no JSON at all."""
    for size in (4000, *([] if stage.before else [1_000_000])):
        _refused(stage, b"[" * size, b'{"a":' * (size // 5))


# Messages.


@fault("wrong fields", section="2", expected="bad_message, goes on")
def wrong_fields(stage: Stage) -> None:
    """Values where others are expected; the id, too long or of another kind."""
    ids: list[object] = ["x" * 129, 1 << 63, 1.5, [1], True]
    bad: list[dict[str, object]] = [
        {"type": 7},
        {"type": None},
        {"type": "hello", "heartbeat": "yes"},
        {"type": "hello", "compression": [1]},
        {"type": "auth", "token": 7},
        *({"type": "ping", "id": each} for each in ids),
    ]
    _refused(stage, *(json.dumps(each).encode() for each in bad))


@fault("a second hello", section="5", expected="bad_message, goes on")
def second_hello(stage: Stage) -> None:
    """What was agreed must not change while it is in use."""
    guest = stage.peer()
    answer = guest.ask({"type": "hello"})
    assert answer["type"] == "hello_response", answer
    stage.goes_on(guest, [guest.ask({"type": "hello", "heartbeat": True})])


@fault(
    "a late hello",
    section="5",
    expected="bad_message, goes on",
    never={"before": "nothing is served there that it could be late for"},
)
def late_hello(stage: Stage) -> None:
    """The same, behind the first request."""
    guest = stage.peer()
    guest.ask({"type": "echo"})
    stage.goes_on(guest, [guest.ask({"type": "hello"})])


@fault(
    "unknown types where these are refused",
    section="9",
    expected={"before": "unauthenticated, goes on", "after": "unknown_type, goes on"},
    options=STRICT,
)
def unknown_types(stage: Stage) -> None:
    """`--strict`: what nobody handles."""
    _refused(stage, b'{"type":"move"}', b"{}")


@fault(
    "plain text where it is refused",
    section="9",
    expected={"before": "unauthenticated, goes on", "after": "bad_json, bad_message, goes on"},
    options=STRICT,
)
def text_in_strict_mode(stage: Stage) -> None:
    """`--strict`: what is no JSON, or no object."""
    _refused(stage, b"text", b"\x00\x01\x02", b"[1]", b'"text"', b"7")


# Ends.


@fault("a reset within a frame", section="9", expected="connection_lost", seconds=1)
def reset_within_a_frame(stage: Stage) -> None:
    """A process that died, a cable that was pulled and came back."""
    guest = stage.peer()
    guest.write(encode(PING) + (500).to_bytes(4, "big") + b'{"type":"ech')
    guest.receive()
    stage.complete()
    guest.reset()
    stage.came = stage.reason(guest)
    stage.closed()


@fault(
    "half-closed with requests pending",
    section="2",
    expected="client_closed",
    seconds=2,
    never={"tls": "TLS knows no half of a connection"},
)
def half_closed(stage: Stage) -> None:
    """`printf ... | nc`: it sends, closes its sending side, and reads what it gets; all must come."""
    guest = stage.peer()
    count = 500
    guest.send(*(PING | {"id": number} for number in range(count)))
    guest.socket.shutdown(socket.SHUT_WR)
    stage.complete()
    answers = stage.ends(guest)
    assert [answer.get("id") for answer in answers] == [*range(count)], f"{len(answers)} answers"


@fault(
    "half-closed within a frame",
    section="2",
    expected="client_closed",
    seconds=1,
    never={"tls": "TLS knows no half of a connection"},
)
def half_closed_within_a_frame(stage: Stage) -> None:
    """What is cut is dropped, what stood before it is answered, and nothing waits for the rest."""
    guest = stage.peer()
    guest.write(encode(PING) + b"\0\0\0\x20half")
    guest.socket.shutdown(socket.SHUT_WR)
    stage.complete()
    assert [answer["type"] for answer in stage.ends(guest)] == ["pong"]


@fault("gone before the answers", section="9", expected="connection_lost", seconds=2)
def gone_before_the_answers(stage: Stage) -> None:
    """It asks, and resets the connection while the answers are written: one dead peer stops the rest."""
    for _ in range(stage.many(10, 100)):
        guest = stage.peer()
        stage.ended = None
        guest.send(*(PING for _ in range(200)))
        stage.complete()
        guest.reset()
        stage.came = stage.reason(guest)
        stage.closed()


# Many at once.


def _answered(stage: Stage, guest: Guest, count: int) -> None:
    requests = [encode(PING | {"id": number}) for number in range(count)]
    answers = stage.converse(guest, requests)
    assert [answer.get("id") for answer in answers] == [*range(count)], "answers are missing, or out of order"


@fault("10,000 pings in one go", section="10", expected="goes on", growth=4)
def pipelined(stage: Stage) -> None:
    """Answers that wait for one who does not read yet; all must come, in order."""
    guest = stage.peer()
    _answered(stage, guest, 10_000)
    stage.goes_on(guest)


@fault("a flood of frames of one byte", section="design", expected="goes on", growth=4, wait=1.0)
def tiny_frames(stage: Stage) -> None:
    """Much work for few bytes: it must not keep the others waiting."""
    guest = stage.peer()
    codes = set()
    end = time.monotonic() + stage.many(0.4, 3)
    while time.monotonic() < end:
        answers = stage.converse(guest, [frame(b"x")] * 5000)
        codes |= {answer.get("code") for answer in answers}
    assert codes == ({"unauthenticated"} if stage.before else {None}), codes
    stage.goes_on(guest)


@fault("a flood of broken frames", section="design", expected="bad_json, goes on", growth=4, wait=1.0)
def broken_frames(stage: Stage) -> None:
    """Errors cost more than answers."""
    guest = stage.peer()
    answers = []
    end = time.monotonic() + stage.many(0.4, 3)
    while time.monotonic() < end:
        answers = stage.converse(guest, [frame(b'{"type":"ping"')] * 2000)
    stage.goes_on(guest, answers)


@fault(
    "a flood of get_stats",
    section="design",
    expected={"before": "unauthenticated, goes on", "after": "goes on"},
    growth=4,
)
def stats_flood(stage: Stage) -> None:
    """The request that costs most to answer."""
    guest = stage.peer()
    answers = []
    for _ in range(stage.many(1, 5)):
        answers = stage.converse(guest, [encode({"type": "get_stats"})] * 1000)
    stage.goes_on(guest, answers)


@fault(
    "the longest messages",
    section="1",
    expected="goes on",
    growth=8,
    never={"before": "guests may send 4,096 bytes"},
)
def longest(stage: Stage) -> None:
    """As long as they may be, one behind the other, and each comes back."""
    guest = stage.peer()
    request = frame(b'{"type":"echo","content":"%s"}' % (b"x" * (MEBIBYTE - 28 - 20)))
    answers = stage.converse(guest, [request] * stage.many(10, 100))
    assert {len(answer["content"]) for answer in answers} == {MEBIBYTE - 48}
    stage.goes_on(guest)


@fault(
    "a flood of broadcasts",
    section="design",
    expected={"before": "unauthenticated, goes on", "after": "goes on"},
    growth=8,
    wait=2.0,
)
def broadcast_flood(stage: Stage) -> None:
    """One who has much to say: each word goes to all the others."""
    guest = stage.peer()
    request = encode({"type": "broadcast", "content": "x" * 100})
    answers = stage.converse(guest, [request] * stage.many(2000, 5000))
    stage.goes_on(guest, answers)
