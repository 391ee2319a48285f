"""Section 2: what all messages have in common."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime

from tcpjson.conform.checks import check
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Failed
from tcpjson.conform.wire import Message, Peer, shown
from tcpjson.vectors import Matcher

# Requests that are under way at once.
_MANY = 100
# Seconds by which a server may stamp something late or early.
_FINE = 0.1
# Seconds by which clocks of machines may differ that are set at all.
_CLOCKS = 300.0

_PONG = Matcher(fields={"type": "pong"}, forms={"pong_timestamp": "timestamp", "client_id": "address"})


def _when(text: object) -> float:
    return datetime.fromisoformat(str(text)).timestamp()


def _pong(peer: Peer) -> Message:
    peer.send({"type": "ping"})
    return peer.expect(_PONG)


@check("R2.10", level="classic")
def answers_without_id_in_order(scene: Scene) -> None:
    """Requests without id of all kinds, sent at once, are answered in order."""
    peer = scene.connect()
    payloads: list[bytes] = []
    due: list[Matcher] = []
    other: Message = {"type": "error", "code": "unknown_type"} if scene.strict else {"type": "response"}
    for number in range(_MANY // 5):
        payloads += [
            b'{"type":"ping","timestamp":%d}' % number,
            b'{"type":"echo","content":[%d]}' % number,
            b'{"type":"get_stats"}',
            b'{"type":"x-conform","number":%d}' % number,
            b'{"type":"echo","content":',
        ]
        due += [
            Matcher(fields={"type": "pong", "ping_timestamp": number}),
            Matcher(fields={"type": "echo_response", "content": [number]}),
            Matcher(fields={"type": "server_stats"}),
            Matcher(fields=other),
            Matcher(fields={"type": "error", "code": "bad_json", "fatal": False}),
        ]
    peer.send_payload(*payloads)
    for matcher in due:
        peer.expect(matcher)


@check("R2.8", level="classic")
def every_id_comes_back(scene: Scene) -> None:
    """Each of many requests under way at once gets one reply with its id."""
    peer = scene.connect()
    kinds = ("ping", "echo", "get_stats", "broadcast")
    ids = [number if number % 2 else f"id-{number}" for number in range(_MANY)]
    peer.send(*({"type": kinds[index % 4], "id": name} for index, name in enumerate(ids)))
    missing = set(ids)
    for _ in ids:
        answer = peer.receive()
        name = answer.get("id")
        if not isinstance(name, (int, str)) or name not in missing or name is True:
            raise Failed(f"expected a reply with an id that is still due, got {shown(answer)}")
        missing.remove(name)
    scene.sync(peer)


@check("R2.8", level="classic")
def a_reply_without_id_has_none(scene: Scene) -> None:
    """The id of one request is not in the reply to another."""
    peer = scene.connect()
    peer.send({"type": "ping", "id": 1}, {"type": "ping"}, {"type": "echo", "id": "a"}, {"type": "echo"})
    for kind, name in (("pong", 1), ("pong", None), ("echo_response", "a"), ("echo_response", None)):
        due = (
            Matcher(fields={"type": kind, "id": name})
            if name
            else Matcher(fields={"type": kind}, absent=["id"])
        )
        peer.expect(due)


@check("R3.8", level="classic", section="2")
def numbers_to_the_last_digit(scene: Scene) -> None:
    """Numbers of any look come back as they were, digit by digit."""
    chance = random.Random(3)
    lexemes = [repr(chance.uniform(-1, 1) * 10 ** chance.randint(-300, 300)) for _ in range(100)]
    lexemes += [str(chance.randint(-(2**63), 2**64 - 1)) for _ in range(100)]
    lexemes += ["1.0", "1.10", "0.1000", "-0", "-0.0", "1E5", "1e-7", "100000000000000000000.0"]
    peer = scene.connect()
    peer.send_payload(b'{"type":"echo","content":[%s]}' % ",".join(lexemes).encode())
    peer.expect(Matcher(fields={"type": "echo_response"}, numbers={"content": lexemes}))


@check("R2.3", level="classic")
def timestamps_go_on(scene: Scene) -> None:
    """Timestamps are of the documented form, and go on as time does."""
    peer = scene.connect()
    now = scene.patience.now
    # Each pong was stamped at some time between these two.
    first, stamp, last = now(), _when(_pong(peer)["pong_timestamp"]), now()
    time.sleep(0.3)
    least, passed, most = now() - last, _when(_pong(peer)["pong_timestamp"]) - stamp, now() - first
    if not least - _FINE <= passed <= most + _FINE:
        raise Failed(f"{least:.3f} to {most:.3f} s went by, and {passed:.3f} s by the server's timestamps")


@check("R2.3", level="classic", must=False)
def timestamps_are_of_now(scene: Scene) -> None:
    """Timestamps are in UTC, and of now."""
    there = _when(_pong(scene.connect())["pong_timestamp"])
    here = datetime.now(UTC).timestamp()
    if abs(there - here) > _CLOCKS:
        raise Failed(f"the server's clock is {there - here:+.0f} s away from ours")


@check("R2.12", level="classic")
def client_ids_differ(scene: Scene) -> None:
    """Each client has its own client_id, in welcome, in pong and to others."""
    peers = [scene.connect(f"client {number}") for number in range(3)]
    names = [peer.client_id for peer in peers]
    if len(set(names)) < len(names) or not all(names):
        raise Failed(f"expected different client_ids, got {shown(names)}")
    for peer, name in zip(peers, names, strict=True):
        peer.send({"type": "ping"})
        peer.expect(Matcher(fields={"type": "pong", "client_id": name}))
    word = scene.nonce()
    peers[0].send({"type": "broadcast", "content": word})
    due = Matcher(fields={"type": "broadcast", "content": word, "from_client": names[0]})
    for peer in peers[1:]:
        peer.expect(due)


@check("R2.12", level="classic", must=False)
def client_id_is_the_address(scene: Scene) -> None:
    """client_id is host:port of the client, [host]:port for IPv6, unix:N on a Unix socket."""
    peer = scene.connect()
    address = peer.address()
    if scene.target.local:
        due, fits = "unix:N", peer.client_id[:5] == "unix:" and peer.client_id[5:].isdecimal()
    elif isinstance(address, tuple):
        host, port = address[0], address[1]
        due = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        fits = peer.client_id == due
    if not fits:
        raise Failed(f"expected {due}, got {shown(peer.client_id)} (is there a proxy on the way?)")


@check("R2.5", level="classic")
def fields_that_nobody_knows(scene: Scene) -> None:
    """Unknown fields of known messages are ignored."""
    peer = scene.connect()
    more = {"x-conform": [1], "error": True, "fatal": True, "code": "bad_json", "from_client": 7, "": None}
    peer.send(*({"type": kind, **more} for kind in ("ping", "echo", "get_stats", "broadcast")))
    for kind in ("pong", "echo_response", "server_stats", "broadcast_sent"):
        peer.expect(Matcher(fields={"type": kind}, absent=["x-conform", "fatal"]))
