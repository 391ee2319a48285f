"""Plays the vectors of `tcpjson.vectors`, as its docstring says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

from msgspec import structs

from tcpjson.conform.checks import Check
from tcpjson.conform.scene import AUTH_DELAY, Scene
from tcpjson.conform.verdicts import Ended, Failed
from tcpjson.conform.wire import Peer
from tcpjson.vectors import Matcher, Vector, load

# Fields that tell how many clients there are.
_COUNTS = frozenset({"recipients", "connected_clients"})
# Answers that a strict server does not give.
_LENIENT = frozenset({"response", "echo"})
# Types that a strict server knows.
_TYPES = ("ping", "echo", "broadcast", "get_stats", "hello", "auth")
# What a login that fails is told.
_FAILURE = "authentication_failed"
# Bytes of a message that is sent without being asked for.
_LONG = 16 * 1024 * 1024
# What the contract says of a server with `max_length` so small that vectors of fixed length do not pass.
_LEAST_LENGTH = 131_072
# Seconds after a fatal error in which the connection has to be gone (section 9), and a little.
_END = 4.0


def vector_checks() -> list[Check]:
    """A check for each vector."""
    vectors = load()
    return [
        Check(
            name=vector.name,
            section=vector.section,
            level=vector.level,
            must=True,
            why=vector.why,
            play=partial(play, vector),
            last=any(matcher.fields.get("status") == _FAILURE for matcher in vector.expect),
        )
        for vector in vectors
    ]


def vector_tokens() -> dict[str, str]:
    """The names of users by the tokens that some vectors need."""
    return {token: name for vector in load() for name, token in vector.options.tokens.items()}


def play(vector: Vector, scene: Scene) -> None:
    """Play one. Raises `Failed`, or `Skip` where it is not for this server."""
    _fits(vector, scene)
    witness = scene.lasting("witness")
    sender = _sender(vector, scene)
    if any(_COUNTS & matcher.fields.keys() for matcher in _matchers(vector)):
        scene.settle(witness, 2)
    _send(vector, scene, sender)
    _compare("other", witness, [_served(matcher, scene) for matcher in vector.others])
    # Only now is it sure that the other's copies were handed out: the answers to the sender came before.
    scene.sync(witness, "the other client")
    if vector.then == "open":
        scene.sync(sender, "the sender")
    else:
        sender.end(max(_END, scene.patience.seconds))


def _fits(vector: Vector, scene: Scene) -> None:
    """Skip a vector that is for servers of another kind."""
    facts = scene.facts
    tokens = bool(vector.options.tokens)
    scene.need(not tokens or facts.auth, "the server asks for no login")
    scene.need(
        not tokens or scene.plays_tokens,
        "it needs a server with the tokens of the vectors: see --vector-tokens",
    )
    scene.need(vector.options.strict <= scene.strict, "the server is not strict")
    matchers = _matchers(vector)
    if scene.strict and not vector.options.strict:
        lenient = any(matcher.fields.get("type") in _LENIENT for matcher in matchers)
        scene.need(not lenient and not _sends_others(vector), "the server is strict")
    scene.need(facts.max_length >= _LEAST_LENGTH, f"max_length is less than {_LEAST_LENGTH}")
    longest = max((len(piece) for piece in vector.pieces(1 << 20)), default=0)
    depends = any(not isinstance(piece, str) and piece.fill is not None for piece in vector.send)
    size = facts.max_length if depends else longest
    scene.need(size <= _LONG or scene.slow, f"it sends {size} bytes: give --slow")
    if any(matcher.fields.get("compression") == "zlib" for matcher in matchers):
        scene.need("zlib" in facts.compression, "the server offers no compression")
    if any(matcher.fields.get("heartbeat") is True for matcher in matchers):
        scene.need(facts.heartbeat, "the server sends no heartbeats")
    if any(_COUNTS & matcher.fields.keys() for matcher in matchers):
        scene.need(not scene.strangers, "other clients are connected to the server")


def _sender(vector: Vector, scene: Scene) -> Peer:
    """Who plays it. A login takes time: a client that a vector leaves as new plays the next one, too."""
    if vector.options.tokens:
        scene.drop("sender")
        return scene.greet("sender")
    if scene.facts.auth and vector.level == "classic" and vector.then == "open":
        return scene.lasting("sender")
    scene.drop("sender")
    return scene.connect("sender")


def _sends_others(vector: Vector) -> bool:
    """Whether something is sent that a strict server refuses whatever else is wrong with it."""
    data = b"".join(piece for piece in vector.pieces(1 << 20))
    while data:
        size = 4 + int.from_bytes(data[:4], "big")
        payload, data = data[4:size], data[size:]
        try:
            message = json.loads(payload)
        except (ValueError, RecursionError):
            continue
        if not isinstance(message, dict) or message.get("type", "") not in _TYPES:
            return True
    return False


def _served(matcher: Matcher, scene: Scene) -> Matcher:
    """What another client gets of a sender that has logged in, which the vectors seldom do."""
    if not scene.facts.auth:
        return matcher
    return structs.replace(matcher, absent=[name for name in matcher.absent if name != "from_user"])


def _matchers(vector: Vector) -> list[Matcher]:
    return [*vector.expect, *vector.others]


def _send(vector: Vector, scene: Scene, sender: Peer) -> None:
    """Write the pieces, and compare what the sender gets."""
    pieces = iter(vector.pieces(sender.max_length))
    expected = iter(enumerate(vector.expect))
    seconds = None
    if vector.options.tokens:
        scene.patience.extend(AUTH_DELAY)
        seconds = scene.patience.seconds + AUTH_DELAY
    try:
        sender.write(next(pieces))
        if vector.section == "7" and len(vector.send) > 1:
            # A client waits for the hello_response.
            _match("sender", sender, expected, seconds, until_compressed=True)
        for piece in pieces:
            sender.write(piece)
    except Ended:
        if vector.then != "closed":
            raise
    _match("sender", sender, expected, seconds)


def _match(
    who: str,
    peer: Peer,
    expected: Iterator[tuple[int, Matcher]],
    seconds: float | None = None,
    until_compressed: bool = False,
) -> None:
    for number, matcher in expected:
        try:
            peer.expect(matcher, seconds)
        except Ended as ended:
            raise Ended(f"{who}, answer {number + 1}: {ended}", ended.reset) from None
        except Failed as failed:
            raise Failed(f"{who}, answer {number + 1}: {failed}", failed.hung) from None
        if until_compressed and peer.compresses:
            return


def _compare(who: str, peer: Peer, matchers: list[Matcher]) -> None:
    _match(who, peer, iter(enumerate(matchers)))
