"""Faults of those who are slow: to send, to read, to answer."""

from __future__ import annotations

import time

from tests.faults.arena import PING, Guest, Stage
from tests.faults.catalogue import fault
from tests.faults.logins import HASTY
from tests.harness import encode

IDLE = ("--idle-timeout", "1")
# The queue is small, and the time long.
SMALL_QUEUE = ("--max-queue", "1048576", "--send-buffer", "65536")
BEATING = ("--heartbeat", "1")
THROTTLED = ("--rate", "100:200", "--byte-rate", "100000:200000")
CUT_OFF = ("--rate", "100:200", "--rate-policy", "close")

_GUESTS = {"before": "guests have auth_timeout"}
_NO_BROADCASTS = {"before": "guests get no broadcasts"}


# To send.


@fault("half a length", section="1", expected="frame_timeout", seconds=1, options=HASTY, slow=True)
def half_a_length(stage: Stage) -> None:
    """Three bytes, and no more: they hold a connection open."""
    guest = stage.peer()
    guest.write(encode(PING) + b"\0\0\0")
    stage.complete()
    assert [answer["type"] for answer in stage.ends(guest)] == ["pong"]
    stage.lasted(0.45)


@fault("one byte a minute", section="1", expected="frame_timeout", seconds=1, options=HASTY, slow=True)
def one_byte_a_minute(stage: Stage) -> None:
    """A byte each third of the frame_timeout (it is half a second here): a frame that never ends."""
    guest = stage.peer()
    stage.complete()
    stage.dribbles(guest, encode({"type": "ping", "timestamp": "x" * 200}), 0.16)
    stage.ends(guest)
    stage.lasted(0.45)


@fault(
    "a long frame, one byte a minute",
    section="1",
    expected="frame_timeout",
    seconds=1.6,
    options=HASTY,
    slow=True,
    never={"before": "guests may send 4,096 bytes"},
)
def long_frame_byte_by_byte(stage: Stage) -> None:
    """What is announced buys time, a second for 16 KiB, and no more than that."""
    guest = stage.peer()
    stage.complete()
    stage.dribbles(guest, encode({"type": "ping", "timestamp": "x" * 12000}), 0.16)
    stage.ends(guest)
    stage.lasted(1.1)


# To read.


def _unread(stage: Stage, *, logged_in: bool | None = None) -> tuple[Guest, list[bytes], int]:
    """A peer that asks for 10 MB of answers and reads none; what fitted of its requests."""
    guest = stage.peer(login=logged_in, receive_buffer=8192)
    requests = [encode(PING | {"timestamp": "x" * 900, "id": number}) for number in range(10_000)]
    return guest, requests, guest.write_what_fits(b"".join(requests))


@fault(
    "requests, and none of the answers read",
    section="10",
    expected={"before": "auth_timeout", "after": "goes on"},
    growth=4,
    options=HASTY,
    slow=True,
)
def answers_unread(stage: Stage) -> None:
    """
    Answers that nobody takes fill the memory. It is handled no further; one that reads at last finds all its
    answers.
    """
    stage.complete()
    guest, requests, sent = _unread(stage)
    size = len(requests[0])
    assert sent < size * len(requests), "all went into the sockets"
    # For longer than the write_timeout, which does not run while it is the server that does not read.
    stage.wait(0.7 if stage.before else 1.5)
    if stage.before:
        count = len(stage.ends(guest))
        assert 0 < count <= sent // size, count
        return
    answers = stage.converse(guest, requests, sent)
    assert [answer["id"] for answer in answers] == [*range(len(requests))]
    stage.goes_on(guest)


def _broadcasts(stage: Stage, count: int, pause: float = 0) -> Guest:
    """A peer for whom broadcasts of 60 kB come, of which it has read none."""
    guest = stage.peer(receive_buffer=8192)
    sender = stage.peer()
    for number in range(count):
        sender.ask({"type": "broadcast", "content": [number, "x" * 60_000]})
        stage.wait(pause)
    stage.complete()
    return guest


@fault(
    "broadcasts, and none of them read",
    section="9",
    expected="slow_consumer, unread",
    seconds=4,
    growth=6,
    options=HASTY,
    never=_NO_BROADCASTS,
    slow=True,
)
def broadcasts_unread(stage: Stage) -> None:
    """What others say waits for it: it takes nothing for write_timeout (a second here)."""
    stage.ends_unread(_broadcasts(stage, 8))


