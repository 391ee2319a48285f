"""Section 9: errors, and how a connection ends."""

from __future__ import annotations

import time
from contextlib import suppress

from tcpjson.conform.checks import check
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Ended, Failed
from tcpjson.conform.wire import encode
from tcpjson.core.framing import frame
from tcpjson.vectors import Form, Matcher

# Seconds after a fatal error in which the connection has to be gone, and a little.
_GONE = 2.0 + 2.0
_FORMS: dict[str, Form] = {"message": "nonempty", "fatal": "boolean", "timestamp": "timestamp"}


def _error(code: str, fatal: bool) -> Matcher:
    return Matcher(fields={"type": "error", "code": code, "fatal": fatal}, forms=_FORMS)


@check("R9.1", "R9.2", level="classic")
def errors_have_their_fields(scene: Scene) -> None:
    """An error has code, message, fatal and timestamp, and its code is fatal where the contract says so."""
    peer = scene.connect()
    provoked = {
        "bad_frame": frame(b""),
        "bad_json": frame(b'{"type":'),
        "bad_message": encode({"type": 7}),
        "too_large": (scene.facts.max_length + 1).to_bytes(4, "big"),
    }
    for code, data in provoked.items():
        peer.write(data)
        peer.expect(_error(code, code == "too_large"))
    peer.end(_GONE)


@check("R9.4", level="classic")
def answers_come_before_the_fatal_error(scene: Scene) -> None:
    """Requests in front of a fatal fault are answered, before its error; those behind it are not."""
    peer = scene.connect()
    requests = [encode({"type": "echo", "content": number}) for number in range(100)]
    fault = (scene.facts.max_length + 1).to_bytes(4, "big")
    with suppress(Ended):
        peer.write(b"".join(requests) + fault + b"".join(requests))
    for number in range(100):
        peer.expect(Matcher(fields={"type": "echo_response", "content": number}))
    peer.expect(_error("too_large", True))
    peer.end(_GONE)


@check("R9.4", level="classic")
def gone_in_two_seconds(scene: Scene) -> None:
    """After a fatal error the connection is gone within 2 s, whatever the client does."""
    peer = scene.connect()
    peer.write((scene.facts.max_length + 1).to_bytes(4, "big"))
    peer.expect(_error("too_large", True))
    peer.end(_GONE)
    end = scene.patience.now() + _GONE
    scene.patience.extend(_GONE)
    try:
        while scene.patience.now() < end:
            peer.write(b"x", reading=False)
            time.sleep(0.05)
    except Ended:
        return
    raise Failed(f"the connection still takes bytes {_GONE:g} s after a fatal error")


@check("R9.3", level="classic")
def errors_end_nothing(scene: Scene) -> None:
    """An error that is not fatal ends nothing, however many there are."""
    peer = scene.connect()
    for _ in range(50):
        peer.write(frame(b"") + frame(b"{") + frame(b"\xff") + encode({"type": None}))
        for code in ("bad_frame", "bad_json", "bad_json", "bad_message"):
            peer.expect(_error(code, False))
    scene.sync(peer)


@check("R2.8", section="9")
def errors_carry_the_id(scene: Scene) -> None:
    """The error for a request with an id carries it; an error for a frame that is no message has none."""
    peer = scene.connect()
    peer.send({"type": "hello", "heartbeat": 5, "id": "a"}, {"type": "hello", "client": [], "id": -7})
    for name in ("a", -7):
        peer.expect(Matcher(fields={"type": "error", "code": "bad_message", "id": name}))
    peer.send_payload(b'{"id":1,')
    peer.expect(Matcher(fields={"type": "error", "code": "bad_json"}, absent=["id"]))
