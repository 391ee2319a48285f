"""Section 1: frames, however they come, and what a server does with those that are wrong."""

from __future__ import annotations

import json
import random
import time

from tcpjson.conform.checks import check
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Ended, Failed
from tcpjson.conform.wire import Peer, encode, shown
from tcpjson.vectors import Matcher

# Frames that are sent in one write.
_MANY = 500
# Bytes of the longest message that is sent without being asked for.
_LONG = 16 * 1024 * 1024
# Payloads that are broken by chance, always the same ones.
_BROKEN = 300
# Bytes of a frame that never comes whole.
_BEGUN = 4000
# Seconds by which a deadline may be late.
_LATE = 3.0

_HOSTILE = (
    b"NaN",
    b"-Infinity",
    b"[1e400]",
    b'"\\ud800"',
    b'"\xff"',
    b"01",
    b"18446744073709551616",
    b"-9223372036854775809",
    b"[" * 65 + b"]" * 65,
    b'"\x01"',
    b"'x'",
    b"tru",
)


def _pong(word: object) -> Matcher:
    return Matcher(fields={"type": "pong", "ping_timestamp": word})


def _echo_of(size: int) -> tuple[bytes, str]:
    """An `echo` whose payload has so many bytes, and its content."""
    content = "x" * (size - len('{"type":"echo","content":""}'))
    return b'{"type":"echo","content":"%s"}' % content.encode(), content


@check("R1.2", level="classic")
def bytes_that_trickle(scene: Scene) -> None:
    """A frame that comes in reads of one byte is one frame."""
    peer = scene.connect()
    word = scene.nonce()
    for byte in encode({"type": "ping", "timestamp": word}):
        peer.write(bytes([byte]))
        time.sleep(0.001)
    peer.expect(_pong(word))


@check("R1.2", level="classic")
def many_frames_in_one_segment(scene: Scene) -> None:
    """All frames of one segment are answered, in order."""
    peer = scene.connect()
    peer.send(*({"type": "ping", "timestamp": number} for number in range(_MANY)))
    for number in range(_MANY):
        peer.expect(_pong(number))


@check("R1.2", level="classic")
def segments_that_cut_anywhere(scene: Scene) -> None:
    """Frames are the same wherever the stream is cut."""
    peer = scene.connect()
    contents = ["x" * number for number in range(0, 200, 7)] + ["é" * 300, {"a": [1, None]}]
    frames = [encode({"type": "echo", "content": content}) for content in contents]
    longest = max(map(len, frames)) - 4
    scene.need(longest <= scene.facts.max_length, f"max_length is less than {longest}")
    data = b"".join(frames)
    cuts = random.Random(1)
    while data:
        size = cuts.choice((1, 2, 3, 5, 17, 250))
        peer.write(data[:size])
        data = data[size:]
        if size == 5:
            time.sleep(0.001)
    for content in contents:
        peer.expect(Matcher(fields={"type": "echo_response", "content": content}))


@check("R1.3", level="classic")
def echo_of_max_length(scene: Scene) -> None:
    """A payload of exactly max_length bytes is taken, and its content comes back whole."""
    size = scene.facts.max_length
    scene.need(size <= _LONG or scene.slow, f"max_length is {size}: give --slow")
    payload, content = _echo_of(size)
    peer = scene.connect()
    peer.send_payload(payload)
    answer = peer.receive()
    if (answer.get("type"), answer.get("content")) != ("echo_response", content):
        raise Failed(f"expected the content of {len(content)} characters back, got {shown(answer)}")
    scene.sync(peer)


@check("R1.4", level="classic")
def one_byte_more_than_max_length(scene: Scene) -> None:
    """A length of max_length + 1 gets too_large, fatal, before any of its payload is sent."""
    peer = scene.connect()
    peer.write((scene.facts.max_length + 1).to_bytes(4, "big"))
    peer.expect(Matcher(fields={"type": "error", "code": "too_large", "fatal": True}))
    peer.end(_LATE + 1)


@check("R1.4", "R9.4", level="classic")
def too_large_reaches_who_goes_on_sending(scene: Scene) -> None:
    """The error comes, and then the end in order, though the client goes on sending its payload."""
    for _ in range(3):
        peer = scene.connect()
        peer.write((scene.facts.max_length + 1).to_bytes(4, "big") + b"x" * 100_000)
        try:
            for _ in range(40):
                peer.write(b"x" * 100_000)
        except Ended:
            # It discards for 2 s at the most, and need not take all.
            pass
        peer.expect(Matcher(fields={"type": "error", "code": "too_large", "fatal": True}))
        peer.end(_LATE + 1)