@fault(
    "more broadcasts than its queue holds, none read",
    section="9",
    expected="slow_consumer, unread",
    seconds=3,
    growth=5,
    options=SMALL_QUEUE,
    never=_NO_BROADCASTS,
    slow=True,
)
def queue_full(stage: Stage) -> None:
    """The queue, 1 MiB here, is full long before the write_timeout, which is 10 seconds."""
    # The witnesses get them too, and want to read them.
    stage.ends_unread(_broadcasts(stage, 24, pause=0.025))


@fault(
    "broadcasts, one byte of them read a second",
    section="9",
    expected="slow_consumer, unread",
    seconds=4,
    growth=6,
    options=HASTY,
    never=_NO_BROADCASTS,
    slow=True,
)
def one_byte_a_second(stage: Stage) -> None:
    """Four a second here: it takes something, and never enough. Its queue fills, or its window stays shut."""
    stage.nibbles(_broadcasts(stage, 8), 0.25)


# To answer, or to say anything.


@fault("silence", section="9", expected="idle_timeout", seconds=1.6, options=IDLE, never=_GUESTS, slow=True)
def silence(stage: Stage) -> None:
    """It neither sends nor takes anything; --idle-timeout is a second. The witnesses fall silent too."""
    stage.arena.witnesses.end()
    guest = stage.peer()
    stage.complete()
    stage.ends(guest)
    stage.lasted(0.95)


@fault(
    "pings that are not answered",
    section="8",
    expected="heartbeat_timeout",
    seconds=12.5,
    options=BEATING,
    never=_GUESTS,
    long=True,
)
def heartbeat_unanswered(stage: Stage) -> None:
    """It said that it answers, and does not: --heartbeat is a second, and ten more are given."""
    guest = stage.peer(login=False)
    guest.ask({"type": "hello", "heartbeat": True})
    stage.log_in(guest)
    stage.complete()
    assert {answer["type"] for answer in stage.ends(guest)} == {"ping"}
    stage.lasted(10.5)


# Too fast.


@fault("more than the rate, throttled", section="10", expected="goes on", options=THROTTLED, slow=True)
def throttled(stage: Stage) -> None:
    """--rate 100:200: it is read slower, all is answered in order, and the others do not feel it."""
    guest = stage.peer()
    count = stage.many(300, 600)
    start = time.monotonic()
    answers = stage.converse(guest, [encode(PING | {"id": number}) for number in range(count)])
    assert [answer["id"] for answer in answers] == [*range(count)]
    # The burst, less what the login took.
    least = (count - 200) / 100
    taken = time.monotonic() - start
    assert taken >= least, f"{taken:.2f} s where {least:g} are due"
    stage.goes_on(guest)


@fault(
    "more broadcasts than the rate, throttled",
    section="10",
    expected="goes on",
    options=THROTTLED,
    growth=4,
    slow=True,
    never={"before": "guests send none"},
)
def broadcasts_throttled(stage: Stage) -> None:
    """--byte-rate 100000:200000: twenty others get what it sends no faster than that."""
    guest = stage.peer()
    count = stage.many(30, 60)
    request = encode({"type": "broadcast", "content": "x" * 10_000})
    start = time.monotonic()
    answers = stage.converse(guest, [request] * count)
    assert {answer["type"] for answer in answers} == {"broadcast_sent"}, answers
    # One that is longer than what is left passes, and the next one waits.
    least = ((count - 1) * len(request) - 200_000) / 100_000
    taken = time.monotonic() - start
    assert taken >= least, f"{taken:.2f} s where {least:g} are due"
    stage.goes_on(guest)


@fault("more than the rate, cut", section="9", expected="rate_limited", seconds=1, options=CUT_OFF)
def rate_limited(stage: Stage) -> None:
    """--rate-policy close: what it may is answered, and then it is told when to come again."""
    guest = stage.peer()
    stage.complete()
    guest.send(*(PING | {"id": number} for number in range(300)))
    answers = stage.ends(guest)
    # The login was one, too; and a little comes in meanwhile.
    assert 199 <= len(answers) < 250, len(answers)
