"""How fast the server lets a client send, and how long it may take to answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tcpjson.conform.verdicts import Skip

#: The least messages and bytes a second that a client can live with: a pong, of 19 bytes at the least, is due
#: within 10 s.
LEAST = (0.1, 1.9)
# By how much a wait is longer than the rate demands, and by how many seconds.
_SLOWER = 1.5
_LATER = 0.1


class Patience:
    """
    How long an answer is waited for, and a check in all.

    Args:
        seconds: for an answer.
        clock: a steady time in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = seconds
        self._clock = clock
        self._end = 0.0
        #: Seconds in which an answer is due.
        self.seconds = seconds

    def now(self) -> float:
        """The steady time."""
        return self._clock()

    def begin(self) -> None:
        """A check begins."""
        self._end = self._clock() + 6 * self._most

    def extend(self, seconds: float) -> None:
        """The check under way has to wait so long."""
        self._end += seconds

    def until(self, seconds: float | None = None) -> float:
        """When something has to be there that is waited for from now on: for so long, or as long as usual."""
        return min(self._clock() + (self.seconds if seconds is None else seconds), self._end)

    @contextmanager
    def all(self) -> Iterator[None]:
        """Wait for each answer as long as at the beginning."""
        seconds, self.seconds = self.seconds, self._most
        try:
            yield
        finally:
            self.seconds = seconds

    def hurry(self, least: float) -> None:
        """It was waited for nothing: wait half as long the next time, `least` seconds or more."""
        self.seconds = max(min(least, self._most), self.seconds / 2)


class Pace:
    """
    How much may be sent over a connection now, by the rates in `welcome`: at once a second's worth.

    Args:
        messages, size: messages and bytes a second; None: any number.
        clock: a steady time in seconds.
    """

    def __init__(
        self, messages: float | None, size: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rates = (messages, size)
        self._clock = clock
        self._left = [rate or 0.0 for rate in self._rates]
        self._at = clock()

    def wait_for(self, messages: int, size: int) -> float:
        """
        Seconds to wait before so many messages and bytes are sent, which are taken as sent.

        Raises:
            Skip: they are more than ever may be sent at once, or the rate is less than `LEAST`.
        """
        now = self._clock()
        passed, self._at = now - self._at, now
        longest = 0.0
        for index, (rate, wanted) in enumerate(zip(self._rates, (messages, size), strict=True)):
            if rate is None:
                continue
            if rate < LEAST[index] or wanted > max(rate, 1):
                what = ("messages", "bytes")[index]
                raise Skip(f"it sends {wanted} {what} at once, and the server takes {rate:g} a second")
            self._left[index] = min(rate, self._left[index] + passed * rate) - wanted
            longest = max(longest, -self._left[index] / rate)
        # The server may see what was sent before later than what is sent now.
        return longest * _SLOWER + _LATER if longest else 0.0


class Counter:
    """Counts the frames in a stream of bytes."""

    def __init__(self) -> None:
        self._prefix = b""
        self._missing = 0

    def feed(self, data: bytes) -> int:
        """How many frames end in bytes that go out."""
        ended = 0
        rest = memoryview(data)
        while rest:
            if self._missing:
                taken = min(self._missing, len(rest))
                self._missing -= taken
                ended += not self._missing
                rest = rest[taken:]
                continue
            taken = 4 - len(self._prefix)
            self._prefix, rest = self._prefix + bytes(rest[:taken]), rest[taken:]
            if len(self._prefix) == 4:
                # Bit 31 says how the payload is written, or that nothing behind it counts any more.
                self._missing = int.from_bytes(self._prefix, "big") & 0x7FFFFFFF
                self._prefix = b""
                ended += not self._missing
        return ended