@check("R1.1", level="classic")
def nothing_comes_unasked(scene: Scene) -> None:
    """Behind welcome a client that says nothing hears nothing."""
    peer = scene.connect()
    peer.quiet(0.3)
    scene.sync(peer)


@check("R3.10", level="classic", section="1")
def one_client_does_not_disturb_another(scene: Scene) -> None:
    """What one client sends wrong, and its end, are no concern of the others."""
    good, bad = scene.connect("good"), scene.connect("bad")
    bad.send_payload(b'{"broken": ', b"")
    bad.write(b"\xff\xff\xff\xff")
    scene.sync(good)
    bad.receive()
    scene.sync(good)
    bad.close()
    good.quiet(0.1)
    scene.sync(good)


@check("1", level="classic")
def clients_that_vanish(scene: Scene) -> None:
    """Connections that end anywhere, in order or by force, do not harm the server."""
    good = scene.connect("good")
    whole = encode({"type": "echo", "content": "x" * 100})
    for size in (0, 1, 4, 5, 50, len(whole), 2 * len(whole)):
        for end in (Peer.close, Peer.reset):
            peer = scene.connect("vanishing")
            peer.write((whole * 2)[:size])
            end(peer)
    scene.sync(good)
    scene.sync(scene.connect())


@check("R1.15", "R1.8", level="classic")
def no_client_gets_what_a_strict_parser_refuses(scene: Scene) -> None:
    """Contents that are no JSON reach nobody: neither relayed nor sent back."""
    sender, receiver = scene.connect("sender"), scene.connect("receiver")
    for kind in (b"broadcast", b"echo"):
        for content in _HOSTILE:
            sender.send_payload(b'{"type":"%s","content":%s}' % (kind, content))
            answer = sender.receive()
            if (answer.get("type"), answer.get("code")) != ("error", "bad_json"):
                raise Failed(f"expected bad_json, got {shown(answer)}")
    scene.sync(receiver, "the other client")


@check("R1.15", "R1.11", level="classic")
def payloads_broken_by_chance(scene: Scene) -> None:
    """Each frame gets one answer, valid JSON, whatever is in it."""
    chance = random.Random(2)
    peer = scene.connect()
    whole = json.dumps({"type": "echo", "content": ["é", 1.5e3, {"a": None}, "\\n\U0001f600"]}).encode()
    for number in range(_BROKEN):
        payload = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            payload[chance.randrange(len(payload))] = chance.randrange(256)
        if number % 3 == 0:
            del payload[chance.randrange(1, len(payload)) :]
        peer.send_payload(bytes(payload))
        answer = peer.receive()
        if answer.get("fatal"):
            raise Failed(f"expected the connection to go on, got {shown(answer)}")
    scene.sync(peer)


@check("1", level="classic", must=False)
def half_closed_clients_get_their_answers(scene: Scene) -> None:
    """A client that closes its sending side alone gets the answers to all it sent, and then the end."""
    scene.need(not scene.target.tls, "TLS ends both ways at once")
    peer = scene.connect()
    peer.send(*({"type": "ping", "timestamp": number} for number in range(5)))
    peer.half_close()
    for number in range(5):
        peer.expect(_pong(number))
    peer.end()


@check("R1.10", level="classic")
def frame_timeout(scene: Scene) -> None:
    """A frame that has begun and does not end gets frame_timeout, fatal, though bytes come now and then."""
    limit = scene.facts.limits.get("frame_timeout", 30.0)
    scene.wait_long(limit + 1, f"frame_timeout is {limit:g} s")
    peer = scene.connect()
    began = scene.patience.now()
    peer.write(_BEGUN.to_bytes(4, "big") + b"{")
    late = began + limit + 1 + limit / 4 + _LATE
    sent = 5
    while not peer.ready():
        if scene.patience.now() > late:
            raise Failed(f"no frame_timeout {late - began:.1f} s after a frame began", hung=True)
        if scene.patience.now() > began + sent * limit / 20:
            peer.write(b"x")
            sent += 1
    peer.expect(Matcher(fields={"type": "error", "code": "frame_timeout", "fatal": True}))
    passed = scene.patience.now() - began
    if passed < 0.9 * limit:
        raise Failed(f"frame_timeout came after {passed:.1f} s, not after {limit:g}")
    peer.end(_LATE + 1)
