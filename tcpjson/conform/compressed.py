"""Section 7: compression, where the server offers it."""

from __future__ import annotations

import zlib

from tcpjson.conform.checks import check
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Failed
from tcpjson.conform.wire import Peer, shown
from tcpjson.core.framing import frame
from tcpjson.vectors import Matcher

# Bytes of the longest message that is sent without being asked for.
_LONG = 16 * 1024 * 1024
_LATE = 4.0
_SENTENCE = "The same words again and again take little room. "


def _agreed(scene: Scene, name: str = "client") -> Peer:
    """A client that takes and sends compressed frames."""
    scene.need("zlib" in scene.facts.compression, "the server offers no compression")
    peer = scene.connect(name)
    peer.send({"type": "hello", "client": "conform/1", "compression": ["x-conform", "zlib"]})
    peer.expect(Matcher(fields={"type": "hello_response", "compression": "zlib"}))
    return peer


def _packed(payload: bytes) -> bytes:
    return frame(zlib.compress(payload), True)


def _echo(content: str) -> bytes:
    return b'{"type":"echo","content":"%s"}' % content.encode()


def _comes_back(peer: Peer, content: str) -> None:
    answer = peer.receive()
    if (answer.get("type"), answer.get("content")) != ("echo_response", content):
        raise Failed(f"expected the content of {len(content)} characters back, got {shown(answer)}")


@check("R7.1", "R7.2")
def compressed_and_other_frames(scene: Scene) -> None:
    """Compressed frames and others, long ones and short ones, are answered in order."""
    peer = _agreed(scene)
    contents = [_SENTENCE * repeated for repeated in (1, 400, 0, 100, 1000, 2)]
    size = scene.facts.max_length
    contents = [content for content in contents if len(content) < size // 2]
    for pack in (_packed, frame):
        peer.write(b"".join(pack(_echo(content)) + frame(_echo(content)) for content in contents))
        for content in contents:
            _comes_back(peer, content)
            _comes_back(peer, content)


@check("R7.5")
def inflated_to_max_length(scene: Scene) -> None:
    """What inflates to max_length is taken, and what inflates to a byte more gets too_large, fatal."""
    peer = _agreed(scene)
    size = scene.facts.max_length
    scene.need(size <= _LONG or scene.slow, f"max_length is {size}: give --slow")
    content = "x" * (size - len(_echo("")))
    peer.write(_packed(_echo(content)))
    _comes_back(peer, content)
    peer.write(_packed(_echo(content + "x")))
    peer.expect(Matcher(fields={"type": "error", "code": "too_large", "fatal": True}))
    peer.end(_LATE)


@check("R5.6", section="7")
def nothing_compressed_unasked(scene: Scene) -> None:
    """Who did not agree on compression gets nothing compressed, of whomever it comes."""
    sender = _agreed(scene, "sender")
    plain, bare = scene.connect("plain"), scene.connect("bare")
    bare.ask({"type": "hello", "client": "conform/1"})
    content = _SENTENCE * min(1000, scene.facts.max_length // 100)
    sender.write(_packed(b'{"type":"broadcast","content":"%s"}' % content.encode()))
    for peer in (plain, bare):
        message = peer.receive()
        if (message.get("type"), message.get("content")) != ("broadcast", content):
            raise Failed(f"expected the broadcast of {len(content)} characters, got {shown(message)}")
        peer.send_payload(_echo(content))
        _comes_back(peer, content)


@check("R7.4")
def broken_streams(scene: Scene) -> None:
    """A stream that is cut short, is no zlib or has bytes behind its end gets bad_frame, fatal."""
    whole = zlib.compress(_echo("x" * min(100, scene.facts.max_length // 2)))
    for data in (whole[:-1], whole + b"\0", b"x" * 20, whole[2:]):
        peer = _agreed(scene)
        peer.write(frame(data, True))
        peer.expect(Matcher(fields={"type": "error", "code": "bad_frame", "fatal": True}))
        peer.end(_LATE)


@check("R7.3")
def bit_31_without_agreement(scene: Scene) -> None:
    """Without an agreement bit 31 is part of the length, which is too_large."""
    peer = scene.connect()
    peer.write(_packed(_echo("x")))
    peer.expect(Matcher(fields={"type": "error", "code": "too_large", "fatal": True}))
    peer.end(_LATE)
