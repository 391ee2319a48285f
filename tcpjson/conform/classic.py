"""Section 3: the messages that every server knows."""

from __future__ import annotations

import time
from datetime import datetime

from tcpjson.conform.checks import check
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Failed
from tcpjson.conform.wire import Message, Peer, shown
from tcpjson.vectors import Matcher

_ORDERED = 200
# Seconds in which time is seen to go on.
_FINE = 0.05
# Seconds that a client which left may still be counted.
_LEFT = 3.0
_STATS = Matcher(
    fields={"type": "server_stats"},
    forms={
        "connected_clients": "count",
        "uptime_seconds": "count",
        "total_messages": "count",
        "server_start_time": "timestamp",
        "current_time": "timestamp",
    },
)


def _stats(peer: Peer) -> Message:
    peer.send({"type": "get_stats"})
    return peer.expect(_STATS)


def _broadcast(word: object, sender: Peer) -> Matcher:
    return Matcher(
        fields={"type": "broadcast", "content": word, "from_client": sender.client_id},
        forms={"timestamp": "timestamp"},
        absent=["id"],
    )


def _sent(peer: Peer, content: object) -> int:
    """Broadcast something; returns the number of recipients."""
    peer.send({"type": "broadcast", "content": content})
    due = Matcher(
        fields={"type": "broadcast_sent"},
        forms={"recipients": "count", "timestamp": "timestamp"},
        absent=["id"],
    )
    return int(peer.expect(due)["recipients"])


@check("R3.1", level="classic")
def welcome_has_its_fields(scene: Scene) -> None:
    """welcome has client_id, message and timestamp."""
    peer = scene.dial()
    peer.expect(
        Matcher(
            fields={"type": "welcome"},
            forms={"client_id": "address", "message": "string", "timestamp": "timestamp"},
        )
    )


@check("R3.4", "R3.10", level="classic")
def broadcast_reaches_all_others(scene: Scene) -> None:
    """A broadcast reaches every other client once, and not its sender."""
    sender = scene.connect("sender")
    receivers = [scene.connect(f"other {number}") for number in range(3)]
    word = scene.nonce()
    _sent(sender, word)
    for peer in receivers:
        peer.expect(_broadcast(word, sender))
        scene.sync(peer, peer.name)
    scene.sync(sender, "the sender")


@check("R3.4", level="classic")
def recipients_are_counted(scene: Scene) -> None:
    """recipients says how many others a broadcast was handed to, as clients come and leave."""
    scene.need(not scene.strangers, "other clients are connected to the server")
    sender = scene.connect("sender")
    scene.settle(sender, 1)
    others: list[Peer] = []
    for number in range(4):
        if (came := _sent(sender, scene.nonce())) != number:
            raise Failed(f"recipients: expected {number}, got {came}")
        others.append(scene.connect(f"other {number}"))
    others.pop().close()
    end = scene.patience.now() + _LEFT
    while (came := _sent(sender, scene.nonce())) != 3:
        if scene.patience.now() > end:
            raise Failed(f"recipients: expected 3, got {came} {_LEFT:g} s after a client left")
        time.sleep(0.02)


@check("R3.5", level="classic")
def connected_clients_are_counted(scene: Scene) -> None:
    """connected_clients counts who asks, rises with each client and falls when one leaves."""
    scene.need(not scene.strangers, "other clients are connected to the server")
    peer = scene.connect("first")
    scene.settle(peer, 1)
    others: list[Peer] = []
    for number in range(1, 5):
        came = int(_stats(peer)["connected_clients"])
        if came != number:
            raise Failed(f"connected_clients: expected {number}, got {came}")
        others.append(scene.connect(f"other {number}"))
    others.pop().close()
    end = scene.patience.now() + _LEFT
    while (came := int(_stats(peer)["connected_clients"])) != 4:
        if scene.patience.now() > end:
            raise Failed(f"connected_clients: expected 4, got {came} {_LEFT:g} s after a client left")
        time.sleep(0.02)


