"""Whether a peer is still there (docs/protocol.rst, sections 8 and 9)."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from math import inf, nextafter

#: Seconds in which a ping is to be answered.
ANSWER_TIME = 10.0
# Looks in the time of one silence: how much of it is noticed late.
_LOOKS = 4


class Silence:
    """
    How long there has been no sign of life, for one who looks now and then: a sign counts as given when it
    is noticed.

    Args:
        now: the time in seconds, on any steady clock, as everywhere here.
        mark: a value that any sign of life changes.
    """

    __slots__ = ("_since", "mark")

    def __init__(self, now: float, mark: Hashable = None) -> None:
        self._since = now
        #: The mark that was seen last.
        self.mark = mark

    def restart(self, now: float) -> None:
        """Begin to count anew."""
        self._since = now

    def seconds(self, now: float, mark: Hashable) -> float:
        """Seconds since the last sign of life."""
        if mark != self.mark:
            self.mark = mark
            self._since = now
        return now - self._since

    def next_look(self, now: float, limit: float) -> float:
        """When to look again at one that may be silent for `limit` seconds."""
        end = self._since + limit
        if end - self._since < limit:
            # The sum was rounded down: a look then would lead to another at the same time.
            end = nextafter(end, inf)
        return min(end, now + limit / _LOOKS)


class Verdict(Enum):
    """What a look at a heartbeat leads to."""

    ALIVE = "alive"
    #: Silent: send it a ping.
    PING = "ping"
    #: The ping was not answered.
    DEAD = "dead"


class Heartbeat:
    """
    Pings a peer that is silent, and gives it up when it stays silent.

    Args:
        interval: seconds of silence that lead to a ping.
        now: the time.
        received: how many bytes came from the peer.
    """

    __slots__ = ("_answer", "_interval", "_ping", "_silence")

    def __init__(self, interval: float, now: float, received: int) -> None:
        self._interval = interval
        self._silence = Silence(now, received)
        # Since when an answer to a ping is awaited.
        self._answer: Silence | None = None
        # How many bytes the peer must have taken to have begun with the ping.
        self._ping = 0

    def look(self, now: float, received: int, sent: int, taken: int, held: bool) -> Verdict:
        """
        See how the peer is. A ping is to be sent at once.

        Args:
            now: the time.
            received: how many bytes came from it.
            sent: how many bytes it was sent, those that still wait included.
            taken: how many of these it took: a ping that stands behind much else has not reached it yet.
            held: whether it is we who do not read.
        """
        if held:
            self._silence.restart(now)
        silent = self._silence.seconds(now, received)
        if silent < self._interval:
            self._answer = None
            return Verdict.ALIVE
        if self._answer is None:
            self._ping = sent + 1
            # Where nothing stands before it, it is there as soon as it is sent.
            self._answer = Silence(now, self._ping if taken == sent else taken)
            return Verdict.PING
        if self._answer.seconds(now, min(taken, self._ping)) >= ANSWER_TIME:
            return Verdict.DEAD
        return Verdict.ALIVE

    def next_look(self, now: float) -> float:
        """When to look again."""
        if self._answer is not None:
            # A pong is to be noticed as soon as any other sign of life.
            return min(self._answer.next_look(now, ANSWER_TIME), now + self._interval / _LOOKS)
        return self._silence.next_look(now, self._interval)
