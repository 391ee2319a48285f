"""Section 5: `hello`."""

from __future__ import annotations

from tcpjson.conform.checks import check
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Failed
from tcpjson.conform.wire import shown
from tcpjson.vectors import Matcher


@check("R5.5")
def hello_response_has_its_fields(scene: Scene) -> None:
    """hello_response has compression, heartbeat and features, and the id."""
    peer = scene.connect()
    peer.send({"type": "hello", "client": "conform/1", "heartbeat": False, "id": "h"})
    peer.expect(
        Matcher(
            fields={
                "type": "hello_response",
                "id": "h",
                "compression": None,
                "heartbeat": False,
                "features": [],
            },
            forms={"timestamp": "timestamp"},
        )
    )


@check("R5.5")
def features_that_were_asked_for(scene: Scene) -> None:
    """features of hello_response are those that both sides named, and no others."""
    peer = scene.connect()
    asked = [scene.nonce(), *scene.facts.features]
    answer = peer.ask({"type": "hello", "client": "conform/1", "features": asked})
    agreed = answer.get("features")
    if answer.get("type") != "hello_response" or not isinstance(agreed, list):
        raise Failed(f"expected a hello_response with features, got {shown(answer)}")
    if not all(name in scene.facts.features for name in agreed):
        raise Failed(f"features: expected some of {shown(scene.facts.features)}, got {shown(agreed)}")


@check("R5.5")
def compression_that_was_asked_for(scene: Scene) -> None:
    """compression of hello_response is a name that both sides know, or null."""
    peer = scene.connect()
    unknown = scene.nonce()
    answer = peer.ask({"type": "hello", "client": "conform/1", "compression": [unknown]})
    if (answer.get("type"), answer.get("compression", "")) != ("hello_response", None):
        raise Failed(f"compression: expected null, for none but {unknown} was asked for, got {shown(answer)}")


@check("R5.2", "R5.3")
def late_hello(scene: Scene) -> None:
    """hello behind a request gets bad_message, and changes nothing."""
    peer = scene.connect()
    peer.ask({"type": "echo"})
    peer.send({"type": "hello", "client": "conform/1", "compression": ["zlib"], "id": 5})
    peer.expect(Matcher(fields={"type": "error", "code": "bad_message", "fatal": False, "id": 5}))
    scene.sync(peer)


@check("R5.2")
def second_hello(scene: Scene) -> None:
    """A second hello gets bad_message."""
    peer = scene.connect()
    peer.ask({"type": "hello", "client": "conform/1"})
    peer.send({"type": "hello", "client": "conform/1", "id": 6})
    peer.expect(Matcher(fields={"type": "error", "code": "bad_message", "fatal": False, "id": 6}))
    scene.sync(peer)