@check("R3.5", level="classic")
def total_messages_grows(scene: Scene) -> None:
    """total_messages grows with every message received, of whatever kind."""
    peer = scene.connect()
    before = int(_stats(peer)["total_messages"])
    for message in ({"type": "ping"}, {"type": "echo"}, {"type": "x-conform"}, {"type": "broadcast"}):
        peer.ask(message)
    grown = int(_stats(peer)["total_messages"]) - before
    if grown < 5 or (grown > 5 and not scene.strangers):
        raise Failed(f"total_messages: expected 5 more after 5 messages, got {grown}")


@check("R3.5", level="classic")
def times_of_statistics_agree(scene: Scene) -> None:
    """uptime_seconds is the time between server_start_time, always the same, and current_time."""
    peer = scene.connect()
    stats = _stats(peer)
    began, now = (
        datetime.fromisoformat(stats[name]).timestamp() for name in ("server_start_time", "current_time")
    )
    if not -2 <= now - began - stats["uptime_seconds"] <= 2:
        raise Failed(f"uptime_seconds is {stats['uptime_seconds']}, and {now - began:.0f} by the two times")
    # So long that another time looks different.
    time.sleep(_FINE)
    again = _stats(peer)
    if again["server_start_time"] != stats["server_start_time"]:
        raise Failed(
            f"server_start_time: expected {stats['server_start_time']}, got {again['server_start_time']}"
        )


@check("R3.5", level="classic")
def statistics_have_details(scene: Scene) -> None:
    """server_stats has details, an object."""
    peer = scene.connect()
    peer.send({"type": "get_stats"})
    peer.expect(Matcher(fields={"type": "server_stats"}, forms={"details": "object"}))


@check("R3.11", level="classic")
def broadcasts_keep_their_order(scene: Scene) -> None:
    """Between one sender and one receiver order is kept, also with two senders at once."""
    senders = [scene.connect(f"sender {number}") for number in range(2)]
    receiver = scene.connect("receiver")
    word = scene.nonce()
    for sender in senders:
        sender.send(*({"type": "broadcast", "content": [word, number]} for number in range(_ORDERED)))
    next_of = dict.fromkeys((sender.client_id for sender in senders), 0)
    for _ in range(2 * _ORDERED):
        message = receiver.receive()
        name = message.get("from_client")
        due = next_of.get(name, 0) if isinstance(name, str) else 0
        if message.get("type") != "broadcast" or message.get("content") != [word, due]:
            raise Failed(f"expected the broadcast {due} of {shown(name)}, got {shown(message)}")
        next_of[str(name)] = due + 1
    scene.sync(receiver, "the receiver")


@check("R3.4", level="classic")
def long_broadcast(scene: Scene) -> None:
    """A long broadcast arrives whole."""
    sender, receiver = scene.connect("sender"), scene.connect("receiver")
    content = "broadcast é " * (min(scene.facts.max_length, 400_000) // 16)
    _sent(sender, content)
    message = receiver.receive()
    if message.get("content") != content:
        raise Failed(f"expected the content of {len(content)} characters, got {shown(message)}")


@check("R3.4", level="classic")
def who_comes_later_hears_nothing_of_before(scene: Scene) -> None:
    """A broadcast reaches nobody who connects behind it."""
    sender = scene.connect("sender")
    _sent(sender, scene.nonce())
    scene.sync(scene.connect("late"), "who came later")


@check("R3.10", level="classic")
def errors_reach_their_sender_alone(scene: Scene) -> None:
    """What is wrong with a broadcast is said to its sender, and to nobody else."""
    sender, other = scene.connect("sender"), scene.connect("other")
    sender.send_payload(b'{"type":"broadcast","content":[1,}')
    sender.expect(Matcher(fields={"type": "error", "code": "bad_json"}))
    scene.sync(other, "the other client")
