"""Section 8: heartbeats, where the server has them."""

from __future__ import annotations

import time

from tcpjson.conform.checks import check
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Failed
from tcpjson.conform.wire import Peer
from tcpjson.vectors import Matcher

# Seconds by which a ping, or the end, may be late beside what the contract gives.
_LATE = 3.0
# Seconds after a ping without a sign of life.
_ANSWER = 10.0
_PING = Matcher(fields={"type": "ping"}, forms={"timestamp": "timestamp"}, absent=["id"])


def _beat(scene: Scene, beats: float, more: float = 0.0) -> float:
    """The server's heartbeat, where so many of them, and some seconds, can be waited for."""
    beat = scene.facts.heartbeat
    scene.need(beat, "the server sends no heartbeats")
    assert beat is not None
    scene.wait_long(beats * beat + more, f"heartbeat is {beat:g} s")
    return beat


def _beaten(scene: Scene) -> Peer:
    peer = scene.connect()
    peer.send({"type": "hello", "client": "conform/1", "heartbeat": True})
    peer.expect(Matcher(fields={"type": "hello_response", "heartbeat": True}))
    return peer


@check("R8.1", "R8.2")
def ping_after_silence(scene: Scene) -> None:
    """A client that said heartbeat gets a ping when it was silent so long, and no reply to its pong."""
    beat = _beat(scene, 1.25)
    began = scene.patience.now()
    peer = _beaten(scene)
    ping = peer.expect(_PING, 1.5 * beat + _LATE)
    passed = scene.patience.now() - began
    if passed < 0.7 * beat:
        raise Failed(f"a ping came after {passed:.1f} s, not after {beat:g}")
    peer.send({"type": "pong", "ping_timestamp": ping["timestamp"]})
    scene.sync(peer)


@check("R5.6", section="8")
def no_ping_unasked(scene: Scene) -> None:
    """Who did not say heartbeat gets no ping."""
    beat = _beat(scene, 1.5)
    silent, bare = scene.connect("silent"), scene.connect("bare")
    bare.ask({"type": "hello", "client": "conform/1", "heartbeat": False})
    silent.quiet(1.5 * beat)
    bare.quiet(0.01)


@check("R8.2")
def frames_are_signs_of_life(scene: Scene) -> None:
    """Who sends something in each heartbeat gets no ping."""
    beat = _beat(scene, 2)
    peer = _beaten(scene)
    for _ in range(6):
        began = scene.patience.now()
        time.sleep(beat / 3)
        try:
            scene.sync(peer)
        except Failed:
            # This machine may have slept longer than it was asked to.
            if scene.patience.now() - began < 0.7 * beat:
                raise
            peer = _beaten(scene)


@check("R8.3")
def heartbeat_timeout(scene: Scene) -> None:
    """Who does not answer the ping within 10 s gets heartbeat_timeout, fatal."""
    beat = _beat(scene, 1.25, _ANSWER)
    peer = _beaten(scene)
    peer.expect(_PING, 1.5 * beat + _LATE)
    began = scene.patience.now()
    late = 0.5 * beat + _ANSWER + _LATE
    scene.patience.extend(late)
    peer.expect(Matcher(fields={"type": "error", "code": "heartbeat_timeout", "fatal": True}), late)
    passed = scene.patience.now() - began
    if passed < 0.7 * _ANSWER:
        raise Failed(f"heartbeat_timeout came {passed:.1f} s after the ping, not after {_ANSWER:g}")
    peer.end(_LATE)
