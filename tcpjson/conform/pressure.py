"""Section 10: who does not read, and who sends too fast."""

from __future__ import annotations

import time
from contextlib import suppress

from tcpjson.conform.checks import check
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Ended, Failed
from tcpjson.conform.wire import Peer, encode, shown
from tcpjson.vectors import Matcher

_REQUESTS = 1000
# How often what there is room for is sent, before anything is read.
_LATER = 40
# Bytes that a client sends which reads nothing, at the most.
_STUCK = 8 * 1024 * 1024
# Bytes that systems may keep beside the server's queue, and the largest queue that is filled unasked.
_SYSTEM = 32 * 1024 * 1024
_QUEUE = 64 * 1024 * 1024
_CONTENT = 60_000
_SENT = Matcher(fields={"type": "broadcast_sent"}, forms={"recipients": "count"})
# The longest that a test of the rate may take, in seconds.
_RATED = 3.0


def _no_rate(scene: Scene) -> None:
    limits = scene.facts.limits
    scene.need(
        "messages_per_second" not in limits and "bytes_per_second" not in limits,
        "the server keeps clients to a rate",
    )


@check("R10.1", "R10.2")
def all_is_answered_that_is_read_late(scene: Scene) -> None:
    """A client that writes many requests and reads later gets all answers, in order."""
    _no_rate(scene)
    peer = scene.connect()
    size = min(16_000, scene.facts.max_length // 4)
    data = b"".join(encode({"type": "echo", "content": [number, "x" * size]}) for number in range(_REQUESTS))
    sent = 0
    for _ in range(_LATER):
        sent += peer.push(data[sent:])
        time.sleep(0.01)
    scene.patience.extend(10)
    peer.write(data[sent:])
    for number in range(_REQUESTS):
        peer.expect(Matcher(fields={"type": "echo_response", "content": [number, "x" * size]}))
    scene.sync(peer)


@check("R10.1")
def a_stuck_client_holds_up_nobody(scene: Scene) -> None:
    """While a client sends and never reads, others are answered, and their broadcasts arrive."""
    _no_rate(scene)
    stuck, sender, receiver = (scene.connect(name) for name in ("stuck", "sender", "receiver"))
    request = encode({"type": "echo", "content": "x" * min(_CONTENT, scene.facts.max_length // 2)})
    left = _STUCK
    for number in range(50):
        try:
            # A frame that is begun goes on where it was cut: nobody looks at what it holds.
            left -= stuck.push(request * 4) if left > 0 else 0
        except Ended:
            left = 0
        sender.send({"type": "broadcast", "content": number})
        sender.expect(Matcher(fields={"type": "broadcast_sent"}))
        receiver.expect(Matcher(fields={"type": "broadcast", "content": number}))


@check("R9.5", section="10")
def slow_consumer(scene: Scene) -> None:
    """Who reads nothing of others' broadcasts gets slow_consumer, fatal; the others miss nothing."""
    _no_rate(scene)
    queue = scene.facts.limits.get("max_queue")
    scene.need(queue, "the server does not say max_queue")
    assert queue is not None
    scene.need(queue <= _QUEUE or scene.slow, f"max_queue is {queue:g} bytes: give --slow")
    scene.need(not scene.strangers, "other clients are connected to the server")
    stuck, sender, receiver = (scene.connect(name) for name in ("stuck", "sender", "receiver"))
    stuck.narrow()
    content = "x" * min(_CONTENT, scene.facts.max_length // 2)
    count = int((queue + _SYSTEM) / len(content)) + 1
    scene.patience.extend(10 + count / 100)
    sent = 0
    recipients = 2
    while recipients == 2 and sent < count:
        sender.send({"type": "broadcast", "content": [sent, content]})
        answer = sender.expect(_SENT)
        message = receiver.receive()
        if message.get("content") != [sent, content]:
            raise Failed(f"expected the broadcast {sent} at a client that reads, got {shown(message)}")
        sent += 1
        recipients = answer["recipients"]
    # The connection is cut 2 s after the error, read or not.
    _ends_as_slow(stuck, sent, len(content), queue)


def _ends_as_slow(stuck: Peer, sent: int, size: int, queue: float) -> None:
    """See that a client that did not read so many broadcasts is told why it is ended."""
    for number in range(sent + 1):
        try:
            last = stuck.receive()
        except Ended as ended:
            raise Failed(f"expected slow_consumer behind {number} broadcasts, but {ended}") from None
        except Failed as failed:
            if failed.hung and number == sent:
                raise Failed(
                    f"{sent * size} bytes were kept for who did not read: max_queue is {queue:g}"
                ) from None
            raise
        if last.get("type") != "broadcast":
            break
    if (last.get("type"), last.get("code"), last.get("fatal")) != ("error", "slow_consumer", True):
        raise Failed(f"expected slow_consumer, fatal, got {shown(last)}")
    stuck.end()


@check("R10.1")
def over_the_rate(scene: Scene) -> None:
    """Who sends more than the rate is read slower and loses nothing, or gets rate_limited."""
    rate = scene.facts.limits.get("messages_per_second")
    scene.need(rate, "the server keeps nobody to a rate of messages")
    assert rate is not None
    count = int(2 * rate) + 2
    scene.need(count <= 20_000, f"a rate of {rate:g} a second is more than is tried")
    scene.wait_long(count / rate - 1, f"{count} messages take {count / rate:g} s")
    peer = scene.connect()
    peer.pace = None
    with suppress(Ended):
        peer.send(*({"type": "ping", "timestamp": number} for number in range(count)))
    for number in range(count):
        message = peer.receive(scene.patience.seconds + _RATED)
        if message.get("type") == "error":
            if message.get("code") != "rate_limited" or "retry_after" not in message:
                raise Failed(f"expected rate_limited with retry_after, got {shown(message)}")
            return
        if message.get("ping_timestamp") != number:
            raise Failed(f"expected the pong to ping {number}, got {shown(message)}")
